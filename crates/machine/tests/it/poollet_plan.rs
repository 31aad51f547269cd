//! What the poollet decides for a Machine, without doing it.

use std::sync::Arc;
use std::time::Duration;

use api::compute::{Machine, MachineClass, MachinePool};
use api::names::{annotation, finalizer, label};
use api::networking::{Network, NetworkInterface};
use controller::process::Process;
use controller::sim::Sim;
use controller::{Key, Op, Plan};
use kube::core::DynamicObject;
use machine::poollet::machine::{Machines, plan};
use machine::poollet::pool::{self, Pool, Settings};
use machine::poollet::runtime::{Call, Runtime, Snapshot};
use machine::poollet::status;
use proto::machine::{
    Machine as RuntimeMachine, MachineClass as RuntimeClass, MachineClassCapabilities,
    MachineClassStatus, MachineState as RuntimeState, MachineStatus, NetworkInterfaceStatus,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn settings() -> Settings {
    Settings {
        pool: "n1".into(),
        provider_id: "namespace://lab/n1".into(),
        region: String::new(),
        zone: String::new(),
        heartbeat: Duration::from_secs(10),
        lease_duration: Duration::from_secs(40),
    }
}

/// A region with a network, a class, an interface of its own and a machine that uses it.
fn region() -> (Sim, Snapshot) {
    let (keys, _) = mpsc::channel(1);
    let runtime = Runtime::new(
        "unix:///nowhere",
        Duration::from_secs(1),
        keys,
        Key::default(),
    )
    .unwrap();
    let runtime = Arc::new(runtime);
    let machines = Machines {
        runtime: runtime.clone(),
        pool: "n1".into(),
        watch_filter: None,
    };
    let pool = Pool {
        runtime,
        settings: settings(),
    };
    let mut sim = Sim::new(vec![Arc::new(machines), Arc::new(pool)]);
    sim.now_ms = 1_000_000;
    sim.put::<MachineClass>(&object(
        json!({"metadata": {"name": "small"}, "capabilities": {"cpu": "1", "memory": "1Gi"}}),
    ));
    sim.put::<Network>(&object(json!({"metadata": {"namespace": "shop", "name": "net"}, "spec": {"providerID": "openkcm-net://ns/net/200/uid"},
        "status": {"state": "Available"}})));
    sim.put::<NetworkInterface>(&object(json!({"metadata": {"namespace": "shop", "name": "web-1"},
        "spec": {"networkRef": {"name": "net"}, "ipFamilies": ["IPv4"], "ips": [{"value": "10.0.0.1"}]}})));
    sim.put::<Machine>(&object(json!({"metadata": {"namespace": "shop", "name": "web", "generation": 1},
        "spec": {"machineClassRef": {"name": "small"}, "machinePoolRef": {"name": "n1"}, "power": "On",
            "networkInterfaces": [{"name": "front", "networkInterfaceRef": {"name": "web-1"}}]}})));
    let class = RuntimeClass {
        name: "small".into(),
        capabilities: Some(MachineClassCapabilities {
            resources: [("cpu".to_owned(), 1000), ("memory".to_owned(), 1 << 30)].into(),
        }),
    };
    let offer = MachineClassStatus {
        machine_class: Some(class),
        quantity: 5,
    };
    let snapshot = Snapshot {
        classes: vec![offer],
        name: "namespace".into(),
        healthy: true,
        ..Snapshot::default()
    };
    (sim, snapshot)
}

fn planned(sim: &Sim, runtime: &Snapshot) -> Plan {
    plan(&sim.world(), &Key::new("shop", "web"), runtime)
}

fn calls(plan: &Plan) -> Vec<Call> {
    let call = |op: &Op| match op {
        Op::Act(act) => act.payload::<Call>().cloned(),
        _ => None,
    };
    plan.ops.iter().filter_map(call).collect()
}

fn patches(plan: &Plan) -> Vec<String> {
    let patch = |op: &Op| match op {
        Op::Patch { target, body, .. } => {
            let mut body = body.clone();
            if let Some(meta) = body.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.remove("resourceVersion");
            }
            Some(format!("{target} {body}"))
        }
        Op::Event { reason, note, .. } => Some(format!("{reason} {note}")),
        _ => None,
    };
    plan.ops.iter().filter_map(patch).collect()
}

