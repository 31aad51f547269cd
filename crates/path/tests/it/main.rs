//! Explanations of made-up regions: everything agrees, and one thing of it is broken at a time.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests: a failure is the message"
)]

mod page;
mod region;

use std::net::IpAddr;

use metalnet::model::Uid;
use metalnet::plan::observed::{Hop, Installed, Observed};
use net::Prefix;
use path::model::{Level, Outcome, Packet, Path, Protocol, Stage, Verdict};
use path::query::{End, Name, Query};
use path::snapshot::{Action, Entrance, Question, Rehearsal, Route, Snapshot};
use path::{explain, explain_and_ask};
use region::{Region, address, db_policy, machine, object, shop, underlay, vni};
use serde_json::json;

const TCP: Option<Protocol> = Some(Protocol::Tcp);

fn ask(snapshot: &Snapshot, from: &str, to: &str, port: Option<u16>) -> Path {
    let end = |text| End::parse(text, "default").unwrap();
    let mut query = Query::new(end(from), end(to));
    query.port = port;
    explain(snapshot, &query)
}

/// Reasons of findings that are more than notes.
fn reasons(path: &Path) -> Vec<&'static str> {
    let findings = path.hops.iter().flat_map(|hop| &hop.findings);
    findings
        .filter(|finding| finding.level > Level::Note)
        .map(|finding| finding.reason)
        .collect()
}

fn check(path: &Path, verdict: Verdict, expected: &[&str]) {
    let told = path::table(std::slice::from_ref(path));
    assert_eq!(
        (path.verdict, reasons(path)),
        (verdict, expected.to_vec()),
        "{told}"
    );
}

fn arrives(snapshot: &Snapshot, from: &str, to: &str, port: Option<u16>) -> Path {
    let path = ask(snapshot, from, to, port);
    check(&path, Verdict::Arrives, &[]);
    path
}

fn lost(snapshot: &Snapshot, from: &str, to: &str, port: Option<u16>, why: &[&str]) -> Path {
    let path = ask(snapshot, from, to, port);
    check(&path, Verdict::DoesNotArrive, why);
    path
}

fn inventory<'a>(snapshot: &'a mut Snapshot, host: &str) -> &'a mut Observed {
    let mut all = snapshot.dataplanes.iter_mut();
    let found = all.find(|dataplane| dataplane.node == host).unwrap();
    found.inventory.as_mut().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn uid(text: &str) -> Uid {
    Uid::new(text).unwrap()
}

/// What metalnetlet makes of [`db_policy`], in the metalnet object and in the data plane.
fn enforce(snapshot: &mut Snapshot) {
    let accept = |ip: &str| {
        json!({ "firewallRuleID": format!("allow-{ip}"), "direction": "Ingress", "action": "Accept", "priority": 1000,
        "ipFamily": "IPv4", "sourcePrefix": format!("{ip}/32"),
        "protocolMatch": { "protocolType": "TCP", "portRange": { "dstPort": 5432, "endDstPort": 5432 } } })
    };
    let deny = |way: &str| json!({ "firewallRuleID": format!("deny-{way}"), "direction": way, "action": "Deny", "priority": 65535, "ipFamily": "IPv4" });
    let rules = [
        accept("10.50.1.0"),
        accept("10.50.1.1"),
        deny("Ingress"),
        deny("Egress"),
    ];
    let rules: Vec<api::metalnet::FirewallRule> = rules.into_iter().map(object).collect();
    let parsed = metalnet::parse_services::rules(&rules).unwrap();
    let nics = &mut snapshot.objects.metal_nics;
    let db = nics
        .iter_mut()
        .find(|nic| nic.metadata.uid.as_deref() == Some("metal-db"));
    db.unwrap().spec.firewall_rules = rules;
    inventory(snapshot, "hv2").edit_services(&uid("metal-db"), |services| {
        services.rules = parsed
            .into_iter()
            .map(|(id, rule)| (id, Some(rule)))
            .collect();
    });
}

fn guarded() -> Snapshot {
    let mut region = shop();
    region.policies.push(db_policy());
    let mut snapshot = region.snapshot();
    enforce(&mut snapshot);
    snapshot
}

