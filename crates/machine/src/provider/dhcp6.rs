//! A DHCPv6 client (RFC 8415) for machines: [`Client`] is the pure state machine, [`configure`] runs it on a socket inside
//! the machine's namespace.
//!
//! Why our own: the clients that Debian packages wait a random second before the first message (RFC 8415 §18.2.1, meant
//! for a whole site booting at once) and another one for further servers. On this link there is exactly one client and one
//! server, so the client asks at once and takes the first answer. Leases of the region are infinite: there is no renewal.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use dhcproto::v6::{DhcpOption, IAAddr, IANA, Message, MessageType, ORO, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _, Encoder};
use socket2::{Domain, Protocol, Socket, Type};

use super::netns;

/// All DHCP relay agents and servers (RFC 8415 §7.1).
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const CLIENT_PORT: u16 = 546;
const SERVER_PORT: u16 = 547;
/// Largest message that is read.
const MESSAGE_MAX: usize = 1500;
/// First wait for an answer; doubled up to [`ANSWER_MAX`]. RFC 8415 §7.6 begins with a second, for links with contention.
const ANSWER_MIN: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long the kernel may need for the link-local address, and the router for its advertisement.
const ROUTER_WAIT: Duration = Duration::from_millis(800);
/// How often kernel tables are looked at while waiting for them.
const TABLE_POLL: Duration = Duration::from_millis(2);

/// What to do after a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to all servers.
    Send(Vec<u8>),
    /// The address is ours.
    Bound(Ipv6Addr),
    /// The server has no address for us; asking again may help after it was configured.
    Refused,
    /// Not for us.
    Ignore,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Soliciting,
    Requesting { server: Vec<u8>, address: Ipv6Addr },
}

/// One exchange: Solicit, Advertise, Request, Reply.
#[derive(Clone, Debug)]
pub struct Client {
    xid: [u8; 3],
    duid: Vec<u8>,
    iaid: u32,
    state: State,
}

impl Client {
    /// `machine` is the client's identity (DUID-UUID, RFC 6355), `iaid` tells its interfaces apart.
    pub fn new(machine: uuid::Uuid, iaid: u32, xid: [u8; 3]) -> Client {
        let mut duid = vec![0, 4];
        duid.extend_from_slice(machine.as_bytes());
        Client {
            xid,
            duid,
            iaid,
            state: State::Soliciting,
        }
    }

    /// The message that is sent now, and again when no answer comes.
    pub fn message(&self) -> Vec<u8> {
        let (kind, server, address) = match &self.state {
            State::Soliciting => (MessageType::Solicit, None, None),
            State::Requesting { server, address } => {
                (MessageType::Request, Some(server), Some(*address))
            }
        };
        let mut message = Message::new_with_id(kind, self.xid);
        let options = message.opts_mut();
        options.insert(DhcpOption::ClientId(self.duid.clone()));
        if let Some(server) = server {
            options.insert(DhcpOption::ServerId(server.clone()));
        }
        options.insert(DhcpOption::ElapsedTime(0));
        options.insert(DhcpOption::ORO(ORO {
            opts: vec![OptionCode::DomainNameServers],
        }));
        let mut association = IANA {
            id: self.iaid,
            t1: 0,
            t2: 0,
            opts: Default::default(),
        };
        if let Some(addr) = address {
            let wish = IAAddr {
                addr,
                preferred_life: 0,
                valid_life: 0,
                opts: Default::default(),
            };
            association.opts.insert(DhcpOption::IAAddr(wish));
        }
        options.insert(DhcpOption::IANA(association));
        let mut bytes = Vec::new();
        // Encoding fails only for options longer than 64 KiB, which none of these is.
        if message.encode(&mut Encoder::new(&mut bytes)).is_err() {
            bytes.clear();
        }
        bytes
    }

