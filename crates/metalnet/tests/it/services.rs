//! Public addresses, packet filters and load balancers: scenarios of the agent against the model.

use std::time::Duration;

use metalnet::model::{Filter, SpecError, State};
use metalnet::plan::ops::{DpError, DpOp};
use metalnet::plan::rib::Heard;
use metalnet::services::{Action, BalancerError, Rule};

use crate::sim::{Sim, Trouble, allow, balancer, key, nat, ports, prefix, spec, uid, vni};

/// An interface `a` at 10.0.0.1 in network `net` (200), changed by `change`.
fn with(change: impl FnOnce(&mut metalnet::model::NicSpec)) -> Sim {
    let mut sim = Sim::started(4);
    sim.add_network("net", 200, &[]);
    set(&mut sim, "a", "10.0.0.1", change);
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    sim.check();
    sim
}

fn set(sim: &mut Sim, name: &str, ipv4: &str, change: impl FnOnce(&mut metalnet::model::NicSpec)) {
    let mut wanted = spec(ipv4, "", &[]);
    change(&mut wanted);
    sim.set_nic(name, "net", wanted);
}

/// The shares of a NAT address that are installed, as (VNI, first port, owner).
fn shares(sim: &Sim, address: &str) -> Vec<(u32, u16, String)> {
    let shares = sim.model.neighbors.get(&address.parse().unwrap());
    let shares = shares.into_iter().flatten();
    shares
        .map(|((vni, ports), underlay)| (vni.get(), ports.first(), underlay.to_string()))
        .collect()
}

fn calls<'a>(sim: &'a Sim, name: &str) -> Vec<&'a &'static str> {
    let calls = sim.model.calls.iter();
    calls.filter(|call| call.contains(name)).collect()
}

// ---- public addresses ----------------------------------------------------------------------------------------------------------

#[test]
fn a_virtual_ip_is_announced_to_the_outside_changes_and_goes() {
    let mut sim = with(|spec| spec.vip = Some("203.0.113.7".parse().unwrap()));
    assert_eq!(sim.announcements(), ["100 203.0.113.7/32 a", "200 10.0.0.1/32 a"]);
    let status = &sim.nics[&uid("a")].status;
    assert_eq!(status.virtual_ips, ["203.0.113.7".parse::<std::net::IpAddr>().unwrap()]);
    sim.log.clear();
    set(&mut sim, "a", "10.0.0.1", |spec| spec.vip = Some("203.0.113.8".parse().unwrap()));
    sim.settle();
    sim.check();
    assert_eq!(calls(&sim, "Interface").len(), 1, "the interface itself is not touched");
    set(&mut sim, "a", "10.0.0.1", |_| {});
    sim.settle();
    sim.check();
    assert!(sim.nics[&uid("a")].status.virtual_ips.is_empty());
}

#[test]
fn a_virtual_ip_is_withdrawn_before_it_is_deleted() {
    let mut sim = with(|spec| spec.vip = Some("203.0.113.7".parse().unwrap()));
    sim.log.clear();
    sim.delete_nic("a");
    sim.settle();
    let place = |what: &str| sim.log.iter().position(|line| line.starts_with(what)).unwrap();
    assert!(place("Withdraw") < place("DeleteVip"), "{:?}", sim.log);
    assert!(place("DeleteVip") < place("DeleteInterface"), "{:?}", sim.log);
}

#[test]
fn a_public_ipv6_address_is_routed_to_the_machine_and_announced() {
    let public = prefix("2001:db8:f::1/128");
    let sim = with(|spec| {
        spec.public.insert(public);
        spec.prefixes.insert(public);
    });
    assert_eq!(
        sim.announcements(),
        ["100 2001:db8:f::1/128 a", "200 10.0.0.1/32 a", "200 2001:db8:f::1/128 a"]
    );
    let status = &sim.nics[&uid("a")].status;
    assert_eq!(status.virtual_ips, [public.address()]);
    assert!(status.prefixes.is_empty(), "it is no alias prefix of the user's");
}

