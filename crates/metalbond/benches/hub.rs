//! Measures one server: routes per second, a burst with slow readers, memory and CPU per route, announce-to-event latency.
//!
//! The servers run as child processes, so that their CPU and memory are told apart from the generators'. The numbers R1 to R4
//! are the project's goals for the control plane's routes. Run: `cargo bench -p metalbond --bench hub -- [r1] [r2] [r3] [r4] [-o json]`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measuring program: it prints, and a failure is its end"
)]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metalbond::codec::{self, Action, Capabilities, Hello, Message, Update};
use metalbond::server::{self, Config as ServerConfig};
use metalbond::{Client, Config, Destination, NextHop, Route};

/// Longer than any measurement: the generators send no KEEPALIVE.
const KEEPALIVE_S: u32 = 3600;

/// One measured number.
#[derive(serde::Serialize)]
struct Row {
    goal: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
    must: &'static str,
    wish: &'static str,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--serve") {
        return serve();
    }
    let json = args.windows(2).any(|pair| pair == ["-o", "json"]);
    let chosen = |name: &str| {
        let named = args
            .iter()
            .any(|arg| matches!(arg.as_str(), "r1" | "r2" | "r3" | "r4"));
        !named || args.iter().any(|arg| arg == name)
    };
    let mut rows = Vec::new();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    for (name, run) in [
        ("r3", r3 as fn(&mut Vec<Row>)),
        ("r1", r1),
        ("r2", r2),
        ("r4", r4),
    ] {
        if chosen(name) {
            run(&mut rows);
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&rows).unwrap());
        return;
    }
    println!("load average at start: {}", load.trim());
    for Row {
        goal,
        what,
        value,
        unit,
        must,
        wish,
    } in rows
    {
        let verdict = verdict(value, unit, must, wish);
        println!("{goal:3} {what:58} {value:>10.2} {unit:4} must {must:5} wish {wish:5} {verdict}");
    }
}

/// How a value stands to its goals, which are upper bounds except for rates. Empty for what has no goal.
fn verdict(value: f64, unit: &str, must: &str, wish: &str) -> &'static str {
    let reached = |goal: &str| {
        let goal: f64 = goal.parse().ok()?;
        Some(if unit == "k/s" {
            value >= goal
        } else {
            value <= goal
        })
    };
    match (reached(must), reached(wish)) {
        (Some(false), _) => "MISSED",
        (_, Some(true)) => "wish reached",
        (Some(true), _) => "must reached",
        (None, _) => "",
    }
}

/// The child: a server on an ephemeral port, told on its output, until its input closes.
fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = ServerConfig {
            keepalive_s: KEEPALIVE_S,
            ..ServerConfig::default()
        };
        let server = server::spawn(listener, config).unwrap();
        println!("{}", server.local_addr());
        // Each line asks for the counters.
        loop {
            let (read, mut line) = tokio::task::spawn_blocking(|| {
                let mut line = String::new();
                (
                    std::io::stdin().lock().read_line(&mut line).unwrap_or(0),
                    line,
                )
            })
            .await
            .unwrap();
            if read == 0 {
                return;
            }
            line.clear();
            println!("{} {}", server.routes_len(), server.resets());
        }
    });
}

struct ServerProcess {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    addr: SocketAddr,
}

