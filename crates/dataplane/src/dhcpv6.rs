//! DHCPv6 responder (node `dhcpv6`, RFC 8415): every machine gets its one address, for ever.
//!
//! Options are written by `dhcproto`. They are read by a walk of our own, because that library's DHCPv6 decoder subtracts
//! unchecked lengths and sorts options, while here any byte may come from a hostile machine and the order has a meaning.

use crate::GATEWAY_IPV6;
use crate::config::Interface;
use crate::counters::Node;
use crate::dhcp::{Boot, IPXE_CLASS, IPXE_IMAGE, PXE_CLASS, contains};
use crate::graph::Context;
use crate::packet::Packet;
use crate::reply::join;
use crate::tables::{Port, Tables};
use crate::verdict::{DropReason, Verdict};
use core::net::{IpAddr, Ipv6Addr};
use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, MessageType, OptionCode, Status, StatusCode,
    UnknownOption,
};
use dhcproto::{Encodable, Encoder};
use net::{Ethernet, Ipv6, Mac, Udp, checksum, ethernet, ipv6, protocol};

/// UDP port of clients.
const CLIENT: u16 = 546;
/// Longest client identifier (RFC 8415 §11.1: 128 bytes without its type).
const CLIENT_ID_MAX: usize = 128;
/// Longest boot file URL.
const BOOT_URL_MAX: usize = 96;
/// Lifetimes and renewal times.
const INFINITE: u32 = u32::MAX;

/// What a message asks for.
#[derive(Clone, Copy, Debug)]
struct Request<'a> {
    kind: MessageType,
    transaction: [u8; 3],
    client_id: Option<&'a [u8]>,
    /// Identifier of the first IA_NA.
    association: Option<u32>,
    rapid_commit: bool,
    boot: Boot,
}

/// Answers the messages of a client that wants an address.
pub(crate) fn process(
    cx: &mut Context<'_>,
    packet: &mut dyn Packet,
) -> Result<Verdict, DropReason> {
    cx.counters.count(Node::Dhcpv6);
    let port = cx.tables.port(cx.machine).ok_or(DropReason::Bug)?;
    let interface = &port.interface.as_ref().ok_or(DropReason::Bug)?.interface;
    let frame = Ethernet::new_checked(packet.frame()).map_err(|_| DropReason::Runt)?;
    let ip = Ipv6::new_checked(frame.payload()).map_err(|_| DropReason::Ipv6Malformed)?;
    let Ok(net::ipv6::Upper::Transport {
        protocol: protocol::UDP,
        bytes,
        ..
    }) = ip.upper()
    else {
        return Err(DropReason::Bug);
    };
    let udp = Udp::new_checked(bytes).map_err(|_| DropReason::L4Malformed)?;
    let request = read(udp.payload())?;
    let (kind, options) = answer(cx.tables, port, interface, &request)?;
    let mut body = vec![u8::from(kind)];
    body.extend_from_slice(&request.transaction);
    let mut options_bytes = Vec::new();
    let mut encoder = Encoder::new(&mut options_bytes);
    for option in &options {
        option
            .encode(&mut encoder)
            .map_err(|_| DropReason::DhcpTooLong)?;
    }
    body.extend_from_slice(&options_bytes);
    let (client, destination) = (frame.source(), ip.source());
    emit(packet, port.mac, client, destination, &body)?;
    Ok(Verdict::Reply(cx.machine))
}

fn answer(
    tables: &Tables,
    port: &Port,
    interface: &Interface,
    request: &Request<'_>,
) -> Result<(MessageType, Vec<DhcpOption>), DropReason> {
    use MessageType as M;
    let Some(own) = interface.spec.ipv6 else {
        return match request.kind {
            M::Solicit | M::Request => {
                let status = StatusCode {
                    status: Status::NoAddrsAvail,
                    msg: String::new(),
                };
                Ok((M::Reply, vec![DhcpOption::StatusCode(status)]))
            }
            _ => Err(DropReason::DhcpNoAddress),
        };
    };
    let kind = match request.kind {
        M::Solicit => M::Advertise,
        M::Request | M::Renew | M::Rebind | M::Release => M::Reply,
        M::Confirm => return Ok((M::Reply, Vec::new())),
        _ => return Err(DropReason::DhcpIgnored),
    };
    Ok((kind, options(tables, port, interface, own, request)))
}

/// The options, in the order that clients of the reference implementation see.
fn options(
    tables: &Tables,
    port: &Port,
    interface: &Interface,
    own: Ipv6Addr,
    request: &Request<'_>,
) -> Vec<DhcpOption> {
    let mut list = vec![DhcpOption::ServerId(server_id(tables, port))];
    if let Some(client_id) = request.client_id {
        list.push(DhcpOption::ClientId(client_id.to_vec()));
    }
    if let Some(id) = request.association {
        let mut status = DhcpOptions::new();
        status.insert(DhcpOption::StatusCode(StatusCode {
            status: Status::Success,
            msg: String::new(),
        }));
        let mut addresses = DhcpOptions::new();
        addresses.insert(DhcpOption::IAAddr(IAAddr {
            addr: own,
            preferred_life: INFINITE,
            valid_life: INFINITE,
            opts: status,
        }));
        list.push(DhcpOption::IANA(IANA {
            id,
            t1: INFINITE,
            t2: INFINITE,
            opts: addresses,
        }));
    }
    if request.rapid_commit {
        list.push(DhcpOption::RapidCommit);
    }
    list.push(DhcpOption::DomainNameServers(
        tables.settings.dhcp.dns_ipv6.clone(),
    ));
    if let Some(url) = boot_url(interface, request.boot) {
        let option = UnknownOption::new(OptionCode::OptBootfileUrl, url.into_bytes());
        list.push(DhcpOption::Unknown(option));
    }
    list
}

