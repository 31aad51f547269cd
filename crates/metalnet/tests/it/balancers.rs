//! Load balancers and their targets: scenarios of the agent against the model.

use std::time::Duration;

use metalnet::model::{Filter, State};
use metalnet::plan::ops::DpOp;
use metalnet::plan::rib::Heard;
use metalnet::services::BalancerError;

use crate::services::{calls, set, shares, with};
use crate::sim::{Sim, Trouble, allow, balancer, key, nat, prefix, spec, uid, vni};

const WEB: &str = "203.0.113.80";

fn balanced(public: bool) -> Sim {
    let mut sim = Sim::started(4);
    sim.add_network("net", 200, &[]);
    sim.set_balancer("lb", "net", balancer(public, WEB, &[80, 443]));
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    sim.check();
    sim
}

fn targets(sim: &Sim) -> Vec<String> {
    let balancer = sim.model.balancer_at(WEB).unwrap();
    balancer.targets.iter().map(ToString::to_string).collect()
}

#[test]
fn a_public_load_balancer_is_announced_outside_an_internal_one_inside() {
    assert_eq!(balanced(true).announcements(), ["100 203.0.113.80/32 lb"]);
    let mut sim = balanced(false);
    assert_eq!(sim.announcements(), ["200 203.0.113.80/32 lb"]);
    assert!(sim.subscribed.contains(&vni(200)), "it needs its targets");
    let finalizers = &sim.networks[&key("net")].meta.finalizers;
    assert_eq!(*finalizers, ["networking.metalnet.openkcm.dev/network-h1"]);
    sim.log.clear();
    sim.delete_balancer("lb");
    sim.settle();
    assert!(sim.balancers.is_empty() && sim.model.balancers.is_empty() && sim.announced.is_empty());
    let place = |what: &str| {
        sim.log
            .iter()
            .position(|line| line.starts_with(what))
            .unwrap()
    };
    assert!(place("Withdraw") < place("DeleteBalancer"));
    assert!(place("DeleteBalancer") < place("BalancerFinalizers"));
    assert!(sim.networks[&key("net")].meta.finalizers.is_empty());
}

#[test]
fn targets_of_other_hosts_and_of_this_one_meet_in_the_load_balancer() {
    let mut sim = balanced(true);
    sim.target(200, WEB, "fc00::b", true);
    sim.target(200, WEB, "fc00::c", true);
    sim.target(201, WEB, "fc00::d", true);
    sim.target(200, "203.0.113.81", "fc00::e", true);
    sim.settle();
    assert_eq!(targets(&sim), ["fc00::b", "fc00::c"]);
    // Servers do not send our own announcements back: the target on this host is known all the same.
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.targets.insert(prefix("203.0.113.80/32"));
    });
    sim.settle();
    assert_eq!(targets(&sim).len(), 3);
    assert!(
        sim.announcements()
            .contains(&"200 203.0.113.80/32 target a".to_owned())
    );
    sim.check();
    sim.target(200, WEB, "fc00::b", false);
    sim.settle();
    sim.check();
    sim.delete_nic("a");
    sim.settle();
    assert_eq!(targets(&sim), ["fc00::c"]);
}

#[test]
fn a_load_balancer_that_comes_after_its_targets_has_them_too() {
    let mut sim = Sim::started(2);
    sim.add_network("net", 200, &[]);
    sim.target(200, WEB, "fc00::b", true);
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.targets.insert(prefix("203.0.113.80/32"));
    });
    sim.settle();
    sim.model.calls.clear();
    sim.set_balancer("lb", "net", balancer(true, WEB, &[80]));
    sim.settle();
    assert_eq!(targets(&sim).len(), 2);
    let announced = sim.log.iter().filter(|line| line.starts_with("Withdraw"));
    assert_eq!(announced.count(), 0, "nothing is taken back to be noticed");
}

#[test]
fn looking_again_leaves_targets_alone() {
    let mut sim = balanced(true);
    sim.target(200, WEB, "fc00::b", true);
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.targets.insert(prefix("203.0.113.80/32"));
    });
    sim.settle();
    sim.model.calls.clear();
    sim.log.clear();
    // Events of the network, another load balancer and another interface: each would flap targets in the reference.
    sim.add_network("net", 200, &[(300, Filter::All)]);
    sim.set_balancer("other", "net", balancer(true, "203.0.113.81", &[80]));
    set(&mut sim, "b", "10.0.0.2", |_| {});
    sim.settle();
    assert!(calls(&sim, "Target").is_empty() && calls(&sim, "Prefix").is_empty());
    assert!(
        !sim.log.iter().any(|line| line.starts_with("Withdraw")),
        "{:?}",
        sim.log
    );
}

