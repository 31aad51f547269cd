//! NAT gateways with their table, claims, autoscaler and release, in a simulated region.

use std::sync::Arc;

use api::{
    apinet::{
        NATGateway, NATGatewayAutoscaler, NATTable, NatIp, NetworkInterface,
        NetworkInterfaceStatus, Node,
    },
    names::finalizer::DATA_PLANE,
};
use apinet::{NatAutoscalerController, NatGatewayController, NatReleaseController};
use controller::{
    Controller, Key, Op, Plan, Source, Watch, World,
    sim::{Sim, verify},
};
use serde_json::{Value, json};

use crate::{LATE_MS, NS, object};

/// The server's part: reserves an address for every entry.
struct Reserve;

impl Controller for Reserve {
    fn name(&self) -> &'static str {
        "reserve"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Watch::<NATGateway>::new().own_key().build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(gateway) = world.by_key::<NATGateway>(key) else {
            return Plan::none();
        };
        let mut ips = gateway.spec.ips.clone();
        for at in 0..ips.len() {
            let taken: Vec<_> = ips.iter().filter_map(|entry| entry.ip).collect();
            let free = (1..=254)
                .map(|n| format!("203.0.113.{n}").parse().expect("an address"))
                .find(|ip| !taken.contains(ip));
            if ips[at].ip.is_none() {
                ips[at].ip = free;
            }
        }
        if ips == gateway.spec.ips {
            return Plan::none();
        }
        vec![Op::locked(&*gateway, json!({ "spec": { "ips": ips } }))].into()
    }
}

fn region() -> Sim {
    let mut sim = Sim::new(vec![
        Arc::new(NatGatewayController),
        Arc::new(NatAutoscalerController),
        Arc::new(NatReleaseController),
        Arc::new(Reserve),
    ]);
    sim.now_ms = LATE_MS;
    let node: Node = object(json!({ "metadata": { "name": "p.n1" } }));
    sim.put(&node);
    sim
}

fn gateway(name: &str, network: &str, ports: i32, ips: usize) -> NATGateway {
    let ips: Vec<Value> = (0..ips)
        .map(|n| json!({ "name": format!("a{n}"), "ip": format!("203.0.113.{}", n + 1) }))
        .collect();
    object(json!({
        "metadata": { "name": name, "namespace": NS },
        "spec": { "ipFamily": "IPv4", "networkRef": { "name": network }, "portsPerNetworkInterface": ports, "ips": ips },
    }))
}

fn nic(name: &str, network: &str, ips: Value) -> NetworkInterface {
    object(json!({
        "metadata": { "name": name, "namespace": NS },
        "spec": { "nodeRef": { "name": "p.n1" }, "networkRef": { "name": network }, "ips": ips },
    }))
}

/// Names and first ports of the table of a gateway.
fn table(sim: &Sim, name: &str) -> Vec<(String, i32)> {
    let rows = sim.get::<NATTable>(NS, name).map(|table| table.ips);
    let sections = rows.into_iter().flatten().flat_map(|row| row.sections);
    let mut all: Vec<(String, i32)> = sections
        .map(|section| (section.target_ref.expect("a target").name, section.port))
        .collect();
    all.sort();
    all
}

fn claims(sim: &Sim, nic: &str) -> Vec<String> {
    let nic = sim.get::<NetworkInterface>(NS, nic).expect("stays");
    let claims = nic.spec.nat_gateways.into_iter();
    claims.map(|claim| claim.claim_ref.name).collect()
}

fn report(sim: &mut Sim, nic: &str, used: Option<(&str, i32, i32)>) {
    sim.edit::<NetworkInterface>(NS, nic, |nic| {
        let nat_ips = used.map(|(ip, port, end_port)| NatIp {
            ip: Some(ip.parse().expect("an address")),
            port,
            end_port,
        });
        nic.status = Some(NetworkInterfaceStatus {
            nat_ips: nat_ips.into_iter().collect(),
            ..NetworkInterfaceStatus::default()
        });
    });
}

