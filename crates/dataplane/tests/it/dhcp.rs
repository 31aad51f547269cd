//! DHCPv4 and DHCPv6 responders, against golden bytes.

use crate::bed::*;
use crate::build;
use core::net::IpAddr;
use dataplane::{DropReason, EngineConfig, Pxe, Verdict};
use net::Mac;

const XID: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];

/// A BOOTP request with message type and further options (with their end).
pub fn message(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 1, 6, 3];
    bytes.extend(XID);
    bytes.extend([0, 9, 0x80, 0]); // seconds, broadcast flag
    bytes.extend([10, 1, 2, 3]); // client address
    bytes.extend([0; 12]);
    bytes.extend(GUEST_MAC.0);
    bytes.resize(44, 0x77); // rest of the hardware address field
    bytes.resize(236, 0x55); // server and file name, to be cleared
    bytes.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind]);
    bytes.extend(options);
    bytes
}

fn request(kind: u8, options: &[u8]) -> Vec<u8> {
    from_guest(&build::udp(
        ("0.0.0.0", 68),
        ("255.255.255.255", 67),
        &message(kind, options),
    ))
}

fn host() -> EngineConfig {
    let mut config = config();
    config.dhcp.mtu = 1337;
    config.dhcp.dns_ipv4 = vec![v4("8.8.4.4"), v4("8.8.8.8")];
    config.dhcp.dns_ipv6 = vec![v6("2001:4860:4860::6464"), v6("2001:4860:4860::64")];
    config
}

const SIX_FIRST: [u8; 43] = [
    53, 1, 2, // offer
    51, 4, 0xff, 0xff, 0xff, 0xff, // for ever
    54, 4, 169, 254, 0, 1, // server
    121, 12, 16, 169, 254, 0, 0, 0, 0, 0, 169, 254, 0, 1, // classless routes
    1, 4, 255, 255, 255, 255, // mask
    26, 2, 0x05, 0x39, // MTU 1337
    6, 8, 8, 8, // name servers, cut
];

/// The whole answer, spelled out.
fn answer(server: [u8; 4], file: &[u8], options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 1, 6, 3];
    bytes.extend(XID);
    bytes.extend([0, 9, 0x80, 0, 10, 1, 2, 3, 10, 100, 1, 1]);
    bytes.extend(server);
    bytes.extend([169, 254, 0, 1]);
    bytes.extend(GUEST_MAC.0);
    bytes.resize(108, 0);
    bytes.extend(file);
    bytes.resize(236, 0);
    bytes.extend([0x63, 0x82, 0x53, 0x63]);
    bytes.extend(options);
    bytes
}

fn frame(bed: &Bed, to: Mac, address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut ip = build::udp(("169.254.0.1", 67), (address, 68), bytes);
    // The builder's identification and lifetime are its own.
    ip[4..6].copy_from_slice(&[0, 0]);
    ip[8] = 64;
    ip[10..12].copy_from_slice(&[0, 0]);
    let sum = net::checksum::checksum(&ip[..20]).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    build::ethernet(to, bed.port_mac(VM1), 0x0800, &ip)
}

#[test]
fn discover_and_request() {
    let mut bed = Bed::empty(host());
    let mut vm = spec("vm1", VM1, V100, "10.100.1.1", "");
    vm.hostname = Some("tester".to_owned());
    bed.attach(vm);
    let mut options = SIX_FIRST[..39].to_vec();
    options.extend([6, 8, 8, 8, 4, 4, 8, 8, 8, 8, 12, 6]);
    options.extend(b"tester");
    options.push(255);
    let offer = answer([169, 254, 0, 1], b"", &options);
    let reply = frame(&bed, GUEST_MAC, "10.100.1.1", &offer);
    bed.check(
        VM1,
        &request(1, &[255]),
        Verdict::Reply(VM1),
        &reply,
        &[("dhcp", 1)],
    );
    assert_eq!(
        bed.engine.machine_mac(VM1),
        Some(bed.port_mac(VM1)),
        "DISCOVER teaches nothing"
    );
    options[2] = 5;
    let ack = answer([169, 254, 0, 1], b"", &options);
    let reply = frame(&bed, GUEST_MAC, "10.100.1.1", &ack);
    // Whatever address is asked for; PAD bytes are skipped; an end is not required.
    let asking = [0, 0, 50, 4, 1, 2, 3, 4, 0];
    bed.check(
        VM1,
        &request(3, &asking),
        Verdict::Reply(VM1),
        &reply,
        &[("dhcp", 1)],
    );
    assert_eq!(
        bed.engine.machine_mac(VM1),
        Some(GUEST_MAC),
        "REQUEST teaches the address"
    );
    // Renewal goes to the gateway itself.
    let unicast = build::udp(("10.100.1.1", 68), ("169.254.0.1", 67), &message(3, &[255]));
    bed.check(
        VM1,
        &from_guest(&unicast),
        Verdict::Reply(VM1),
        &reply,
        &[("dhcp", 1)],
    );
}