/// Plays the runtime: carries out a create, gives the machine an id and attaches everything.
fn made(runtime: &mut Snapshot, call: &Call, attached: bool) {
    let Call::Create(machine) = call else {
        panic!("not a create: {call:?}")
    };
    let mut machine = (**machine).clone();
    let metadata = machine.metadata.as_mut().unwrap();
    metadata.id = "id1".into();
    metadata.generation = 1;
    let nics = machine.spec.as_ref().unwrap().network_interfaces.iter();
    let status = nics.filter(|_| attached).map(|nic| NetworkInterfaceStatus {
        name: nic.name.clone(),
        handle: "handle".into(),
        state: 1,
    });
    machine.status = Some(MachineStatus {
        observed_generation: 1,
        state: i32::from(attached),
        network_interfaces: status.collect(),
        ..MachineStatus::default()
    });
    runtime.machines.insert("id1".into(), Arc::new(machine));
}

/// Marks the interface as claimed, as the poollet's own patch would.
fn claim(sim: &mut Sim) {
    let uid = sim
        .get::<Machine>("shop", "web")
        .unwrap()
        .metadata
        .uid
        .unwrap();
    sim.edit::<NetworkInterface>("shop", "web-1", |nic| {
        nic.spec.machine_ref = Some(api::meta::LocalUidReference::new("web", uid));
    });
}

