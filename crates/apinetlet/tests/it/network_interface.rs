//! User NetworkInterface ↔ OpenKCM-net NetworkInterface: adopt, hand over, report, release.

use std::collections::BTreeMap;

use api::{
    apinet,
    networking::{Network, NetworkInterface, NetworkInterfaceState, VirtualIP},
};
use controller::{
    object,
    sim::{Sim, verify},
};
use serde_json::{Value, json};

use crate::region::{APINET_NS, NS, object, region, uid};

/// Network `blue`, and interface `nic` in it with this extra spec.
fn users(sim: &mut Sim, extra: Value) {
    let network: Network =
        object(json!({ "metadata": { "name": "blue", "namespace": NS }, "spec": {} }));
    sim.put(&network);
    let mut spec = json!({
        "networkRef": { "name": "blue" },
        "ipFamilies": ["IPv4"],
        "ips": [{ "value": "10.0.0.1" }],
    });
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let nic: NetworkInterface = object(json!({
        "metadata": {
            "name": "nic",
            "namespace": NS,
            "labels": { "app": "web", "common.openkcm.dev/watch-filter": "x" },
        },
        "spec": spec,
    }));
    sim.put(&nic);
    sim.settle().expect("settles");
}

/// What the machine provider and the machine pool agent do: make the interface and write down its handle.
fn provide(sim: &mut Sim) {
    let network = uid::<Network>(sim, NS, "blue");
    let made: apinet::NetworkInterface = object(json!({
        "metadata": {
            "name": "provided",
            "namespace": APINET_NS,
            "labels": { "libvirt-provider.openkcm.dev/machine-id": "m" },
        },
        "spec": {
            "nodeRef": { "name": "part.node" },
            "networkRef": { "name": network },
            "ips": ["10.0.0.1"],
        },
    }));
    sim.put(&made);
    write_handle(sim, "provided");
}

fn write_handle(sim: &mut Sim, name: &str) {
    let uid = uid::<apinet::NetworkInterface>(sim, APINET_NS, name);
    sim.edit::<NetworkInterface>(NS, "nic", |nic| {
        nic.spec.provider_id = format!("openkcm-net://{APINET_NS}/{name}/part.node/{uid}");
    });
}

fn ready(sim: &mut Sim) {
    sim.edit::<apinet::NetworkInterface>(APINET_NS, "provided", |nic| {
        nic.status = serde_json::from_value(json!({
            "state": "Ready", "tapDevice": { "name": "dtapvf_0" },
        }))
        .expect("a status");
    });
}

fn user(sim: &Sim) -> NetworkInterface {
    sim.get(NS, "nic").expect("user interface")
}

fn provided(sim: &Sim) -> apinet::NetworkInterface {
    sim.get(APINET_NS, "provided").expect("provided interface")
}

fn why(sim: &Sim) -> String {
    crate::region::reason(&user(sim).status.expect("status").conditions)
}

fn state(sim: &Sim) -> Option<NetworkInterfaceState> {
    user(sim).status.and_then(|status| status.state)
}

#[test]
fn an_interface_without_handle_is_pending() {
    let sim = verify(region, |sim| users(sim, json!({}))).expect("converges");
    let status = user(&sim).status.expect("status");
    assert_eq!(status.state, Some(NetworkInterfaceState::Pending));
    assert!(status.ips.is_empty());
}

#[test]
fn the_provided_interface_is_adopted_and_its_state_reported() {
    let sim = verify(region, |sim| {
        users(sim, json!({ "prefixes": [{ "value": "10.1.0.0/24" }] }));
        provide(sim);
        sim.settle().expect("settles");
        ready(sim);
    })
    .expect("converges");
    let made = provided(&sim);
    let labels = made.metadata.labels.clone().expect("labels");
    let expected = BTreeMap::from([
        ("app".to_owned(), "web".to_owned()),
        (
            "libvirt-provider.openkcm.dev/machine-id".to_owned(),
            "m".to_owned(),
        ),
        (
            "apinetlet.openkcm.dev/networkinterface-namespace".to_owned(),
            NS.to_owned(),
        ),
        (
            "apinetlet.openkcm.dev/networkinterface-uid".to_owned(),
            object::uid(&user(&sim)).to_owned(),
        ),
    ]);
    assert_eq!(
        labels, expected,
        "user labels are copied, reserved ones are not"
    );
    assert_eq!(made.spec.prefixes.len(), 1);
    let status = user(&sim).status.expect("status");
    assert_eq!(status.state, Some(NetworkInterfaceState::Available));
    assert_eq!(json!(status.ips), json!(["10.0.0.1"]));
    assert_eq!(json!(status.prefixes), json!(["10.1.0.0/24"]));
}

