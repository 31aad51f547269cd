//! Scenarios of the agent against the model, each a thing that must hold on a hypervisor.

use std::time::Duration;

use metalnet::agent::Input;
use metalnet::model::{Filter, State};
use metalnet::plan::ops::{DpError, DpOp};
use metalnet::plan::rib::Heard;

use crate::sim::{Sim, Trouble, key, prefix, spec, uid};

fn code(code: u32) -> DpError {
    DpError::Code {
        code,
        message: String::new(),
    }
}

pub fn two_nics() -> Sim {
    let mut sim = Sim::started(4);
    sim.add_network("net", 200, &[]);
    sim.set_nic(
        "a",
        "net",
        spec("10.0.0.1", "2001:db8::1", &["10.1.0.0/24"]),
    );
    sim.set_nic("b", "net", spec("10.0.0.2", "", &[]));
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    sim
}

#[test]
fn a_network_interface_is_realised_announced_and_reported() {
    let mut sim = two_nics();
    sim.check();
    assert_eq!(
        sim.announcements(),
        [
            "100 2001:db8::1/128 a",
            "200 10.0.0.1/32 a",
            "200 10.0.0.2/32 b",
            "200 10.1.0.0/24 a",
            "200 2001:db8::1/128 a"
        ]
    );
    assert_eq!(
        sim.claims.values().collect::<Vec<_>>(),
        ["dtapvf_0", "dtapvf_1"]
    );
    assert_eq!(sim.nics[&uid("a")].status.prefixes, ["10.1.0.0/24"]);
    let finalizers = &sim.networks[&key("net")].meta.finalizers;
    assert_eq!(*finalizers, ["networking.metalnet.openkcm.dev/network-h1"]);
    assert!(sim.warnings.is_empty());
}

#[test]
fn deletion_leaves_nothing_behind() {
    let mut sim = two_nics();
    sim.learn(200, "10.0.0.9/32", "fc00::9", true);
    sim.settle();
    sim.delete_nic("a");
    sim.delete_nic("b");
    sim.settle();
    assert!(sim.nics.is_empty() && sim.claims.is_empty() && sim.announced.is_empty());
    assert!(sim.model.interfaces.is_empty() && sim.model.tables.is_empty());
    assert_eq!(
        sim.subscribed
            .iter()
            .map(|vni| vni.get())
            .collect::<Vec<_>>(),
        [100]
    );
    sim.delete_network("net");
    assert!(
        sim.networks.is_empty(),
        "the node's finalizer is gone, so the Network goes at once"
    );
}

#[test]
fn the_withdrawal_comes_before_the_deletion() {
    let mut sim = two_nics();
    sim.log.clear();
    sim.delete_nic("b");
    sim.settle();
    let position = |what: &str| {
        sim.log
            .iter()
            .position(|line| line.starts_with(what))
            .unwrap()
    };
    assert!(position("Withdraw") < position("DeleteInterface"));
    assert!(position("DeleteInterface") < position("Release"));
    assert!(position("Release") < position("NicFinalizers"));
}

#[test]
fn the_interface_waits_for_its_network() {
    let mut sim = Sim::started(2);
    sim.set_nic("a", "net", spec("10.0.0.1", "", &[]));
    sim.settle();
    assert_eq!(sim.state("a"), Some(State::Pending));
    assert_eq!(
        sim.warnings,
        [("NetworkNotFound", "Network net does not exist".to_owned())]
    );
    sim.add_network("net", 200, &[]);
    sim.settle();
    sim.check();
}

#[test]
fn a_network_being_deleted_takes_no_new_interface_and_keeps_the_old() {
    let mut sim = two_nics();
    sim.delete_network("net");
    sim.set_nic("c", "net", spec("10.0.0.3", "", &[]));
    sim.settle();
    assert_eq!(sim.state("c"), Some(State::Pending));
    assert_eq!(sim.state("a"), Some(State::Ready));
    assert_eq!(sim.model.interfaces.len(), 2);
}

#[test]
fn learned_routes_follow_and_own_addresses_stay_out() {
    let mut sim = two_nics();
    sim.learn(200, "10.0.0.9/32", "fc00::9", true);
    sim.learn(200, "10.0.0.1/32", "fc00::66", true);
    sim.learn(200, "10.1.0.0/24", "fc00::66", true);
    sim.learn(201, "10.0.0.9/32", "fc00::66", true);
    sim.settle();
    assert_eq!(
        sim.route(200, "10.0.0.9/32"),
        Some((200, "fc00::9".parse().unwrap()))
    );
    assert_eq!(
        sim.model.remote_routes().len(),
        1,
        "own prefixes and foreign VNIs are not installed"
    );
    sim.learn(200, "10.0.0.9/32", "fc00::9", false);
    sim.settle();
    assert!(sim.model.remote_routes().is_empty());
}