impl ServerProcess {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        Self {
            child,
            output,
            addr: line.trim().parse().unwrap(),
        }
    }

    /// Routes in the table and connections reset.
    fn counts(&mut self) -> (u64, u64) {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let (routes, resets) = line.trim().split_once(' ').unwrap();
        (routes.parse().unwrap(), resets.parse().unwrap())
    }

    fn wait_for_routes(&mut self, routes: u64) {
        while self.counts().0 < routes {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// User and system time so far, seconds.
    fn cpu_s(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        ticks / 100.0
    }

    fn rss_bytes(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            * 1024.0
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection with a completed handshake.
fn connect(addr: SocketAddr, capabilities: Capabilities) -> TcpStream {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut bytes = Vec::new();
    let hello = Hello {
        keepalive_s: KEEPALIVE_S,
        capabilities,
        ..Hello::default()
    };
    codec::encode(&Message::Hello(hello), &mut bytes);
    codec::encode(&Message::Keepalive, &mut bytes);
    stream.write_all(&bytes).unwrap();
    let mut received = Vec::new();
    let mut seen = 0;
    while seen < 2 {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        received.push(byte[0]);
        if codec::decode(&received).unwrap().is_some() {
            received.clear();
            seen += 1;
        }
    }
    stream
}

fn subscribe(stream: &mut TcpStream, vnis: impl IntoIterator<Item = u32>) {
    let mut bytes = Vec::new();
    for vni in vnis {
        codec::encode(&Message::Subscribe(vni), &mut bytes);
    }
    stream.write_all(&bytes).unwrap();
}

fn route(vni: u32, index: u32) -> Route {
    let destination = Destination::host(Ipv4Addr::from(0x0a00_0000 + index).into());
    let hop =
        std::net::Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(vni) << 32 | u128::from(index));
    Route {
        vni,
        destination,
        next_hop: NextHop::standard(hop),
    }
}

/// Announcements of `count` routes, one per message.
fn announcements(vni: u32, count: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in 0..count {
        let update = Update {
            action: Action::Add,
            route: route(vni, index),
        };
        codec::encode_update(&update, &mut bytes);
    }
    bytes
}

/// Counts whole messages without decoding them, until `count` have come.
fn count_messages(stream: &mut TcpStream, count: u64) {
    let mut buffer = vec![0; 256 * 1024];
    let (mut filled, mut seen) = (0, 0);
    while seen < count {
        let len = stream.read(&mut buffer[filled..]).unwrap();
        assert!(len > 0, "connection closed after {seen} of {count}");
        filled += len;
        let mut at = 0;
        while at + 4 <= filled {
            let next = at + 4 + usize::from(u16::from_be_bytes([buffer[at + 1], buffer[at + 2]]));
            if next > filled {
                break;
            }
            seen += 1;
            at = next;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
}

/// R1: one announcer, 20 subscribers of one VNI, as fast as it goes.
fn r1(rows: &mut Vec<Row>) {
    const ROUTES: u32 = 500_000;
    for subscribers in [1, 20] {
        let server = ServerProcess::start();
        let readers: Vec<_> = (0..subscribers)
            .map(|_| {
                let mut stream = connect(server.addr, Capabilities::STREAM);
                subscribe(&mut stream, [1]);
                std::thread::spawn(move || count_messages(&mut stream, u64::from(ROUTES)))
            })
            .collect();
        let bytes = announcements(1, ROUTES);
        let mut announcer = connect(server.addr, Capabilities::STREAM);
        let (cpu, start) = (server.cpu_s(), Instant::now());
        announcer.write_all(&bytes).unwrap();
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
        let rate = f64::from(ROUTES) / start.elapsed().as_secs_f64();
        let cpu_us = (server.cpu_s() - cpu) * 1e6 / f64::from(ROUTES);
        rows.push(Row {
            goal: "R1",
            what: format!("routes through, one per message, {subscribers} subscribers"),
            value: rate / 1e3,
            unit: "k/s",
            must: "420",
            wish: "700",
        });
        rows.push(Row {
            goal: "R1",
            what: format!("server CPU per route sent to {subscribers} subscribers"),
            value: cpu_us,
            unit: "us",
            must: "-",
            wish: "-",
        });
    }
}

/// How a reader of R2 behaves.
#[derive(Clone, Copy, PartialEq)]
enum Pace {
    Fast,
    /// 16 KiB every 50 ms.
    Slow,
    /// Does not reassemble: each read must hold whole messages only. Has no capabilities.
    Plain,
}

/// Reads until exactly the wanted number of routes is known; returns how often something else came than it should.
fn collect(stream: &mut TcpStream, pace: Pace, wanted: usize, got: &AtomicU64) {
    let mut known: HashSet<(u32, u32)> = HashSet::new();
    let mut pending = Vec::new();
    let mut buffer = vec![0; 65_535];
    while known.len() < wanted {
        let most = if pace == Pace::Slow {
            16 * 1024
        } else {
            buffer.len()
        };
        let len = stream.read(&mut buffer[..most]).unwrap();
        assert!(
            len > 0 && (len < 65_535 || pace == Pace::Fast),
            "closed or overrun"
        );
        pending.extend_from_slice(&buffer[..len]);
        let mut at = 0;
        while let Some((message, len)) = codec::decode(&pending[at..]).unwrap() {
            at += len;
            if let Message::Update(update) = message {
                assert_eq!(update.action, Action::Add);
                let std::net::IpAddr::V4(addr) = update.route.destination.addr() else {
                    panic!()
                };
                if known.insert((update.route.vni, addr.to_bits())) {
                    got.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        pending.drain(..at);
        assert!(
            pace != Pace::Plain || pending.is_empty(),
            "a message was split"
        );
        if pace == Pace::Slow {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// R2: 200 peers announce 5,000 routes each into a VNI of their own, all at once. Each subscribes to ten others' VNIs; 20 of
/// them read slowly, 10 are plain peers without reassembly (one VNI each), one more peer takes all 200 VNIs.
fn r2(rows: &mut Vec<Row>) {
    const PEERS: u32 = 200;
    const EACH: u32 = 5000;
    let mut server = ServerProcess::start();
    let got = Arc::new(AtomicU64::new(0));
    let mut readers = Vec::new();
    let mut writers = Vec::new();
    let mut wanted = 0;
    let start_cpu = server.cpu_s();
    for peer in 0..PEERS {
        let (pace, vnis) = match peer % 20 {
            0 | 1 => (Pace::Slow, 10),
            2 => (Pace::Plain, 1),
            _ => (Pace::Fast, 10),
        };
        let capabilities = if pace == Pace::Plain {
            Capabilities::default()
        } else {
            Capabilities::STREAM
        };
        let mut stream = connect(server.addr, capabilities);
        subscribe(
            &mut stream,
            (1..=vnis).map(|offset| (peer + offset) % PEERS),
        );
        writers.push((stream.try_clone().unwrap(), announcements(peer, EACH)));
        let (got, expected) = (Arc::clone(&got), (vnis * EACH) as usize);
        wanted += expected as u64;
        readers.push(std::thread::spawn(move || {
            collect(&mut stream, pace, expected, &got);
            stream
        }));
    }
    let mut all = connect(server.addr, Capabilities::STREAM);
    subscribe(&mut all, 0..PEERS);
    wanted += u64::from(PEERS * EACH);
    let total = Arc::clone(&got);
    readers.push(std::thread::spawn(move || {
        collect(&mut all, Pace::Fast, (PEERS * EACH) as usize, &total);
        all
    }));
    let start = Instant::now();
    let writers: Vec<_> = writers
        .into_iter()
        .map(|(mut stream, bytes)| std::thread::spawn(move || stream.write_all(&bytes).unwrap()))
        .collect();
    writers
        .into_iter()
        .for_each(|writer| writer.join().unwrap());
    server.wait_for_routes(u64::from(PEERS * EACH));
    let taken = start.elapsed().as_secs_f64();
    // Whoever is done stays connected: its routes would be withdrawn, and the others still read.
    let streams: Vec<TcpStream> = readers
        .into_iter()
        .map(|reader| reader.join().unwrap())
        .collect();
    let delivered = start.elapsed().as_secs_f64();
    let (_, resets) = server.counts();
    let row = |what: &str, value: f64, unit, must, wish| Row {
        goal: "R2",
        what: what.to_owned(),
        value,
        unit,
        must,
        wish,
    };
    rows.push(row(
        "connections reset, 201 peers, 1,000,000 routes",
        resets as f64,
        "",
        "0",
        "0",
    ));
    let lost = wanted - got.load(Ordering::Relaxed);
    rows.push(row("updates lost", lost as f64, "", "0", "0"));
    rows.push(row("updates delivered", wanted as f64 / 1e6, "M", "-", "-"));
    rows.push(row(
        "time until the server has taken all",
        taken,
        "s",
        "-",
        "-",
    ));
    rows.push(row(
        "time until the slowest reader has all",
        delivered,
        "s",
        "-",
        "-",
    ));
    rows.push(row("server CPU", server.cpu_s() - start_cpu, "s", "-", "-"));
    rows.push(row(
        "server memory afterwards",
        server.rss_bytes() / 1e6,
        "MB",
        "-",
        "-",
    ));
    drop(streams);
}

/// R3: memory and CPU per route, in one VNI and in 200, and again after a restart's worth of repetition.
fn r3(rows: &mut Vec<Row>) {
    const ROUTES: u32 = 1_000_000;
    for vnis in [1, 200] {
        let mut server = ServerProcess::start();
        let mut announcer = connect(server.addr, Capabilities::STREAM);
        let bytes: Vec<Vec<u8>> = (0..vnis)
            .map(|vni| announcements(vni, ROUTES / vnis))
            .collect();
        let (rss, cpu) = (server.rss_bytes(), server.cpu_s());
        for bytes in &bytes {
            announcer.write_all(bytes).unwrap();
        }
        server.wait_for_routes(u64::from(ROUTES));
        let per_route = (server.rss_bytes() - rss) / f64::from(ROUTES);
        let cpu_us = (server.cpu_s() - cpu) * 1e6 / f64::from(ROUTES);
        rows.push(Row {
            goal: "R3",
            what: format!("memory per route, 1,000,000 routes in {vnis} VNIs"),
            value: per_route,
            unit: "B",
            must: "200",
            wish: "120",
        });
        rows.push(Row {
            goal: "R3",
            what: format!("server CPU per route taken, {vnis} VNIs"),
            value: cpu_us,
            unit: "us",
            must: "2",
            wish: "1",
        });
    }
}

/// R4: from the call that announces to the event at another client, through two servers.
fn r4(rows: &mut Vec<Row>) {
    const ROUTES: u32 = 5000;
    let servers = [ServerProcess::start(), ServerProcess::start()];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut latencies = runtime.block_on(async {
        let peers: Vec<String> = servers
            .iter()
            .map(|server| server.addr.to_string())
            .collect();
        let config = || Config {
            peers: peers.clone(),
            ..Config::default()
        };
        let (announcer, _events) = Client::start(config());
        let (watcher, mut events) = Client::start(config());
        watcher.subscribe(1);
        while !announcer
            .peers()
            .iter()
            .chain(&watcher.peers())
            .all(|peer| peer.established)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut latencies = Vec::new();
        for index in 0..ROUTES {
            let Route {
                vni,
                destination,
                next_hop,
            } = route(1, index);
            let start = Instant::now();
            announcer.announce(vni, destination, next_hop);
            events.recv().await.expect("the client lives");
            latencies.push(start.elapsed().as_secs_f64() * 1e3);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        latencies
    });
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    for (what, value, must, wish) in [
        ("announce to event, p50", at(0.5), "-", "-"),
        ("announce to event, p99", at(0.99), "3", "1"),
        ("announce to event, max", at(1.0), "-", "-"),
    ] {
        rows.push(Row {
            goal: "R4",
            what: what.to_owned(),
            value,
            unit: "ms",
            must,
            wish,
        });
    }
}
