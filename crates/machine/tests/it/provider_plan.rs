//! What the provider decides for a machine, without doing it.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::apinet::NetworkInterface;
use api::ids;
use controller::{Op, Plan};
use machine::provider::desk;
use machine::provider::plan::{Device, Inputs, Progress, Step, plan};
use machine::provider::record::{Interface, Known, Record};
use serde_json::{Value, json};

const NODE: &str = "lab.n1";

fn record() -> Record {
    Record {
        id: "m1".into(),
        netns: "t-m1".into(),
        generation: 1,
        power_on: true,
        hostname: "web".into(),
        interfaces: vec![Interface {
            name: "nic1".into(),
            network_id: "openkcm-net://ns/net/200/uid".into(),
            ips: vec!["10.0.0.1".into()],
            attributes: BTreeMap::new(),
        }],
        ..Record::default()
    }
}

fn known(mut record: Record) -> Record {
    record.known.insert(
        "nic1".into(),
        Known {
            namespace: "ns".into(),
            slot: 0,
            handle: None,
        },
    );
    record
}

/// Configured and reported.
fn attached() -> Record {
    let mut record = known(record());
    record.attached("nic1", "handle");
    record
}

fn live(status: Value) -> Arc<NetworkInterface> {
    let object = json!({
        "metadata": {"namespace": "ns", "name": ids::apinet_nic_name("m1", "nic1"), "uid": "u1",
            "labels": {api::names::label::MACHINE_ID: "m1"}},
        "spec": {"nodeRef": {"name": NODE}, "networkRef": {"name": "net"}, "ips": ["10.0.0.1"], "hostname": "web"},
        "status": status,
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

fn ready() -> Arc<NetworkInterface> {
    live(json!({"state": "Ready", "tapDevice": {"name": "dtapvf_0"}}))
}

fn changed(change: impl FnOnce(&mut NetworkInterface)) -> Arc<NetworkInterface> {
    let mut object = (*ready()).clone();
    change(&mut object);
    Arc::new(object)
}

/// One word per operation.
fn words(plan: &Plan) -> Vec<String> {
    let word = |op: &Op| match op {
        Op::Act(act) => match act.payload::<Step>().unwrap() {
            Step::CreateNamespace => "create-netns".to_owned(),
            Step::RemoveNamespace => "remove-netns".to_owned(),
            Step::Remember { interface, .. } => format!("remember {interface}"),
            Step::Forget { interface } => format!("forget {interface}"),
            Step::Take(take) => format!("take {} {}", take.tap, take.handle),
            Step::Release { interface, tap } => {
                format!("release {interface} {}", tap.as_deref().unwrap_or("?"))
            }
            Step::RemoveRecord => "remove-record".to_owned(),
        },
        Op::Apply { target, .. } => format!("apply {}", target.key),
        Op::Delete { uid, .. } => format!("delete {uid}"),
        other => format!("{other:?}"),
    };
    plan.ops.iter().map(word).collect()
}

fn check(
    record: Option<&Record>,
    live: &[Arc<NetworkInterface>],
    device: Option<Progress>,
    netns: bool,
    want: &[&str],
) {
    let mut devices = BTreeMap::new();
    if let Some(progress) = device {
        devices.insert(
            "nic1".to_owned(),
            Device {
                tap: "dtapvf_0".into(),
                progress,
            },
        );
    }
    let inputs = Inputs {
        record,
        live,
        devices: &devices,
        netns,
        node: NODE,
    };
    assert_eq!(words(&plan(&inputs)), want);
}

#[test]
fn a_machine_grows_step_by_step() {
    let name = "ns/309241fd-903f-5de3-a3cc-3c29733035ab";
    let take = "take dtapvf_0 openkcm-net://ns/309241fd-903f-5de3-a3cc-3c29733035ab/lab.n1/u1";
    check(
        Some(&record()),
        &[],
        None,
        false,
        &["create-netns", "remember nic1", &format!("apply {name}")],
    );
    check(
        Some(&known(record())),
        &[live(json!({"state": "Pending"}))],
        None,
        true,
        &[],
    );
    check(Some(&known(record())), &[ready()], None, true, &[take]);
    check(
        Some(&known(record())),
        &[ready()],
        Some(Progress::Configuring),
        true,
        &[],
    );
    check(
        Some(&known(record())),
        &[ready()],
        Some(Progress::Missing),
        true,
        &[],
    );
    check(
        Some(&attached()),
        &[ready()],
        Some(Progress::Attached),
        true,
        &[],
    );
}

/// Interfaces do not wait for each other.
#[test]
fn all_interfaces_are_asked_for_at_once() {
    let mut record = record();
    let mut second = record.interfaces[0].clone();
    second.name = "nic2".into();
    record.interfaces.push(second);
    let apply = |nic: &str| format!("apply ns/{}", ids::apinet_nic_name("m1", nic));
    check(
        Some(&record),
        &[],
        None,
        true,
        &[
            "remember nic1",
            &apply("nic1"),
            "remember nic2",
            &apply("nic2"),
        ],
    );
    let pending = live(json!({"state": "Pending"}));
    check(
        Some(&known(record)),
        &[pending],
        None,
        true,
        &["remember nic2", &apply("nic2")],
    );
}

#[test]
fn only_one_of_pci_and_tap_is_taken() {
    let pci = live(
        json!({"state": "Ready", "pciAddress": {"domain": "0", "bus": "3", "slot": "0", "function": "2"}}),
    );
    check(Some(&known(record())), &[pci], None, true, &[]);
}

#[test]
fn an_interface_that_cannot_change_in_place_is_replaced() {
    let other_ip = changed(|nic| nic.spec.ips = vec!["10.0.0.9".parse().unwrap()]);
    check(
        Some(&known(record())),
        &[other_ip],
        None,
        true,
        &["delete u1"],
    );
    let going =
        changed(|nic| nic.metadata.deletion_timestamp = Some(api::meta::Time(Default::default())));
    check(
        Some(&known(record())),
        std::slice::from_ref(&going),
        None,
        true,
        &[],
    );
    check(
        Some(&known(record())),
        &[going],
        Some(Progress::Attached),
        true,
        &["release nic1 dtapvf_0"],
    );
    let other_tap = changed(|nic| {
        nic.status =
            serde_json::from_value(json!({"state": "Ready", "tapDevice": {"name": "dtapvf_5"}}))
                .unwrap();
    });
    check(
        Some(&known(record())),
        &[other_tap],
        Some(Progress::Attached),
        true,
        &["release nic1 dtapvf_0"],
    );
}

#[test]
fn a_device_stays_while_the_api_is_silent() {
    let mut attached = known(record());
    attached.known.get_mut("nic1").unwrap().handle = Some("h".into());
    let pending = live(json!({"state": "Pending"}));
    check(
        Some(&attached),
        &[pending],
        Some(Progress::Attached),
        true,
        &[],
    );
}

/// The device of an interface that was detached and is wanted again is done with; nothing else would ever report it.
#[test]
fn an_interface_that_is_attached_again_is_configured_anew() {
    let (record, live) = (known(record()), [ready()]);
    let release = "release nic1 dtapvf_0";
    check(
        Some(&record),
        &live,
        Some(Progress::Attached),
        true,
        &[release],
    );
    check(
        Some(&attached()),
        &live,
        Some(Progress::Attached),
        true,
        &[],
    );
}

/// A cache that lagged behind did not show it when it was detached and forgotten; it shows it now.
#[test]
fn an_object_of_a_forgotten_interface_goes() {
    let mut forgotten = record();
    forgotten.interfaces.clear();
    check(Some(&forgotten), &[ready()], None, true, &["delete u1"]);
    let leaving = changed(|nic| {
        nic.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
    });
    check(Some(&forgotten), &[leaving], None, true, &[]);
}

/// It may still be in the machine: whoever asked for it waits until it is not shown any more.
#[test]
fn an_interface_on_its_way_out_is_shown() {
    let shown = |record: &Record| {
        let status = desk::show(record, true).status.unwrap();
        let shown = status.network_interfaces.into_iter();
        shown
            .map(|nic| (nic.name, nic.handle, nic.state))
            .collect::<Vec<_>>()
    };
    let mut record = attached();
    assert_eq!(shown(&record), [("nic1".into(), "handle".into(), 1)]);
    desk::detach(&mut record, "nic1").unwrap();
    assert_eq!(shown(&record), [("nic1".into(), String::new(), 0)]);
    record.known.clear();
    assert_eq!(shown(&record), []);
}

#[test]
fn detach_power_off_and_delete_leave_nothing() {
    let detached = Record {
        interfaces: Vec::new(),
        ..known(record())
    };
    check(
        Some(&detached),
        &[ready()],
        Some(Progress::Attached),
        true,
        &["release nic1 dtapvf_0", "delete u1", "forget nic1"],
    );
    let off = Record {
        power_on: false,
        ..attached()
    };
    check(
        Some(&off),
        &[ready()],
        Some(Progress::Attached),
        true,
        &["release nic1 dtapvf_0", "remove-netns"],
    );
    check(Some(&off), &[ready()], None, false, &[]);
    let deleted = Record {
        deleted_at: 1,
        ..known(record())
    };
    check(
        Some(&deleted),
        &[ready()],
        None,
        true,
        &[
            "release nic1 dtapvf_0",
            "remove-netns",
            "delete u1",
            "remove-record",
        ],
    );
    check(Some(&deleted), &[], None, false, &["remove-record"]);
    // Left over from a machine that nobody remembers.
    check(None, &[ready()], None, false, &["delete u1"]);
}
