//! The executable over DPDK's TAP devices: started as the reference is, configured by its client, packets both ways.

use crate::fabric::{Namespace, Process, enter_private_namespace};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use ports::{AfPacket, Frame, Port, af_packet::Select};
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);
const NEIGHBOUR: &str = "fc00:2::64:0:1";

/// The kernel's end of a TAP device.
struct Wire(AfPacket);

impl Wire {
    fn open(device: &str) -> Wire {
        Wire(AfPacket::open(device, Select::All).expect("device exists"))
    }

    fn send(&mut self, frame: &[u8]) {
        let mut packet = Frame::new();
        assert!(packet.fill(frame));
        assert_eq!(self.0.tx_burst(&mut [&mut packet]), 1);
    }

    /// The first frame that `wanted` accepts.
    fn expect(&mut self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = Instant::now() + DEADLINE;
        let mut packets: Vec<Frame> = (0..8).map(|_| Frame::new()).collect();
        loop {
            let filled = self.0.rx_burst(&mut packets).expect("device exists");
            let mut frames = packets.iter().take(filled).map(Frame::frame);
            if let Some(frame) = frames.find(|frame| wanted(frame)) {
                return frame.to_vec();
            }
            assert!(Instant::now() < deadline, "no {what}");
            std::thread::yield_now();
        }
    }
}

fn start(namespace: &Namespace, prefix: &str) -> Process {
    let vdevs: Vec<String> = (0..6)
        .map(|number| {
            let mac = match number {
                0 | 1 => format!("22:22:22:22:22:0{number}"),
                _ => format!("66:66:66:66:66:0{}", number - 2),
            };
            format!("--vdev=net_tap{number},iface=dtap{number},mac={mac}")
        })
        .collect();
    let line = format!(
        "{} -l 0,1 --no-huge --no-pci -m 256 --file-prefix {prefix} --log-level=error {} -- --pf0 dtap0 --pf1 dtap1 --vf-pattern dtap \
         --nic-type tap --no-offload --no-stats --ipv6 fc00:1::1 --enable-ipv6-overlay --dhcp-mtu 1337 --log-level warn --metrics-bind-address [::1]:9064",
        env!("CARGO_BIN_EXE_dpservice"),
        vdevs.join(" ")
    );
    Process::start(namespace, &line)
}

/// Echo request in IPv4 between two addresses, all checksums right.
fn echo(ethernet: [[u8; 6]; 2], source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let [to, from] = ethernet;
    let mut ip = vec![0x45, 0, 0, 60, 0, 1, 0, 0, 64, 1, 0, 0];
    ip.extend(source);
    ip.extend(destination);
    let sum = net::checksum::checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    let mut icmp = vec![8, 0, 0, 0, 0, 7, 0, 1];
    icmp.extend(0..32);
    let sum = net::checksum::checksum(&icmp).to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);
    [&to[..], &from, &[8, 0], &ip, &icmp].concat()
}

/// A client of DPDK's telemetry socket, which is one of sequenced packets.
struct Telemetry(OwnedFd);

impl Telemetry {
    fn connect(prefix: &str) -> Telemetry {
        let path = format!("/var/run/dpdk/{prefix}/dpdk_telemetry.v2");
        let kind = SockType::SeqPacket;
        let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None);
        let socket = socket.expect("socket");
        let address = UnixAddr::new(path.as_str()).expect("path");
        connect(socket.as_raw_fd(), &address).expect("DPDK listens");
        let telemetry = Telemetry(socket);
        assert!(telemetry.read()["version"].is_string(), "greeting");
        telemetry
    }

    fn ask(&self, command: &str) -> serde_json::Value {
        nix::unistd::write(&self.0, command.as_bytes()).expect("DPDK reads");
        self.read()
    }

    fn read(&self) -> serde_json::Value {
        let mut bytes = vec![0; 1 << 16];
        let length = nix::unistd::read(&self.0, &mut bytes).expect("DPDK answers");
        serde_json::from_slice(&bytes[..length]).expect("JSON")
    }
}