// ---- everything agrees -----------------------------------------------------------------------------------------------------

#[test]
fn machines_of_one_network_reach_each_other() {
    let snapshot = shop().snapshot();
    let across = arrives(&snapshot, "web-1", "db", None);
    let stages: Vec<Stage> = across.hops.iter().map(|hop| hop.stage).collect();
    assert_eq!(
        stages,
        [
            Stage::Sender,
            Stage::Interface,
            Stage::Egress,
            Stage::Route,
            Stage::Tunnel,
            Stage::Interface,
            Stage::Ingress,
            Stage::Receiver,
            Stage::Answer
        ]
    );
    assert_eq!(
        across.packet,
        Some(Packet {
            protocol: Protocol::Icmp,
            source: address("10.50.1.0"),
            destination: address("10.50.2.1"),
            source_port: 0,
            destination_port: 0,
        })
    );
    // On one hypervisor there is no tunnel.
    let local = arrives(&snapshot, "web-1", "bastion", Some(22));
    assert!(local.hops.iter().all(|hop| hop.stage != Stage::Tunnel));
    let six = arrives(&snapshot, "six-1", "six-2", None);
    assert_eq!(six.packet.unwrap().protocol, Protocol::Icmpv6);
}

#[test]
fn the_internet_is_reached_and_reaches_public_addresses() {
    let snapshot = shop().snapshot();
    for (from, to) in [
        ("web-1", "internet"),
        ("bastion", "internet"),
        ("six-1", "internet"),
        ("internet", "vip/bastion"),
        ("internet", "bastion"),
        ("internet", "six-2"),
        ("internet", "lb/web"),
        ("bastion", "lb/web-internal"),
        ("web-2", "vip/bastion"),
        ("web-1", "vip/bastion"),
    ] {
        arrives(&snapshot, from, to, None);
    }
    let nat = arrives(&snapshot, "db", "internet", Some(443));
    let translated = nat.hops.iter().find(|hop| hop.stage == Stage::Translation);
    assert_eq!(translated.unwrap().happens, "appears as 198.51.100.9");
    // A public address of the own network on the own hypervisor never goes out; another hypervisor's does.
    let edges = |from| {
        let path = arrives(&snapshot, from, "vip/bastion", None);
        path.hops
            .iter()
            .filter(|hop| hop.stage == Stage::Edge)
            .count()
    };
    assert_eq!((edges("web-1"), edges("web-2")), (0, 2));
}

#[test]
fn nat64_reaches_ipv4_addresses_from_ipv6() {
    let mut region = shop();
    let mut dual = machine("dual", "hv1", "shop", &["10.50.4.1", "2001:db8:100::44"]);
    dual.nat = Some(("198.51.100.9", 4096, 5120));
    region.machines.push(dual);
    let snapshot = region.snapshot();
    let path = arrives(&snapshot, "dual", "64:ff9b::cb00:7101", None);
    let outside = path.hops.iter().find(|hop| hop.stage == Stage::Receiver);
    assert_eq!(outside.unwrap().place, "203.0.113.1, outside of the region");
    lost(&snapshot, "six-1", "64:ff9b::cb00:7101", None, &["NoNAT64"]);
    // With a virtual IP there are no ports, and the reason is not the gateway's.
    let dual = region.machines.last_mut().unwrap();
    (dual.nat, dual.vip) = (None, Some("198.51.100.6"));
    let path = lost(
        &region.snapshot(),
        "dual",
        "64:ff9b::cb00:7101",
        None,
        &["NoNAT64"],
    );
    assert!(path.summary.contains("virtual IP"), "{}", path.summary);
}

// ---- policies --------------------------------------------------------------------------------------------------------------