#[test]
fn machines_of_this_host_reach_an_internal_load_balancer_of_this_host() {
    let mut sim = balanced(false);
    let underlay = sim.model.balancer_at(WEB).unwrap().underlay;
    assert_eq!(sim.route(200, "203.0.113.80/32"), Some((200, underlay)));
    // A second instance elsewhere is the way when this one goes.
    sim.learn(200, "203.0.113.80/32", "fc00::b", true);
    set(&mut sim, "a", "10.0.0.1", |_| {});
    sim.settle();
    assert_eq!(sim.route(200, "203.0.113.80/32"), Some((200, underlay)));
    sim.delete_balancer("lb");
    sim.settle();
    let other = "fc00::b".parse().unwrap();
    assert_eq!(sim.route(200, "203.0.113.80/32"), Some((200, other)));
    sim.check();
}

#[test]
fn an_internal_load_balancer_is_reached_from_a_peer() {
    let mut sim = Sim::started(4);
    sim.add_network("net", 200, &[(300, Filter::All)]);
    sim.add_network("peer", 300, &[]);
    sim.set_balancer("lb", "net", balancer(false, WEB, &[80]));
    sim.set_nic("p", "peer", spec("10.3.0.1", "", &[]));
    sim.settle();
    let underlay = sim.model.balancer_at(WEB).unwrap().underlay;
    assert_eq!(sim.route(300, "203.0.113.80/32"), Some((200, underlay)));
}

#[test]
fn changed_ports_and_addresses_reach_the_data_plane() {
    let mut sim = balanced(true);
    sim.target(200, WEB, "fc00::b", true);
    sim.settle();
    sim.set_balancer("lb", "net", balancer(true, WEB, &[8080]));
    sim.settle();
    sim.check();
    let ports = &sim.model.balancer_at(WEB).unwrap().ports;
    assert_eq!(ports.len(), 1, "{ports:?}");
    sim.set_balancer("lb", "net", balancer(true, "203.0.113.81", &[8080]));
    sim.settle();
    sim.check();
    sim.set_balancer("lb", "net", balancer(false, "203.0.113.81", &[8080]));
    sim.settle();
    sim.check();
}

#[test]
fn targets_stay_over_a_restart_until_everybody_was_heard() {
    let mut sim = balanced(true);
    sim.target(200, WEB, "fc00::b", true);
    sim.target(200, WEB, "fc00::c", true);
    sim.settle();
    sim.restart_agent();
    sim.model.calls.clear();
    sim.connect();
    sim.sync();
    sim.target(200, WEB, "fc00::c", true);
    sim.settle();
    sim.hear(Heard::Dumped);
    sim.settle();
    assert!(
        sim.model.calls.iter().all(|call| *call == "List"),
        "{:?}",
        sim.model.calls
    );
    sim.hear(Heard::All);
    sim.settle();
    sim.target(200, WEB, "fc00::c", true);
    sim.settle();
    assert_eq!(targets(&sim), ["fc00::c"]);
}

#[test]
fn a_target_that_its_host_takes_back_goes_at_once() {
    let mut sim = balanced(true);
    sim.hear(Heard::Listening);
    sim.target(200, WEB, "fc00::b", true);
    sim.target(200, WEB, "fc00::c", true);
    sim.settle();
    sim.target(200, WEB, "fc00::b", false);
    sim.settle();
    assert_eq!(targets(&sim), ["fc00::c"]);
    // While no server is there, a disappearance means nothing.
    sim.hear(Heard::Silent);
    sim.target(200, WEB, "fc00::c", false);
    sim.settle();
    assert_eq!(targets(&sim), ["fc00::c"]);
}

#[test]
fn more_targets_than_fit() {
    let mut sim = balanced(true);
    for n in 0..70 {
        sim.target(200, WEB, &format!("fc00::{n:x}"), true);
    }
    sim.settle();
    assert_eq!(targets(&sim).len(), 64);
    assert_eq!(sim.balancers[&uid("lb")].state, Some(State::Ready));
    sim.target(200, WEB, "fc00::0", false);
    sim.settle();
    assert_eq!(targets(&sim).len(), 64, "one that waited takes the place");
}

