//! Public addresses and packet filters: scenarios of the agent against the model.

use std::time::Duration;

use metalnet::model::{SpecError, State};
use metalnet::plan::ops::{DpError, DpOp};
use metalnet::plan::rib::Heard;
use metalnet::services::{Action, Rule};

use crate::sim::{Sim, Trouble, allow, nat, prefix, spec, uid};

/// An interface `a` at 10.0.0.1 in network `net` (200), changed by `change`.
pub fn with(change: impl FnOnce(&mut metalnet::model::NicSpec)) -> Sim {
    let mut sim = Sim::started(4);
    sim.add_network("net", 200, &[]);
    set(&mut sim, "a", "10.0.0.1", change);
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    sim.check();
    sim
}

pub fn set(
    sim: &mut Sim,
    name: &str,
    ipv4: &str,
    change: impl FnOnce(&mut metalnet::model::NicSpec),
) {
    let mut wanted = spec(ipv4, "", &[]);
    change(&mut wanted);
    sim.set_nic(name, "net", wanted);
}

/// The shares of a NAT address that are installed, as (VNI, first port, owner).
pub fn shares(sim: &Sim, address: &str) -> Vec<(u32, u16, String)> {
    let shares = sim.model.neighbors.get(&address.parse().unwrap());
    let shares = shares.into_iter().flatten();
    shares
        .map(|((vni, ports), underlay)| (vni.get(), ports.first(), underlay.to_string()))
        .collect()
}

pub fn calls<'a>(sim: &'a Sim, name: &str) -> Vec<&'a &'static str> {
    let calls = sim.model.calls.iter();
    calls.filter(|call| call.contains(name)).collect()
}

// ---- public addresses ----------------------------------------------------------------------------------------------------------

#[test]
fn a_virtual_ip_is_announced_to_the_outside_changes_and_goes() {
    let mut sim = with(|spec| spec.vip = Some("203.0.113.7".parse().unwrap()));
    assert_eq!(
        sim.announcements(),
        ["100 203.0.113.7/32 a", "200 10.0.0.1/32 a"]
    );
    let status = &sim.nics[&uid("a")].status;
    assert_eq!(
        status.virtual_ips,
        ["203.0.113.7".parse::<std::net::IpAddr>().unwrap()]
    );
    sim.log.clear();
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.vip = Some("203.0.113.8".parse().unwrap())
    });
    sim.settle();
    sim.check();
    assert_eq!(
        calls(&sim, "Interface").len(),
        1,
        "the interface itself is not touched"
    );
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
    let place = |what: &str| {
        sim.log
            .iter()
            .position(|line| line.starts_with(what))
            .unwrap()
    };
    assert!(place("Withdraw") < place("DeleteVip"), "{:?}", sim.log);
    assert!(
        place("DeleteVip") < place("DeleteInterface"),
        "{:?}",
        sim.log
    );
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
        [
            "100 2001:db8:f::1/128 a",
            "200 10.0.0.1/32 a",
            "200 2001:db8:f::1/128 a"
        ]
    );
    let status = &sim.nics[&uid("a")].status;
    assert_eq!(status.virtual_ips, [public.address()]);
    assert!(
        status.prefixes.is_empty(),
        "it is no alias prefix of the user's"
    );
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
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.vip = Some("203.0.113.7".parse().unwrap())
    });
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
    assert_eq!(
        sim.nics[&uid("a")].status.nat,
        Some(nat("203.0.113.9", 1024, 2048))
    );
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.nat = Some(nat("203.0.113.9", 3072, 4096))
    });
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
    assert_eq!(
        shares(&sim, "203.0.113.9"),
        [(200, 1536, "fc00::c".to_owned())]
    );
    sim.check();
    sim.share(200, nat("203.0.113.9", 1024, 2048), "fc00::b", false);
    sim.settle();
    assert_eq!(
        shares(&sim, "203.0.113.9"),
        [(200, 1536, "fc00::c".to_owned())]
    );
    // The same share from elsewhere: the machine moved.
    sim.share(200, nat("203.0.113.9", 1536, 2560), "fc00::d", true);
    sim.settle();
    assert_eq!(
        shares(&sim, "203.0.113.9"),
        [(200, 1536, "fc00::d".to_owned())]
    );
    sim.share(200, nat("203.0.113.9", 1536, 2560), "fc00::c", false);
    sim.settle();
    sim.check();
    assert_eq!(
        shares(&sim, "203.0.113.9"),
        [(200, 1536, "fc00::d".to_owned())]
    );
}

