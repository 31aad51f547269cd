//! DHCPv4 responder (node `dhcp`, RFC 2131): every machine gets its one address, for ever.
//!
//! Requests are not validated against an earlier offer: there is exactly one possible answer per interface. The message is
//! parsed and options are coded by `dhcproto`; the fixed part is edited as bytes, since the answer keeps most of the request.

use crate::GATEWAY_IPV4;
use crate::config::Interface;
use crate::counters::Node;
use crate::graph::Context;
use crate::packet::Packet;
use crate::reply::join;
use crate::tables::Settings;
use crate::verdict::{DropReason, Verdict};
use core::net::{IpAddr, Ipv4Addr};
use dhcproto::v4::borrowed;
use dhcproto::v4::{DhcpOption, MessageType, Opcode, OptionCode};
use dhcproto::{Encodable, Encoder};
use net::{Ethernet, Ipv4, Mac, Udp, checksum, ethernet, ipv4, protocol};

/// UDP port of clients.
const CLIENT: u16 = 68;
/// Length of the fixed part with the magic cookie.
const FIXED_LEN: usize = 240;
/// First bytes of the options (RFC 2131 §3).
const MAGIC: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// Largest IP packet of an answer.
const PACKET_MAX: usize = 1500;
/// Part of the vendor class of an x86-64 UEFI network boot (RFC 4578 §2.1).
pub(crate) const PXE_CLASS: &[u8] = b"PXEClient:Arch:00007";
/// User class of iPXE.
pub(crate) const IPXE_CLASS: &[u8] = b"iPXE";
/// What firmware loads by TFTP before it becomes iPXE.
pub(crate) const IPXE_IMAGE: &str = "ipxe/x86_64/ipxe.new";

/// Which boot stage asks, if any. Decided for each request by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boot {
    None,
    Tftp,
    Http,
}

/// Answers DISCOVER with OFFER and REQUEST with ACK.
pub(crate) fn process(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
) -> Result<Verdict, DropReason> {
    cx.counters.count(Node::Dhcp);
    let port = cx.tables.port(cx.machine).ok_or(DropReason::Bug)?;
    let attached = port.interface.as_ref().ok_or(DropReason::Bug)?;
    let interface = &attached.interface;
    let own = interface.spec.ipv4.ok_or(DropReason::DhcpNoAddress)?;
    let frame = Ethernet::new_checked(packet.frame()).map_err(|_| DropReason::Runt)?;
    let ip = Ipv4::new_checked(frame.payload()).map_err(|_| DropReason::Ipv4Malformed)?;
    let udp = Udp::new_checked(ip.payload()).map_err(|_| DropReason::L4Malformed)?;
    let client = frame.source();
    let (answer, boot) = match read(udp.payload())? {
        (MessageType::Discover, boot) => (MessageType::Offer, boot),
        (MessageType::Request, boot) => {
            if !client.is_group() {
                port.learned.learn(client);
            }
            (MessageType::Ack, boot)
        }
        _ => return Err(DropReason::DhcpIgnored),
    };
    let (boot, server) = match interface.spec.pxe.as_ref().map(|pxe| pxe.next_server) {
        Some(IpAddr::V4(server)) if boot != Boot::None => (boot, server),
        _ => (Boot::None, GATEWAY_IPV4),
    };
    let fixed = udp
        .payload()
        .first_chunk()
        .ok_or(DropReason::DhcpMalformed)?;
    let fixed = edit_fixed(
        *fixed,
        client,
        own,
        server,
        &boot_file(interface, boot, server),
    );
    let options = options(answer, boot, interface, &cx.tables.settings)?;
    let to = match boot {
        Boot::None => (client, own),
        Boot::Tftp | Boot::Http => (Mac::BROADCAST, Ipv4Addr::BROADCAST),
    };
    emit(packet, port.mac, to, &fixed, &options)?;
    Ok(Verdict::Reply(cx.machine))
}

/// Message type and boot stage of a request.
fn read(payload: &[u8]) -> Result<(MessageType, Boot), DropReason> {
    let (fixed, area) = payload
        .split_first_chunk::<FIXED_LEN>()
        .ok_or(DropReason::DhcpMalformed)?;
    if fixed.last_chunk() != Some(&MAGIC) || !is_option_area(area) {
        return Err(DropReason::DhcpMalformed);
    }
    let message = borrowed::Message::new(payload).map_err(|_| DropReason::DhcpMalformed)?;
    if message.opcode() != Opcode::BootRequest {
        return Err(DropReason::DhcpIgnored);
    }
    let (mut kind, mut boot) = (None, Boot::None);
    for option in message.opts() {
        match option.code() {
            OptionCode::MessageType => kind = option.data().first().copied().map(MessageType::from),
            OptionCode::ClassIdentifier if contains(option.data(), PXE_CLASS) => boot = Boot::Tftp,
            OptionCode::UserClass if option.data() == IPXE_CLASS => boot = Boot::Http,
            _ => {}
        }
    }
    Ok((kind.ok_or(DropReason::DhcpMalformed)?, boot))
}

/// Whether options can be walked to the end (RFC 2132 §2). The iterator of the library just stops where it cannot.
fn is_option_area(mut rest: &[u8]) -> bool {
    loop {
        match rest {
            [] | [255, ..] => return true,
            [0, tail @ ..] => rest = tail,
            [_] => return false,
            [_, length, tail @ ..] => match tail.get(usize::from(*length)..) {
                Some(tail) => rest = tail,
                None => return false,
            },
        }
    }
}