#[test]
fn six_taps_carry_packets_both_ways() {
    enter_private_namespace();
    let namespace = Namespace::own();
    namespace.run("ip link set lo up");
    let prefix = format!("okm-test-{}", std::process::id());
    let service = start(&namespace, &prefix);
    let cli = |command: &str| format!("{} cli {command}", env!("CARGO_BIN_EXE_dpservice"));
    namespace.eventually(&cli("init"));
    let attach = |id: &str, address: &str, device: &str| {
        let reply = namespace.run(&cli(&format!(
            "create interface --id {id} --vni 100 --ipv4 {address} --ipv6 :: --device {device} -o json"
        )));
        let rest = reply.split("\"underlay_route\":\"").nth(1);
        let text = rest.and_then(|rest| rest.split('"').next()).expect("route");
        text.parse::<Ipv6Addr>().expect("address")
    };
    let underlay = attach("vm1", "10.100.1.1", "net_tap2");
    attach("vm2", "10.100.1.2", "net_tap3");
    namespace.run(&cli(&format!(
        "create route --vni 100 --prefix 10.100.2.0/24 --next-hop-vni 100 --next-hop-ip {NEIGHBOUR}"
    )));
    let mut uplink = Wire::open("dtap0");
    let mut machine = Wire::open("dtap2");
    let mut other = Wire::open("dtap3");

    // The gateway answers with the port's own address, and learns ours.
    let (gateway, mac) = ([0x66, 0x66, 0x66, 0x66, 0x66, 0], [0x02, 0, 0, 0, 0, 0x11]);
    let mut request = vec![0xff; 6];
    request.extend(mac);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(mac);
    request.extend([10, 100, 1, 1, 0, 0, 0, 0, 0, 0, 169, 254, 0, 1]);
    machine.send(&request);
    let reply = machine.expect("ARP reply", |frame| frame.get(20..22) == Some(&[0, 2]));
    assert_eq!(
        reply.get(22..32),
        Some(&[&gateway[..], &[169, 254, 0, 1]].concat()[..])
    );

    // To another host: encapsulated.
    let ping = echo([gateway, mac], [10, 100, 1, 1], [10, 100, 2, 102]);
    machine.send(&ping);
    let outer = uplink.expect("tunnelled ping", |frame| frame.get(20) == Some(&4));
    assert_eq!(
        outer.get(6..14),
        Some(&[0x22, 0x22, 0x22, 0x22, 0x22, 0, 0x86, 0xdd][..])
    );
    assert_eq!(outer.get(22..38), Some(&underlay.octets()[..]));
    let next_hop: Ipv6Addr = NEIGHBOUR.parse().expect("address");
    assert_eq!(outer.get(38..54), Some(&next_hop.octets()[..]));
    assert_eq!(
        outer.get(54..),
        ping.get(14..),
        "the inner packet is unchanged"
    );

    // And back.
    let answer = echo([[0; 6]; 2], [10, 100, 2, 102], [10, 100, 1, 1]);
    let inner = answer.get(14..).expect("IP");
    let mut tunnelled = vec![
        0x22, 0x22, 0x22, 0x22, 0x22, 0, 2, 0, 0, 0, 0, 9, 0x86, 0xdd, 0x60, 0, 0, 0,
    ];
    tunnelled.extend((inner.len() as u16).to_be_bytes());
    tunnelled.extend([4, 64]);
    tunnelled.extend(next_hop.octets());
    tunnelled.extend(underlay.octets());
    tunnelled.extend(inner);
    uplink.send(&tunnelled);
    let delivered = machine.expect("ping from the other host", |frame| {
        frame.get(14..) == Some(inner)
    });
    assert_eq!(delivered.get(..12), Some(&[mac, gateway].concat()[..]));

    // Between machines of this host.
    let ping = echo([gateway, mac], [10, 100, 1, 1], [10, 100, 1, 2]);
    machine.send(&ping);
    other.expect("ping from the neighbour", |frame| {
        frame.get(14..) == ping.get(14..)
    });

    // DPDK's own telemetry socket knows our commands as well as its own.
    let telemetry = Telemetry::connect(&prefix);
    let rules = telemetry.ask("/dp_service/firewall/rule_count");
    assert_eq!(
        rules,
        serde_json::json!({"/dp_service/firewall/rule_count": {"vm1": 0, "vm2": 0}})
    );
    let calls = telemetry.ask("/dp_service/graph/call_count");
    let stages = &calls["/dp_service/graph/call_count"]["Node_0_to_255"];
    assert!(stages["ipip_encap"].as_u64() > Some(0), "{calls}");
    let tables = telemetry.ask("/dp_service/table/saturation");
    let conntrack = &tables["/dp_service/table/saturation"]["conntrack_table"];
    assert_eq!(conntrack["entries"], 6, "{tables}");
    assert_eq!(telemetry.ask("/ethdev/list")["/ethdev/list"][5], 5);

    // Monitoring hears the same of DPDK's memory as DPDK says itself.
    let metrics = namespace.run("curl -sg http://[::1]:9064/metrics");
    let heap = &telemetry.ask("/eal/heap_info,0")["/eal/heap_info"];
    // The others move; DPDK 22.11 writes Head_id where others read Heap_id.
    for (info, name) in [("Heap_id", "Head_id"), ("Heap_size", "Heap_size")] {
        let line = metrics.lines().find(|line| {
            line.starts_with("dpdk_heap_info{") && line.contains(&format!("info=\"{info}\""))
        });
        let value = line.and_then(|line| line.rsplit(' ').next());
        assert_eq!(
            value,
            Some(heap[name].to_string().as_str()),
            "{info}: {heap}"
        );
    }

    assert!(service.terminate().success());
    let _ = std::fs::remove_dir_all(format!("/var/run/dpdk/{prefix}"));
}

