//! Asks the kernel how far a TCP connection is: bytes not sent, not acknowledged, and the peer's window.
//!
//! Uses the socket-diagnosis netlink family (sock_diag(7)), because the socket option with the same content cannot be read
//! without `unsafe`. Any process may ask about connections of its own network namespace. Where the kernel lacks the
//! family, [`LinkProbe::query`] yields `None` and pacing falls back to time alone.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::pace::LinkState;

const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Attribute number, and as bit `1 << (n - 1)` what is asked for.
const INET_DIAG_INFO: u16 = 2;

const NETLINK_HEADER_LEN: usize = 16;
const REQUEST_LEN: usize = NETLINK_HEADER_LEN + 56;
const REPLY_FIXED_LEN: usize = NETLINK_HEADER_LEN + 72;
/// Offset of the write queue's length in a reply: header, four bytes, socket id, timer, read queue.
const REPLY_WRITE_QUEUE: usize = NETLINK_HEADER_LEN + 4 + 48 + 4 + 4;
/// Offsets in `struct tcp_info` (linux/tcp.h); fields are only ever appended there.
const INFO_UNSENT: usize = 144;
const INFO_WINDOW: usize = 228;

/// An open diagnosis socket.
#[derive(Debug)]
pub struct LinkProbe {
    socket: Socket,
    sequence: u32,
}

impl LinkProbe {
    /// Opens the socket.
    pub fn open() -> io::Result<Self> {
        let protocol = Protocol::from(NETLINK_SOCK_DIAG);
        let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The state of the connection with these ends. The kernel answers within the call.
    pub fn query(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<LinkState> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = request(local, remote, self.sequence);
        self.socket.write_all(&request).ok()?;
        let mut reply = [0; 1024];
        // An earlier answer may still be there if its reading failed.
        loop {
            let len = self.socket.read(&mut reply).ok()?;
            let reply = reply.get(..len)?;
            if word(reply, 8)? == self.sequence {
                return parse(reply);
            }
        }
    }
}

fn request(local: SocketAddr, remote: SocketAddr, sequence: u32) -> [u8; REQUEST_LEN] {
    // Both ends in the form in which the socket was made: a mapped address belongs to a version 6 socket.
    let is_v4 = local.is_ipv4() && remote.is_ipv4();
    let family = if is_v4 { AF_INET } else { AF_INET6 };
    let mut bytes = [0; REQUEST_LEN];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, &(REQUEST_LEN as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(8, &sequence.to_ne_bytes());
    put(16, &[family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    put(20, &u32::MAX.to_ne_bytes());
    put(24, &local.port().to_be_bytes());
    put(26, &remote.port().to_be_bytes());
    put(28, &address(local.ip(), is_v4));
    put(44, &address(remote.ip(), is_v4));
    // Interface 0 and cookie "any".
    put(64, &[0xff; 8]);
    bytes
}

fn address(addr: IpAddr, is_v4: bool) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) if is_v4 => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => Ipv6Addr::octets(&v6),
    }
}

fn parse(reply: &[u8]) -> Option<LinkState> {
    let message_type = half(reply, 4)?;
    if message_type != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let unacked = word(reply, REPLY_WRITE_QUEUE)?;
    let mut rest = reply.get(REPLY_FIXED_LEN..)?;
    loop {
        let len = usize::from(half(rest, 0)?);
        let attribute = rest.get(4..len)?;
        if half(rest, 2)? == INET_DIAG_INFO {
            let unsent = word(attribute, INFO_UNSENT)?;
            let window = word(attribute, INFO_WINDOW)?;
            return Some(LinkState {
                unacked,
                unsent,
                window,
            });
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
