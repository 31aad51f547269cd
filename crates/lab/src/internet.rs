//! The servers of a lab's internet: HTTP, echo and DNS in one process, as a machine's counterpart that says whom it saw.
//!
//! Each answers in a way that shows an address translation: the HTTP page names the client's address and port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::outside::{SERVER_V4, SERVER_V6};

/// Connections of one server at the same time; more wait.
const CONNECTIONS_MAX: usize = 256;
/// How long a client may keep a connection.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest HTTP request head.
const HEAD_MAX: usize = 8 << 10;
/// Largest body that `/bytes/N` sends.
const BODY_MAX: u64 = 1 << 30;
/// Largest datagram.
const DATAGRAM_MAX: usize = 65_535;

/// Name with both addresses.
pub const NAME: &str = "www.internet.example";
/// Name with an IPv4 address only, for NAT64.
pub const NAME_V4: &str = "ipv4.internet.example";

/// Where to serve.
#[derive(Debug, Clone, Args)]
pub struct InternetArgs {
    /// Addresses to serve on.
    #[arg(long, value_delimiter = ',', default_values_t = [IpAddr::V4(SERVER_V4), IpAddr::V6(SERVER_V6)])]
    address: Vec<IpAddr>,
    /// HTTP port; echo and DNS have their usual ones.
    #[arg(long, default_value_t = 80)]
    http_port: u16,
    /// Name of the server, which its page shows behind the client's address and port.
    #[arg(long, default_value = "internet")]
    name: String,
    /// Neither echo nor DNS.
    #[arg(long)]
    http_only: bool,
}

/// Serves until the process is told to end.
///
/// # Errors
/// A port is taken.
pub async fn serve(args: &InternetArgs) -> Result<()> {
    let mut servers = JoinSet::new();
    for address in &args.address {
        let at = |port| SocketAddr::new(*address, port);
        let tcp = |port| async move {
            TcpListener::bind(at(port))
                .await
                .with_context(|| format!("cannot listen on {}", at(port)))
        };
        let udp = |port| async move {
            UdpSocket::bind(at(port))
                .await
                .with_context(|| format!("cannot listen on {}", at(port)))
        };
        servers.spawn(http(tcp(args.http_port).await?, args.name.clone()));
        if args.http_only {
            continue;
        }
        servers.spawn(echo_streams(tcp(7).await?));
        servers.spawn(datagrams(udp(7).await?, |datagram| Some(datagram.to_vec())));
        servers.spawn(datagrams(udp(53).await?, dns_answer));
    }
    tracing::info!(addresses = ?args.address, "the internet's servers are ready");
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => Ok(()),
        _ = servers.join_next() => anyhow::bail!("a server of the internet ended"),
    }
}

async fn http(listener: TcpListener, name: String) {
    let mut connections = JoinSet::new();
    while let Ok((stream, client)) = listener.accept().await {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        // A client that goes away early is its own affair.
        let name = name.clone();
        connections.spawn(timeout(CONNECTION_TIME_MAX, async move {
            http_answer(stream, client, &name).await
        }));
    }
}

async fn http_answer(stream: TcpStream, client: SocketAddr, name: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_MAX {
            return Ok(());
        }
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split_whitespace().nth(1).unwrap_or("/");
    let bytes = path.strip_prefix("/bytes/").and_then(|n| n.parse().ok());
    let text = format!("{} {} {name}\n", client.ip(), client.port());
    let length = bytes.map_or(text.len() as u64, |bytes: u64| bytes.min(BODY_MAX));
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    if bytes.is_some() {
        tokio::io::copy(&mut tokio::io::repeat(b'.').take(length), &mut stream).await?;
    } else {
        stream.write_all(text.as_bytes()).await?;
    }
    stream.shutdown().await
}

async fn echo_streams(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let (mut from, mut to) = stream.split();
            // A client that goes away early is its own affair.
            let _ = timeout(CONNECTION_TIME_MAX, tokio::io::copy(&mut from, &mut to)).await;
        });
    }
}

async fn datagrams(socket: UdpSocket, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        // An error concerns one earlier answer (unreachable client), not the socket.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if let Some(reply) = buffer.get(..length).and_then(&answer) {
            // Lost like any datagram.
            let _ = socket.send_to(&reply, client).await;
        }
    }
}

/// Answers a DNS query (RFC 1035) for one of the two names; other names do not exist. `None` for what is no query.
fn dns_answer(query: &[u8]) -> Option<Vec<u8>> {
    const HEADER_LEN: usize = 12;
    const TYPE_A: u16 = 1;
    const TYPE_AAAA: u16 = 28;
    let head = query.first_chunk::<HEADER_LEN>()?;
    let [_, _, flags, _, q0, q1, ..] = *head;
    // A query, opcode 0, one question.
    if flags & 0xf8 != 0 || [q0, q1] != [0, 1] {
        return None;
    }
    let mut name = String::new();
    let mut at = HEADER_LEN;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => {
                let label = query.get(at..at + length)?;
                name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
                name.push('.');
                at += length;
            }
            // Compression has no place in a question.
            _ => return None,
        }
    }
    let [t0, t1, ..] = *query.get(at..)?.first_chunk::<4>()?;
    let question = query.get(HEADER_LEN..at + 4)?;
    let name = name.trim_end_matches('.');
    let exists = name == NAME || name == NAME_V4;
    let data: Option<Vec<u8>> = match u16::from_be_bytes([t0, t1]) {
        TYPE_A if exists => Some(SERVER_V4.octets().to_vec()),
        TYPE_AAAA if name == NAME => Some(SERVER_V6.octets().to_vec()),
        _ => None,
    };
    let [id0, id1, ..] = *head;
    let rcode = if exists { 0 } else { 3 };
    // Response, authoritative, the asker's wish for recursion repeated.
    let mut reply = vec![id0, id1, 0x84 | (flags & 1), rcode, 0, 1];
    reply.extend([0, u8::from(data.is_some()), 0, 0, 0, 0]);
    reply.extend_from_slice(question);
    if let Some(data) = data {
        // The question's name, type, class IN, 60 seconds.
        reply.extend([0xc0, HEADER_LEN as u8, t0, t1, 0, 1, 0, 0, 0, 60]);
        reply.extend((data.len() as u16).to_be_bytes());
        reply.extend(data);
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    fn check(name: &str, kind: u8, rcode: u8, data: &[u8]) {
        let query = query(name, kind);
        let reply = dns_answer(&query).expect("an answer");
        assert_eq!(reply[..4], [0xab, 0xcd, 0x85, rcode], "{name} {kind}");
        assert_eq!(reply[7], u8::from(!data.is_empty()), "{name} {kind}");
        assert_eq!(reply[12..query.len()], query[12..], "{name} {kind}");
        assert!(reply.ends_with(data), "{name} {kind}: {reply:x?}");
    }

    #[test]
    fn names_have_their_addresses_and_no_others() {
        check("www.internet.example", 1, 0, &SERVER_V4.octets());
        check("WWW.Internet.example", 28, 0, &SERVER_V6.octets());
        check("ipv4.internet.example", 1, 0, &SERVER_V4.octets());
        check("ipv4.internet.example", 28, 0, &[]);
        check("www.internet.example", 16, 0, &[]);
        check("nobody.example", 1, 3, &[]);
    }

    #[test]
    fn what_is_no_query_is_not_answered() {
        let good = query(NAME, 1);
        for cut in 0..good.len() {
            assert_eq!(dns_answer(&good[..cut]), None, "cut to {cut}");
        }
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(dns_answer(&response), None);
    }
}