#[test]
fn ports_of_this_host_are_nobody_elses() {
    let mut sim = with(|spec| spec.nat = Some(nat("203.0.113.9", 1024, 2048)));
    sim.share(200, nat("203.0.113.9", 1024, 2048), "fc00::b", true);
    sim.settle();
    assert!(
        shares(&sim, "203.0.113.9").is_empty(),
        "a machine that moved here from there"
    );
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
    assert_eq!(
        sim.announced, announced,
        "announced again before the API was read"
    );
    sim.sync();
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
    assert!(
        shares(&sim, "203.0.113.9").is_empty(),
        "what nobody announces goes in the end"
    );
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
    assert!(
        sim.nics[&uid("a")].status.device.is_some(),
        "the device stays visible"
    );
    assert!(
        sim.model.interfaces[&uid("a")].services.vip.is_some(),
        "the rest is done"
    );
    assert_eq!(
        sim.warnings,
        [(
            "InvalidSpec",
            "nat: ports 2000 to 1000 are no range".to_owned()
        )]
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
    assert_eq!(
        (sim.state("a"), sim.state("b")),
        (Some(State::Ready), Some(State::Error))
    );
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
    assert_eq!(
        sim.model.calls,
        ["CreateFirewallRule", "DeleteFirewallRule"]
    );
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
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.rules = [("x".to_owned(), allow(23))].into()
    });
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
    sim.model.rules_apart = true;
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
    set(&mut sim, "a", "10.0.0.1", |spec| {
        spec.rules = [("y".to_owned(), allow(23))].into()
    });
    sim.settle();
    assert!(place(&sim, "CreateFirewallRule") < place(&sim, "DeleteFirewallRule"));
}

#[test]
fn an_interface_is_never_without_its_rules() {
    let mut sim = with(|spec| {
        spec.rules = [("x".to_owned(), allow(22)), ("y".to_owned(), deny(23))].into();
    });
    assert!(calls(&sim, "FirewallRule").is_empty(), "they came with it");
    sim.model.calls.clear();
    sim.restart_dpservice();
    sim.connect();
    sim.sync();
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    sim.check();
    assert_eq!(calls(&sim, "CreateInterface").len(), 1);
    assert!(calls(&sim, "FirewallRule").is_empty());
    assert_eq!(sim.model.interfaces[&uid("a")].services.rules.len(), 2);
}

#[test]
fn a_change_that_was_cut_short_is_finished() {
    for trouble in [
        Trouble::AnswerLost,
        Trouble::Refused(DpError::Unavailable("lost".to_owned())),
    ] {
        let mut sim = with(|spec| spec.rules = [("x".to_owned(), allow(22))].into());
        let mut left = 1;
        sim.fault = Some(Box::new(move |op| {
            left -= i32::from(matches!(op, DpOp::ReplaceRule { .. }));
            (left == 0 && matches!(op, DpOp::ReplaceRule { .. })).then(|| trouble.clone())
        }));
        set(&mut sim, "a", "10.0.0.1", |spec| {
            spec.rules = [("x".to_owned(), allow(23))].into()
        });
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
        let drop =
            matches!(op, DpOp::CreatePart { part, .. } if format!("{part:?}").contains("Deny"));
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
    assert_eq!(
        services.vip, None,
        "nothing opens what the filter does not guard yet"
    );
    sim.fault = None;
    sim.settle();
    sim.check();
}

/// An interface gives its public address up while the answer to the call that lends it is lost. Whoever frees the address waits for the
/// generation to be seen, and the call may still be carried out: it is not seen before the listing that comes after that.
#[test]
fn a_generation_is_seen_only_when_no_call_for_an_older_one_can_be_carried_out() {
    let mut sim = with(|_| {});
    let change = |sim: &mut Sim, generation: i64, vip: Option<&str>| {
        let mut nic = sim.nics[&uid("a")].clone();
        nic.meta.generation = generation;
        nic.meta.resource_version = format!("g{generation}");
        let spec = nic.spec.as_mut().unwrap();
        spec.vip = vip.map(|vip| vip.parse().unwrap());
        sim.put_nic(nic);
    };
    let seen = |sim: &Sim| sim.nics[&uid("a")].status.observed_generation;
    sim.fault = Some(Box::new(|op| {
        let lends = matches!(op, DpOp::CreatePart { .. });
        lends.then(|| Trouble::Refused(DpError::Unavailable("timed out".to_owned())))
    }));
    // Time stands still: nothing is asked again.
    let act = |sim: &mut Sim| {
        for _ in 0..50 {
            sim.step();
        }
    };
    change(&mut sim, 2, Some("203.0.113.7"));
    act(&mut sim);
    assert!(sim.log.iter().any(|line| line.starts_with("CreatePart")));
    change(&mut sim, 3, None);
    act(&mut sim);
    assert_ne!(seen(&sim), Some(3), "the address may still be lent");
    sim.fault = None;
    sim.settle();
    assert_eq!(seen(&sim), Some(3));
    sim.check();
}