#[test]
fn a_policy_allows_by_a_rule_and_denies_the_rest() {
    let snapshot = guarded();
    let path = arrives(&snapshot, "web-1", "db", Some(5432));
    let filter = path.hops.iter().find(|hop| hop.stage == Stage::Ingress);
    assert_eq!(
        filter.unwrap().because,
        "policy db allows it: rule 1, TCP 5432 for NetworkInterface app=web"
    );
    let path = lost(&snapshot, "web-1", "db", Some(80), &["PolicyDenies"]);
    assert_eq!(
        path.summary,
        "does not arrive: hv2: policy db denies incoming tcp 80 at default/db-nic"
    );
    lost(&snapshot, "bastion", "db", Some(5432), &["PolicyDenies"]);
    lost(&snapshot, "web-1", "db", None, &["PolicyDenies"]);
    // What lies behind the end is shown, but not as passed, and there is no answer.
    let path = lost(&snapshot, "db", "web-1", Some(80), &["PolicyDenies"]);
    let outcomes: Vec<Outcome> = path.hops.iter().map(|hop| hop.outcome).collect();
    assert_eq!(outcomes[2], Outcome::Ends);
    assert!(outcomes[3..].iter().all(|o| *o == Outcome::NotReached));
    assert!(path.hops.iter().all(|hop| hop.stage != Stage::Answer));
}

#[test]
fn rules_that_are_behind_the_policies_decide_and_are_told() {
    let mut snapshot = guarded();
    inventory(&mut snapshot, "hv2").edit_services(&uid("metal-db"), |services| {
        services.rules.remove("allow-10.50.1.0");
    });
    lost(&snapshot, "web-1", "db", Some(5432), &["FilterBehind"]);
    inventory(&mut snapshot, "hv2").edit_services(&uid("metal-db"), |services| {
        services.rules.clear();
    });
    let path = ask(&snapshot, "bastion", "db", None);
    check(&path, Verdict::Arrives, &["FilterBehind"]);
    assert!(path.summary.contains("look at hv2: the policies deny icmp"));
}

#[test]
fn a_filter_sees_public_sources_and_inner_destinations() {
    let mut region = shop();
    region.policies.push(json!({
        "metadata": { "name": "bastion", "namespace": "default" },
        "spec": {
            "networkRef": { "name": "shop" },
            "networkInterfaceSelector": { "matchLabels": { "app": "bastion" } },
            "ingress": [{ "from": [{ "ipBlock": { "cidr": "203.0.113.0/24", "except": ["203.0.113.8/29"] } }] }],
        },
    }));
    let mut snapshot = region.snapshot();
    // Only what the policies say is looked at here.
    snapshot.dataplanes.clear();
    snapshot.objects.metal_nics.clear();
    let hidden = "networkinterfaces.networking.metalnet.openkcm.dev";
    let why = "forbidden".to_owned();
    snapshot.objects.unlisted.insert(hidden.to_owned(), why);
    let from = |source: &str| ask(&snapshot, source, "vip/bastion", Some(22)).verdict;
    assert_eq!(from("203.0.113.1"), Verdict::Arrives);
    assert_eq!(from("203.0.113.9"), Verdict::DoesNotArrive);
    assert_eq!(from("192.0.2.1"), Verdict::DoesNotArrive);
}

// ---- routes ----------------------------------------------------------------------------------------------------------------

#[test]
fn a_route_that_is_missing_or_leads_elsewhere_is_found() {
    let mut snapshot = shop().snapshot();
    inventory(&mut snapshot, "hv1").set_route(vni(201), prefix("10.50.2.1/32"), None);
    lost(&snapshot, "web-1", "db", None, &["RouteMissing"]);
    // The other direction still works, until its answer.
    let path = ask(&snapshot, "db", "web-1", None);
    check(&path, Verdict::AnswerIsLost, &["RouteMissing"]);

    let mut snapshot = shop().snapshot();
    let stale = Hop {
        vni: vni(201),
        address: underlay("hv1", "web-1"),
    };
    let installed = Some(Installed::Hop(stale));
    inventory(&mut snapshot, "hv1").set_route(vni(201), prefix("10.50.2.1/32"), installed);
    let path = lost(&snapshot, "web-1", "db", None, &["RouteStale"]);
    assert!(
        path.summary.contains("metal-web-1 on hv1"),
        "{}",
        path.summary
    );
}

