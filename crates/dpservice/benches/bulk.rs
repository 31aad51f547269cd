//! Bulk TCP between machines on two hosts, beside the kernel's own VXLAN over IPv6 between the same namespaces, in the same run.
//!
//! Hosts, a router and machines are network namespaces; the ends are `iperf3`. Each machine has a TAP device of its host's dpservice and a VXLAN
//! device of its host's kernel, over the same uplinks. Rounds alternate, so that a slower minute hits all. Needs root. Run:
//! `cargo bench -p dpservice --bench bulk -- [--seconds N] [--rounds N] [--streams N]`.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a measuring program: it prints, and a failure is its end"
)]

#[expect(dead_code, reason = "tests use the rest")]
#[path = "../tests/it/fabric.rs"]
mod fabric;

use clap::Parser as _;
use fabric::{Fabric, Host, Machine, Namespace, Process, enter_private_namespace};

/// Large enough for both tunnels around packets of 1500 bytes.
const UPLINK_MTU: u16 = 1600;
/// Clock ticks per second in `/proc` (`USER_HZ`).
const TICKS: f64 = 100.0;
const VXLAN_PORT: u16 = 4789;

/// Bulk TCP between machines on two hosts, beside the kernel's own VXLAN over IPv6.
#[derive(clap::Parser)]
#[command(bin_name = "cargo bench -p dpservice --bench bulk --")]
struct Plan {
    /// Length of a transfer
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Transfers per way; they alternate
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Connections at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=128))]
    streams: u32,
    /// Cargo says that this is a benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One transfer.
#[derive(Clone, Copy, Debug)]
struct Run {
    gbit_per_s: f64,
    retransmissions: u64,
    /// Cores that were busy, ends and kernel included.
    cores: f64,
    /// Cores that both dpservices used.
    service_cores: f64,
}

/// Ways between the same two namespaces.
struct Way {
    name: &'static str,
    target: &'static str,
    runs: Vec<Run>,
}

fn main() {
    let plan = Plan::parse();
    enter_private_namespace();
    println!(
        "{} streams, {} s, best and median of {} rounds; {}",
        plan.streams,
        plan.seconds,
        plan.rounds,
        std::fs::read_to_string("/proc/loadavg")
            .expect("load")
            .trim()
    );
    println!(
        "{:<58} {:>8} {:>8} {:>7} {:>6} {:>10}",
        "", "Gbit/s", "median", "retrans", "cores", "dpservice"
    );
    for (segmentation, name) in [
        (
            "kernel",
            "dpservice over TAP and AF_PACKET, cut by the kernel",
        ),
        (
            "dpservice",
            "dpservice over TAP and AF_PACKET, cut by dpservice",
        ),
    ] {
        measure(&plan, segmentation, name);
    }
}

/// Measures with dpservices that cut super-frames in one of the two ways, and the kernel beside them.
fn measure(plan: &Plan, segmentation: &str, name: &'static str) {
    let fabric = Fabric::new(UPLINK_MTU, &["--uplink-segmentation", segmentation]);
    let [left, right] = &fabric.hosts;
    let a = Machine::new("a", 100, "10.0.0.1", "fd00::1");
    let b = Machine::new("b", 100, "10.0.0.2", "fd00::2");
    let (at_a, at_b) = (left.attach(&a, 0), right.attach(&b, 0));
    left.route(100, "10.0.0.2/32", &at_b);
    right.route(100, "10.0.0.1/32", &at_a);
    a.configure();
    b.configure();
    vxlan(left, &a, 1);
    vxlan(right, &b, 2);
    bridged(left, &a, 1);
    bridged(right, &b, 2);
    let _server = Process::start(&b.namespace, "iperf3 -s");
    let mut ways = [
        Way {
            name,
            target: "10.0.0.2",
            runs: Vec::new(),
        },
        Way {
            name: "kernel: VXLAN over IPv6 in the machines' namespaces",
            target: "10.1.0.2",
            runs: Vec::new(),
        },
        Way {
            name: "kernel: veth, bridge on the host, VXLAN over IPv6",
            target: "10.2.0.2",
            runs: Vec::new(),
        },
    ];
    for way in &ways {
        a.namespace
            .eventually(&format!("bash -c echo>/dev/tcp/{}/5201", way.target));
    }
    for _ in 0..plan.rounds {
        for way in &mut ways {
            way.runs.push(transfer(plan, &fabric, &a, way.target));
        }
    }
    for way in &mut ways {
        print(way);
    }
}