#[test]
fn network_boot_is_decided_by_each_request() {
    let mut bed = Bed::empty(host());
    let mut vm = spec("vm1", VM1, V100, "10.100.1.1", "");
    let pxe = Pxe {
        next_server: IpAddr::V4(v4("192.0.2.10")),
        boot_filename: "/boot.ipxe".to_owned(),
    };
    vm.pxe = Some(pxe);
    bed.attach(vm);
    let class = [&[60, 32][..], b"PXEClient:Arch:00007:UNDI:003001"].concat();
    let ipxe = [77, 4, b'i', b'P', b'X', b'E'];
    let mut options = SIX_FIRST[..39].to_vec();
    options.extend([3, 4, 169, 254, 0, 1, 6, 8, 8, 8, 4, 4, 8, 8, 8, 8, 255]);
    let tftp = answer([192, 0, 2, 10], b"ipxe/x86_64/ipxe.new", &options);
    let http = answer([192, 0, 2, 10], b"http://192.0.2.10/boot.ipxe", &options);
    for (extra, bytes) in [
        (class.clone(), &tftp),
        (ipxe.to_vec(), &http),
        ([&class[..], &ipxe].concat(), &http),
        ([&ipxe[..], &class].concat(), &tftp),
    ] {
        let reply = frame(&bed, Mac::BROADCAST, "255.255.255.255", bytes);
        bed.check(
            VM1,
            &request(1, &extra),
            Verdict::Reply(VM1),
            &reply,
            &[("dhcp", 1)],
        );
    }
    // The next plain request gets a plain answer.
    let mut options = SIX_FIRST[..39].to_vec();
    options.extend([6, 8, 8, 8, 4, 4, 8, 8, 8, 8, 255]);
    let plain = answer([169, 254, 0, 1], b"", &options);
    let reply = frame(&bed, GUEST_MAC, "10.100.1.1", &plain);
    let almost = [77, 5, b'i', b'P', b'X', b'E', b'2', 255];
    bed.check(
        VM1,
        &request(1, &almost),
        Verdict::Reply(VM1),
        &reply,
        &[("dhcp", 1)],
    );
}

#[test]
fn other_dhcp_messages() {
    let mut bed = Bed::empty(host());
    bed.attach(spec("vm1", VM1, V100, "10.100.1.1", ""));
    for kind in [2, 4, 5, 6, 7, 8, 99] {
        bed.check_drop(
            VM1,
            &request(kind, &[255]),
            DropReason::DhcpIgnored,
            &[("dhcp", 1)],
        );
    }
    for options in [&[12, 9, 1][..], &[12], &[255, 1, 2, 3][..0]] {
        let frame = request(1, options);
        if options.is_empty() {
            assert_eq!(bed.send(VM1, &frame).0, Verdict::Reply(VM1));
        } else {
            bed.check_drop(VM1, &frame, DropReason::DhcpMalformed, &[("dhcp", 1)]);
        }
    }
    let mut wrong_magic = message(1, &[255]);
    wrong_magic[236] = 0;
    let mut no_type = message(1, &[255]);
    no_type[240..243].fill(0);
    let mut reply = message(1, &[255]);
    reply[0] = 2;
    for (bytes, reason) in [
        (wrong_magic, DropReason::DhcpMalformed),
        (no_type, DropReason::DhcpMalformed),
        (reply, DropReason::DhcpIgnored),
    ] {
        let frame = from_guest(&build::udp(
            ("0.0.0.0", 68),
            ("255.255.255.255", 67),
            &bytes,
        ));
        bed.check_drop(VM1, &frame, reason, &[("dhcp", 1)]);
    }
}