#[test]
fn metalbond_servers_that_lack_a_route_are_told() {
    let mut snapshot = shop().snapshot();
    let forget = |routes: &mut Vec<Route>| routes.retain(|r| r.prefix != prefix("10.50.2.1/32"));
    forget(snapshot.servers[0].routes.as_mut().unwrap());
    let path = ask(&snapshot, "web-1", "db", None);
    check(&path, Verdict::Arrives, &["RouteAtFewerServers"]);
    forget(snapshot.servers[1].routes.as_mut().unwrap());
    let path = ask(&snapshot, "web-1", "db", None);
    check(&path, Verdict::Arrives, &["RouteNotAnnounced"]);
    inventory(&mut snapshot, "hv1").set_route(vni(201), prefix("10.50.2.1/32"), None);
    let why = ["RouteMissing", "RouteNotAnnounced"];
    lost(&snapshot, "web-1", "db", None, &why);
}

// ---- interfaces ------------------------------------------------------------------------------------------------------------

#[test]
fn an_interface_that_is_not_ready_says_why() {
    let mut snapshot = shop().snapshot();
    let nics = &mut snapshot.objects.nics;
    let db = nics
        .iter_mut()
        .find(|nic| nic.metadata.name.as_deref() == Some("db-nic"));
    db.unwrap().status = Some(object(json!({
        "state": "Pending", "ips": ["10.50.2.1"],
        "conditions": [{ "type": "Ready", "status": "False", "reason": "HypervisorPending", "message": "hv2 has not reported", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
    })));
    // The data plane has it all the same.
    let path = ask(&snapshot, "web-1", "db", None);
    check(&path, Verdict::Arrives, &["InterfaceNotAvailable"]);
    let _ = inventory(&mut snapshot, "hv2").remove_interface(&uid("metal-db"));
    let why = ["InterfaceNotAvailable", "InterfaceMissing"];
    let path = lost(&snapshot, "web-1", "db", None, &why);
    assert!(
        path.summary
            .contains("HypervisorPending: hv2 has not reported")
    );
}

#[test]
fn a_machine_that_is_off_or_not_placed_receives_nothing() {
    let mut snapshot = shop().snapshot();
    let machines = &mut snapshot.objects.machines;
    let db = machines
        .iter_mut()
        .find(|m| m.metadata.name.as_deref() == Some("db"));
    db.unwrap().spec.power = Some(api::compute::Power::Off);
    lost(&snapshot, "web-1", "db", None, &["MachineOff"]);
    let nics = &mut snapshot.objects.nics;
    let db = nics
        .iter_mut()
        .find(|nic| nic.metadata.name.as_deref() == Some("db-nic"));
    db.unwrap().spec.machine_ref = None;
    let path = ask(&snapshot, "web-1", "nic/db-nic", None);
    check(&path, Verdict::DoesNotArrive, &["NoMachine"]);
}

// ---- peering ---------------------------------------------------------------------------------------------------------------

#[test]
fn peerings_carry_what_both_sides_show() {
    let snapshot = shop().snapshot();
    let path = arrives(&snapshot, "clerk", "web-1", None);
    assert!(
        path.hops
            .iter()
            .any(|hop| hop.happens.ends_with("by peering to-shop"))
    );
    lost(&snapshot, "clerk", "db", None, &["PeeringFilter"]);
    // The office is seen by all, but the answer has no way back into what is hidden.
    let path = ask(&snapshot, "db", "clerk", None);
    check(&path, Verdict::AnswerIsLost, &["PeeringFilter"]);
    let one_sided = Region {
        peerings: vec![("office", "shop", vec![])],
        ..shop()
    };
    let snapshot = one_sided.snapshot();
    lost(&snapshot, "clerk", "web-1", None, &["PeeringOneSided"]);
    let apart = Region {
        peerings: vec![],
        ..shop()
    };
    lost(
        &apart.snapshot(),
        "clerk",
        "web-1",
        None,
        &["NetworksApart"],
    );
}

#[test]
fn an_address_that_two_networks_have_means_the_own_one() {
    let mut region = shop();
    region
        .machines
        .push(machine("twin", "hv1", "office", &["10.50.2.1"]));
    region.peerings.clear();
    lost(
        &region.snapshot(),
        "clerk",
        "db",
        None,
        &["AddressElsewhere"],
    );
}

// ---- the outside -----------------------------------------------------------------------------------------------------------

#[test]
fn without_nat_or_with_unknown_ports_nothing_comes_out() {
    let mut region = shop();
    region.gateways.clear();
    for machine in &mut region.machines {
        machine.nat = None;
    }
    lost(
        &region.snapshot(),
        "web-1",
        "internet",
        None,
        &["NoPublicSource"],
    );
    let mut region = shop();
    region.machines[0].nat = None;
    lost(
        &region.snapshot(),
        "web-1",
        "internet",
        None,
        &["NoNATPorts"],
    );

    let mut snapshot = shop().snapshot();
    inventory(&mut snapshot, "hv1").edit_services(&uid("metal-web-1"), |s| s.nat = None);
    let why = ["TranslationMissing"];
    lost(&snapshot, "web-1", "internet", None, &why);

    let mut snapshot = shop().snapshot();
    let status = snapshot.edges[0].status.as_mut().unwrap();
    status.routes.retain(|r| r.prefix != "198.51.100.9/32");
    lost(&snapshot, "web-1", "internet", None, &["SourceUnknown"]);
}

#[test]
fn the_outside_finds_public_addresses_only() {
    let snapshot = shop().snapshot();
    lost(&snapshot, "internet", "web-1", None, &["NoPublicAddress"]);
    lost(
        &snapshot,
        "internet",
        "198.51.100.9",
        Some(5000),
        &["NATUnsolicited"],
    );
    arrives(&snapshot, "internet", "198.51.100.9", None);
    lost(
        &snapshot,
        "web-1",
        "198.51.100.9",
        None,
        &["NATUnsolicited"],
    );
    lost(
        &snapshot,
        "internet",
        "198.51.100.77",
        None,
        &["AddressUnused"],
    );
    lost(&snapshot, "internet", "10.50.2.1", None, &["AddressUnused"]);
    let mut stale = shop().snapshot();
    let status = stale.edges[0].status.as_mut().unwrap();
    for route in &mut status.routes {
        route
            .hops
            .iter_mut()
            .for_each(|hop| hop.address = underlay("hv9", "gone"));
    }
    lost(
        &stale,
        "internet",
        "vip/bastion",
        None,
        &["EdgeRouteMissing"],
    );
    let mut alone = shop();
    alone.machines[3].vip = None;
    let mut snapshot = alone.snapshot();
    snapshot.objects.virtual_ips.push(object(json!({
        "metadata": { "name": "spare", "namespace": "default" },
        "spec": { "type": "Public", "ipFamily": "IPv4" },
        "status": { "ip": "198.51.100.6" },
    })));
    lost(
        &snapshot,
        "internet",
        "vip/spare",
        None,
        &["VirtualIPUnused"],
    );
}

// ---- load balancers --------------------------------------------------------------------------------------------------------

#[test]
fn a_load_balancer_needs_targets_ports_and_hypervisors() {
    let mut region = shop();
    for machine in &mut region.machines {
        machine.serves.clear();
    }
    lost(
        &region.snapshot(),
        "internet",
        "lb/web",
        None,
        &["NoDestinations"],
    );
    let snapshot = shop().snapshot();
    lost(
        &snapshot,
        "internet",
        "lb/web",
        Some(443),
        &["PortNotServed"],
    );
    let path = ask(&snapshot, "bastion", "lb/web-internal", None);
    assert_eq!(path.packet.unwrap().destination_port, 80);
    let choice = path
        .hops
        .iter()
        .find(|hop| hop.stage == Stage::LoadBalancer);
    assert_eq!(
        choice.unwrap().because,
        "one of 2, by a hash of the ends: machine web-1 on hv1, machine web-2 on hv2"
    );
    let mut region = shop();
    region.balancers[1].5.clear();
    let why = ["RouteMissing", "RouteNotAnnounced", "NotServed"];
    lost(&region.snapshot(), "bastion", "lb/web-internal", None, &why);

    let mut snapshot = shop().snapshot();
    inventory(&mut snapshot, "hv1").edit_services(&uid("metal-web-1"), |s| s.targets.clear());
    let path = ask(&snapshot, "internet", "lb/web", None);
    check(&path, Verdict::Arrives, &["TargetMissing"]);
}

// ---- rehearsals ------------------------------------------------------------------------------------------------------------

/// Answers every question with `answer` until there are no more.
fn rehearsed(
    mut snapshot: Snapshot,
    from: &str,
    to: &str,
    answer: impl Fn(&Question) -> Rehearsal,
) -> Path {
    let end = |text| End::parse(text, "default").unwrap();
    let query = Query::new(end(from), end(to));
    for _ in 0..4 {
        let (path, questions) = explain_and_ask(&snapshot, &query);
        if questions.is_empty() {
            return path;
        }
        for question in questions {
            let mut all = snapshot.dataplanes.iter_mut();
            let dataplane = all.find(|d| d.node == question.node).unwrap();
            let told = answer(&question);
            dataplane.rehearsals.push((question, Ok(told)));
        }
    }
    panic!("questions never end")
}

fn does(action: Action) -> Rehearsal {
    Rehearsal {
        action,
        service: String::new(),
    }
}

#[test]
fn a_data_plane_has_the_last_word() {
    let way = |question: &Question| match &question.entrance {
        Entrance::Interface(_) => does(Action::Tunnel(underlay("hv2", "db"))),
        Entrance::Underlay(_) => does(Action::Deliver("metal-db".to_owned())),
    };
    let path = rehearsed(shop().snapshot(), "web-1", "db", way);
    check(&path, Verdict::Arrives, &[]);
    let notes = path.hops.iter().flat_map(|hop| &hop.findings);
    let notes = notes.filter(|finding| finding.reason == "Rehearsed");
    assert_eq!(notes.count(), 2);
    let drops = |question: &Question| match &question.entrance {
        Entrance::Interface(_) => way(question),
        Entrance::Underlay(_) => does(Action::Drop("firewall_ingress".to_owned())),
    };
    let path = rehearsed(shop().snapshot(), "web-1", "db", drops);
    check(&path, Verdict::DoesNotArrive, &["DataplaneDisagrees"]);
    // Where the walk ends as well, the drop confirms it.
    let path = rehearsed(guarded(), "web-1", "db", drops);
    check(&path, Verdict::DoesNotArrive, &["PolicyDenies"]);
    let elsewhere = |_: &Question| does(Action::Tunnel(underlay("hv9", "gone")));
    let path = rehearsed(shop().snapshot(), "web-1", "db", elsewhere);
    // Twice: at the sender, where the walk goes on, and at the receiver.
    let twice = ["DataplaneDisagrees", "DataplaneDisagrees"];
    check(&path, Verdict::DoesNotArrive, &twice);
}

#[test]
fn a_load_balancer_says_which_target_a_connection_falls_to() {
    let target = underlay("hv2", "web-2-198.51.100.80");
    let choice = |question: &Question| match &question.entrance {
        Entrance::Underlay(at) if *at == underlay("hv1", "web") => does(Action::Tunnel(target)),
        Entrance::Underlay(at) if *at == target => does(Action::Deliver("metal-web-2".to_owned())),
        Entrance::Underlay(_) | Entrance::Interface(_) => does(Action::Drop("bug".to_owned())),
    };
    let path = rehearsed(shop().snapshot(), "internet", "lb/web", choice);
    check(&path, Verdict::Arrives, &[]);
    assert_eq!(path.summary, "arrives at machine web-2 or another target");
    let chosen = path
        .hops
        .iter()
        .find(|hop| hop.stage == Stage::LoadBalancer);
    assert_eq!(chosen.unwrap().happens, "chooses machine web-2");
}

/// Also the target's own hypervisor and network may be the sender's.
#[test]
fn a_neighbour_behind_a_public_load_balancer_answers() {
    let choice = |host: &'static str, web: &'static str| {
        move |question: &Question| match &question.entrance {
            Entrance::Underlay(at) if *at == underlay("hv1", "web") && host == "hv1" => {
                does(Action::Deliver(format!("metal-{web}")))
            }
            Entrance::Underlay(at) if *at == underlay("hv1", "web") => does(Action::Tunnel(
                underlay(host, &format!("{web}-198.51.100.80")),
            )),
            Entrance::Underlay(_) => does(Action::Deliver(format!("metal-{web}"))),
            Entrance::Interface(_) => does(Action::Tunnel(underlay("r1", "edge"))),
        }
    };
    for (host, web) in [("hv1", "web-1"), ("hv2", "web-2")] {
        let snapshot = shop().snapshot();
        let path = rehearsed(snapshot, "bastion", "lb/web", choice(host, web));
        check(&path, Verdict::Arrives, &[]);
    }
    let path = ask(&shop().snapshot(), "bastion", "lb/web", None);
    check(&path, Verdict::Arrives, &[]);
}

// ---- what could not be asked -----------------------------------------------------------------------------------------------

#[test]
fn without_data_planes_the_objects_decide_and_that_is_said() {
    let mut snapshot = shop().snapshot();
    snapshot.dataplanes.clear();
    snapshot.servers.clear();
    snapshot.edges.clear();
    for (from, to) in [
        ("web-1", "db"),
        ("web-1", "internet"),
        ("internet", "lb/web"),
        ("bastion", "lb/web-internal"),
    ] {
        let path = arrives(&snapshot, from, to, None);
        assert!(
            path.summary.contains("by the objects alone"),
            "{}",
            path.summary
        );
        assert!(path.asked.is_empty());
    }
}

#[test]
fn a_silent_data_plane_is_unknown_not_broken() {
    let mut snapshot = shop().snapshot();
    snapshot.dataplanes[1].inventory = Err("connection refused".to_owned());
    let path = ask(&snapshot, "web-1", "db", None);
    check(&path, Verdict::Unknown, &["DataplaneSilent"]);
    assert_eq!(path.not_asked, ["dpservice of p.hv2: connection refused"]);
    let path = ask(&snapshot, "web-1", "nobody", None);
    check(&path, Verdict::Unknown, &["NotFound"]);
}

// ---- reading the question --------------------------------------------------------------------------------------------------

#[test]
fn ends_are_read_as_written() {
    let name = |namespace: &str, name: &str| Name {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let read = |text| End::parse(text, "shop");
    assert_eq!(read("web"), Ok(End::Machine(name("shop", "web"))));
    assert_eq!(read("other/web"), Ok(End::Machine(name("other", "web"))));
    assert_eq!(read("nic/web-0"), Ok(End::Nic(name("shop", "web-0"))));
    assert_eq!(
        read("lb/other/web"),
        Ok(End::Balancer(name("other", "web")))
    );
    assert_eq!(
        read("vip/bastion"),
        Ok(End::VirtualIp(name("shop", "bastion")))
    );
    assert_eq!(read("internet"), Ok(End::Internet));
    let six: IpAddr = "2001:db8::1".parse().unwrap();
    assert_eq!(read("2001:db8::1"), Ok(End::Address(six)));
    for wrong in ["", "a//b", "pod/a/b", "a/b/c/d"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
    let query = Query {
        protocol: TCP,
        ..Query::new(End::Internet, End::Machine(name("a", "b")))
    };
    assert_eq!(query.reversed().reversed(), query);
}

#[test]
fn the_json_is_as_documented() {
    let snapshot = guarded();
    let path = ask(&snapshot, "web-1", "db", Some(80));
    let json = path::json(std::slice::from_ref(&path));
    let one = &json["paths"][0];
    assert_eq!(one["verdict"], "doesNotArrive");
    assert_eq!(one["packet"]["destinationPort"], 80);
    let hop = &one["hops"][6];
    assert_eq!(
        (&hop["place"], &hop["stage"], &hop["outcome"]),
        (&json!("hv2"), &json!("ingress"), &json!("ends"))
    );
    assert_eq!(hop["findings"][0]["reason"], "PolicyDenies");
    assert_eq!(hop["findings"][0]["level"], "broken");
    assert_eq!(hop["findings"][0]["source"], "objects");
    assert_eq!(one["hops"][7]["outcome"], "notReached");
}