#[test]
fn the_newest_hop_wins_and_the_survivor_takes_over() {
    let mut sim = two_nics();
    let via = |text: &str| Some((200, text.parse().unwrap()));
    sim.learn(200, "10.0.0.9/32", "fc00::5", true);
    sim.settle();
    sim.learn(200, "10.0.0.9/32", "fc00::7", true);
    sim.settle();
    assert_eq!(sim.route(200, "10.0.0.9/32"), via("fc00::7"));
    sim.learn(200, "10.0.0.9/32", "fc00::7", false);
    sim.settle();
    assert_eq!(
        sim.route(200, "10.0.0.9/32"),
        via("fc00::5"),
        "removal of one hop does not remove the other"
    );
}

#[test]
fn after_a_restart_of_dpservice_everything_comes_back_under_the_same_claims() {
    let mut sim = two_nics();
    sim.learn(200, "10.0.0.9/32", "fc00::9", true);
    sim.settle();
    let (claims, announced) = (sim.claims.clone(), sim.announced.clone());
    sim.log.clear();
    sim.restart_dpservice();
    sim.settle();
    assert_eq!(sim.claims, claims);
    assert!(
        sim.announced.is_disjoint(&announced),
        "new underlay addresses are announced, the old withdrawn"
    );
    assert!(
        !sim.log.iter().any(|line| line.starts_with("NicStatus")),
        "status is not touched: {:?}",
        sim.log
    );
    assert_eq!(
        sim.route(200, "10.0.0.9/32"),
        Some((200, "fc00::9".parse().unwrap()))
    );
    sim.check();
}

#[test]
fn a_restart_of_dpservice_heals_without_the_api() {
    let mut sim = two_nics();
    sim.api_down = true;
    sim.restart_dpservice();
    sim.settle();
    assert_eq!(sim.model.interfaces.len(), 2);
    sim.api_down = false;
    sim.settle();
    sim.check();
}

#[test]
fn a_lost_call_never_initialises_a_live_instance() {
    let mut sim = two_nics();
    sim.model.calls.clear();
    let mut lost = 3;
    sim.fault = Some(Box::new(move |_| {
        lost -= 1;
        (lost >= 0).then(|| Trouble::Refused(DpError::Unavailable("timed out".to_owned())))
    }));
    sim.set_nic("c", "net", spec("10.0.0.3", "", &[]));
    sim.settle();
    assert!(!sim.model.calls.contains(&"Initialize"));
    sim.check();
}

#[test]
fn after_a_restart_of_metalnet_routes_stay_until_everything_was_heard() {
    let mut sim = two_nics();
    sim.learn(200, "10.0.0.8/32", "fc00::8", true);
    sim.learn(200, "10.0.0.9/32", "fc00::9", true);
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
    sim.hear(Heard::Listening);
    sim.learn(200, "10.0.0.8/32", "fc00::8", true);
    sim.settle();
    sim.hear(Heard::Dumped);
    sim.settle();
    assert!(
        sim.model.calls.iter().all(|call| *call == "List"),
        "nothing was changed in the data plane: {:?}",
        sim.model.calls
    );
    sim.hear(Heard::All);
    sim.settle();
    assert!(sim.route(200, "10.0.0.8/32").is_some());
    assert!(
        sim.route(200, "10.0.0.9/32").is_none(),
        "what nobody announces any more goes in the end"
    );
    sim.check();
}

#[test]
fn after_a_restart_of_metalnet_a_newer_hop_replaces_the_old_one_soon() {
    let mut sim = two_nics();
    sim.learn(200, "10.0.0.9/32", "fc00::9", true);
    sim.settle();
    sim.restart_agent();
    sim.connect();
    sim.sync();
    sim.settle();
    sim.hear(Heard::Listening);
    sim.learn(200, "10.0.0.9/32", "fc00::5", true);
    sim.learn(200, "10.0.0.7/32", "fc00::7", true);
    sim.settle();
    assert_eq!(
        sim.route(200, "10.0.0.9/32"),
        Some((200, "fc00::9".parse().unwrap()))
    );
    assert!(
        sim.route(200, "10.0.0.7/32").is_some(),
        "what is missing is added at once"
    );
    sim.hear(Heard::Dumped);
    sim.settle();
    assert_eq!(
        sim.route(200, "10.0.0.9/32"),
        Some((200, "fc00::5".parse().unwrap()))
    );
}