#[test]
fn a_label_removed_by_the_user_is_removed_from_the_copy() {
    let sim = verify(region, |sim| {
        users(sim, json!({}));
        provide(sim);
        sim.settle().expect("settles");
        sim.edit::<NetworkInterface>(NS, "nic", |nic| {
            nic.metadata.labels = Some([("tier".to_owned(), "front".to_owned())].into());
        });
    })
    .expect("converges");
    let made = provided(&sim);
    assert_eq!(object::label(&made, "app"), None);
    assert_eq!(object::label(&made, "tier"), Some("front"));
    assert_eq!(
        object::label(&made, "libvirt-provider.openkcm.dev/machine-id"),
        Some("m")
    );
}

#[test]
fn a_handle_of_an_interface_in_another_network_adopts_nothing() {
    let sim = verify(region, |sim| {
        users(sim, json!({}));
        provide(sim);
        sim.edit::<apinet::NetworkInterface>(APINET_NS, "provided", |nic| {
            nic.spec.network_ref.name = "of-somebody-else".to_owned();
        });
    })
    .expect("converges");
    assert_eq!(state(&sim), Some(NetworkInterfaceState::Pending));
    assert_eq!(
        object::label(
            &provided(&sim),
            "apinetlet.openkcm.dev/networkinterface-uid"
        ),
        None
    );
}

#[test]
fn emptying_the_handle_releases_the_interface() {
    let sim = verify(region, |sim| {
        users(sim, json!({ "prefixes": [{ "value": "10.1.0.0/24" }] }));
        provide(sim);
        ready(sim);
        sim.settle().expect("settles");
        sim.edit::<NetworkInterface>(NS, "nic", |nic| nic.spec.provider_id.clear());
    })
    .expect("converges");
    let made = provided(&sim);
    let labels = made.metadata.labels.expect("labels");
    assert_eq!(
        labels.keys().collect::<Vec<_>>(),
        ["libvirt-provider.openkcm.dev/machine-id"]
    );
    assert!(made.spec.prefixes.is_empty());
    assert_eq!(state(&sim), Some(NetworkInterfaceState::Pending));
}

#[test]
fn deleting_the_user_interface_releases_but_does_not_delete_the_provided_one() {
    let sim = verify(region, |sim| {
        users(sim, json!({}));
        provide(sim);
        sim.settle().expect("settles");
        sim.delete::<NetworkInterface>(NS, "nic");
    })
    .expect("converges");
    assert!(sim.get::<NetworkInterface>(NS, "nic").is_none());
    let made = provided(&sim);
    assert_eq!(object::label(&made, "app"), None);
    assert_eq!(made.metadata.deletion_timestamp, None);
}

#[test]
fn an_interface_left_behind_without_finalizer_is_released_too() {
    let mut sim = region();
    virtual_ip(&mut sim);
    users(
        &mut sim,
        json!({
            "prefixes": [{ "value": "10.1.0.0/24" }],
            "virtualIP": { "virtualIPRef": { "name": "www" } },
        }),
    );
    provide(&mut sim);
    sim.settle().expect("settles");
    let made = provided(&sim);
    assert_eq!(
        (made.spec.prefixes.len(), made.spec.public_ips.len()),
        (1, 1)
    );
    sim.edit::<NetworkInterface>(NS, "nic", |nic| nic.metadata.finalizers = None);
    sim.delete::<NetworkInterface>(NS, "nic");
    sim.settle().expect("settles");
    let made = provided(&sim);
    assert!(
        made.spec.prefixes.is_empty() && made.spec.public_ips.is_empty(),
        "also prefixes and public addresses, not only the origin"
    );
    assert_eq!(
        object::label(&made, "apinetlet.openkcm.dev/networkinterface-uid"),
        None
    );
}

fn virtual_ip(sim: &mut Sim) {
    let vip: VirtualIP = object(json!({
        "metadata": { "name": "www", "namespace": NS },
        "spec": { "type": "Public", "ipFamily": "IPv4" },
    }));
    sim.put(&vip);
    sim.settle().expect("settles");
}