#[test]
fn interfaces_of_the_network_get_blocks_and_claims() {
    let sim = verify(region, |sim| {
        sim.put(&gateway("gw", "net", 64, 1));
        sim.put(&nic("in", "net", json!(["10.0.0.1", "fd00::1"])));
        sim.put(&nic("elsewhere", "other", json!(["10.0.0.1"])));
        sim.put(&nic("six", "net", json!(["fd00::2"])));
        let mut public = nic("public", "net", json!(["10.0.0.3"]));
        public.spec.public_ips =
            serde_json::from_value(json!([{ "name": "v", "ip": "192.0.2.1" }])).expect("addresses");
        sim.put(&public);
        let mut foreign = nic("foreign", "net", json!(["10.0.0.4"]));
        foreign.spec.nat_gateways = serde_json::from_value(
            json!([{ "ipFamily": "IPv4", "claimRef": { "name": "alive", "uid": "alive" } }]),
        )
        .expect("claims");
        sim.put(&foreign);
        let alive: NATGateway = object(json!({
            "metadata": { "name": "alive", "namespace": NS, "uid": "alive" },
            "spec": { "ipFamily": "IPv4", "networkRef": { "name": "third" }, "portsPerNetworkInterface": 64 },
        }));
        sim.put(&alive);
    })
    .expect("converges");
    assert_eq!(table(&sim, "gw"), [("in".to_owned(), 1024)]);
    assert_eq!(claims(&sim, "in"), ["gw"]);
    assert_eq!(claims(&sim, "foreign"), ["alive"]);
    for other in ["elsewhere", "six", "public"] {
        assert_eq!(claims(&sim, other), Vec::<String>::new(), "{other}");
    }
    let made = sim.get::<NATGateway>(NS, "gw").expect("stays");
    assert!(object::has_finalizer(&made, DATA_PLANE));
    let status = made.status.expect("a status");
    assert_eq!(
        (status.used_nat_ips, status.requested_nat_ips),
        (Some(1), Some(1))
    );
}

#[test]
fn who_finds_no_block_has_no_claim() {
    let mut sim = region();
    sim.put(&gateway("gw", "net", 64512, 1));
    sim.put(&nic("a", "net", json!(["10.0.0.1"])));
    sim.put(&nic("b", "net", json!(["10.0.0.2"])));
    sim.settle().expect("settles");
    let served = table(&sim, "gw");
    assert_eq!(served.len(), 1);
    for name in ["a", "b"] {
        assert_eq!(claims(&sim, name).is_empty(), name != served[0].0, "{name}");
    }
    let status = sim.get::<NATGateway>(NS, "gw").expect("stays").status;
    assert_eq!(status.and_then(|status| status.requested_nat_ips), Some(2));
    // The gateway loses its address: the claim is really taken back, not only looked at.
    sim.edit::<NATGateway>(NS, "gw", |gateway| gateway.spec.ips.clear());
    sim.settle().expect("settles");
    assert!(claims(&sim, "a").is_empty() && claims(&sim, "b").is_empty());
}

#[test]
fn a_public_address_ends_the_use_of_the_gateway() {
    let mut sim = region();
    sim.put(&gateway("gw", "net", 64, 1));
    sim.put(&nic("a", "net", json!(["10.0.0.1"])));
    sim.settle().expect("settles");
    sim.edit::<NetworkInterface>(NS, "a", |nic| {
        nic.spec.public_ips = serde_json::from_value(json!([{ "name": "v", "ipFamily": "IPv4" }]))
            .expect("addresses");
    });
    sim.settle().expect("settles");
    assert!(claims(&sim, "a").is_empty());
    assert!(table(&sim, "gw").is_empty());
}

