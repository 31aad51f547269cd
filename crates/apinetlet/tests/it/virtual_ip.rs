//! User VirtualIP ↔ OpenKCM-net IP.

use api::{apinet, networking::VirtualIP};
use controller::sim::verify;
use serde_json::json;

use crate::region::{APINET_NS, NS, object, region, uid};

fn virtual_ip() -> VirtualIP {
    object(json!({
        "metadata": { "name": "www", "namespace": NS },
        "spec": { "type": "Public", "ipFamily": "IPv4" },
    }))
}

#[test]
fn a_virtual_ip_gets_the_address_that_the_server_reserved() {
    let sim = verify(region, |sim| sim.put(&virtual_ip())).expect("converges");
    let made = sim
        .get::<apinet::IP>(APINET_NS, &uid::<VirtualIP>(&sim, NS, "www"))
        .expect("made, named by uid");
    assert_eq!(made.spec.ip_family, Some(api::meta::IpFamily::IPv4));
    let shown = sim
        .get::<VirtualIP>(NS, "www")
        .and_then(|vip| vip.status)
        .and_then(|s| s.ip);
    assert!(shown.is_some());
    assert_eq!(shown, made.spec.ip);
}

#[test]
fn deleting_a_virtual_ip_leaves_nothing() {
    let sim = verify(region, |sim| {
        sim.put(&virtual_ip());
        sim.settle().expect("settles");
        sim.delete::<VirtualIP>(NS, "www");
    })
    .expect("converges");
    assert!(sim.snapshot().is_empty(), "{:#?}", sim.snapshot());
}

#[test]
fn the_address_stays_reserved_until_no_interface_reports_it() {
    let mut sim = region();
    sim.put(&virtual_ip());
    sim.settle().expect("settles");
    let name = uid::<VirtualIP>(&sim, NS, "www");
    let address = sim
        .get::<apinet::IP>(APINET_NS, &name)
        .and_then(|ip| ip.spec.ip)
        .expect("address");
    let user: apinet::NetworkInterface = object(json!({
        "metadata": { "name": "n", "namespace": APINET_NS },
        "spec": { "nodeRef": { "name": "p.n" }, "networkRef": { "name": "x" } },
        "status": { "state": "Ready", "publicIPs": [address] },
    }));
    sim.put(&user);
    sim.delete::<VirtualIP>(NS, "www");
    sim.settle().expect("settles");
    let held = sim
        .get::<apinet::IP>(APINET_NS, &name)
        .expect("still there");
    assert_eq!(held.metadata.deletion_timestamp, None, "not even marked");
    sim.edit::<apinet::NetworkInterface>(APINET_NS, "n", |nic| nic.status = None);
    sim.settle().expect("settles");
    assert!(sim.get::<apinet::IP>(APINET_NS, &name).is_none());
    assert!(sim.get::<VirtualIP>(NS, "www").is_none());
}

#[test]
fn labels_of_the_user_follow_and_go() {
    let sim = verify(region, |sim| {
        let mut labelled = virtual_ip();
        labelled.metadata.labels =
            Some([("app".to_owned(), "web".to_owned())].into_iter().collect());
        sim.put(&labelled);
        sim.settle().expect("settles");
        let made = uid::<VirtualIP>(sim, NS, "www");
        let made: apinet::IP = sim.get(APINET_NS, &made).expect("made");
        assert_eq!(controller::object::label(&made, "app"), Some("web"));
        sim.edit::<VirtualIP>(NS, "www", |vip| vip.metadata.labels = None);
    })
    .expect("converges");
    let made: apinet::IP = sim
        .get(APINET_NS, &uid::<VirtualIP>(&sim, NS, "www"))
        .expect("made");
    assert_eq!(controller::object::label(&made, "app"), None);
}