#[test]
fn with_all_servers_lost_the_data_plane_stays_as_it_is() {
    let mut sim = two_nics();
    sim.learn(200, "10.0.0.9/32", "fc00::9", true);
    sim.settle();
    sim.hear(Heard::Silent);
    sim.learn(200, "10.0.0.9/32", "fc00::9", false);
    sim.settle();
    assert!(sim.route(200, "10.0.0.9/32").is_some());
    sim.hear(Heard::Listening);
    sim.hear(Heard::Dumped);
    sim.settle();
    assert!(sim.route(200, "10.0.0.9/32").is_some());
    sim.hear(Heard::All);
    sim.settle();
    assert!(sim.route(200, "10.0.0.9/32").is_none());
}

#[test]
fn a_withdrawal_counts_at_once_while_a_server_is_there() {
    let mut sim = two_nics();
    sim.hear(Heard::Listening);
    sim.learn(200, "10.0.0.9/32", "fc00::9", true);
    sim.settle();
    sim.learn(200, "10.0.0.9/32", "fc00::9", false);
    sim.settle();
    assert!(sim.route(200, "10.0.0.9/32").is_none());
}

#[test]
fn a_machine_that_moves_here_frees_its_address_first() {
    let mut sim = two_nics();
    sim.learn(200, "10.0.0.3/32", "fc00::9", true);
    sim.learn(200, "10.3.0.0/24", "fc00::9", true);
    sim.settle();
    sim.hear(Heard::Listening);
    sim.set_nic("c", "net", spec("10.0.0.3", "", &["10.3.0.0/24"]));
    sim.settle();
    assert!(sim.warnings.is_empty(), "{:?}", sim.warnings);
    sim.check();
    sim.delete_nic("c");
    sim.settle();
    assert!(
        sim.route(200, "10.0.0.3/32").is_some(),
        "gone from here, the route to the other host is back"
    );
    assert!(sim.route(200, "10.3.0.0/24").is_some());
}

#[test]
fn a_route_that_lists_do_not_show_is_cleared_out_of_the_way() {
    let mut sim = two_nics();
    sim.model.hide_ipv6_routes = true;
    sim.learn(200, "2001:db8::3/128", "fc00::9", true);
    sim.settle();
    sim.restart_agent();
    sim.connect();
    sim.sync();
    sim.settle();
    sim.set_nic("c", "net", spec("", "2001:db8::3", &[]));
    sim.settle();
    assert_eq!(sim.state("c"), Some(State::Ready));
    assert!(sim.warnings.is_empty(), "{:?}", sim.warnings);
}

#[test]
fn changed_fields_of_a_live_interface_make_it_anew() {
    let mut sim = two_nics();
    sim.set_nic("b", "net", spec("10.0.0.22", "", &["10.9.0.0/16"]));
    sim.settle();
    sim.check();
    let moved = "10.0.0.22".parse().ok();
    assert_eq!(sim.model.interfaces[&uid("b")].ipv4, moved);
    // One field at a time: another one that changes too would hide that it is not looked at.
    let mut wanted = spec("10.0.0.22", "", &[]);
    wanted.hostname = "vm".to_owned();
    sim.set_nic("b", "net", wanted.clone());
    sim.settle();
    sim.check();
    assert_eq!(sim.model.interfaces[&uid("b")].hostname, "vm");
    wanted.total_rate = 100;
    sim.set_nic("b", "net", wanted.clone());
    sim.settle();
    sim.check();
    assert_eq!(sim.model.interfaces[&uid("b")].total_rate, 100);
    wanted.public_rate = 50;
    sim.set_nic("b", "net", wanted);
    sim.settle();
    sim.check();
    assert_eq!(sim.model.interfaces[&uid("b")].public_rate, 50);
    sim.add_network("net", 201, &[]);
    sim.settle();
    sim.check();
    for made in sim.model.interfaces.values() {
        assert_eq!(made.vni.get(), 201);
    }
}

#[test]
fn prefixes_end_up_exactly_as_wanted() {
    let mut sim = two_nics();
    sim.set_nic(
        "a",
        "net",
        spec(
            "10.0.0.1",
            "2001:db8::1",
            &["10.2.0.0/24", "2001:db8:1::/64", "10.0.0.1/32"],
        ),
    );
    sim.settle();
    sim.check();
    sim.set_nic("a", "net", spec("10.0.0.1", "2001:db8::1", &[]));
    sim.settle();
    sim.check();
    assert!(sim.nics[&uid("a")].status.prefixes.is_empty());
}