#[test]
fn a_block_is_not_given_on_while_a_data_plane_reports_it() {
    let mut sim = region();
    sim.put(&gateway("gw", "net", 64, 1));
    sim.put(&nic("a", "net", json!(["10.0.0.1"])));
    sim.settle().expect("settles");
    report(&mut sim, "a", Some(("203.0.113.1", 1024, 1087)));
    sim.edit::<NetworkInterface>(NS, "a", |nic| {
        nic.spec.public_ips = serde_json::from_value(json!([{ "name": "v", "ipFamily": "IPv4" }]))
            .expect("addresses");
    });
    sim.put(&nic("b", "net", json!(["10.0.0.2"])));
    sim.settle().expect("settles");
    assert_eq!(
        table(&sim, "gw"),
        [("a".to_owned(), 1024), ("b".to_owned(), 1088)],
        "what stays in the table is nobody else's"
    );
    assert!(claims(&sim, "a").is_empty());
    report(&mut sim, "a", None);
    sim.put(&nic("c", "net", json!(["10.0.0.3"])));
    sim.settle().expect("settles");
    assert_eq!(
        table(&sim, "gw"),
        [("b".to_owned(), 1088), ("c".to_owned(), 1024)]
    );
}

#[test]
fn an_interface_that_is_going_keeps_its_block_until_it_is_gone() {
    let mut sim = region();
    sim.put(&gateway("gw", "net", 64512, 1));
    sim.put(&nic("a", "net", json!(["10.0.0.1"])));
    sim.settle().expect("settles");
    sim.edit::<NetworkInterface>(NS, "a", |nic| {
        nic.metadata.finalizers = Some(vec!["partition".to_owned()]);
    });
    sim.delete::<NetworkInterface>(NS, "a");
    sim.put(&nic("b", "net", json!(["10.0.0.2"])));
    sim.settle().expect("settles");
    assert_eq!(table(&sim, "gw"), [("a".to_owned(), 1024)]);
    sim.edit::<NetworkInterface>(NS, "a", |nic| nic.metadata.finalizers = None);
    sim.settle().expect("settles");
    assert_eq!(table(&sim, "gw"), [("b".to_owned(), 1024)]);
}

#[test]
fn a_gateway_stays_until_all_interfaces_have_let_go() {
    let mut sim = region();
    sim.put(&gateway("gw", "net", 64, 1));
    sim.put(&nic("a", "net", json!(["10.0.0.1"])));
    sim.settle().expect("settles");
    report(&mut sim, "a", Some(("203.0.113.1", 1024, 1087)));
    sim.delete::<NATGateway>(NS, "gw");
    sim.settle().expect("settles");
    assert!(claims(&sim, "a").is_empty(), "the claim is dropped");
    assert!(
        sim.get::<NATGateway>(NS, "gw").is_some(),
        "the data plane still translates"
    );
    report(&mut sim, "a", None);
    sim.settle().expect("settles");
    assert!(sim.get::<NATGateway>(NS, "gw").is_none());
    assert!(sim.list::<NATTable>().is_empty());
}

#[test]
fn a_hypervisor_that_left_the_region_holds_no_gateway() {
    let mut sim = region();
    sim.put(&gateway("gw", "net", 64, 1));
    sim.put(&nic("a", "net", json!(["10.0.0.1"])));
    sim.settle().expect("settles");
    report(&mut sim, "a", Some(("203.0.113.1", 1024, 1087)));
    sim.delete::<NATGateway>(NS, "gw");
    sim.settle().expect("settles");
    assert!(sim.get::<NATGateway>(NS, "gw").is_some());
    sim.delete::<Node>("", "p.n1");
    sim.settle().expect("settles");
    assert!(sim.get::<NATGateway>(NS, "gw").is_none());
}

#[test]
fn claims_of_living_gateways_stay_and_others_go() {
    let mut sim = Sim::new(vec![Arc::new(NatReleaseController)]);
    sim.put(&gateway("gw", "net", 64, 1));
    let uid = object::uid(&sim.get::<NATGateway>(NS, "gw").expect("stored")).to_owned();
    let claim = |family: &str, name: &str, uid: &str| json!({ "ipFamily": family, "claimRef": { "name": name, "uid": uid } });
    let mut both = nic("both", "net", json!(["10.0.0.1"]));
    both.spec.nat_gateways = serde_json::from_value(json!([
        claim("IPv4", "gw", &uid),
        claim("IPv6", "gone", "x")
    ]))
    .expect("claims");
    sim.put(&both);
    let mut namesake = nic("namesake", "net", json!(["10.0.0.2"]));
    namesake.spec.nat_gateways =
        serde_json::from_value(json!([claim("IPv4", "gw", "its-predecessor")])).expect("claims");
    sim.put(&namesake);
    sim.settle().expect("settles");
    assert_eq!(claims(&sim, "both"), ["gw"]);
    assert!(claims(&sim, "namesake").is_empty());
}

