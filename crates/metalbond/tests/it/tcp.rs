//! Over real TCP on ephemeral ports: redundancy, restarts, slow and hostile peers, and peers that do not reassemble.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use metalbond::client::redial::{PAUSE_MAX, PAUSE_MIN, Redial};
use metalbond::codec::{self, Action, Hello, Message, Update};
use metalbond::server::{self, Config as ServerConfig, Server};
use metalbond::{Client, Config, Route, RouteEvent};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::support::{add, encoded, hex, hop, messages, numbered, route};

/// Far beyond what anything here takes, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn start_server() -> (Server, SocketAddr) {
    start_server_at("127.0.0.1:0", ServerConfig::default()).await
}

async fn start_server_at(address: &str, config: ServerConfig) -> (Server, SocketAddr) {
    let listener = TcpListener::bind(address).await.unwrap();
    let server = server::spawn(listener, config).unwrap();
    let address = server.local_addr();
    (server, address)
}

fn start_client(servers: &[SocketAddr]) -> (Client, mpsc::Receiver<RouteEvent>) {
    start_client_with(servers, Config::default())
}

fn start_client_with(
    servers: &[SocketAddr],
    config: Config,
) -> (Client, mpsc::Receiver<RouteEvent>) {
    Client::start(Config {
        peers: servers.iter().map(SocketAddr::to_string).collect(),
        ..config
    })
}

/// Waits until a condition holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn event(events: &mut mpsc::Receiver<RouteEvent>) -> RouteEvent {
    timeout(PATIENCE, events.recv())
        .await
        .expect("an event in time")
        .expect("client lives")
}

fn added(route: Route) -> RouteEvent {
    let Route {
        vni,
        destination,
        next_hop,
    } = route;
    RouteEvent::Added {
        vni,
        destination,
        next_hop,
    }
}

fn removed(route: Route) -> RouteEvent {
    let Route {
        vni,
        destination,
        next_hop,
    } = route;
    RouteEvent::Removed {
        vni,
        destination,
        next_hop,
    }
}

fn announce(client: &Client, route: Route) {
    client.announce(route.vni, route.destination, route.next_hop);
}

fn withdraw(client: &Client, route: Route) {
    client.withdraw(route.vni, route.destination, route.next_hop);
}

#[tokio::test]
async fn a_route_goes_only_with_its_last_server() {
    let (first, first_addr) = start_server().await;
    let (second, second_addr) = start_server().await;
    let servers = [first_addr, second_addr];
    let hold = Config {
        hold_time: Duration::from_millis(300),
        ..Config::default()
    };
    let (announcer, _events) = start_client(&servers);
    let (watcher, mut events) = start_client_with(&servers, hold);
    watcher.subscribe(1);
    let stays = route(1, "10.0.0.1/32", hop(1));
    announce(&announcer, stays);
    assert_eq!(event(&mut events).await, added(stays));
    until("both servers know it", || {
        first.contains(&stays) && second.contains(&stays)
    })
    .await;

    first.shutdown().await;
    until("the loss is noticed", || !watcher.peers()[0].established).await;
    // Announcing works with one server down, and news still arrive.
    let news = route(1, "10.0.0.2/32", hop(1));
    announce(&announcer, news);
    assert_eq!(event(&mut events).await, added(news));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(
        events.try_recv().is_err(),
        "nothing is withdrawn while one server supplies it"
    );

    // The first comes back empty and is told everything again: no event.
    let (first, _) = start_server_at(&first_addr.to_string(), ServerConfig::default()).await;
    until("the first is told again", || {
        first.contains(&stays) && first.contains(&news)
    })
    .await;
    until("the watcher is back", || watcher.peers()[0].established).await;
    second.shutdown().await;
    until("the loss is noticed", || !watcher.peers()[1].established).await;
    withdraw(&announcer, stays);
    assert_eq!(event(&mut events).await, removed(stays));

    // The last one takes the rest along, after the hold time.
    first.shutdown().await;
    assert_eq!(event(&mut events).await, removed(news));
}