#[test]
fn a_virtual_ip_is_claimed_and_handed_over_and_displaces_nat_of_its_family() {
    let sim = verify(region, |sim| {
        virtual_ip(sim);
        users(
            sim,
            json!({ "virtualIP": { "virtualIPRef": { "name": "www" } } }),
        );
        provide(sim);
        sim.edit::<apinet::NetworkInterface>(APINET_NS, "provided", |nic| {
            nic.spec.nat_gateways = serde_json::from_value(json!([
                { "ipFamily": "IPv4", "claimRef": { "name": "gw4", "uid": "1" } },
                { "ipFamily": "IPv6", "claimRef": { "name": "gw6", "uid": "2" } },
            ]))
            .expect("claims");
        });
    })
    .expect("converges");
    let vip = sim.get::<VirtualIP>(NS, "www").expect("virtual IP");
    let address = vip.status.and_then(|status| status.ip).expect("address");
    assert_eq!(
        vip.spec.target_ref.expect("claimed").uid,
        object::uid(&user(&sim))
    );
    let made = provided(&sim);
    assert_eq!(
        json!(made.spec.public_ips),
        json!([{ "name": address, "ipFamily": "IPv4", "ip": address }])
    );
    assert_eq!(made.spec.nat_gateways.len(), 1);
    assert_eq!(made.spec.nat_gateways[0].claim_ref.name, "gw6");
}

#[test]
fn a_virtual_ip_of_another_interface_is_left_alone() {
    let sim = verify(region, |sim| {
        virtual_ip(sim);
        sim.edit::<VirtualIP>(NS, "www", |vip| {
            vip.spec.target_ref = Some(api::meta::LocalUidReference::new("other", "other-uid"));
        });
        users(
            sim,
            json!({ "virtualIP": { "virtualIPRef": { "name": "www" } } }),
        );
        provide(sim);
    })
    .expect("converges");
    let vip = sim.get::<VirtualIP>(NS, "www").expect("virtual IP");
    assert_eq!(vip.spec.target_ref.expect("claimed").uid, "other-uid");
    assert!(provided(&sim).spec.public_ips.is_empty());
}

#[test]
fn deleting_a_virtual_ip_takes_it_off_the_interface_before_its_address_is_freed() {
    let sim = verify(region, |sim| {
        virtual_ip(sim);
        users(
            sim,
            json!({ "virtualIP": { "virtualIPRef": { "name": "www" } } }),
        );
        provide(sim);
        sim.settle().expect("settles");
        sim.delete::<VirtualIP>(NS, "www");
    })
    .expect("converges");
    assert!(sim.get::<VirtualIP>(NS, "www").is_none());
    assert!(sim.list::<apinet::IP>().is_empty());
    let off = sim
        .log
        .iter()
        .position(|op| format!("{op:?}").contains("\"publicIPs\": Array []"));
    let freed = sim.log.iter().position(
        |op| matches!(op, controller::Op::Delete { target, .. } if target.kind.kind == "IP"),
    );
    assert!(off.expect("taken off") < freed.expect("freed"));
}

/// An ipam Prefix of this name, controlled by the object with this uid.
fn prefix(sim: &mut Sim, name: &str, owner: &str, block: Option<&str>) {
    let mut prefix = json!({
        "metadata": {
            "name": name,
            "namespace": NS,
            "ownerReferences": [{
                "apiVersion": "networking.openkcm.dev/v1alpha1", "kind": "NetworkInterface",
                "name": "nic", "uid": owner, "controller": true,
            }],
        },
        "spec": { "ipFamily": "IPv4", "prefixLength": 28, "parentRef": { "name": "root" } },
        "status": { "phase": "Pending" },
    });
    if let Some(block) = block {
        prefix["spec"]["prefix"] = json!(block);
        prefix["status"]["phase"] = json!("Allocated");
    }
    let prefix: api::ipam::Prefix = object(prefix);
    sim.put(&prefix);
}