fn scaler(min: i32, max: i32) -> NATGatewayAutoscaler {
    object(json!({
        "metadata": { "name": "gw", "namespace": NS },
        "spec": { "natGatewayRef": { "name": "gw" }, "minPublicIPs": min, "maxPublicIPs": max },
    }))
}

#[test]
fn forty_machines_share_two_addresses_and_keep_them_while_others_come_and_go() {
    let mut sim = region();
    sim.put(&gateway("gw", "net", 2048, 0));
    sim.put(&scaler(1, 10));
    sim.settle().expect("settles");
    let addresses = |sim: &Sim| {
        let gateway = sim.get::<NATGateway>(NS, "gw").expect("stays");
        let active = gateway.spec.ips.iter().filter(|entry| !entry.draining);
        (gateway.spec.ips.len(), active.count())
    };
    assert_eq!(addresses(&sim), (1, 1), "the minimum");
    let add = |sim: &mut Sim, range: std::ops::Range<usize>| {
        for n in range {
            sim.put(&nic(
                &format!("m{n:02}"),
                "net",
                json!([format!("10.0.0.{n}")]),
            ));
        }
        sim.settle().expect("settles");
    };
    add(&mut sim, 0..31);
    assert_eq!(addresses(&sim), (1, 1));
    let first = sim.get::<NATTable>(NS, "gw").expect("a table").ips;
    add(&mut sim, 31..40);
    assert_eq!(addresses(&sim), (2, 2));
    assert_eq!(table(&sim, "gw").len(), 40);
    let grown = sim.get::<NATTable>(NS, "gw").expect("a table").ips;
    assert_eq!(grown.first(), first.first(), "nobody moved");
    // Ten machines of the first address go. Those on the second keep their ports, so the second drains and stays.
    for n in 0..20 {
        sim.delete::<NetworkInterface>(NS, &format!("m{n:02}"));
    }
    sim.settle().expect("settles");
    assert_eq!(addresses(&sim), (2, 1));
    let shrunk = sim.get::<NATTable>(NS, "gw").expect("a table").ips;
    assert_eq!(
        shrunk.iter().map(|row| row.sections.len()).sum::<usize>(),
        20
    );
    for row in &shrunk {
        let before = grown
            .iter()
            .find(|old| old.ip == row.ip)
            .expect("the same address");
        for section in &row.sections {
            assert!(before.sections.contains(section), "{section:?} moved");
        }
    }
    // The last one on the draining address goes, and the address with it.
    let gateway = sim.get::<NATGateway>(NS, "gw").expect("stays");
    let draining = gateway
        .spec
        .ips
        .iter()
        .find(|entry| entry.draining)
        .expect("one")
        .ip;
    let on_it: Vec<String> = shrunk
        .iter()
        .filter(|row| Some(row.ip) == draining)
        .flat_map(|row| &row.sections)
        .map(|section| section.target_ref.clone().expect("a target").name)
        .collect();
    assert!(!on_it.is_empty());
    for name in on_it {
        sim.delete::<NetworkInterface>(NS, &name);
    }
    sim.settle().expect("settles");
    // Without generations (the simulated server has none) nothing is taken away on a guess.
    assert_eq!(addresses(&sim), (2, 1));
    sim.edit::<NATGateway>(NS, "gw", |gateway| gateway.metadata.generation = Some(7));
    sim.settle().expect("settles");
    assert_eq!(addresses(&sim), (1, 1));
}
