//! Two instances on one host, as processes, with the devices of their link joined by a bridge: one is killed, the other one goes on.

use crate::fabric::{Fabric, Machine, Namespace, Process, enter_private_namespace};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);
/// How long one try to be heard waits.
const TRY: Duration = Duration::from_millis(200);
const NAT_UNDERLAY: &str = "fc00:1::d000:8000:0:2";
const SERVICE: &str = "fc00:2::1";

/// Does something inside a namespace; sockets made there stay there.
fn inside<R: Send>(namespace: &Namespace, work: impl FnOnce() -> R + Send) -> R {
    let path = format!("/proc/{}/ns/net", namespace.pid());
    std::thread::scope(|scope| {
        let inside = || {
            let namespace = std::fs::File::open(path).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        scope.spawn(inside).join().unwrap()
    })
}

/// An instance of the host.
struct Instance {
    process: Process,
    name: char,
}

impl Instance {
    /// Starts it and configures it like its twin.
    fn start(host: &Namespace, machine: &Machine, name: char, lock: &Path, internet: &str) -> Self {
        let grpc_port = 1337 + u32::from(name) - u32::from('a');
        let options = format!(
            "--log-level warn --grpc-port {grpc_port} --tap-prefix {name}_ --sync-tap sync_{name} --active-lockfile {} \
             --metrics-bind-address 127.0.0.1:{} --udp-virtsvc 1.2.3.4,53,{SERVICE},5353",
            lock.display(),
            grpc_port + 1000
        );
        let options: Vec<&str> = options.split_whitespace().collect();
        let process = Process::dpservice(Some(host), "fc00:1::1", &options);
        let address = format!("--address localhost:{grpc_port}");
        let cli = |command: &str| {
            format!(
                "{} cli {address} {command}",
                env!("CARGO_BIN_EXE_dpservice")
            )
        };
        host.eventually(&cli("init"));
        for command in [
            "create interface --id vm --vni 100 --ipv4 10.0.0.1 --ipv6 fd00::1 --device net_tap2 --underlay fc00:1::d000:8000:0:1".to_owned(),
            format!("create nat --interface-id vm --nat-ip 203.0.113.1 --minport 2000 --maxport 3000 --underlay {NAT_UNDERLAY}"),
            format!("create route --vni 100 --prefix 0.0.0.0/0 --next-hop-vni 100 --next-hop-ip {internet}"),
            format!("create route --vni 100 --prefix ::/0 --next-hop-vni 100 --next-hop-ip {internet}"),
        ] {
            host.run(&cli(&command));
        }
        // Both instances are on the machine's wire, and both say who the gateway is: no switch must choose one of them.
        let pid = machine.namespace.pid();
        host.ip(&format!("link set {name}_0 netns {pid}"));
        machine
            .namespace
            .ip(&format!("link set {name}_0 master br0"));
        machine.namespace.run(&format!(
            "bridge link set dev {name}_0 learning off flood on"
        ));
        machine.namespace.ip(&format!("link set {name}_0 up"));
        Instance { process, name }
    }

    /// Waits until it has been told of so many connections with NAT ports and to the virtual service, at least.
    fn knows(&self, host: &Namespace, nat: u64, service: u64) {
        let port = 2337 + u16::from(self.name as u8 - b'a');
        let deadline = Instant::now() + DEADLINE;
        loop {
            let text = inside(host, || {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
                stream.write_all(request.as_bytes()).unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                text
            });
            let kept = |what: &str| {
                let start = format!("dpservice_sync_kept{{what=\"{what}\"}} ");
                let mut values = text.lines().filter_map(|line| line.strip_prefix(&start));
                values.next().and_then(|value| value.parse::<u64>().ok())
            };
            let known = [kept("nat"), kept("virtsvc")];
            if known[0] >= Some(nat) && known[1] >= Some(service) {
                return;
            }
            assert!(Instant::now() < deadline, "{known:?}");
            std::thread::yield_now();
        }
    }
}

/// A UDP connection: the machine's socket, the server's, and the address that the server saw.
struct Talk {
    client: UdpSocket,
    server: UdpSocket,
    seen: SocketAddr,
}

/// Sends from one to the other until it arrives; returns whom the receiver saw.
fn deliver(say: impl Fn(), receiver: &UdpSocket) -> SocketAddr {
    receiver.set_read_timeout(Some(TRY)).unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < deadline, "nothing arrives");
        say();
        let mut bytes = [0; 64];
        if let Ok((_, from)) = receiver.recv_from(&mut bytes) {
            return from;
        }
    }
}