#[tokio::test]
async fn a_server_that_is_down_at_the_start_is_in_nobodys_way() {
    let (_first, first_addr) = start_server().await;
    let absent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let absent_addr = absent.local_addr().unwrap();
    drop(absent);
    let servers = [absent_addr, first_addr];
    let (announcer, _events) = start_client(&servers);
    let (watcher, mut events) = start_client(&servers);
    watcher.subscribe(1);
    let early = route(1, "10.0.0.1/32", hop(1));
    announce(&announcer, early);
    assert_eq!(event(&mut events).await, added(early));
    // It is told everything when it comes.
    let (late, _) = start_server_at(&absent_addr.to_string(), ServerConfig::default()).await;
    until("it is told", || late.contains(&early)).await;
    until("the watcher is there", || watcher.peers()[0].established).await;
}

#[tokio::test]
async fn a_restarted_server_withdraws_nothing() {
    let (server, addr) = start_server().await;
    let (announcer, _events) = start_client(&[addr]);
    let (watcher, mut events) = start_client(&[addr]);
    watcher.subscribe(1);
    let routes: Vec<Route> = (0..200).map(|index| numbered(1, index)).collect();
    for route in &routes {
        announce(&announcer, *route);
    }
    let mut heard = BTreeSet::new();
    while heard.len() < routes.len() {
        let RouteEvent::Added {
            vni,
            destination,
            next_hop,
        } = event(&mut events).await
        else {
            panic!("nothing was withdrawn")
        };
        heard.insert(Route {
            vni,
            destination,
            next_hop,
        });
    }
    server.shutdown().await;
    until("the loss is noticed", || !watcher.peers()[0].established).await;
    let (server, _) = start_server_at(&addr.to_string(), ServerConfig::default()).await;
    until("all is announced again", || {
        server.routes_len() == routes.len()
    })
    .await;
    until("the watcher is back", || watcher.peers()[0].established).await;
    withdraw(&announcer, routes[0]);
    assert_eq!(
        event(&mut events).await,
        removed(routes[0]),
        "the first event since"
    );
}

#[tokio::test]
async fn a_restarted_named_client_withdraws_nothing() {
    let (server, addr) = start_server().await;
    let named = || Config {
        node: "host-1".to_owned(),
        ..Config::default()
    };
    let (announcer, announcer_events) = start_client_with(&[addr], named());
    let (unnamed, unnamed_events) = start_client(&[addr]);
    let (watcher, mut events) = start_client(&[addr]);
    watcher.subscribe(1);
    let (kept, gone) = (
        route(1, "10.0.0.1/32", hop(1)),
        route(1, "10.0.0.2/32", hop(2)),
    );
    announce(&announcer, kept);
    assert_eq!(event(&mut events).await, added(kept));
    announce(&unnamed, gone);
    assert_eq!(event(&mut events).await, added(gone));
    drop((announcer, announcer_events));
    drop((unnamed, unnamed_events));
    assert_eq!(event(&mut events).await, removed(gone));
    let (announcer, _announcer_events) = start_client_with(&[addr], named());
    announcer.subscribe(1);
    until("the node is back", || server.established_len() == 2).await;
    announce(&announcer, kept);
    until("it is announced again", || server.counters().repeated == 1).await;
    withdraw(&announcer, kept);
    assert_eq!(
        event(&mut events).await,
        removed(kept),
        "the first event since"
    );
}

#[tokio::test]
async fn unsubscribing_withdraws_and_resubscribing_restores() {
    let (_server, addr) = start_server().await;
    let (announcer, _events) = start_client(&[addr]);
    let (watcher, mut events) = start_client(&[addr]);
    watcher.subscribe(1);
    let first = route(1, "10.0.0.1/32", hop(1));
    announce(&announcer, first);
    assert_eq!(event(&mut events).await, added(first));
    watcher.unsubscribe(1);
    assert_eq!(event(&mut events).await, removed(first));
    assert!(!watcher.is_subscribed(1) && watcher.routes().is_empty());
    watcher.subscribe(1);
    assert_eq!(event(&mut events).await, added(first));
    // An identical route of its own is withheld, and shown again once it no longer is its own.
    announce(&watcher, first);
    assert_eq!(event(&mut events).await, removed(first));
    withdraw(&watcher, first);
    assert_eq!(event(&mut events).await, added(first));
}

