//! Peerings: whose routes are in whose tables, and what happens when that changes.

use metalnet::model::{Filter, State};
use metalnet::plan::rib::Heard;

use crate::sim::{Sim, balancer, key, nat, prefix, spec, vni};

fn within(prefixes: &[&str]) -> Filter {
    Filter::Within(prefixes.iter().map(|text| prefix(text)).collect())
}

/// A machine in network `v` (200) only; network `p` (300), which is used elsewhere, exports to it.
fn importer(filter: Filter) -> Sim {
    let mut sim = Sim::started(4);
    sim.add_network("p", 300, &[(200, filter)]);
    sim.add_network("v", 200, &[(300, Filter::All)]);
    sim.set_nic("a", "v", spec("10.0.0.1", "", &[]));
    sim.settle();
    sim.learn(300, "10.0.1.5/32", "fc00::5", true);
    sim.learn(300, "10.0.1.0/24", "fc00::5", true);
    sim.learn(300, "10.0.0.0/8", "fc00::5", true);
    sim.learn(300, "2001:db8:3::5/128", "fc00::6", true);
    sim.hear(Heard::All);
    sim.settle();
    sim
}

fn imported(sim: &Sim) -> Vec<String> {
    let routes = sim.model.remote_routes();
    let imported = routes.into_iter().filter(|(_, hop)| hop.vni == vni(300));
    imported
        .map(|((_, prefix), _)| prefix.to_string())
        .collect()
}

#[test]
fn a_filter_that_changes_changes_the_routes() {
    let mut sim = importer(within(&["10.0.1.0/24"]));
    let narrow = ["10.0.1.0/24", "10.0.1.5/32"];
    assert_eq!(
        imported(&sim),
        narrow,
        "a covering prefix does not slip through"
    );
    sim.add_network("p", 300, &[(200, Filter::All)]);
    sim.settle();
    assert_eq!(imported(&sim).len(), 4, "wider: {:?}", imported(&sim));
    sim.add_network("p", 300, &[(200, within(&["10.0.1.5/32"]))]);
    sim.settle();
    assert_eq!(imported(&sim), ["10.0.1.5/32"], "narrower, IPv6 as well");
    sim.add_network("p", 300, &[(200, within(&[]))]);
    sim.settle();
    assert!(
        imported(&sim).is_empty(),
        "an empty list lets nothing through"
    );
    sim.check_routes();
}

#[test]
fn only_ordinary_routes_cross() {
    let mut sim = importer(Filter::All);
    sim.share(300, nat("203.0.113.9", 1024, 2048), "fc00::5", true);
    sim.target(300, "203.0.113.80", "fc00::5", true);
    sim.set_balancer("lb", "v", balancer(false, "203.0.113.80", &[80]));
    sim.settle();
    assert!(sim.model.neighbors.is_empty());
    assert!(
        sim.model
            .balancer_at("203.0.113.80")
            .unwrap()
            .targets
            .is_empty()
    );
    assert_eq!(imported(&sim).len(), 4);
}

#[test]
fn two_importers_do_not_cut_each_other_off() {
    let mut sim = Sim::started(4);
    let peers = [(200, Filter::All), (201, Filter::All)];
    sim.add_network("p", 300, &peers);
    sim.add_network("v", 200, &[]);
    sim.add_network("w", 201, &[]);
    sim.set_nic("a", "v", spec("10.0.0.1", "", &[]));
    sim.set_nic("b", "w", spec("10.0.0.1", "", &[]));
    sim.learn(300, "10.0.1.5/32", "fc00::5", true);
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    assert_eq!(imported(&sim).len(), 2);
    sim.delete_nic("b");
    sim.settle();
    assert_eq!(
        imported(&sim).len(),
        1,
        "the other importer keeps its routes"
    );
    assert!(sim.subscribed.contains(&vni(300)));
    sim.add_network("p", 300, &[(201, Filter::All)]);
    sim.settle();
    assert!(imported(&sim).is_empty());
    assert!(
        !sim.subscribed.contains(&vni(300)),
        "nobody needs it any more"
    );
    sim.check();
}

#[test]
fn a_peer_that_is_used_nowhere_here_does_not_keep_default_routes_away() {
    let mut sim = importer(Filter::All);
    sim.learn(100, "0.0.0.0/0", "fc00::a", true);
    sim.settle();
    assert_eq!(
        sim.route(200, "0.0.0.0/0"),
        Some((200, "fc00::a".parse().unwrap()))
    );
    assert_eq!(
        sim.route(300, "0.0.0.0/0"),
        None,
        "there is no such table here"
    );
}

#[test]
fn the_importers_own_routes_come_first() {
    let mut sim = importer(Filter::All);
    sim.learn(200, "10.0.1.5/32", "fc00::2", true);
    sim.settle();
    assert_eq!(
        sim.route(200, "10.0.1.5/32"),
        Some((200, "fc00::2".parse().unwrap()))
    );
    sim.learn(200, "10.0.1.5/32", "fc00::2", false);
    sim.settle();
    assert_eq!(
        sim.route(200, "10.0.1.5/32"),
        Some((300, "fc00::5".parse().unwrap())),
        "what was hidden comes back"
    );
    sim.check_routes();
}

#[test]
fn a_failed_import_is_tried_again_and_the_state_is_told_by_those_who_use_the_network() {
    let mut sim = importer(Filter::All);
    let states = |sim: &Sim, name: &str| sim.networks[&key(name)].peerings.clone();
    assert_eq!(states(&sim, "v"), [(300, Some(State::Ready))].into());
    assert!(
        states(&sim, "p").is_empty(),
        "not used here: not ours to say"
    );
    let mut left = 3;
    sim.fault = Some(Box::new(move |op| {
        let hit = left > 0 && format!("{op:?}").starts_with("CreateRoute");
        left -= i32::from(hit);
        hit.then(|| {
            crate::sim::Trouble::Refused(metalnet::plan::ops::DpError::Code {
                code: 303,
                message: "ROUTE_INSERT".to_owned(),
            })
        })
    }));
    sim.learn(300, "10.0.7.7/32", "fc00::5", true);
    sim.settle();
    assert!(sim.route(200, "10.0.7.7/32").is_some());
}