#[test]
fn after_a_restart_of_dpservice_services_come_back() {
    let mut sim = with(|spec| {
        spec.vip = Some("203.0.113.7".parse().unwrap());
        spec.nat = Some(nat("203.0.113.9", 1024, 2048));
        spec.targets.insert(prefix("203.0.113.80/32"));
        spec.rules = [("x".to_owned(), allow(22))].into();
    });
    sim.set_balancer("lb", "net", balancer(true, WEB, &[80]));
    sim.share(200, nat("203.0.113.9", 2048, 3072), "fc00::b", true);
    sim.target(200, WEB, "fc00::b", true);
    sim.settle();
    let old = sim.announced.clone();
    sim.log.clear();
    sim.api_down = true;
    sim.restart_dpservice();
    sim.settle();
    assert!(
        sim.announced.is_disjoint(&old),
        "new underlay addresses are announced"
    );
    sim.api_down = false;
    sim.check();
}

#[test]
fn load_balancers_that_no_object_wants_are_collected() {
    let mut sim = balanced(true);
    sim.set_balancer("two", "net", balancer(true, "203.0.113.81", &[80]));
    sim.settle();
    sim.balancers.remove(&uid("two"));
    sim.kill_agent();
    sim.connect();
    sim.settle();
    assert_eq!(
        sim.model.balancers.len(),
        2,
        "nothing is touched before the API has been read"
    );
    sim.sync();
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    sim.check();
}

#[test]
fn a_creation_of_a_load_balancer_whose_answer_was_lost_is_taken_as_done() {
    for trouble in [Trouble::AnswerLost, Trouble::Late] {
        let mut sim = balanced(true);
        let mut left = 1;
        sim.fault = Some(Box::new(move |op| {
            let hit = left > 0 && matches!(op, DpOp::CreateBalancer { .. });
            left -= i32::from(hit);
            hit.then(|| trouble.clone())
        }));
        sim.set_balancer("two", "net", balancer(true, "203.0.113.81", &[80]));
        sim.settle();
        sim.check();
        assert!(sim.warnings.is_empty(), "{:?}", sim.warnings);
        assert!(calls(&sim, "DeleteLoadBalancer").is_empty());
    }
    // And one that appears after nobody wants it any more is removed.
    let mut sim = balanced(true);
    sim.fault = Some(Box::new(|op| {
        matches!(op, DpOp::CreateBalancer { .. }).then_some(Trouble::Late)
    }));
    sim.set_balancer("two", "net", balancer(true, "203.0.113.81", &[80]));
    sim.run_for(Duration::ZERO);
    sim.fault = None;
    sim.delete_balancer("two");
    sim.settle();
    sim.check();
}

#[test]
fn a_load_balancer_waits_for_its_network_and_says_what_is_wrong() {
    let mut sim = Sim::started(2);
    sim.set_balancer("lb", "net", balancer(true, WEB, &[80]));
    sim.settle();
    assert_eq!(sim.balancers[&uid("lb")].state, Some(State::Pending));
    assert_eq!(
        sim.warnings,
        [("NetworkNotFound", "Network net does not exist".to_owned())]
    );
    sim.add_network("net", 200, &[]);
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    sim.check();
    sim.break_balancer("lb", BalancerError::PortCount(16));
    sim.settle();
    assert_eq!(sim.balancers[&uid("lb")].state, Some(State::Error));
    assert!(sim.model.balancer_at(WEB).is_some(), "what exists stays");
}

#[test]
fn the_same_balanced_address_twice_is_an_error_of_the_second() {
    let mut sim = balanced(true);
    sim.set_balancer("two", "net", balancer(true, WEB, &[80]));
    sim.settle();
    assert_eq!(sim.balancers[&uid("two")].state, Some(State::Error));
    assert_eq!(sim.balancers[&uid("lb")].state, Some(State::Ready));
    sim.delete_balancer("lb");
    sim.run_for(Duration::ZERO);
    assert_eq!(sim.balancers[&uid("two")].state, Some(State::Ready));
    sim.check();
}

#[test]
fn a_network_used_by_a_load_balancer_only_has_its_routes() {
    let mut sim = balanced(true);
    sim.learn(100, "0.0.0.0/0", "fc00::a", true);
    sim.share(200, nat("203.0.113.9", 1024, 2048), "fc00::b", true);
    sim.settle();
    assert!(sim.route(200, "0.0.0.0/0").is_some());
    assert_eq!(shares(&sim, "203.0.113.9").len(), 1);
    sim.delete_balancer("lb");
    sim.settle();
    assert!(sim.model.tables.is_empty() && sim.model.neighbors.is_empty());
}
