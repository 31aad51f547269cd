//! Routes for the kernel: what is planned, its bytes, and the kernel's answer in a network namespace.

use std::net::Ipv6Addr;

use metalbond::client::install::{Change, Installer, Plan, TableOfVni, message};
use metalbond::{Destination, HopType, NextHop, RouteEvent};
use rtnetlink::packet_core::Emitable;

fn event(added: bool, vni: u32, net: &str, hop: &str, hop_type: HopType) -> RouteEvent {
    let destination = Destination::from(net.parse::<ipnet::IpNet>().unwrap());
    let next_hop = NextHop {
        addr: hop.parse().unwrap(),
        target_vni: 0,
        hop_type,
    };
    match added {
        true => RouteEvent::Added {
            vni,
            destination,
            next_hop,
        },
        false => RouteEvent::Removed {
            vni,
            destination,
            next_hop,
        },
    }
}

fn add(net: &str, hop: &str) -> RouteEvent {
    event(true, 200, net, hop, HopType::Standard)
}

fn remove(net: &str, hop: &str) -> RouteEvent {
    event(false, 200, net, hop, HopType::Standard)
}

fn plan(tables: &[&str], ipv4_only: bool) -> Plan {
    let tables: Vec<TableOfVni> = tables.iter().map(|text| text.parse().unwrap()).collect();
    Plan::new(&tables, ipv4_only).unwrap()
}

fn change(table: u32, net: &str, hops: &[&str]) -> Option<Change> {
    Some(Change {
        table,
        net: net.parse().unwrap(),
        hops: hops.iter().map(|hop| hop.parse().unwrap()).collect(),
    })
}

#[test]
fn flags_are_two_numbers() {
    assert_eq!("200#0".parse(), Ok(TableOfVni { vni: 200, table: 0 }));
    for text in ["200", "200#", "#1", "200#1#2", "16777216#1", "1#-1"] {
        assert!(text.parse::<TableOfVni>().is_err(), "{text}");
    }
    let twice = ["200#1".parse().unwrap(), "200#2".parse().unwrap()];
    assert!(Plan::new(&twice, false).is_err());
}

#[test]
fn a_prefix_is_one_route_over_all_its_hops() {
    let mut plan = plan(&["200#0"], false);
    let net = "10.0.23.0/24";
    assert_eq!(
        plan.follow(&add(net, "fd00::2")),
        change(254, net, &["fd00::2"])
    );
    assert_eq!(plan.follow(&add(net, "fd00::2")), None, "known");
    assert_eq!(
        plan.follow(&add(net, "fd00::1")),
        change(254, net, &["fd00::1", "fd00::2"])
    );
    assert_eq!(
        plan.follow(&remove(net, "fd00::2")),
        change(254, net, &["fd00::1"])
    );
    assert_eq!(plan.follow(&remove(net, "fd00::2")), None, "unknown");
    assert_eq!(plan.follow(&remove(net, "fd00::1")), change(254, net, &[]));
}

#[test]
fn hops_that_share_an_address_hold_it_together() {
    let mut plan = plan(&["200#1000"], false);
    let nat = HopType::Nat { from: 1, to: 9 };
    let net = "2001:db8::/64";
    assert_eq!(
        plan.follow(&add(net, "fd00::1")),
        change(1000, net, &["fd00::1"])
    );
    assert_eq!(plan.follow(&event(true, 200, net, "fd00::1", nat)), None);
    assert_eq!(plan.follow(&remove(net, "fd00::1")), None);
    assert_eq!(
        plan.follow(&event(false, 200, net, "fd00::1", nat)),
        change(1000, net, &[])
    );
}

#[test]
fn what_has_no_table_or_family_stays_out() {
    let mut plan = plan(&["200#1"], true);
    let foreign = event(true, 201, "10.0.0.0/8", "fd00::1", HopType::Standard);
    assert_eq!(plan.follow(&foreign), None);
    assert_eq!(plan.follow(&add("2001:db8::/64", "fd00::1")), None);
    assert_eq!(
        plan.follow(&add("10.0.0.0/8", "192.0.2.1")),
        None,
        "an IPv4 hop"
    );
    assert_eq!(
        plan.follow(&add("10.0.0.7/8", "fd00::1")),
        change(1, "10.0.0.0/8", &["fd00::1"]),
        "host bits are cleared"
    );
}