fn boot_url(interface: &Interface, boot: Boot) -> Option<String> {
    let pxe = interface.spec.pxe.as_ref()?;
    let IpAddr::V6(server) = pxe.next_server else {
        return None;
    };
    let url = match boot {
        Boot::None => return None,
        Boot::Tftp => format!("tftp://[{server}]/{IPXE_IMAGE}"),
        Boot::Http => format!("http://[{server}]/{}", pxe.boot_filename),
    };
    (url.len() <= BOOT_URL_MAX).then_some(url)
}

/// DUID of type link-layer (RFC 8415 §11.4) from the hardware address of the first uplink, so that all machines of a host see
/// one server, before and after a restart.
fn server_id(tables: &Tables, port: &Port) -> Vec<u8> {
    let mac = tables
        .uplinks
        .iter()
        .flatten()
        .next()
        .map_or(port.mac, |uplink| uplink.mac);
    let mut duid = vec![0, 3, 0, 1];
    duid.extend_from_slice(&mac.0);
    duid
}

fn read(message: &[u8]) -> Result<Request<'_>, DropReason> {
    let ([kind, a, b, c], mut rest) = message
        .split_first_chunk()
        .ok_or(DropReason::DhcpMalformed)?;
    let mut request = Request {
        kind: MessageType::from(*kind),
        transaction: [*a, *b, *c],
        client_id: None,
        association: None,
        rapid_commit: false,
        boot: Boot::None,
    };
    // Relayed messages have another layout, and machines have no business relaying.
    if matches!(
        request.kind,
        MessageType::RelayForw | MessageType::RelayRepl
    ) {
        return Err(DropReason::DhcpIgnored);
    }
    while let [c0, c1, l0, l1, tail @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        let (data, tail) = tail
            .split_at_checked(length)
            .ok_or(DropReason::DhcpMalformed)?;
        read_option(&mut request, u16::from_be_bytes([*c0, *c1]), data)?;
        rest = tail;
    }
    if rest.is_empty() {
        Ok(request)
    } else {
        Err(DropReason::DhcpMalformed)
    }
}

fn read_option<'a>(request: &mut Request<'a>, code: u16, data: &'a [u8]) -> Result<(), DropReason> {
    match OptionCode::from(code) {
        OptionCode::ClientId if data.len() > CLIENT_ID_MAX => {
            return Err(DropReason::DhcpMalformed);
        }
        OptionCode::ClientId => request.client_id = Some(data),
        OptionCode::IANA => {
            // Identifier, T1, T2.
            let [i0, i1, i2, i3, ..] =
                *data.first_chunk::<12>().ok_or(DropReason::DhcpMalformed)?;
            request
                .association
                .get_or_insert(u32::from_be_bytes([i0, i1, i2, i3]));
        }
        OptionCode::RapidCommit if !data.is_empty() => return Err(DropReason::DhcpMalformed),
        OptionCode::RapidCommit => request.rapid_commit = true,
        OptionCode::VendorClass if contains(data, PXE_CLASS) => request.boot = Boot::Tftp,
        OptionCode::UserClass if first_item(data) == Some(IPXE_CLASS) => request.boot = Boot::Http,
        _ => {}
    }
    Ok(())
}

/// The first of a list of items with two-byte lengths.
fn first_item(data: &[u8]) -> Option<&[u8]> {
    let (length, rest) = data.split_first_chunk()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

fn emit(
    packet: &mut dyn Packet,
    from: Mac,
    to: Mac,
    destination: Ipv6Addr,
    body: &[u8],
) -> Result<(), DropReason> {
    let length =
        u16::try_from(net::udp::HEADER_LEN + body.len()).map_err(|_| DropReason::DhcpTooLong)?;
    packet.clear();
    if !packet.resize(ethernet::HEADER_LEN + ipv6::HEADER_LEN + usize::from(length)) {
        return Err(DropReason::DhcpTooLong);
    }
    let header = ipv6::Header {
        payload_len: length,
        next_header: protocol::UDP,
        hop_limit: 64,
        source: GATEWAY_IPV6,
        destination,
    };
    let [s0, s1] = crate::cls::DHCPV6_SERVER.to_be_bytes();
    let [d0, d1] = CLIENT.to_be_bytes();
    let [l0, l1] = length.to_be_bytes();
    let pseudo = checksum::pseudo_v6(GATEWAY_IPV6, destination, protocol::UDP, u32::from(length));
    let sum = checksum::sum(pseudo, &[s0, s1, d0, d1, l0, l1]);
    let [c0, c1] = checksum::udp(checksum::sum(sum, body)).to_be_bytes();
    let link = ethernet::header(to, from, ethernet::TYPE_IPV6);
    let udp = [s0, s1, d0, d1, l0, l1, c0, c1];
    join(packet.frame_mut(), &[&link, &header.emit(), &udp, body]);
    Ok(())
}