#[test]
fn what_dpdk_says_is_in_our_log() {
    enter_private_namespace();
    let prefix = format!("okm-log-{}", std::process::id());
    let line = format!(
        "-l 0 --no-huge --no-pci -m 64 --no-telemetry --file-prefix {prefix} -- --pf0 nosuch --vf-pattern dtap --ipv6 fc00:1::1 --log-format json"
    );
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_dpservice"))
        .args(line.split(' '))
        .env("DP_CONF", "")
        .output()
        .expect("run dpservice");
    assert!(!output.status.success(), "there is no such uplink");
    let stdout = String::from_utf8(output.stdout).expect("text");
    let lines = stdout.lines().map(|line| {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("{line}"))
    });
    let from_dpdk = |line: &serde_json::Value| {
        let text = line["msg"].as_str();
        text.is_some_and(|text| text.starts_with("EAL: "))
    };
    let said: Vec<_> = lines.filter(from_dpdk).collect();
    let first = said.first().expect("DPDK tells of the CPUs it finds");
    assert_eq!(
        (&first["level"], &first["logger"]),
        (&"Info".into(), &"service".into())
    );
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert!(!stderr.contains("EAL: "), "{stderr}");
    let _ = std::fs::remove_dir_all(format!("/var/run/dpdk/{prefix}"));
}

/// Super-frames in several buffers could not be handled.
#[test]
fn a_vhost_device_that_would_take_super_frames_in_pieces_is_refused() {
    for given in [
        "net_vhost0,iface=/nowhere,tso=1",
        "net_vhost0,tso=1,iface=/nowhere,linear-buffer=1",
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_dpservice"))
            .args(["-l", "0", "--no-huge", "--no-pci", "--vdev", given])
            .args(["--", "--pf0", "pf0", "--ipv6", "fc00:1::1"])
            .env("DP_CONF", "")
            .output()
            .expect("run");
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("ext-buffer=1: super-frames"), "{error}");
        assert_eq!(
            error.contains("needs linear-buffer=1"),
            !given.contains("linear")
        );
    }
}
