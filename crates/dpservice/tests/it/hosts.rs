//! Machines on two hosts: they reach each other and nobody else, the kernel keeps its own traffic, a killed service is replaced.

use crate::fabric::{Fabric, Host, Machine, Namespace, Process, enter_private_namespace, ip};
use std::time::Instant;

#[test]
fn machines_on_two_hosts_reach_each_other_and_nobody_else() {
    enter_private_namespace();
    let fabric = Fabric::new(1560, &[]);
    let [left, right] = &fabric.hosts;
    let a = Machine::new("a", 100, "10.0.0.1", "fd00::1");
    let b = Machine::new("b", 100, "10.0.0.2", "fd00::2");
    // The same addresses in another network.
    let c = Machine::new("c", 200, "10.0.0.2", "fd00::2");
    let local = Machine::new("d", 100, "10.0.0.3", "fd00::3");
    let at_a = left.attach(&a, 0);
    left.attach(&c, 1);
    left.attach(&local, 2);
    let at_b = right.attach(&b, 0);
    for machine in [&a, &b, &c, &local] {
        machine.configure();
    }
    assert!(
        a.ping("10.0.0.3").is_ok() && a.ping("fd00::3").is_ok(),
        "machines of one host"
    );
    assert!(a.ping("10.0.0.2").is_err(), "no route yet");
    left.route(100, "10.0.0.2/32", &at_b);
    left.route(100, "fd00::2/128", &at_b);
    right.route(100, "10.0.0.1/32", &at_a);
    right.route(100, "fd00::1/128", &at_a);
    a.namespace.eventually("ping -c 1 -W 1 10.0.0.2");
    for target in [
        "10.0.0.2",
        "fd00::2",
        "-s 1472 -M do 10.0.0.2",
        "-s 1452 -M do fd00::2",
    ] {
        a.ping(target).unwrap_or_else(|error| panic!("{error}"));
    }
    b.ping("10.0.0.1").unwrap_or_else(|error| panic!("{error}"));
    assert!(
        c.ping("10.0.0.1").is_err() && c.ping("fd00::1").is_err(),
        "networks are separate"
    );

    tcp_of_machines_and_of_the_kernel(&a, left, right, &b);
    tcp_over_nat64(&a, (left, right), &b, &at_b);
    restart(fabric, &a, &at_b);
}

/// Both at the same time over the same uplink, and how fast.
fn tcp_of_machines_and_of_the_kernel(a: &Machine, left: &Host, right: &Host, b: &Machine) {
    let _overlay = Process::spawn(&mut b.namespace.command("iperf3 -s"));
    let _underlay = Process::spawn(&mut right.namespace.command("iperf3 -s"));
    left.namespace
        .eventually("bash -c echo>/dev/tcp/fc00:2::1/5201");
    a.namespace
        .eventually("bash -c echo>/dev/tcp/10.0.0.2/5201");
    std::thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            left.namespace
                .run("iperf3 -c fc00:2::1 -B fc00:1::1 -b 100M -t 2")
        });
        println!("overlay:\n{}", a.namespace.run("iperf3 -c 10.0.0.2 -t 2"));
        println!(
            "kernel beside it:\n{}",
            kernel.join().expect("kernel's TCP")
        );
    });
}

/// A machine with nothing but IPv6 and one that has IPv4 move super-frames of their kernels both ways.
fn tcp_over_nat64(a: &Machine, (left, right): (&Host, &Host), b: &Machine, at_b: &str) {
    let nat =
        "create nat --interface-id a --nat-ip 192.0.2.1 --minport 2000 --maxport 3000 -o json";
    let underlay = left.create(nat);
    left.route(100, "::/0", at_b);
    right.route(100, "192.0.2.1/32", &underlay);
    let _server = Process::spawn(&mut b.namespace.command("iperf3 -s -p 5202"));
    a.namespace
        .eventually("bash -c echo>/dev/tcp/64:ff9b::a00:2/5202");
    for direction in ["", "-R"] {
        let client = format!("timeout 20 iperf3 -c 64:ff9b::a00:2 -p 5202 -n 20M {direction}");
        println!("NAT64:\n{}", a.namespace.run(&client));
    }
}

/// A killed dpservice leaves no device; configured again, the machine finds the same gateway.
fn restart(mut fabric: Fabric, a: &Machine, at_b: &str) {
    let [left, right] = &mut fabric.hosts;
    let mac = a.mac();
    let gateway = a.namespace.run("ip neighbour show 169.254.0.1");
    let begun = Instant::now();
    left.service.take().expect("running").kill();
    left.start();
    println!("restarted and initialized after {:?}", begun.elapsed());
    assert!(
        a.namespace.try_run("ip link show eth0").is_err(),
        "the device outlived its process"
    );
    let at_a = left.attach(a, 0);
    left.route(100, "10.0.0.2/32", at_b);
    let delete = right.cli("delete route --vni 100 --prefix 10.0.0.1/32");
    right.namespace.run(&delete);
    right.route(100, "10.0.0.1/32", &at_a);
    a.configure();
    a.namespace.eventually("ping -c 1 -W 1 10.0.0.2");
    println!("ping again after {:?}", begun.elapsed());
    assert_eq!(a.mac(), mac);
    let lladdr = |text: &str| {
        let mut words = text.split_whitespace().skip_while(|word| *word != "lladdr");
        words.nth(1).map(str::to_owned)
    };
    let again = a.namespace.run("ip neighbour show 169.254.0.1");
    assert_eq!(lladdr(&again), lladdr(&gateway));
    let stopped = left.service.take().expect("running").terminate();
    assert!(stopped.success(), "{stopped}");
}

/// While a router is looked for, the kernel is asked about gateways, but not about those that an operator has told it.
#[test]
fn static_neighbours_of_the_uplink_stay() {
    enter_private_namespace();
    for command in [
        "link add pf0 type veth peer name fabric",
        "link set pf0 up",
        "link set fabric up",
        "address add fe80::2/64 dev pf0 nodad",
        "neighbour add fe80::9 lladdr 02:00:00:00:00:09 dev pf0 nud permanent",
        "route add fc00:9::/64 via fe80::9 dev pf0",
        "route add fc00:a::/64 via fe80::a dev pf0",
    ] {
        ip(command);
    }
    let namespace = Namespace::own();
    let service = Process::dpservice(None, "fc00:1::1", &["--log-level", "warn"]);
    // Gateways are asked about in the order of their addresses.
    namespace.eventually("ip neighbour get fe80::a dev pf0");
    let entry = namespace.run("ip neighbour show fe80::9 dev pf0");
    assert!(entry.contains("PERMANENT"), "{entry}");
    assert!(service.terminate().success());
}