#[test]
fn a_virtual_ip_moves_between_interfaces_in_any_order() {
    for giver_first in [true, false] {
        let vip = Some("203.0.113.7".parse().unwrap());
        let mut sim = with(|spec| spec.vip = vip);
        set(&mut sim, "b", "10.0.0.2", |_| {});
        sim.settle();
        if giver_first {
            set(&mut sim, "a", "10.0.0.1", |_| {});
            set(&mut sim, "b", "10.0.0.2", |spec| spec.vip = vip);
        } else {
            set(&mut sim, "b", "10.0.0.2", |spec| spec.vip = vip);
            set(&mut sim, "a", "10.0.0.1", |_| {});
        }
        sim.run_for(Duration::from_millis(50));
        sim.check();
        assert!(sim.warnings.is_empty(), "{:?}", sim.warnings);
    }
}

#[test]
fn an_address_freed_from_nat_is_a_virtual_ip_at_once() {
    let mut sim = with(|spec| spec.nat = Some(nat("203.0.113.7", 1024, 2048)));
    sim.share(200, nat("203.0.113.7", 2048, 3072), "fc00::b", true);
    sim.settle();
    assert_eq!(shares(&sim, "203.0.113.7").len(), 1);
    // The other host has not taken its share back yet: what the API says counts.
    set(&mut sim, "a", "10.0.0.1", |spec| spec.vip = Some("203.0.113.7".parse().unwrap()));
    sim.run_for(Duration::from_millis(50));
    sim.check();
    assert!(sim.warnings.is_empty(), "{:?}", sim.warnings);
}

#[test]
fn nat_is_announced_to_routers_and_to_the_neighbours() {
    let mut sim = with(|spec| spec.nat = Some(nat("203.0.113.9", 1024, 2048)));
    assert_eq!(
        sim.announcements(),
        [
            "100 203.0.113.9/32 a",
            "100 203.0.113.9/32 1024-2048 a",
            "200 10.0.0.1/32 a",
            "200 203.0.113.9/32 1024-2048 a",
        ]
    );
    assert_eq!(sim.nics[&uid("a")].status.nat, Some(nat("203.0.113.9", 1024, 2048)));
    set(&mut sim, "a", "10.0.0.1", |spec| spec.nat = Some(nat("203.0.113.9", 3072, 4096)));
    sim.settle();
    sim.check();
    set(&mut sim, "a", "10.0.0.1", |_| {});
    sim.settle();
    sim.check();
    assert_eq!(sim.nics[&uid("a")].status.nat, None);
}

#[test]
fn hosts_that_share_a_nat_address_learn_each_others_ports() {
    let mut sim = with(|spec| spec.nat = Some(nat("203.0.113.9", 1024, 2048)));
    sim.share(200, nat("203.0.113.9", 2048, 3072), "fc00::b", true);
    sim.share(200, nat("203.0.113.9", 3072, 4096), "fc00::c", true);
    sim.settle();
    sim.check();
    let b = (200, 2048, "fc00::b".to_owned());
    let c = (200, 3072, "fc00::c".to_owned());
    assert_eq!(shares(&sim, "203.0.113.9"), [b, c.clone()]);
    sim.share(200, nat("203.0.113.9", 2048, 3072), "fc00::b", false);
    sim.settle();
    assert_eq!(shares(&sim, "203.0.113.9"), [c]);
    // A share of a network that nobody uses here is of no interest.
    sim.share(201, nat("203.0.113.10", 2048, 3072), "fc00::b", true);
    sim.settle();
    assert!(shares(&sim, "203.0.113.10").is_empty());
}

#[test]
fn the_newest_owner_of_a_port_displaces_the_old_one() {
    let mut sim = with(|_| {});
    sim.share(200, nat("203.0.113.9", 1024, 2048), "fc00::b", true);
    sim.settle();
    // The gateway was made anew with other slots; the old owner's withdrawal comes late.
    sim.share(200, nat("203.0.113.9", 1536, 2560), "fc00::c", true);
    sim.settle();
    assert_eq!(shares(&sim, "203.0.113.9"), [(200, 1536, "fc00::c".to_owned())]);
    sim.check();
    sim.share(200, nat("203.0.113.9", 1024, 2048), "fc00::b", false);
    sim.settle();
    assert_eq!(shares(&sim, "203.0.113.9"), [(200, 1536, "fc00::c".to_owned())]);
    // The same share from elsewhere: the machine moved.
    sim.share(200, nat("203.0.113.9", 1536, 2560), "fc00::d", true);
    sim.settle();
    assert_eq!(shares(&sim, "203.0.113.9"), [(200, 1536, "fc00::d".to_owned())]);
    sim.share(200, nat("203.0.113.9", 1536, 2560), "fc00::c", false);
    sim.settle();
    sim.check();
    assert_eq!(shares(&sim, "203.0.113.9"), [(200, 1536, "fc00::d".to_owned())]);
}