    /// Reads an answer.
    pub fn receive(&mut self, bytes: &[u8]) -> Action {
        let Ok(message) = Message::decode(&mut Decoder::new(bytes)) else {
            return Action::Ignore;
        };
        if message.xid() != self.xid || client_id(&message) != Some(&self.duid) {
            return Action::Ignore;
        }
        let address = address(&message, self.iaid);
        match (&self.state, message.msg_type()) {
            (State::Soliciting, MessageType::Advertise) => {
                let (Some(server), Some(address)) = (server_id(&message), address) else {
                    return Action::Refused;
                };
                self.state = State::Requesting {
                    server: server.clone(),
                    address,
                };
                Action::Send(self.message())
            }
            (State::Requesting { .. }, MessageType::Reply) => {
                address.map_or(Action::Refused, Action::Bound)
            }
            // A server without an address answers a Solicit with a Reply that says so.
            (State::Soliciting, MessageType::Reply) => Action::Refused,
            _ => Action::Ignore,
        }
    }
}

fn client_id(message: &Message) -> Option<&Vec<u8>> {
    match message.opts().get(OptionCode::ClientId) {
        Some(DhcpOption::ClientId(id)) => Some(id),
        _ => None,
    }
}

fn server_id(message: &Message) -> Option<&Vec<u8>> {
    match message.opts().get(OptionCode::ServerId) {
        Some(DhcpOption::ServerId(id)) => Some(id),
        _ => None,
    }
}

fn address(message: &Message, iaid: u32) -> Option<Ipv6Addr> {
    let Some(DhcpOption::IANA(association)) = message.opts().get(OptionCode::IANA) else {
        return None;
    };
    let Some(DhcpOption::IAAddr(address)) = association.opts.get(OptionCode::IAAddr) else {
        return None;
    };
    (association.id == iaid && address.valid_life > 0).then_some(address.addr)
}

/// Configures `device` of `netns`: address /128 by DHCPv6, default route by the router's advertisement. Never gives up:
/// the caller drops it when the device goes.
pub async fn configure(netns: &str, device: &str, slot: u32, machine_id: &str) {
    let machine = uuid::Uuid::try_parse(machine_id).unwrap_or_default();
    let mut pause = ANSWER_MIN;
    loop {
        let lease = in_namespace(netns, {
            let device = device.to_owned();
            move |cancelled: &Receiver<()>| acquire(&device, machine, slot, cancelled)
        });
        match lease.await {
            Ok(Some(lease)) => match install(netns, device, slot, &lease).await {
                Ok(()) => return,
                Err(error) => tracing::info!(netns, device, err = %error, "IPv6 address not set"),
            },
            Ok(None) => tracing::info!(netns, device, "no DHCPv6 lease yet"),
            Err(error) => tracing::info!(netns, device, err = %error, "DHCPv6 does not work yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(ANSWER_MAX);
    }
}

struct Lease {
    address: Ipv6Addr,
    server: Ipv6Addr,
}

/// Runs `work` in the namespace; its receiver is disconnected when the returned future is dropped.
async fn in_namespace<T: Send + 'static>(
    netns: &str,
    work: impl FnOnce(&Receiver<()>) -> io::Result<T> + Send + 'static,
) -> Result<T, netns::NetError> {
    let (_alive, cancelled) = std::sync::mpsc::channel();
    let result = netns::enter(netns, move || work(&cancelled)).await?;
    result.map_err(|source| netns::NetError::Io {
        what: format!("in namespace {netns}"),
        source,
    })
}

async fn install(
    netns: &str,
    device: &str,
    slot: u32,
    lease: &Lease,
) -> Result<(), netns::NetError> {
    let address = lease.address;
    netns::batch(
        Some(netns),
        &[format!("addr replace {address}/128 dev {device} nodad")],
    )
    .await?;
    let routed = in_namespace(netns, {
        let device = device.to_owned();
        move |cancelled: &Receiver<()>| {
            wait_for(ROUTER_WAIT, cancelled, || has_default_route(&device))
        }
    });
    if routed.await? {
        return Ok(());
    }
    // The advertisement was lost; the next one comes within a minute. Until then the server of the lease, which is the
    // router itself on this link, stands in, at a metric that an advertised route (1024) beats.
    tracing::info!(netns, device, "no router advertisement yet");
    let line = format!(
        "route replace default via {} dev {device} metric {}",
        lease.server,
        2048 + slot
    );
    netns::batch(Some(netns), &[line]).await
}

/// Looks until `found` or the time is over. `Err` when nobody waits any more.
fn wait_for(
    patience: Duration,
    cancelled: &Receiver<()>,
    found: impl Fn() -> io::Result<bool>,
) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        if found()? {
            return Ok(true);
        }
        if start.elapsed() > patience {
            return Ok(false);
        }
        alive(cancelled, TABLE_POLL)?;
    }
}