#[test]
fn prefixes_made_for_the_interface_are_routed_once_allocated() {
    let sim = verify(region, |sim| {
        let template = json!({ "prefixTemplate": { "spec": { "prefixLength": 28 } } });
        users(
            sim,
            json!({ "prefixes": [
                { "ephemeral": template }, { "value": "10.9.0.0/24" }, { "ephemeral": template },
                { "ephemeral": template },
            ] }),
        );
        provide(sim);
        let owner = object::uid(&user(sim)).to_owned();
        prefix(sim, "nic-pf-0", &owner, Some("10.1.0.16/28"));
        prefix(sim, "nic-pf-2", &owner, None);
        // Somebody else's Prefix under the name that we would use.
        prefix(sim, "nic-pf-3", "of-somebody-else", Some("10.2.0.0/28"));
    })
    .expect("converges");
    assert_eq!(
        json!(provided(&sim).spec.prefixes),
        json!(["10.1.0.16/28", "10.9.0.0/24"])
    );
    let mut sim = sim;
    let owner = object::uid(&user(&sim)).to_owned();
    prefix(&mut sim, "nic-pf-2", &owner, Some("10.1.0.32/28"));
    sim.settle().expect("settles");
    let expected = json!(["10.1.0.16/28", "10.9.0.0/24", "10.1.0.32/28"]);
    assert_eq!(json!(provided(&sim).spec.prefixes), expected);
    assert_eq!(json!(user(&sim).status.expect("status").prefixes), expected);
}

#[test]
fn the_condition_says_what_is_missing() {
    let mut sim = region();
    users(&mut sim, json!({}));
    assert_eq!(why(&sim), "!NotAttached");
    sim.edit::<NetworkInterface>(NS, "nic", |nic| {
        nic.spec.provider_id = "openkcm-net://a/b".to_owned();
    });
    sim.settle().expect("settles");
    assert_eq!(why(&sim), "!HandleInvalid");
    sim.edit::<NetworkInterface>(NS, "nic", |nic| {
        nic.spec.provider_id = format!("openkcm-net://{APINET_NS}/b/part.node/nobody");
    });
    sim.settle().expect("settles");
    assert_eq!(why(&sim), "!InterfaceNotFound");
    provide(&mut sim);
    sim.settle().expect("settles");
    assert_eq!(why(&sim), "!HypervisorPending");
    ready(&mut sim);
    sim.settle().expect("settles");
    assert_eq!(why(&sim), "Available");
    sim.edit::<apinet::NetworkInterface>(APINET_NS, "provided", |nic| {
        nic.status = serde_json::from_value(json!({ "state": "Error" })).expect("a status");
    });
    sim.settle().expect("settles");
    assert_eq!(why(&sim), "!HypervisorError");
}

#[test]
fn what_hypervisors_translate_is_shown() {
    let mut sim = region();
    users(&mut sim, json!({}));
    provide(&mut sim);
    sim.edit::<apinet::NetworkInterface>(APINET_NS, "provided", |nic| {
        nic.status = serde_json::from_value(json!({
            "state": "Ready",
            "publicIPs": ["2001:db8::7"],
            "natIPs": [
                { "ip": "198.51.100.7", "port": 2048, "endPort": 3071 },
                { "port": 1, "endPort": 2 },
            ],
        }))
        .expect("a status");
    });
    sim.settle().expect("settles");
    let status = user(&sim).status.expect("status");
    assert_eq!(
        json!(status.nat_ips),
        json!([{ "ip": "198.51.100.7", "port": 2048, "endPort": 3071 }])
    );
    assert_eq!(
        json!(status.virtual_ip),
        json!("2001:db8::7"),
        "also a public address of the other family"
    );
    sim.edit::<apinet::NetworkInterface>(APINET_NS, "provided", |nic| nic.status = None);
    sim.settle().expect("settles");
    let status = user(&sim).status.expect("status");
    assert!(status.nat_ips.is_empty() && status.virtual_ip.is_none());
}

#[test]
fn an_interface_that_another_one_has_adopted_stays_with_it() {
    let sim = verify(region, |sim| {
        users(sim, json!({}));
        provide(sim);
        sim.settle().expect("settles");
        let mut thief = user(sim);
        thief.metadata = object::<NetworkInterface>(json!({
            "metadata": { "name": "thief", "namespace": NS },
            "spec": { "networkRef": { "name": "blue" } },
        }))
        .metadata;
        thief.status = None;
        sim.put(&thief);
    })
    .expect("converges");
    assert_eq!(
        object::label(
            &provided(&sim),
            "apinetlet.openkcm.dev/networkinterface-uid"
        ),
        Some(object::uid(&user(&sim)))
    );
    let thief: NetworkInterface = sim.get(NS, "thief").expect("the other one");
    let conditions = thief.status.expect("status").conditions;
    assert_eq!(crate::region::reason(&conditions), "!InterfaceNotFound");
}