/// Forgets what repeated tries have left.
fn drain(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    while socket.recv_from(&mut [0; 64]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
}

impl Talk {
    fn begin(machine: &Namespace, server: UdpSocket, target: SocketAddr) -> Talk {
        let client = inside(machine, || {
            let any: IpAddr = if target.is_ipv4() {
                "10.0.0.1"
            } else {
                "fd00::1"
            }
            .parse()
            .unwrap();
            let client = UdpSocket::bind((any, 0)).unwrap();
            client.connect(target).unwrap();
            client
        });
        let say = || {
            // The kernel may still be looking for the gateway.
            let _ = client.send(b"there");
        };
        let seen = deliver(say, &server);
        Talk {
            client,
            server,
            seen,
        }
    }

    /// First the server says something, which must reach the machine, then the machine, which must look as before.
    fn goes_on(&self) {
        drain(&self.client);
        drain(&self.server);
        let back = || {
            self.server.send_to(b"back", self.seen).unwrap();
        };
        deliver(back, &self.client);
        drain(&self.server);
        let there = || {
            let _ = self.client.send(b"there");
        };
        assert_eq!(deliver(there, &self.server), self.seen, "the same port");
    }
}

fn server(namespace: &Namespace, address: &str) -> UdpSocket {
    inside(namespace, || UdpSocket::bind(address).unwrap())
}

#[test]
fn connections_survive_the_death_of_the_working_instance() {
    enter_private_namespace();
    let mut fabric = Fabric::new(1560, &[]);
    let [left, right] = &mut fabric.hosts;
    left.service.take().expect("running").kill();
    let host = &left.namespace;
    // One device as the reference's host preparation makes it, and a plain one.
    host.ip("link add sync_br type bridge");
    host.ip("link set sync_br up");
    host.ip("tuntap add dev sync_a mode tap multi_queue");
    host.ip("tuntap add dev sync_b mode tap");
    for name in ["sync_a", "sync_b"] {
        host.ip(&format!("link set {name} master sync_br up"));
    }
    let internet = Machine::new("internet", 100, "198.51.100.1", "fd00::2");
    let at_internet = right.attach(&internet, 0);
    internet.configure();
    right.route(100, "203.0.113.1/32", NAT_UNDERLAY);
    let machine = Machine::new("vm", 100, "10.0.0.1", "fd00::1");
    let wire = &machine.namespace;
    wire.ip("link add br0 address 02:00:00:00:00:77 type bridge");
    wire.ip("link set br0 up");
    let folder = tempfile::tempdir().unwrap();
    let lock = folder.path().join("active");
    let start = |name| Instance::start(host, &machine, name, &lock, &at_internet);
    let first = start('a');
    for line in [
        "address add 10.0.0.1/32 dev br0",
        "route add 169.254.0.1 dev br0",
        "route add default via 169.254.0.1 dev br0",
        "address add fd00::1/128 dev br0 nodad",
        "-6 route replace default via fe80::1 dev br0",
    ] {
        wire.ip(line);
    }
    wire.eventually("ping -c 1 -W 1 198.51.100.1");

    let udp = |number: u16| server(&internet.namespace, &format!("198.51.100.1:{number}"));
    let v4 = |number: u16| SocketAddr::new("198.51.100.1".parse().unwrap(), number);
    let v6 = |number: u16| SocketAddr::new("64:ff9b::c633:6401".parse().unwrap(), number);
    let service = |number: u16| {
        let socket = server(&right.namespace, &format!("[{SERVICE}]:{number}"));
        let target = SocketAddr::new("1.2.3.4".parse().unwrap(), 53);
        Talk::begin(wire, socket, target)
    };
    let mut talks = vec![
        Talk::begin(wire, udp(9001), v4(9001)),
        Talk::begin(wire, udp(9002), v6(9002)),
        service(5353),
    ];
    assert!(
        talks
            .iter()
            .take(2)
            .all(|talk| (2000..3000).contains(&talk.seen.port()))
    );
    assert_eq!(talks[2].seen.port(), 1025);
    // The second instance is late: it asks for everything, and hears of the rest one by one.
    let second = start('b');
    talks.push(Talk::begin(wire, udp(9003), v4(9003)));
    let listener = inside(&internet.namespace, || {
        TcpListener::bind("198.51.100.1:9004").unwrap()
    });
    let mut client = inside(wire, || TcpStream::connect("198.51.100.1:9004").unwrap());
    let (mut served, seen) = listener.accept().unwrap();
    assert!((2000..3000).contains(&seen.port()));
    // Three of UDP, one of TCP, and the ping that waited for the gateway.
    second.knows(host, 5, 1);

    first.process.kill();
    let begun = Instant::now();
    for talk in &talks {
        talk.goes_on();
    }
    println!("all connections go on {:?} after the kill", begun.elapsed());
    let mut bytes = [0; 4];
    served.write_all(b"back").unwrap();
    client.read_exact(&mut bytes).unwrap();
    client.write_all(b"more").unwrap();
    served.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"more");

    // The first one comes back, stands by, and works once more.
    let third = start('a');
    third.knows(host, 4, 1);
    second.process.kill();
    for talk in &talks {
        talk.goes_on();
    }
    client.write_all(b"last").unwrap();
    served.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"last");
    assert!(third.process.terminate().success());
}