fn alive(cancelled: &Receiver<()>, wait: Duration) -> io::Result<()> {
    match cancelled.recv_timeout(wait) {
        Ok(()) | Err(RecvTimeoutError::Timeout) => Ok(()),
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::from(io::ErrorKind::Interrupted)),
    }
}

/// Link-local address and index of a device, from the kernel's table of this thread's namespace.
fn link_local(device: &str) -> io::Result<Option<(Ipv6Addr, u32)>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/if_inet6")?;
    Ok(table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, index, _, _, _, name] = words.as_slice() else {
            return None;
        };
        let address = Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?);
        let index = u32::from_str_radix(index, 16).ok()?;
        (*name == device && address.is_unicast_link_local()).then_some((address, index))
    }))
}

fn has_default_route(device: &str) -> io::Result<bool> {
    let table = std::fs::read_to_string("/proc/thread-self/net/ipv6_route")?;
    Ok(table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, _, _, gateway, .., name] = words.as_slice() else {
            return false;
        };
        let zero = |word: &str| word.bytes().all(|b| b == b'0');
        zero(destination) && *length == "00" && !zero(gateway) && *name == device
    }))
}

/// The exchange, on a thread inside the namespace. `None` when the server does not give an address.
fn acquire(
    device: &str,
    machine: uuid::Uuid,
    iaid: u32,
    cancelled: &Receiver<()>,
) -> io::Result<Option<Lease>> {
    if !wait_for(ROUTER_WAIT, cancelled, || Ok(link_local(device)?.is_some()))? {
        return Err(io::Error::other("no link-local address"));
    }
    let Some((own, index)) = link_local(device)? else {
        return Err(io::Error::other("link-local address vanished"));
    };
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind(&SocketAddrV6::new(own, CLIENT_PORT, 0, index).into())?;
    let socket: std::net::UdpSocket = socket.into();
    let servers = SocketAddrV6::new(SERVERS, SERVER_PORT, 0, index);

    let [a, b, c, ..] = *uuid::Uuid::new_v4().as_bytes();
    let mut client = Client::new(machine, iaid, [a, b, c]);
    socket.send_to(&client.message(), servers)?;
    let (start, mut wait) = (Instant::now(), ANSWER_MIN);
    let mut buffer = [0; MESSAGE_MAX];
    while start.elapsed() < ANSWER_MAX {
        alive(cancelled, Duration::ZERO)?;
        socket.set_read_timeout(Some(wait))?;
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => match client.receive(buffer.get(..len).unwrap_or_default()) {
                Action::Send(bytes) => drop(socket.send_to(&bytes, servers)?),
                Action::Bound(address) => {
                    let std::net::SocketAddr::V6(from) = from else {
                        return Ok(None);
                    };
                    return Ok(Some(Lease {
                        address,
                        server: *from.ip(),
                    }));
                }
                Action::Refused => return Ok(None),
                Action::Ignore => {}
            },
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                socket.send_to(&client.message(), servers)?;
                wait = (wait * 2).min(ANSWER_MAX);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