/// Its object stays, with the name of another node: for this host it is gone.
#[test]
fn an_interface_given_to_another_host_leaves_nothing_here() {
    let mut sim = two_nics();
    sim.nics.remove(&uid("a"));
    sim.input(Input::NicGone(uid("a")));
    sim.settle();
    sim.check();
    assert_eq!(sim.model.interfaces.len(), 1);
    assert_eq!(sim.claims.keys().collect::<Vec<_>>(), [&uid("b")]);
}

#[test]
fn what_no_object_wants_is_collected() {
    let mut sim = two_nics();
    sim.claims.insert(uid("ghost"), "dtapvf_3".to_owned());
    sim.restart_agent();
    // Deleted by force while metalnet was away: no finalizer held the object.
    sim.nics.remove(&uid("a"));
    sim.connect();
    sim.settle();
    assert_eq!(
        sim.model.interfaces.len(),
        2,
        "nothing is touched before the API has been read"
    );
    sim.sync();
    sim.settle();
    sim.hear(Heard::All);
    sim.settle();
    sim.check();
    assert_eq!(sim.claims.keys().collect::<Vec<_>>(), [&uid("b")]);
}

#[test]
fn a_lost_claim_is_taken_over_from_the_interface() {
    let mut sim = two_nics();
    let claim = sim.claims.remove(&uid("b")).unwrap();
    sim.restart_agent();
    sim.connect();
    sim.sync();
    sim.settle();
    assert_eq!(sim.claims[&uid("b")], claim);
    sim.hear(Heard::All);
    sim.settle();
    sim.check();
}

#[test]
fn more_interfaces_than_devices() {
    let mut sim = Sim::started(2);
    sim.add_network("net", 200, &[]);
    for n in 1..=3 {
        sim.set_nic(
            &format!("n{n}"),
            "net",
            spec(&format!("10.0.0.{n}"), "", &[]),
        );
    }
    sim.settle();
    assert_eq!(sim.state("n3"), Some(State::Error));
    assert_eq!(
        sim.warnings,
        [("NoDevice", "every device of this node is in use".to_owned())]
    );
    sim.delete_nic("n1");
    sim.settle();
    sim.check();
}

#[test]
fn a_claim_for_a_device_that_is_gone_is_an_error_of_that_interface_only() {
    let mut sim = Sim::new(2);
    sim.claims.insert(uid("a"), "0000:03:00.2".to_owned());
    sim.restart_agent();
    sim.add_network("net", 200, &[]);
    sim.set_nic("a", "net", spec("10.0.0.1", "", &[]));
    sim.set_nic("b", "net", spec("10.0.0.2", "", &[]));
    sim.connect();
    sim.sync();
    sim.settle();
    assert_eq!(sim.state("a"), Some(State::Error));
    assert_eq!(sim.state("b"), Some(State::Ready));
    sim.delete_nic("a");
    sim.settle();
    assert!(!sim.claims.contains_key(&uid("a")));
}

#[test]
fn refusals_show_in_status_and_heal() {
    let mut sim = two_nics();
    sim.fault = Some(Box::new(|op| {
        matches!(op, DpOp::CreateInterface { .. }).then(|| Trouble::Refused(code(381)))
    }));
    sim.set_nic("c", "net", spec("10.0.0.3", "", &[]));
    sim.settle();
    assert_eq!(sim.state("c"), Some(State::Error));
    assert!(
        sim.nics[&uid("c")].status.device.is_some(),
        "the device is claimed and stays visible"
    );
    assert_eq!(
        sim.warnings.len(),
        1,
        "the same warning is given once: {:?}",
        sim.warnings
    );
    sim.fault = None;
    sim.settle();
    sim.check();
}

#[test]
fn the_same_address_twice_is_an_error_of_the_second() {
    let mut sim = two_nics();
    sim.set_nic("c", "net", spec("10.0.0.1", "", &[]));
    sim.settle();
    assert_eq!(sim.state("c"), Some(State::Error));
    assert_eq!(sim.state("a"), Some(State::Ready));
    assert!(
        sim.announced
            .iter()
            .all(|a| sim.model.interfaces[&uid("a")].underlay != a.underlay || a.vni.get() != 0)
    );
    sim.delete_nic("a");
    sim.settle();
    sim.check();
}