/// The attributes as the kernel's headers define them: RTA_DST, RTA_MULTIPATH with one rtnexthop of RTA_ENCAP_TYPE 4 (IPv6)
/// and RTA_ENCAP with id, destination, source and hop limit.
#[test]
fn the_message_to_the_kernel() {
    let change = change(254, "10.0.23.0/24", &["fd00::1"]).unwrap();
    let message = message(&change, 7);
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    let mut hop = vec![0xfd];
    hop.extend([0; 14]);
    hop.push(1);
    let mut wanted = vec![2, 24, 0, 0, 254, 254, 0, 1, 0, 0, 0, 0];
    wanted.extend([8, 0, 1, 0, 10, 0, 23, 0]);
    wanted.extend([84, 0, 9, 0]);
    wanted.extend([80, 0, 0, 0, 7, 0, 0, 0]);
    wanted.extend([6, 0, 21, 0, 4, 0, 0, 0]);
    wanted.extend([64, 0, 22, 0]);
    wanted.extend([12, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    wanted.extend([20, 0, 2, 0]);
    wanted.extend(hop);
    wanted.extend([20, 0, 3, 0]);
    wanted.extend([0; 16]);
    wanted.extend([5, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(bytes, wanted);
}

fn ip(args: &str) -> String {
    let output = std::process::Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "ip {args}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A namespace of this thread's own. Any link does for the kernel's part of the job, so the test needs no ip6_tunnel.
#[test]
fn the_kernel_takes_replaces_and_loses_routes() {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("network namespaces need root: run the tests with sudo");
        ip("link add overlay-tun type veth peer name other");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(follow_in_kernel());
    })
    .join()
    .unwrap();
}

async fn follow_in_kernel() {
    let missing = Installer::open("nothing", plan(&["200#0"], false)).await;
    let error = format!("{:#}", missing.err().unwrap());
    assert!(error.contains("ip6tnl"), "{error}");

    let tables = ["200#0", "201#1000"];
    let mut installer = Installer::open("overlay-tun", plan(&tables, false))
        .await
        .unwrap();
    installer.follow(&add("10.0.23.0/24", "fd00::2")).await;
    installer.follow(&add("10.0.23.0/24", "fd00::1")).await;
    let v6 = event(true, 201, "2001:db8::/64", "fd00::3", HopType::Standard);
    installer.follow(&v6).await;
    let main = ip("route show proto 254");
    for part in ["10.0.23.0/24", "dst fd00::1", "dst fd00::2", "overlay-tun"] {
        assert!(main.contains(part), "{part}: {main}");
    }
    let other = ip("-6 route show table 1000 proto 254");
    assert!(other.contains("dst fd00::3"), "{other}");

    installer.follow(&remove("10.0.23.0/24", "fd00::2")).await;
    let main = ip("route show proto 254");
    let second: Ipv6Addr = "fd00::2".parse().unwrap();
    assert!(
        main.contains("dst fd00::1") && !main.contains(&second.to_string()),
        "{main}"
    );
    installer.follow(&remove("10.0.23.0/24", "fd00::1")).await;
    assert_eq!(ip("route show proto 254"), "");

    // A second start finds the leftovers of the first; routes of others stay.
    ip("route add 10.99.0.0/16 dev overlay-tun");
    installer.follow(&add("10.0.24.0/24", "fd00::1")).await;
    drop(installer);
    let installer = Installer::open("overlay-tun", plan(&tables, false))
        .await
        .unwrap();
    assert_eq!(ip("route show proto 254"), "");
    assert_eq!(ip("-6 route show table 1000 proto 254"), "");
    assert!(ip("route show").contains("10.99.0.0/16"));
    drop(installer);
}