#[test]
fn ports_of_this_host_are_nobody_elses() {
    let mut sim = with(|spec| spec.nat = Some(nat("203.0.113.9", 1024, 2048)));
    sim.share(200, nat("203.0.113.9", 1024, 2048), "fc00::b", true);
    sim.settle();
    assert!(shares(&sim, "203.0.113.9").is_empty(), "a machine that moved here from there");
    sim.delete_nic("a");
    set(&mut sim, "b", "10.0.0.2", |_| {});
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    assert_eq!(shares(&sim, "203.0.113.9").len(), 1, "and back again");
    sim.check();
}

#[test]
fn shares_stay_over_a_restart_until_everybody_was_heard() {
    let mut sim = with(|spec| spec.nat = Some(nat("203.0.113.9", 1024, 2048)));
    sim.share(200, nat("203.0.113.9", 2048, 3072), "fc00::b", true);
    sim.settle();
    let announced = sim.announced.clone();
    sim.restart_agent();
    sim.model.calls.clear();
    sim.connect();
    sim.settle();
    assert_eq!(sim.announced, announced, "announced again before the API was read");
    sim.sync();
    sim.settle();
    sim.hear(Heard::Dumped);
    sim.settle();
    assert!(sim.model.calls.iter().all(|call| *call == "List"), "{:?}", sim.model.calls);
    sim.hear(Heard::All);
    sim.settle();
    assert!(shares(&sim, "203.0.113.9").is_empty(), "what nobody announces goes in the end");
    sim.check();
}

#[test]
fn what_cannot_be_shared_is_left_out_and_said() {
    let mut sim = with(|_| {});
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.vip = Some("203.0.113.7".parse().unwrap());
        spec.problems.push(SpecError::NatPorts {
            port: 2000,
            end_port: 1000,
        });
    });
    sim.settle();
    assert_eq!(sim.state("a"), Some(State::Error));
    assert!(sim.nics[&uid("a")].status.device.is_some(), "the device stays visible");
    assert!(sim.model.interfaces[&uid("a")].services.vip.is_some(), "the rest is done");
    assert_eq!(
        sim.warnings,
        [("InvalidSpec", "nat: ports 2000 to 1000 are no range".to_owned())]
    );
    sim.delete_nic("a");
    sim.settle();
    assert!(sim.nics.is_empty());
}

#[test]
fn the_same_virtual_ip_twice_is_an_error_of_the_second() {
    let vip = Some("203.0.113.7".parse().unwrap());
    let mut sim = with(|spec| spec.vip = vip);
    set(&mut sim, "b", "10.0.0.2", |spec| spec.vip = vip);
    sim.settle();
    assert_eq!((sim.state("a"), sim.state("b")), (Some(State::Ready), Some(State::Error)));
    assert!(sim.nics[&uid("b")].status.virtual_ips.is_empty());
    sim.delete_nic("a");
    sim.run_for(Duration::ZERO);
    assert_eq!(sim.state("b"), Some(State::Ready));
    sim.check();
}

// ---- packet filters ------------------------------------------------------------------------------------------------------------

fn deny(port: u16) -> Rule {
    Rule {
        action: Action::Deny,
        ..allow(port)
    }
}

#[test]
fn only_rules_that_differ_are_touched() {
    let mut sim = with(|spec| {
        spec.rules = [("x".to_owned(), allow(22)), ("y".to_owned(), allow(80))].into();
    });
    sim.model.calls.clear();
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.rules = [("x".to_owned(), allow(22)), ("z".to_owned(), deny(443))].into();
    });
    sim.settle();
    assert_eq!(sim.model.calls, ["CreateFirewallRule", "DeleteFirewallRule"]);
    sim.check();
    sim.model.calls.clear();
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.rules = [("x".to_owned(), allow(22)), ("z".to_owned(), deny(443))].into();
        spec.vip = Some("203.0.113.7".parse().unwrap());
    });
    sim.settle();
    assert_eq!(sim.model.calls, ["CreateVip"], "rules that are right stay");
}

#[test]
fn a_changed_rule_is_changed_and_never_absent() {
    let mut sim = with(|spec| spec.rules = [("x".to_owned(), allow(22))].into());
    sim.log.clear();
    set(&mut sim, "a", "10.0.0.1", |spec| spec.rules = [("x".to_owned(), allow(23))].into());
    sim.settle();
    assert!(
        sim.log.iter().any(|line| line.starts_with("ReplaceRule")),
        "{:?}",
        sim.log
    );
    sim.check();
}