#[test]
fn an_inventory_that_turns_out_wrong_is_listed_again() {
    let mut sim = two_nics();
    // Somebody deletes an interface behind our back.
    sim.model
        .execute(&DpOp::DeleteInterface { uid: uid("b") })
        .unwrap();
    sim.set_nic("b", "net", spec("10.0.0.2", "", &["10.7.0.0/24"]));
    sim.settle();
    sim.check();
}

#[test]
fn peerings_bring_routes_across_in_their_direction() {
    let mut sim = Sim::started(4);
    let only = Filter::Within(vec![prefix("10.0.1.0/24")]);
    // 300's routes go to 200, filtered; 200's do not go to 300.
    sim.add_network("p", 300, &[(200, only)]);
    sim.add_network("v", 200, &[]);
    sim.set_nic("a", "v", spec("10.0.0.1", "", &[]));
    sim.settle();
    sim.hear(Heard::All);
    assert!(
        sim.subscribed.iter().any(|vni| vni.get() == 300),
        "300 is not used here, but imported"
    );
    sim.learn(300, "10.0.1.5/32", "fc00::5", true);
    sim.learn(300, "10.0.2.5/32", "fc00::5", true);
    sim.learn(200, "10.0.0.7/32", "fc00::7", true);
    sim.settle();
    assert_eq!(
        sim.route(200, "10.0.1.5/32"),
        Some((300, "fc00::5".parse().unwrap()))
    );
    assert_eq!(sim.route(200, "10.0.2.5/32"), None);
    sim.set_nic("b", "p", spec("10.0.1.9", "", &[]));
    sim.settle();
    let underlay = sim.model.interfaces[&uid("b")].underlay;
    assert_eq!(
        sim.route(200, "10.0.1.9/32"),
        Some((300, underlay)),
        "also what is on this host"
    );
    assert_eq!(sim.route(300, "10.0.0.7/32"), None);
    let states = &sim.networks[&key("p")].peerings;
    assert_eq!(
        states.iter().collect::<Vec<_>>(),
        [(&200, &Some(State::Ready))]
    );
    sim.hear(Heard::All);
    sim.add_network("p", 300, &[]);
    sim.settle();
    assert_eq!(sim.route(200, "10.0.1.5/32"), None);
    assert_eq!(sim.route(200, "10.0.1.9/32"), None);
    assert!(sim.networks[&key("p")].peerings.is_empty());
    sim.check();
}

#[test]
fn two_hundred_at_once() {
    let mut sim = Sim::started(126);
    sim.add_network("net", 200, &[]);
    for n in 0..100 {
        sim.set_nic(
            &format!("n{n}"),
            "net",
            spec(&format!("10.0.0.{n}"), &format!("2001:db8::{n}"), &[]),
        );
    }
    let mut most = 0;
    for _ in 0..1000 {
        sim.step();
        most = most.max(sim.agent.gauges().inflight);
    }
    assert_eq!(most, 0, "the simulation answers at once");
    for n in 0..100 {
        sim.learn(200, &format!("10.1.0.{n}/32"), "fc00::9", true);
    }
    sim.settle();
    sim.check();
    assert_eq!(sim.model.remote_routes().len(), 100);
}

#[test]
fn a_waiting_agent_says_when_to_come_back() {
    let mut sim = two_nics();
    sim.fault = Some(Box::new(|op| {
        matches!(op, DpOp::CreateRoute { .. }).then(|| Trouble::Refused(code(303)))
    }));
    sim.learn(200, "10.0.0.9/32", "fc00::9", true);
    while sim.step() > 0 {}
    let wait = sim.agent.deadline().unwrap().duration_since(sim.now);
    assert!(
        wait > Duration::ZERO && wait <= Duration::from_millis(20),
        "{wait:?}"
    );
    sim.fault = None;
    sim.settle();
    assert!(sim.route(200, "10.0.0.9/32").is_some());
}

/// Fails calls of one name, `count` times.
fn times(count: usize, name: &'static str, trouble: Trouble) -> crate::sim::Fault {
    let mut left = count;
    Box::new(move |op| {
        if left == 0 || !format!("{op:?}").starts_with(name) {
            return None;
        }
        left -= 1;
        Some(trouble.clone())
    })
}