// ---- DHCPv6 --------------------------------------------------------------------------------------------------------------------

const CLIENT_ID: [u8; 14] = [0, 1, 0, 10, 0, 3, 0, 1, 0x52, 0x54, 0, 0, 0, 1];
const IA_NA: [u8; 16] = [0, 3, 0, 12, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0];
const RAPID_COMMIT: [u8; 4] = [0, 14, 0, 0];

fn request6(kind: u8, options: &[&[u8]]) -> Vec<u8> {
    let body = [&[kind, 0xab, 0xcd, 0xef][..], &options.concat()].concat();
    from_guest(&build::udp(
        ("fe80::5054:ff:fe00:1", 546),
        ("ff02::1:2", 547),
        &body,
    ))
}

fn reply6(bed: &Bed, port: dataplane::PortId, kind: u8, options: &[&[u8]]) -> Vec<u8> {
    let body = [&[kind, 0xab, 0xcd, 0xef][..], &options.concat()].concat();
    let mut ip = build::udp(("fe80::1", 547), ("fe80::5054:ff:fe00:1", 546), &body);
    ip[7] = 64;
    build::ethernet(GUEST_MAC, bed.port_mac(port), 0x86dd, &ip)
}

/// Server identifier: link-layer type, hardware type Ethernet, address of the first uplink.
const SERVER_ID: [u8; 14] = [0, 2, 0, 10, 0, 3, 0, 1, 0x22, 0x22, 0x22, 0x22, 0x22, 0];

fn address_option() -> Vec<u8> {
    let mut option = vec![0, 3, 0, 46, 1, 2, 3, 4];
    option.extend([0xff; 8]);
    option.extend([0, 5, 0, 30]);
    option.extend(v6("2000:100:1::1").octets());
    option.extend([0xff; 8]);
    option.extend([0, 13, 0, 2, 0, 0]);
    option
}

fn dns_option() -> Vec<u8> {
    let mut option = vec![0, 23, 0, 32];
    option.extend(v6("2001:4860:4860::6464").octets());
    option.extend(v6("2001:4860:4860::64").octets());
    option
}

#[test]
fn dhcpv6_exchange() {
    let mut bed = Bed::with(host());
    let (address, dns) = (address_option(), dns_option());
    let full: [&[u8]; 4] = [&SERVER_ID, &CLIENT_ID, &address, &dns];
    // SOLICIT, REQUEST, RENEW, REBIND, RELEASE.
    for (kind, answer) in [(1, 2), (3, 7), (5, 7), (6, 7), (8, 7)] {
        let reply = reply6(&bed, VM1, answer, &full);
        let frame = request6(kind, &[&CLIENT_ID, &IA_NA]);
        bed.check(VM1, &frame, Verdict::Reply(VM1), &reply, &[("dhcpv6", 1)]);
    }
    // A rapid commit at the very end of the message is seen, and echoed.
    let rapid: [&[u8]; 5] = [&SERVER_ID, &CLIENT_ID, &address, &RAPID_COMMIT, &dns];
    let reply = reply6(&bed, VM1, 2, &rapid);
    let frame = request6(1, &[&CLIENT_ID, &IA_NA, &RAPID_COMMIT]);
    bed.check(VM1, &frame, Verdict::Reply(VM1), &reply, &[("dhcpv6", 1)]);
    // CONFIRM: no option at all.
    let reply = reply6(&bed, VM1, 7, &[]);
    bed.check(
        VM1,
        &request6(4, &[&CLIENT_ID, &IA_NA]),
        Verdict::Reply(VM1),
        &reply,
        &[("dhcpv6", 1)],
    );
    // Without client identifier and address request; a second IA_NA is not answered.
    let reply = reply6(&bed, VM1, 7, &[&SERVER_ID, &dns]);
    bed.check(
        VM1,
        &request6(3, &[]),
        Verdict::Reply(VM1),
        &reply,
        &[("dhcpv6", 1)],
    );
    let second = [0, 3, 0, 12, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0];
    let reply = reply6(&bed, VM1, 7, &[&SERVER_ID, &address, &dns]);
    bed.check(
        VM1,
        &request6(3, &[&IA_NA, &second]),
        Verdict::Reply(VM1),
        &reply,
        &[("dhcpv6", 1)],
    );
}