#[tokio::test]
async fn a_new_machine_is_claimed_for_and_made_in_one_go() {
    let (sim, runtime) = region();
    let plan = planned(&sim, &runtime);
    let patches = patches(&plan);
    assert!(patches[0].contains(finalizer::MACHINE), "{patches:?}");
    assert!(
        patches[1].contains(r#""machineRef":{"name":"web""#),
        "{patches:?}"
    );
    let calls = calls(&plan);
    let [Call::Create(machine)] = calls.as_slice() else {
        panic!("{calls:?}")
    };
    let spec = machine.spec.as_ref().unwrap();
    assert_eq!(spec.class, "small");
    let nic = &spec.network_interfaces[0];
    assert_eq!(
        (nic.name.as_str(), nic.network_id.as_str()),
        ("front", "openkcm-net://ns/net/200/uid")
    );
    assert_eq!(nic.ips, ["10.0.0.1"]);
    assert!(nic.attributes["rawNICLabels"].contains(label::POOLLET_NIC_UID));
    let annotations = &machine.metadata.as_ref().unwrap().annotations;
    assert_eq!(annotations[annotation::POOLLET_IRI_GENERATION], "0");
}

/// The first interface of the manifest is the guest's first device, whatever its name sorts like.
#[tokio::test]
async fn interfaces_are_made_in_the_order_of_the_machine() {
    let (mut sim, runtime) = region();
    for (nic, ip) in [("web-2", "10.0.0.2"), ("web-3", "10.0.0.3")] {
        sim.put::<NetworkInterface>(&object(json!({"metadata": {"namespace": "shop", "name": nic},
            "spec": {"networkRef": {"name": "net"}, "ipFamilies": ["IPv4"], "ips": [{"value": ip}]}})));
    }
    sim.edit::<Machine>("shop", "web", |machine| {
        machine.spec.network_interfaces = object(json!([
            {"name": "front", "networkInterfaceRef": {"name": "web-1"}},
            {"name": "back", "networkInterfaceRef": {"name": "web-3"}},
            {"name": "admin", "networkInterfaceRef": {"name": "web-2"}}]));
    });
    let calls = calls(&planned(&sim, &runtime));
    let [Call::Create(machine)] = calls.as_slice() else {
        panic!("{calls:?}")
    };
    let made = &machine.spec.as_ref().unwrap().network_interfaces;
    let names: Vec<&str> = made.iter().map(|nic| nic.name.as_str()).collect();
    assert_eq!(names, ["front", "back", "admin"]);
}

#[tokio::test]
async fn a_machine_waits_for_its_network_and_says_so() {
    let (mut sim, runtime) = region();
    let check = |sim: &Sim, want: &str| {
        let plan = planned(sim, &runtime);
        assert_eq!(calls(&plan), []);
        assert_eq!(patches(&plan).last().unwrap(), want);
    };
    sim.edit::<Network>("shop", "net", |network| network.status = None);
    check(
        &sim,
        "NetworkInterfaceNotReady front: network net is not available",
    );
    // Available without a handle: the runtime would be asked for an interface in no network.
    sim.edit::<Network>("shop", "net", |network| {
        network.status = object(json!({"state": "Available"}));
        network.spec.provider_id.clear();
    });
    check(
        &sim,
        "NetworkInterfaceNotReady front: network net is not available",
    );
    sim.edit::<NetworkInterface>("shop", "web-1", |nic| {
        nic.spec.machine_ref = Some(api::meta::LocalUidReference::new("other", "x"));
    });
    check(
        &sim,
        "NetworkInterfaceNotReady front: network interface web-1 belongs to another machine",
    );
    sim.delete::<NetworkInterface>("shop", "web-1");
    check(
        &sim,
        "NetworkInterfaceNotReady front: network interface web-1 does not exist",
    );
}

/// Nothing else changes when a network becomes available, so it must wake who waits for it.
#[tokio::test]
async fn a_network_wakes_the_machines_that_wait_for_it() {
    let (sim, _) = region();
    let (keys, _) = mpsc::channel(1);
    let timeout = Duration::from_secs(1);
    let runtime = Runtime::new("unix:///nowhere", timeout, keys, Key::default()).unwrap();
    let mut process = Process::new(vec![Arc::new(Machines {
        runtime: Arc::new(runtime),
        pool: "n1".into(),
        watch_filter: None,
    })]);
    let watch = |process: &Process, kind: &str| {
        let mut watches = process.watches();
        watches.position(|watched| watched.kind.kind == kind)
    };
    let shown = |kind: &str, value: Value| -> DynamicObject {
        let mut value = value;
        value["kind"] = json!(kind);
        serde_json::from_value(value).unwrap()
    };
    let mut network = json!(sim.get::<Network>("shop", "net"));
    for (kind, value) in [
        ("Machine", json!(sim.get::<Machine>("shop", "web"))),
        (
            "NetworkInterface",
            json!(sim.get::<NetworkInterface>("shop", "web-1")),
        ),
        ("Network", network.clone()),
    ] {
        let watch = watch(&process, kind).unwrap();
        process.show(watch, shown(kind, value));
    }
    while process.take(0).is_some() {}
    network["status"] = json!({"state": "Pending"});
    network["metadata"]["resourceVersion"] = json!("4711");
    let networks = watch(&process, "Network").unwrap();
    process.show(networks, shown("Network", network));
    assert_eq!(process.take(0), Some((0, Key::new("shop", "web"))));
}

#[tokio::test]
async fn status_and_handles_are_taken_over_once() {
    let (mut sim, mut runtime) = region();
    let create = calls(&planned(&sim, &runtime)).remove(0);
    claim(&mut sim);
    made(&mut runtime, &create, true);
    let plan = planned(&sim, &runtime);
    let all = patches(&plan).join("\n");
    assert!(all.contains(r#"{"spec":{"providerID":"handle"}}"#), "{all}");
    assert!(
        all.contains(r#""state":"Running""#) && all.contains(r#""machineID":"namespace://id1""#),
        "{all}"
    );
    // The first annotation carries the runtime's generation; then nothing is left to do.
    let [Call::Annotate { annotations, .. }] = &calls(&plan)[..] else {
        panic!("{plan:?}")
    };
    let machine = Arc::make_mut(runtime.machines.get_mut("id1").unwrap());
    machine.metadata.as_mut().unwrap().annotations = annotations.clone().into_iter().collect();
    for op in &plan.ops {
        if let Op::Patch { target, body, .. } = op {
            match (target.kind.kind.as_str(), body.get("status")) {
                ("Machine", Some(status)) => {
                    let status = object(status.clone());
                    sim.edit::<Machine>("shop", "web", |machine| machine.status = Some(status));
                }
                ("NetworkInterface", _) => {
                    sim.edit::<NetworkInterface>("shop", "web-1", |nic| {
                        nic.spec.provider_id = "handle".into()
                    });
                }
                _ => {}
            }
        }
    }
    sim.edit::<Machine>("shop", "web", |machine| {
        machine.metadata.finalizers = Some(vec![finalizer::MACHINE.into()])
    });
    sim.now_ms += 60_000;
    assert_eq!(planned(&sim, &runtime), Plan::none());
}

#[tokio::test]
async fn only_what_the_user_took_out_is_detached() {
    let (mut sim, mut runtime) = region();
    let create = calls(&planned(&sim, &runtime)).remove(0);
    claim(&mut sim);
    made(&mut runtime, &create, true);
    let changes = |sim: &Sim| {
        let all = calls(&planned(sim, &runtime)).into_iter();
        all.filter(|call| !matches!(call, Call::Annotate { .. }))
            .collect::<Vec<_>>()
    };
    // The network is momentarily not available: the interface stays.
    sim.edit::<Network>("shop", "net", |network| network.status = None);
    assert_eq!(changes(&sim), []);
    sim.edit::<Network>("shop", "net", |network| {
        network.status = object(json!({"state": "Available"}));
    });
    // Another address replaces it.
    sim.edit::<NetworkInterface>("shop", "web-1", |nic| {
        nic.spec.ips[0].value = "10.0.0.2".parse().ok()
    });
    let replaced = changes(&sim);
    assert!(
        matches!(&replaced[..], [Call::Detach { name, .. }, Call::Attach { .. }] if name == "front"),
        "{replaced:?}"
    );
}

/// Its device may still be in the machine: it is nobody else's before the runtime has let go.
#[tokio::test]
async fn an_interface_taken_out_is_detached_first_and_released_then() {
    let (mut sim, mut runtime) = region();
    let create = calls(&planned(&sim, &runtime)).remove(0);
    claim(&mut sim);
    made(&mut runtime, &create, true);
    sim.edit::<Machine>("shop", "web", |machine| {
        machine.spec.network_interfaces.clear()
    });
    let released = |plan: &Plan| {
        let wanted = r#"{"metadata":{},"spec":{"machineRef":null,"providerID":null}}"#;
        patches(plan).join("\n").contains(wanted)
    };
    let first = planned(&sim, &runtime);
    assert!(matches!(&calls(&first)[..], [Call::Detach { .. }]));
    assert!(!released(&first));
    let change = |runtime: &mut Snapshot, change: &dyn Fn(&mut RuntimeMachine)| {
        let mut machine = runtime.machines["id1"].as_ref().clone();
        change(&mut machine);
        runtime.machines.insert("id1".into(), Arc::new(machine));
    };
    // Not asked for any more, but still there.
    change(&mut runtime, &|machine| {
        machine.spec.as_mut().unwrap().network_interfaces.clear();
        let status = machine.status.as_mut().unwrap();
        status.network_interfaces[0].state = 0;
    });
    let second = planned(&sim, &runtime);
    assert!(!released(&second) && second.requeue.is_some());
    // What is remembered of it stays as long.
    let kept = calls(&second).into_iter().find_map(|call| match call {
        Call::Annotate { annotations, .. } => Some(annotations),
        _ => None,
    });
    let kept = kept.expect("the new generation is noted");
    assert!(kept[annotation::POOLLET_NIC_MAPPING].contains("front"));
    change(&mut runtime, &|machine| {
        machine.metadata.as_mut().unwrap().annotations = kept.clone().into_iter().collect();
    });
    assert!(!released(&planned(&sim, &runtime)));
    change(&mut runtime, &|machine| {
        machine.status.as_mut().unwrap().network_interfaces.clear();
    });
    assert!(released(&planned(&sim, &runtime)));
}

/// The address of an interface that is deleted, or that another machine got, is free for others: the machine must not keep it.
#[tokio::test]
async fn an_interface_whose_object_is_lost_is_detached() {
    let lost = |change: fn(&mut Sim)| {
        let (mut sim, mut runtime) = region();
        let create = calls(&planned(&sim, &runtime)).remove(0);
        claim(&mut sim);
        made(&mut runtime, &create, true);
        change(&mut sim);
        calls(&planned(&sim, &runtime))
    };
    let detached = |calls: Vec<Call>| match &calls[..] {
        [Call::Detach { name, .. }] => name == "front",
        _ => false,
    };
    assert!(detached(lost(|sim| {
        sim.delete::<NetworkInterface>("shop", "web-1");
    })));
    assert!(detached(lost(|sim| {
        sim.edit::<NetworkInterface>("shop", "web-1", |nic| {
            nic.metadata.finalizers = Some(vec!["x/y".into()]);
        });
        sim.delete::<NetworkInterface>("shop", "web-1");
    })));
    assert!(detached(lost(|sim| {
        sim.edit::<NetworkInterface>("shop", "web-1", |nic| {
            nic.spec.machine_ref = object(json!({ "name": "other", "uid": "another" }));
        });
    })));
}

#[tokio::test]
async fn a_machine_goes_only_after_the_runtime_let_go() {
    let (mut sim, mut runtime) = region();
    let create = calls(&planned(&sim, &runtime)).remove(0);
    made(&mut runtime, &create, true);
    sim.edit::<Machine>("shop", "web", |machine| {
        machine.metadata.finalizers = Some(vec![finalizer::MACHINE.into()])
    });
    sim.delete::<Machine>("shop", "web");
    assert_eq!(
        calls(&planned(&sim, &runtime)),
        [Call::Delete { id: "id1".into() }]
    );
    assert_eq!(patches(&planned(&sim, &runtime)), Vec::<String>::new());
    Arc::make_mut(runtime.machines.get_mut("id1").unwrap())
        .metadata
        .as_mut()
        .unwrap()
        .deleted_at = 1;
    assert_eq!(
        planned(&sim, &runtime),
        Plan::none(),
        "the runtime is at it"
    );
    runtime.machines.clear();
    let last = patches(&planned(&sim, &runtime));
    assert_eq!(last, [r#"Machine shop/web {"metadata":{"finalizers":[]}}"#]);
}

#[tokio::test]
async fn orphans_of_an_earlier_machine_are_removed() {
    let (mut sim, mut runtime) = region();
    let create = calls(&planned(&sim, &runtime)).remove(0);
    made(&mut runtime, &create, true);
    sim.delete::<Machine>("shop", "web");
    assert_eq!(
        calls(&planned(&sim, &runtime)),
        [Call::Delete { id: "id1".into() }]
    );
}

#[tokio::test]
async fn the_pool_says_what_it_can_run_and_beats() {
    let (sim, runtime) = region();
    let plan = pool::plan(&sim.world(), &settings(), &runtime);
    let Op::Apply { body, .. } = &plan.ops[0] else {
        panic!("{plan:?}")
    };
    assert_eq!(body["spec"]["providerID"], "namespace://lab/n1");
    let Op::Patch {
        body, status: true, ..
    } = &plan.ops[1]
    else {
        panic!("{plan:?}")
    };
    let status: api::compute::MachinePoolStatus = object(body["status"].clone());
    assert_eq!(status.available_machine_classes[0].name, "small");
    assert_eq!(status.capacity["class/machine.small"].0, "5");
    assert_eq!(
        status.allocatable["class/machine.small"].0, "4",
        "one machine is bound"
    );
    assert_eq!(status.conditions[0].status, "True");
    let Op::Apply { target, body, .. } = &plan.ops[2] else {
        panic!("{plan:?}")
    };
    assert_eq!(target.key.to_string(), "openkcm-machinepool-lease/n1");
    assert_eq!(body["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(plan.requeue, Some(Duration::from_secs(10)));
    let sick = Snapshot {
        healthy: false,
        ..runtime
    };
    let Op::Patch { body, .. } = &pool::plan(&sim.world(), &settings(), &sick).ops[1] else {
        panic!()
    };
    assert_eq!(body["status"]["conditions"][0]["status"], "False");
}

#[tokio::test]
async fn a_pool_that_says_the_same_writes_its_lease_only() {
    let (mut sim, runtime) = region();
    let plan = pool::plan(&sim.world(), &settings(), &runtime);
    let (Op::Apply { body: made, .. }, Op::Patch { body: told, .. }) = (&plan.ops[0], &plan.ops[1])
    else {
        panic!("{plan:?}")
    };
    sim.put::<MachinePool>(&object(json!({"metadata": {"name": "n1"},
        "spec": made["spec"], "status": told["status"]})));
    let settled = pool::plan(&sim.world(), &settings(), &runtime);
    assert_eq!(settled.ops.len(), 1, "{settled:?}");
    sim.now_ms += 3_600_000;
    let later = pool::plan(&sim.world(), &settings(), &runtime);
    let [Op::Apply { target, .. }] = later.ops.as_slice() else {
        panic!("{later:?}")
    };
    assert_eq!(target.key.to_string(), "openkcm-machinepool-lease/n1");
}

/// Every word of a runtime has one for the user; also a word that is not known yet.
#[test]
fn every_state_of_a_runtime_has_a_state_of_a_machine() {
    use api::compute::MachineState as User;
    for (runtime, user) in [
        (RuntimeState::MachinePending, User::Pending),
        (RuntimeState::MachineRunning, User::Running),
        (RuntimeState::MachineSuspended, User::Shutdown),
        (RuntimeState::MachineStopped, User::Shutdown),
        (RuntimeState::MachineTerminated, User::Terminated),
        (RuntimeState::MachineTerminating, User::Terminating),
    ] {
        assert_eq!(status::state(runtime.into()), user, "{runtime:?}");
    }
    assert_eq!(status::state(99), User::Pending);
}

/// A listing that was asked for before a call was answered does not know what the call did: taken over, it would have the machine made
/// twice, or let go while it runs.
#[test]
fn a_listing_older_than_an_answer_is_not_taken_over() {
    let mut snapshot = Snapshot::default();
    let asked_at = snapshot.answers;
    let labels = [
        (label::POOLLET_MACHINE_NAMESPACE, "shop"),
        (label::POOLLET_MACHINE_NAME, "web"),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let woken = snapshot.created(proto::machine::Machine {
        metadata: Some(proto::meta::ObjectMetadata {
            id: "id1".into(),
            labels: labels.into(),
            ..proto::meta::ObjectMetadata::default()
        }),
        ..proto::machine::Machine::default()
    });
    // What was made may never change again, and is to be reported.
    assert_eq!(woken, Some(Key::new("shop", "web")));
    assert_eq!(snapshot.listed(asked_at, Vec::new()), None);
    assert_eq!(snapshot.machines.len(), 1);
    let keys = snapshot.listed(snapshot.answers, Vec::new());
    assert_eq!(keys.map(|keys| keys.len()), Some(1));
    assert!(snapshot.machines.is_empty());
}