#[test]
fn work_of_one_kind_is_not_forgotten_over_the_waits_of_another() {
    let mut sim = two_nics();
    let refused = Trouble::Refused(code(381));
    sim.fault = Some(times(usize::MAX, "CreateInterface", refused));
    sim.set_nic("c", "net", spec("10.0.0.3", "", &[]));
    // The finalizer and the claim; then both dpservice and the API refuse, and wait at different paces.
    sim.step();
    sim.api_down = true;
    sim.run_for(Duration::from_secs(3));
    sim.fault = None;
    sim.api_down = false;
    sim.settle();
    sim.check();
}

#[test]
fn a_creation_whose_answer_was_lost_is_taken_as_done() {
    for trouble in [Trouble::AnswerLost, Trouble::Late] {
        let mut sim = two_nics();
        sim.model.calls.clear();
        sim.fault = Some(times(1, "CreateInterface", trouble.clone()));
        sim.set_nic(
            "c",
            "net",
            spec("10.0.0.3", "2001:db8::3", &["10.3.0.0/24"]),
        );
        sim.settle();
        sim.fault = Some(times(1, "CreateRoute", trouble));
        sim.learn(200, "10.0.0.9/32", "fc00::9", true);
        sim.settle();
        sim.check();
        assert!(sim.route(200, "10.0.0.9/32").is_some());
        assert!(sim.warnings.is_empty(), "{:?}", sim.warnings);
        let deletions = sim
            .model
            .calls
            .iter()
            .filter(|call| call.starts_with("Delete"));
        assert_eq!(deletions.count(), 0, "{:?}", sim.model.calls);
    }
}

#[test]
fn a_route_that_exists_with_another_hop_is_replaced() {
    let mut sim = two_nics();
    sim.fault = Some(times(1, "CreateRoute", Trouble::Late));
    sim.learn(200, "10.0.0.9/32", "fc00::9", true);
    sim.run_for(Duration::ZERO);
    sim.learn(200, "10.0.0.9/32", "fc00::7", true);
    sim.learn(200, "10.0.0.9/32", "fc00::9", false);
    sim.settle();
    assert_eq!(
        sim.route(200, "10.0.0.9/32"),
        Some((200, "fc00::7".parse().unwrap()))
    );
    sim.check();
}

#[test]
fn an_interface_that_appears_after_nobody_wants_it_any_more_is_removed() {
    let mut sim = two_nics();
    sim.fault = Some(times(1, "CreateInterface", Trouble::Late));
    sim.set_nic("c", "net", spec("10.0.0.3", "", &[]));
    sim.run_for(Duration::ZERO);
    sim.delete_nic("c");
    sim.settle();
    sim.check();
}

#[test]
fn an_address_changes_hands_without_a_refusal() {
    let mut sim = two_nics();
    sim.delete_nic("a");
    sim.set_nic(
        "c",
        "net",
        spec("10.0.0.1", "2001:db8::1", &["10.1.0.0/24"]),
    );
    sim.settle();
    assert!(sim.warnings.is_empty(), "{:?}", sim.warnings);
    sim.check();
}

#[test]
fn who_waits_for_an_address_gets_it_as_soon_as_it_is_free() {
    let mut sim = two_nics();
    sim.set_nic("c", "net", spec("10.0.0.1", "", &[]));
    sim.run_for(Duration::from_secs(60));
    assert_eq!(sim.state("c"), Some(State::Error));
    sim.delete_nic("a");
    sim.run_for(Duration::ZERO);
    assert_eq!(sim.state("c"), Some(State::Ready));
}

#[test]
fn an_interface_deleted_while_its_creation_is_under_way_is_held_until_the_answer() {
    let mut sim = Sim::started(4);
    sim.add_network("net", 200, &[]);
    sim.set_nic("a", "net", spec("10.0.0.1", "", &[]));
    let created = loop {
        let mut actions = sim.agent.poll(sim.now);
        if let Some(at) = actions.dp.iter().position(is_creation) {
            break actions.dp.swap_remove(at);
        }
        sim.carry_out(actions);
    };
    sim.delete_nic("a");
    for _ in 0..10 {
        sim.step();
    }
    assert!(sim.nics.contains_key(&uid("a")), "let go of too early");
    assert!(
        !sim.claims.is_empty(),
        "the device was given back too early"
    );
    let result = sim.model.execute(&created);
    sim.input(Input::Dp {
        op: created,
        result,
    });
    sim.settle();
    assert!(sim.nics.is_empty() && sim.claims.is_empty() && sim.model.interfaces.is_empty());
}

fn is_creation(op: &DpOp) -> bool {
    matches!(op, DpOp::CreateInterface { .. })
}