#[test]
fn dhcpv6_without_name_servers_still_names_the_option() {
    let mut bed = Bed::new();
    let reply = reply6(&bed, VM1, 7, &[&SERVER_ID, &[0, 23, 0, 0]]);
    bed.check(
        VM1,
        &request6(3, &[]),
        Verdict::Reply(VM1),
        &reply,
        &[("dhcpv6", 1)],
    );
}

#[test]
fn dhcpv6_network_boot() {
    let mut bed = Bed::empty(host());
    let mut vm = spec("vm1", VM1, V100, "", "2000:100:1::1");
    vm.pxe = Some(Pxe {
        next_server: IpAddr::V6(v6("2001:dede::1")),
        boot_filename: "ipxe".to_owned(),
    });
    bed.attach(vm);
    let class = [
        &[0, 16, 0, 26, 0, 0, 1, 0x57, 0, 20][..],
        b"PXEClient:Arch:00007",
    ]
    .concat();
    let ipxe = [0, 15, 0, 6, 0, 4, b'i', b'P', b'X', b'E'];
    let url = |text: &str| [&[0, 59, 0, text.len() as u8][..], text.as_bytes()].concat();
    for (extra, text) in [
        (&class[..], "tftp://[2001:dede::1]/ipxe/x86_64/ipxe.new"),
        (&ipxe, "http://[2001:dede::1]/ipxe"),
    ] {
        let reply = reply6(&bed, VM1, 7, &[&SERVER_ID, &dns_option(), &url(text)]);
        bed.check(
            VM1,
            &request6(3, &[extra]),
            Verdict::Reply(VM1),
            &reply,
            &[("dhcpv6", 1)],
        );
    }
}

#[test]
fn dhcpv6_without_address() {
    let mut bed = Bed::empty(host());
    bed.attach(spec("vm1", VM1, V100, "10.100.1.1", ""));
    let reply = reply6(&bed, VM1, 7, &[&[0, 13, 0, 2, 0, 2]]);
    for kind in [1, 3] {
        let frame = request6(kind, &[&CLIENT_ID, &IA_NA]);
        bed.check(VM1, &frame, Verdict::Reply(VM1), &reply, &[("dhcpv6", 1)]);
    }
    for kind in [4, 5, 8] {
        bed.check_drop(
            VM1,
            &request6(kind, &[]),
            DropReason::DhcpNoAddress,
            &[("dhcpv6", 1)],
        );
    }
}

#[test]
fn dhcpv6_refusals() {
    let mut bed = Bed::with(host());
    for kind in [2, 7, 9, 10, 11, 12, 13, 200] {
        bed.check_drop(
            VM1,
            &request6(kind, &[]),
            DropReason::DhcpIgnored,
            &[("dhcpv6", 1)],
        );
    }
    let long_id = [&[0, 1, 0, 129][..], &[7; 129]].concat();
    for options in [
        &long_id[..],
        &[0, 3, 0, 11],
        &[0, 14, 0, 1, 0],
        &[0, 1, 0],
        &[0, 1, 0, 9, 1],
        &[0, 3, 0, 4, 1, 2, 3, 4],
    ] {
        bed.check_drop(
            VM1,
            &request6(1, &[options]),
            DropReason::DhcpMalformed,
            &[("dhcpv6", 1)],
        );
    }
    // Options that a careless decoder would underflow on.
    for options in [
        &[0, 16, 0, 1, 0][..],
        &[0, 13, 0, 0],
        &[0, 17, 0, 2, 0, 0],
        &[0, 15, 0, 1, 0],
    ] {
        assert_eq!(
            bed.send(VM1, &request6(1, &[options])).0,
            Verdict::Reply(VM1)
        );
    }
}