/// A VXLAN device of the host's kernel inside the machine's namespace: nothing else is in between.
fn vxlan(host: &Host, machine: &Machine, number: u8) {
    let (local, remote) = (number, 3 - number);
    host.namespace.ip(&format!(
        "link add vx0 type vxlan id 1 local fc00:{local}::1 remote fc00:{remote}::1 dstport {VXLAN_PORT}"
    ));
    let pid = machine.namespace.pid();
    host.namespace.ip(&format!("link set vx0 netns {pid}"));
    device(&machine.namespace, "vx0", &format!("10.1.0.{number}/24"));
}

/// As hosts are usually built: a pair of devices to a bridge, on which a VXLAN device is.
fn bridged(host: &Host, machine: &Machine, number: u8) {
    let (local, remote) = (number, 3 - number);
    let pid = machine.namespace.pid();
    for command in [
        "link add br0 mtu 1500 type bridge".to_owned(),
        format!(
            "link add vx1 type vxlan id 2 local fc00:{local}::1 remote fc00:{remote}::1 dstport {VXLAN_PORT}"
        ),
        format!("link add br-a mtu 1500 type veth peer name eth1 netns {pid}"),
        "link set vx1 mtu 1500 master br0".to_owned(),
        "link set br-a master br0".to_owned(),
        "link set vx1 up".to_owned(),
        "link set br-a up".to_owned(),
        "link set br0 up".to_owned(),
    ] {
        host.namespace.ip(&command);
    }
    device(&machine.namespace, "eth1", &format!("10.2.0.{number}/24"));
}

fn device(machine: &Namespace, name: &str, address: &str) {
    machine.ip(&format!("link set {name} mtu 1500 up"));
    machine.ip(&format!("address add {address} dev {name}"));
}

fn transfer(plan: &Plan, fabric: &Fabric, a: &Machine, target: &str) -> Run {
    let before = (busy(), service_ticks(fabric));
    let report = a.namespace.run(&format!(
        "iperf3 -J -c {target} -t {} -P {}",
        plan.seconds, plan.streams
    ));
    let after = (busy(), service_ticks(fabric));
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON of iperf3");
    let end = &report["end"];
    let number = |value: &serde_json::Value| value.as_f64().expect("a number of iperf3");
    Run {
        gbit_per_s: number(&end["sum_received"]["bits_per_second"]) / 1e9,
        retransmissions: number(&end["sum_sent"]["retransmits"]) as u64,
        cores: (after.0 - before.0) / TICKS / f64::from(plan.seconds),
        service_cores: (after.1 - before.1) / TICKS / f64::from(plan.seconds),
    }
}

/// Ticks in which any core was not idle.
fn busy() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").expect("/proc/stat");
    let line = text.lines().next().expect("first line");
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .map(|word| word.parse().expect("ticks"))
        .collect();
    let [user, nice, system, _idle, _wait, irq, softirq, ..] = ticks[..] else {
        panic!("{line}");
    };
    user + nice + system + irq + softirq
}

/// Ticks of both dpservices.
fn service_ticks(fabric: &Fabric) -> f64 {
    fabric
        .hosts
        .iter()
        .filter_map(|host| host.service.as_ref())
        .map(|service| {
            let path = format!("/proc/{}/stat", service.id());
            let text = std::fs::read_to_string(path).expect("dpservice runs");
            // Behind the name, which may hold anything: state is the third field, the times are the 14th and 15th.
            let (_, rest) = text.rsplit_once(')').expect("a name");
            let times = rest.split_whitespace().skip(11).take(2);
            times
                .map(|word| word.parse::<f64>().expect("ticks"))
                .sum::<f64>()
        })
        .sum()
}

fn print(way: &mut Way) {
    way.runs
        .sort_by(|a, b| b.gbit_per_s.total_cmp(&a.gbit_per_s));
    let (Some(best), Some(median)) = (way.runs.first(), way.runs.get(way.runs.len() / 2)) else {
        return;
    };
    println!(
        "{:<58} {:>8.2} {:>8.2} {:>7} {:>6.2} {:>10.2}",
        way.name,
        best.gbit_per_s,
        median.gbit_per_s,
        best.retransmissions,
        best.cores,
        best.service_cores
    );
}
