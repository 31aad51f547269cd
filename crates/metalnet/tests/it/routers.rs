//! Default routers: which one a node uses, and what happens when one comes or goes.

use std::net::Ipv6Addr;

use metalnet::plan::ops::HopKind;
use metalnet::plan::rib::{Learned, Rib};

use crate::agent::two_nics;
use crate::sim::{prefix, spec, vni};

#[test]
fn the_default_route_follows_the_routers() {
    let mut sim = two_nics();
    sim.learn(100, "0.0.0.0/0", "fc00::a", true);
    sim.learn(100, "::/0", "fc00::b", true);
    sim.settle();
    assert_eq!(
        sim.route(200, "0.0.0.0/0"),
        Some((200, "fc00::a".parse().unwrap()))
    );
    assert_eq!(
        sim.route(200, "::/0"),
        Some((200, "fc00::b".parse().unwrap())),
        "each family has its own router"
    );
    // Make before break: the second router comes, the first one goes.
    sim.learn(100, "0.0.0.0/0", "fc00::c", true);
    sim.learn(100, "0.0.0.0/0", "fc00::a", false);
    sim.settle();
    assert_eq!(
        sim.route(200, "0.0.0.0/0"),
        Some((200, "fc00::c".parse().unwrap()))
    );
    sim.add_network("other", 300, &[]);
    sim.set_nic("c", "other", spec("10.0.0.1", "", &[]));
    sim.settle();
    assert_eq!(
        sim.route(300, "0.0.0.0/0"),
        Some((300, "fc00::c".parse().unwrap())),
        "new tables get it as well"
    );
    sim.check();
}

#[test]
fn nodes_share_the_routers_and_move_only_when_theirs_goes() {
    let (public, default) = (vni(100), prefix("0.0.0.0/0"));
    let mut rib = Rib::default();
    let router = |number: u16| Learned {
        address: Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, number),
        target_vni: 0,
        kind: HopKind::Standard,
    };
    for number in 1..=4 {
        rib.add(public, default, router(number));
    }
    let nodes: Vec<String> = (0..400).map(|number| format!("hv{number}")).collect();
    let choose = |rib: &Rib| -> Vec<Option<Ipv6Addr>> {
        let of = |node: &String| rib.router(public, &default, node);
        nodes.iter().map(of).collect()
    };
    let before = choose(&rib);
    let on = |all: &[Option<Ipv6Addr>], number| {
        let address = Some(router(number).address);
        all.iter().filter(|chosen| **chosen == address).count()
    };
    for number in 1..=4 {
        let share = on(&before, number);
        assert!(
            (50..150).contains(&share),
            "router {number} has {share} of 400"
        );
    }
    rib.remove(public, &default, router(2));
    let after = choose(&rib);
    assert_eq!(on(&after, 2), 0);
    let gone = Some(router(2).address);
    for (before, after) in before.iter().zip(&after) {
        assert!(
            before == after || *before == gone,
            "only its own nodes move"
        );
    }
    rib.add(public, default, router(2));
    assert_eq!(choose(&rib), before, "and back, whatever came last");
}