pub(crate) fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn boot_file(interface: &Interface, boot: Boot, server: Ipv4Addr) -> String {
    let filename = interface
        .spec
        .pxe
        .as_ref()
        .map_or("", |pxe| pxe.boot_filename.as_str());
    match boot {
        Boot::None => String::new(),
        Boot::Tftp => IPXE_IMAGE.to_owned(),
        Boot::Http => format!("http://{server}{filename}"),
    }
}

/// Turns the fixed part of a request into that of its answer. Hardware type and length, hops, transaction id, seconds, flags and
/// client address stay.
fn edit_fixed(
    mut fixed: [u8; FIXED_LEN],
    client: Mac,
    own: Ipv4Addr,
    server: Ipv4Addr,
    file: &str,
) -> [u8; FIXED_LEN] {
    const REPLY: u8 = 2;
    fixed[0] = REPLY;
    let (_, addresses) = fixed.split_at_mut(16);
    let (addresses, rest) = addresses.split_at_mut(12);
    join(
        addresses,
        &[&own.octets(), &server.octets(), &GATEWAY_IPV4.octets()],
    );
    let (names, _) = rest.split_at_mut(208);
    let (hardware, names) = names.split_at_mut(16);
    hardware.fill(0);
    join(hardware, &[&client.0]);
    names.fill(0);
    let (_, file_area) = names.split_at_mut(64);
    // The last byte stays zero: the name is a terminated string.
    join(
        file_area,
        &[file.as_bytes().get(..127).unwrap_or(file.as_bytes())],
    );
    fixed
}

/// The options, in the order that clients of the reference implementation see.
fn options(
    answer: MessageType,
    boot: Boot,
    interface: &Interface,
    settings: &Settings,
) -> Result<Vec<u8>, DropReason> {
    let dhcp = &settings.dhcp;
    // 169.254/16 is on the link, everything else behind the gateway (RFC 3442).
    let mut routes = vec![16, 169, 254, 0, 0, 0, 0, 0, 169, 254, 0, 1];
    if !settings.virtual_services.is_empty() {
        // Addresses of virtual services are customarily in 169.254.1/24. Nobody on the link answers for them.
        routes.extend([24, 169, 254, 1, 169, 254, 0, 1]);
    }
    let mut list = vec![
        DhcpOption::MessageType(answer),
        DhcpOption::AddressLeaseTime(u32::MAX),
        DhcpOption::ServerIdentifier(GATEWAY_IPV4),
        DhcpOption::Unknown(dhcproto::v4::UnknownOption::new(
            OptionCode::ClasslessStaticRoute,
            routes,
        )),
        DhcpOption::SubnetMask(Ipv4Addr::BROADCAST),
        DhcpOption::InterfaceMtu(dhcp.mtu),
    ];
    if boot != Boot::None {
        // Boot firmware does not know classless routes.
        list.push(DhcpOption::Router(vec![GATEWAY_IPV4]));
    }
    if !dhcp.dns_ipv4.is_empty() {
        list.push(DhcpOption::DomainNameServer(dhcp.dns_ipv4.clone()));
    }
    if let Some(hostname) = &interface.spec.hostname {
        list.push(DhcpOption::Hostname(hostname.clone()));
    }
    list.push(DhcpOption::End);
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes);
    for option in &list {
        option
            .encode(&mut encoder)
            .map_err(|_| DropReason::DhcpTooLong)?;
    }
    Ok(bytes)
}

fn emit(
    packet: &mut dyn Packet,
    from: Mac,
    (to, destination): (Mac, Ipv4Addr),
    fixed: &[u8; FIXED_LEN],
    options: &[u8],
) -> Result<(), DropReason> {
    let udp_len = net::udp::HEADER_LEN + FIXED_LEN + options.len();
    let packet_len = ipv4::HEADER_LEN + udp_len;
    packet.clear();
    if packet_len > PACKET_MAX || !packet.resize(ethernet::HEADER_LEN + packet_len) {
        return Err(DropReason::DhcpTooLong);
    }
    let length = udp_len as u16;
    let header = ipv4::Header {
        payload_len: length,
        ttl: 64,
        protocol: protocol::UDP,
        source: GATEWAY_IPV4,
        destination,
    };
    let [s0, s1] = crate::cls::DHCP_SERVER.to_be_bytes();
    let [d0, d1] = CLIENT.to_be_bytes();
    let [l0, l1] = length.to_be_bytes();
    let pseudo = checksum::pseudo_v4(GATEWAY_IPV4, destination, protocol::UDP, length);
    let sum = [&[s0, s1, d0, d1, l0, l1][..], fixed];
    let sum = sum
        .iter()
        .fold(pseudo, |sum, part| checksum::sum(sum, part));
    let [c0, c1] = checksum::udp(checksum::sum(sum, options)).to_be_bytes();
    let link = ethernet::header(to, from, ethernet::TYPE_IPV4);
    let udp = [s0, s1, d0, d1, l0, l1, c0, c1];
    join(
        packet.frame_mut(),
        &[&link, &header.emit(), &udp, fixed, options],
    );
    Ok(())
}