#[test]
fn new_rules_come_before_the_old_ones_go_and_before_the_outside_gets_in() {
    let mut sim = Sim::started(2);
    sim.add_network("net", 200, &[]);
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.rules = [("x".to_owned(), allow(22))].into();
        spec.vip = Some("203.0.113.7".parse().unwrap());
    });
    sim.settle();
    let place = |sim: &Sim, what: &str| {
        let calls = &sim.model.calls;
        calls.iter().position(|call| *call == what).unwrap()
    };
    assert!(place(&sim, "CreateFirewallRule") < place(&sim, "CreateVip"));
    sim.model.calls.clear();
    set(&mut sim, "a", "10.0.0.1", |spec| spec.rules = [("y".to_owned(), allow(23))].into());
    sim.settle();
    assert!(place(&sim, "CreateFirewallRule") < place(&sim, "DeleteFirewallRule"));
}

#[test]
fn a_change_that_was_cut_short_is_finished() {
    for trouble in [Trouble::AnswerLost, Trouble::Refused(DpError::Unavailable("lost".to_owned()))] {
        let mut sim = with(|spec| spec.rules = [("x".to_owned(), allow(22))].into());
        let mut left = 1;
        sim.fault = Some(Box::new(move |op| {
            left -= i32::from(matches!(op, DpOp::ReplaceRule { .. }));
            (left == 0 && matches!(op, DpOp::ReplaceRule { .. })).then(|| trouble.clone())
        }));
        set(&mut sim, "a", "10.0.0.1", |spec| spec.rules = [("x".to_owned(), allow(23))].into());
        sim.settle();
        sim.check();
    }
    // Killed between taking the old content away and giving the new one its id.
    let mut sim = with(|spec| spec.rules = [("x".to_owned(), allow(22))].into());
    let interface = sim.model.interfaces.get_mut(&uid("a")).unwrap();
    interface.services.rules = [("~".to_owned(), Some(allow(22)))].into();
    sim.kill_agent();
    sim.connect();
    sim.sync();
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    sim.check();
}

#[test]
fn a_rule_that_is_refused_shows_in_status() {
    let mut sim = with(|_| {});
    sim.fault = Some(Box::new(|op| {
        let drop = matches!(op, DpOp::CreatePart { part, .. } if format!("{part:?}").contains("Deny"));
        drop.then(|| {
            Trouble::Refused(DpError::Code {
                code: 441,
                message: "NO_DROP_SUPPORT".to_owned(),
            })
        })
    }));
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.rules = [("x".to_owned(), deny(22))].into();
        spec.vip = Some("203.0.113.7".parse().unwrap());
    });
    sim.settle();
    assert_eq!(sim.state("a"), Some(State::Error));
    let services = &sim.model.interfaces[&uid("a")].services;
    assert_eq!(services.vip, None, "nothing opens what the filter does not guard yet");
    sim.fault = None;
    sim.settle();
    sim.check();
}

// ---- load balancers ------------------------------------------------------------------------------------------------------------

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
    let place = |what: &str| sim.log.iter().position(|line| line.starts_with(what)).unwrap();
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
    assert!(sim.announcements().contains(&"200 203.0.113.80/32 target a".to_owned()));
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
    assert!(!sim.log.iter().any(|line| line.starts_with("Withdraw")), "{:?}", sim.log);
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
    assert!(sim.model.calls.iter().all(|call| *call == "List"), "{:?}", sim.model.calls);
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
    assert!(sim.announced.is_disjoint(&old), "new underlay addresses are announced");
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
    assert_eq!(sim.model.balancers.len(), 2, "nothing is touched before the API has been read");
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
    let mut broken = sim.balancers[&uid("lb")].clone();
    broken.spec = Err(BalancerError::PortCount(16));
    broken.meta.resource_version = "999999".to_owned();
    sim.balancers.insert(uid("lb"), broken.clone());
    sim.input(metalnet::agent::Input::Balancer(Box::new(broken)));
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
    assert_eq!(ports(1, 2).count(), 1);
    sim.delete_balancer("lb");
    sim.settle();
    assert!(sim.model.tables.is_empty() && sim.model.neighbors.is_empty());
}