/// A peer written against the protocol only.
struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    async fn connect(addr: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(addr).await.unwrap(),
            buffer: Vec::new(),
        }
    }

    /// Connects and completes the handshake with a long interval.
    async fn establish(addr: SocketAddr) -> Self {
        let mut raw = Self::connect(addr).await;
        raw.send(&hex("01 0003 01 08d804 01 0000 02")).await;
        assert!(matches!(raw.next().await, Some(Message::Hello(_))));
        assert_eq!(raw.next().await, Some(Message::Keepalive));
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next message, `None` at the connection's end.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((message, len)) = codec::decode(&self.buffer).unwrap() {
                self.buffer.drain(..len);
                return Some(message);
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer));
            match read.await.expect("bytes in time") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

#[tokio::test]
async fn speaks_the_plain_protocol_to_a_plain_peer() {
    let (server, addr) = start_server().await;
    let mut raw = Raw::connect(addr).await;
    raw.send(&hex("01 0002 01 0803")).await;
    let mut answer = [0; 8];
    raw.stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer.to_vec(), hex("01 0004 01 08031001"));
    raw.send(&hex("01 0000 02 01 0001 03 08")[..4]).await;
    assert_eq!(raw.next().await, Some(Message::Keepalive));
    raw.send(&hex("01 0003 03 08c801")).await;
    let mut other = Raw::establish(addr).await;
    let vector =
        hex("01 0021 05 10c801 1a08 1204 0a001700 1818 2212 0a10 20010db8000000000000000000000001");
    other.send(&vector).await;
    let mut reflected = vec![0; vector.len()];
    raw.stream.read_exact(&mut reflected).await.unwrap();
    assert_eq!(reflected, vector);
    // The end of its announcer, which gave no name, is the end of the route.
    drop(other);
    let Some(Message::Update(update)) = raw.next().await else {
        panic!()
    };
    assert_eq!(update.action, Action::Remove);
    until("nothing is left", || server.routes_len() == 0).await;
}

#[tokio::test]
async fn garbage_hurts_nobody_else() {
    let (server, addr) = start_server().await;
    let (announcer, _events) = start_client(&[addr]);
    let (watcher, mut events) = start_client(&[addr]);
    watcher.subscribe(1);
    // The single messages that stop the reference, and a subscription twice.
    let update_without_hop = "01 0002 01 0805 01 0000 02 01 000c 05 1001 1a08 1204 0a000000 1818";
    for bytes in [
        "01000001",
        update_without_hop,
        "01ffff05",
        "01 0002 01 0805 01 0000 63",
    ] {
        let mut raw = Raw::connect(addr).await;
        raw.send(&hex(bytes)).await;
        while raw.next().await.is_some() {}
    }
    let mut twice = Raw::establish(addr).await;
    twice
        .send(&hex("01 0002 03 0801 01 0002 03 0801 01 0002 03 0801"))
        .await;
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..50 {
        let mut raw = Raw::connect(addr).await;
        let mut bytes: Vec<u8> = (0..rng.random_range(1..3000))
            .map(|_| rng.random())
            .collect();
        if rng.random() {
            bytes.splice(0..0, hex("01 0002 01 0805 01 0000 02 01 0002 03 0801"));
        }
        let _ = raw.stream.write_all(&bytes).await;
    }
    let good = route(1, "10.0.0.1/32", hop(1));
    announce(&announcer, good);
    loop {
        if event(&mut events).await == added(good) {
            break;
        }
    }
    loop {
        let message = twice.next().await.expect("still connected");
        if message == add(good) {
            break;
        }
    }
    assert!(server.resets() >= 4);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_counted() {
    let config = ServerConfig {
        connections_max: 2,
        ..ServerConfig::default()
    };
    let (server, addr) = start_server_at("127.0.0.1:0", config).await;
    let first = Raw::establish(addr).await;
    let mut second = Raw::establish(addr).await;
    let mut third = Raw::connect(addr).await;
    assert_eq!(third.next().await, None, "closed without a word");
    assert_eq!((server.refused(), server.established_len()), (1, 2));
    second.send(&hex("01 0000 02")).await;
    // The place of one that left is free again.
    drop(first);
    until("the place is free", || server.established_len() == 1).await;
    let mut next = loop {
        let mut next = Raw::connect(addr).await;
        // The server may still be busy with the end of the connection that left.
        if next
            .stream
            .write_all(&hex("01 0003 01 08d804 01 0000 02"))
            .await
            .is_ok()
            && next.next().await.is_some()
        {
            break next;
        }
    };
    assert_eq!(next.next().await, Some(Message::Keepalive));
}

/// Set in the process that has few file descriptors.
const FEW_FILES: &str = "METALBOND_TEST_FEW_FILES";

/// Without file descriptors nothing can be accepted. They are counted per process, so this test runs itself in one of its own.
#[tokio::test]
async fn a_failing_accept_is_tried_again() {
    if std::env::var_os(FEW_FILES).is_none() {
        let child = std::process::Command::new("sh")
            .args(["-c", r#"ulimit -n 64; exec "$0" "$@""#])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "tcp::a_failing_accept_is_tried_again"])
            .env(FEW_FILES, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return;
    }
    let (server, addr) = start_server().await;
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    // The only descriptor that is free goes to our end.
    files.pop();
    let mut raw = Raw::connect(addr).await;
    until("accepting fails", || server.accept_failures() > 0).await;
    files.clear();
    raw.send(&hex("01 0003 01 08d804 01 0000 02")).await;
    assert!(matches!(raw.next().await, Some(Message::Hello(_))));
    assert_eq!(raw.next().await, Some(Message::Keepalive));
}

#[test]
fn a_fleet_dials_again_at_different_times_and_ever_more_slowly() {
    // As many clients as draws, all of which lose their server in one moment.
    let mut fleet = [(); 100].map(|()| Redial::default());
    let mut longest = PAUSE_MIN;
    for _ in 0..10 {
        let draw = |index: usize| index as f64 / 100.0;
        let pauses = fleet.iter_mut().enumerate();
        let pauses: Vec<Duration> = pauses.map(|(i, redial)| redial.pause(draw(i))).collect();
        for pair in pauses.windows(2) {
            let apart = pair[1] - pair[0];
            assert!(apart >= longest / 250, "{apart:?} of {longest:?}");
        }
        assert_eq!(pauses[0], longest / 2);
        assert!(pauses[99] < longest);
        longest = (longest * 2).min(PAUSE_MAX);
    }
    assert_eq!(longest, PAUSE_MAX);
}

#[tokio::test]
async fn a_slow_reader_delays_nobody_and_ends_right() {
    const ROUTES: u32 = 60_000;
    // The readers below send no KEEPALIVE.
    let patient = ServerConfig {
        keepalive_s: 600,
        ..ServerConfig::default()
    };
    let (server, addr) = start_server_at("127.0.0.1:0", patient).await;
    // One plain reader and one that claims to reassemble; neither reads for now.
    let mut slow = Raw::establish(addr).await;
    let mut stuck = Raw::connect(addr).await;
    let hello = Hello {
        keepalive_s: 600,
        capabilities: codec::Capabilities::STREAM,
        ..Hello::default()
    };
    stuck.send(&encoded(&Message::Hello(hello))).await;
    stuck.send(&encoded(&Message::Keepalive)).await;
    for reader in [&mut slow, &mut stuck] {
        reader.send(&encoded(&Message::Subscribe(1))).await;
    }
    let (watcher, mut events) = start_client(&[addr]);
    watcher.subscribe(1);
    let (announcer, _events) = start_client(&[addr]);
    until("connected", || server.established_len() == 4).await;
    for index in 0..ROUTES {
        announce(&announcer, numbered(1, index));
    }
    for _ in 0..ROUTES {
        assert!(matches!(event(&mut events).await, RouteEvent::Added { .. }));
    }
    for index in 10..ROUTES {
        withdraw(&announcer, numbered(1, index));
    }
    for _ in 10..ROUTES {
        assert!(matches!(
            event(&mut events).await,
            RouteEvent::Removed { .. }
        ));
    }
    assert_eq!(server.established_len(), 4, "nobody was disconnected");
    // Now it reads, and must end with the ten.
    let mut known = BTreeSet::new();
    let last = route(1, "10.255.255.255/32", hop(1));
    announce(&announcer, last);
    while !known.contains(&last) {
        match stuck.next().await.expect("still connected") {
            Message::Update(Update {
                action: Action::Add,
                route,
            }) => known.insert(route),
            Message::Update(Update {
                action: Action::Remove,
                route,
            }) => known.remove(&route),
            _ => continue,
        };
    }
    assert_eq!(known.len(), 11);
    assert_eq!(server.resets(), 0);
}

/// How often a peer that parses each read from its first byte sees something else than whole messages.
struct OneReadOnePacket {
    stream: TcpStream,
    known: BTreeSet<Route>,
}

impl OneReadOnePacket {
    /// Reads once, with the reference's buffer; panics where the reference resets.
    async fn read(&mut self) -> Vec<Message> {
        let mut buffer = vec![0; 65_535];
        let len = timeout(PATIENCE, self.stream.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert!(len > 0, "closed by our side");
        assert!(len < 65_535, "overrun");
        let messages = messages(&buffer[..len]);
        for message in &messages {
            if let Message::Update(Update { action, route }) = message {
                match action {
                    Action::Add => self.known.insert(*route),
                    Action::Remove => self.known.remove(route),
                };
            }
        }
        messages
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_reassembly_survives_our_servers_burst() {
    const ROUTES: u32 = 20_000;
    let (server, addr) = start_server().await;
    let (announcer, _events) = start_client(&[addr]);
    for index in 0..ROUTES {
        announce(&announcer, numbered(1, index));
    }
    until("all are there", || server.routes_len() == ROUTES as usize).await;
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&hex("01 0002 01 083c")).await.unwrap();
    let mut peer = OneReadOnePacket {
        stream,
        known: BTreeSet::new(),
    };
    assert!(matches!(peer.read().await.as_slice(), [Message::Hello(_)]));
    peer.stream.write_all(&hex("01 0000 02")).await.unwrap();
    assert_eq!(peer.read().await, [Message::Keepalive]);
    peer.stream
        .write_all(&hex("01 0002 03 0801"))
        .await
        .unwrap();
    let mut reads = 0;
    while peer.known.len() < ROUTES as usize {
        peer.read().await;
        reads += 1;
        if reads == 20 {
            // Its process is busy for a while: everything sent meanwhile must fit.
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
    assert_eq!(server.resets(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_reassembly_survives_our_clients_burst() {
    const ROUTES: u32 = 20_000;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (announcer, _events) = start_client(&[listener.local_addr().unwrap()]);
    for index in 0..ROUTES {
        announce(&announcer, numbered(1, index));
    }
    for vni in 0..100 {
        announcer.subscribe(vni);
    }
    let (stream, _) = listener.accept().await.unwrap();
    let mut peer = OneReadOnePacket {
        stream,
        known: BTreeSet::new(),
    };
    assert!(matches!(peer.read().await.as_slice(), [Message::Hello(_)]));
    peer.stream
        .write_all(&hex("01 0004 01 083c1001"))
        .await
        .unwrap();
    let mut reads = 0;
    while peer.known.len() < ROUTES as usize {
        let keepalives = peer
            .read()
            .await
            .iter()
            .filter(|message| **message == Message::Keepalive)
            .count();
        for _ in 0..keepalives {
            peer.stream.write_all(&hex("01 0000 02")).await.unwrap();
        }
        reads += 1;
        if reads == 20 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test]
async fn status_pages_show_routes_and_peers() {
    let (_server, addr) = start_server().await;
    let http = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let args = server::Args {
        listen: "127.0.0.1:0".to_owned(),
        http: Some(http.to_string()),
        keepalive: 5,
        hold_time: 10,
    };
    let running = tokio::task::JoinSet::from_iter([server::run(args, shutdown.clone())]);
    let _ = addr;
    let page = |path: &'static str| async move {
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            match TcpStream::connect(http).await {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let json = page("/routes.json").await;
    assert!(
        json.starts_with("HTTP/1.1 200") && json.contains("\"vnet\": {}"),
        "{json}"
    );
    assert!(
        page("/routes.yaml")
            .await
            .contains("content-type: text/yaml")
    );
    assert!(page("/anything").await.contains("text/html; charset=utf-8"));
    assert!(page("/metrics").await.contains("metalbond_routes 0"));
    assert!(page("/peers.json").await.ends_with("[]"));
    assert!(page("/healthz").await.ends_with("ok\n"));
    shutdown.cancel();
    for result in running.join_all().await {
        result.unwrap();
    }
}
