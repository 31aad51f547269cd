//! What to do for one Machine of the pool.
//!
//! A Machine is made once all its interfaces can be made; afterwards interfaces come and go one by one. An interface that
//! is momentarily not ready stays attached: only what the user took out of the Machine, changed, deleted or gave to another one is detached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::compute::{Machine, MachineClass, Power};
use api::ipam::Prefix;
use api::names::{annotation, finalizer, label};
use api::networking::{Network, NetworkInterface};
use async_trait::async_trait;
use controller::object::{
    annotation as annotation_of, controller_of, is_deleting, label as label_of, name, namespace,
    uid,
};
use controller::plan::Act;
use controller::{Class, Controller, Error, Key, Op, Plan, Source, Target, Watch, World};
use proto::machine::{
    GuestConfig, ImageSpec, LocalDisk, Machine as RuntimeMachine, MachineSpec as RuntimeSpec,
    NetworkInterface as RuntimeInterface, Power as RuntimePower, Volume,
};
use proto::meta::ObjectMetadata;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::{Code, Status};

use super::nic::{Claim, claim, translate, uid_of};
use super::pool::runtime_class;
use super::runtime::{Call, Runtime, Snapshot, label_of as runtime_label};
use super::status::status;

/// When to look again at what sends no event: the runtime, and classes.
const RETRY_PERIOD: Duration = Duration::from_secs(1);
const BY_NIC: &str = "nic";
const BY_NETWORK: &str = "network";

/// The controller of the pool's Machines.
pub struct Machines {
    /// The runtime.
    pub runtime: Arc<Runtime>,
    /// Name of the pool.
    pub pool: String,
    /// Only Machines whose watch-filter label has this value; empty takes those without one too.
    pub watch_filter: Option<String>,
}

/// What a Machine's interfaces look like from the API.
#[derive(Debug, Default)]
struct Interfaces {
    /// Ready to be attached, by entry name.
    ready: BTreeMap<String, RuntimeInterface>,
    /// Wanted but not ready yet, with the reason.
    waiting: BTreeMap<String, String>,
    /// Those of them whose object is not, or will not be, the machine's: its addresses are or become free for others.
    lost: BTreeSet<String>,
    /// The objects that are ours, by entry name.
    objects: BTreeMap<String, Arc<NetworkInterface>>,
}

impl Interfaces {
    /// What is ready, in the order of the Machine's spec: the first entry is the guest's first device.
    fn in_order<'a>(&'a self, machine: &'a Machine) -> impl Iterator<Item = &'a RuntimeInterface> {
        let entries = machine.spec.network_interfaces.iter();
        entries.filter_map(|entry| self.ready.get(&entry.name))
    }
}

fn step(call: Call) -> Op {
    Op::Act(Act::new(call))
}

/// Plans one Machine if it is known what the runtime has; otherwise looks again once it answers.
pub fn plan_when_known(world: &World, key: &Key, runtime: &Snapshot) -> Plan {
    if runtime.healthy {
        return plan(world, key, runtime);
    }
    let mut later = Plan::none();
    later.requeue_after(RETRY_PERIOD);
    later
}

/// Plans one Machine. `runtime` is what the runtime last reported.
pub fn plan(world: &World, key: &Key, runtime: &Snapshot) -> Plan {
    let mut plan = Plan::none();
    let machine = world.by_key::<Machine>(key);
    let own_uid = machine.as_deref().map_or("", uid);
    // What was made for an earlier Machine of this name, or for one that is gone, has no owner left.
    for orphan in runtime.labelled(label::POOLLET_MACHINE_NAMESPACE, &key.namespace) {
        let same_name = runtime_label(orphan, label::POOLLET_MACHINE_NAME) == Some(&key.name);
        if same_name && runtime_label(orphan, label::POOLLET_MACHINE_UID) != Some(own_uid) {
            plan.extend(delete(orphan));
        }
    }
    let Some(machine) = machine.clone() else {
        return plan;
    };
    if annotation_of(machine.as_ref(), annotation::MANAGED_BY).is_some() {
        return Plan::none();
    }
    let mut mine: Vec<&Arc<RuntimeMachine>> = runtime
        .labelled(label::POOLLET_MACHINE_UID, own_uid)
        .collect();
    mine.sort_by_key(|machine| {
        machine
            .metadata
            .as_ref()
            .map_or(0, |metadata| metadata.created_at)
    });
    if is_deleting(machine.as_ref()) {
        plan.extend(mine.iter().filter_map(|machine| delete(machine)));
        if mine.is_empty() {
            plan.extend(Op::remove_finalizer(machine.as_ref(), finalizer::MACHINE));
        }
        return plan;
    }
    plan.extend(Op::add_finalizer(machine.as_ref(), finalizer::MACHINE));
    if annotation_of(machine.as_ref(), annotation::RECONCILE_REQUESTED_AT).is_some() {
        let body = json!({"metadata": {"annotations": {annotation::RECONCILE_REQUESTED_AT: null}}});
        plan.push(Op::patch(Target::of(machine.as_ref()), body));
    }
    let interfaces = claim_interfaces(world, &machine, &mine, &mut plan);
    match mine.split_first() {
        None => create(world, &machine, runtime, &interfaces, &mut plan),
        Some((first, rest)) => {
            // A create whose answer was lost may have been repeated: the oldest stays.
            plan.extend(rest.iter().filter_map(|machine| delete(machine)));
            update(&machine, first, &interfaces, &mut plan);
            report(
                world,
                &machine,
                first,
                &runtime.name,
                &interfaces,
                &mut plan,
            );
        }
    }
    plan
}

fn delete(machine: &RuntimeMachine) -> Option<Op> {
    let metadata = machine.metadata.as_ref()?;
    (metadata.deleted_at == 0).then(|| {
        step(Call::Delete {
            id: metadata.id.clone(),
        })
    })
}

/// Whether an interface is, or may still be, in a runtime machine: it was asked for and not taken back, or the runtime still shows it.
fn holds(runtime: &RuntimeMachine, nic: &NetworkInterface) -> bool {
    let mut asked = runtime
        .spec
        .iter()
        .flat_map(|spec| &spec.network_interfaces);
    let status = runtime.status.iter();
    let mut shown = status.flat_map(|status| &status.network_interfaces);
    let mapping = mapping(runtime);
    let is_it = |entry: &str| {
        mapping
            .get(entry)
            .is_some_and(|known| known.uid == uid(nic))
    };
    asked.any(|interface| uid_of(interface).as_deref() == Some(uid(nic)))
        || shown.any(|interface| is_it(&interface.name))
}

/// An interface as it is remembered at the runtime machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Mapped {
    name: String,
    uid: String,
}

/// Which interfaces the entries of a runtime machine are.
fn mapping(runtime: &RuntimeMachine) -> BTreeMap<String, Mapped> {
    let metadata = runtime.metadata.as_ref();
    let text =
        metadata.and_then(|metadata| metadata.annotations.get(annotation::POOLLET_NIC_MAPPING));
    text.and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// Adopts free interfaces, releases those no longer in the Machine, and says what each entry looks like.
fn claim_interfaces(
    world: &World,
    machine: &Machine,
    mine: &[&Arc<RuntimeMachine>],
    plan: &mut Plan,
) -> Interfaces {
    let mut found = Interfaces::default();
    let wanted: BTreeMap<String, &str> = machine
        .spec
        .network_interfaces
        .iter()
        .map(|entry| (entry.object_name(name(machine)), entry.name.as_str()))
        .collect();
    for nic in world.list_in::<NetworkInterface>(namespace(machine)) {
        let selected = wanted.contains_key(name(nic.as_ref()));
        match (claim(&nic, machine), selected) {
            (Claim::Ours, false) if mine.iter().any(|machine| holds(machine, &nic)) => {
                plan.requeue_after(RETRY_PERIOD);
            }
            (Claim::Ours, false) if !is_deleting(nic.as_ref()) => {
                let body = json!({"spec": {"machineRef": null, "providerID": null}});
                plan.push(Op::locked(nic.as_ref(), body));
            }
            (Claim::Free, true) if !is_deleting(nic.as_ref()) => {
                let reference = json!({"name": name(machine), "uid": uid(machine)});
                let body = json!({"spec": {"machineRef": reference, "providerID": null}});
                plan.push(Op::locked(nic.as_ref(), body));
            }
            (Claim::Ours | Claim::Taken | Claim::Free, _) => {}
        }
    }
    for (object_name, entry) in wanted {
        let nic = world.get::<NetworkInterface>(namespace(machine), &object_name);
        let lost = match &nic {
            None => Some("does not exist"),
            Some(nic) if claim(nic, machine) == Claim::Taken => Some("belongs to another machine"),
            Some(nic) if is_deleting(nic.as_ref()) => Some("is being deleted"),
            Some(_) => None,
        };
        let (Some(nic), None) = (nic, lost) else {
            let reason = format!(
                "network interface {object_name} {}",
                lost.unwrap_or_default()
            );
            found.waiting.insert(entry.to_owned(), reason);
            found.lost.insert(entry.to_owned());
            continue;
        };
        match translate(world, entry, &nic) {
            Ok(interface) => drop(found.ready.insert(entry.to_owned(), interface)),
            Err(reason) => drop(found.waiting.insert(entry.to_owned(), reason)),
        }
        found.objects.insert(entry.to_owned(), nic);
    }
    found
}

fn not_ready(machine: &Machine, interfaces: &Interfaces, plan: &mut Plan) {
    for (entry, reason) in &interfaces.waiting {
        let note = format!("{entry}: {reason}");
        plan.push(Op::event(
            machine,
            false,
            "NetworkInterfaceNotReady",
            "Reconcile",
            note,
        ));
    }
}

fn create(
    world: &World,
    machine: &Machine,
    runtime: &Snapshot,
    interfaces: &Interfaces,
    plan: &mut Plan,
) {
    if !interfaces.waiting.is_empty() {
        not_ready(machine, interfaces, plan);
        return;
    }
    let class_name = &machine.spec.machine_class_ref.name;
    let class = world.get::<MachineClass>("", class_name);
    let Some(class) = class.and_then(|class| runtime_class(&class, &runtime.classes)) else {
        let note = format!("machine class {class_name} is not offered by the runtime");
        plan.push(Op::event(
            machine,
            true,
            "MachineClassNotReady",
            "Reconcile",
            note,
        ));
        plan.requeue_after(RETRY_PERIOD);
        return;
    };
    if let Some(volume) = machine
        .spec
        .volumes
        .iter()
        .find(|volume| volume.volume_ref.is_some())
    {
        let note = format!("volume {}: this pool has local disks only", volume.name);
        plan.push(Op::event(
            machine,
            true,
            "VolumeNotReady",
            "Reconcile",
            note,
        ));
        return;
    }
    let labels = [
        (label::POOLLET_MACHINE_UID, uid(machine)),
        (label::POOLLET_MACHINE_NAMESPACE, namespace(machine)),
        (label::POOLLET_MACHINE_NAME, name(machine)),
    ];
    let metadata = ObjectMetadata {
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        annotations: annotations(machine, None, interfaces).into_iter().collect(),
        ..ObjectMetadata::default()
    };
    let hostname = machine
        .spec
        .guest_config
        .as_ref()
        .map(|config| config.hostname.clone());
    let spec = RuntimeSpec {
        power: power(machine).into(),
        class,
        ignition_data: Vec::new(),
        volumes: machine.spec.volumes.iter().map(volume).collect(),
        network_interfaces: interfaces.in_order(machine).cloned().collect(),
        guest_config: hostname.map(|hostname| GuestConfig { hostname }),
    };
    let wanted = RuntimeMachine {
        metadata: Some(metadata),
        spec: Some(spec),
        status: None,
    };
    plan.push(step(Call::Create(Box::new(wanted))));
}

fn volume(volume: &api::compute::MachineVolume) -> Volume {
    let local_disk = volume.local_disk.as_ref().map(|disk| {
        let thousandths = disk
            .size
            .as_ref()
            .and_then(|size| api::quantity::parse(&size.0))
            .unwrap_or_default();
        LocalDisk {
            size_bytes: i64::try_from(thousandths / 1000).unwrap_or(i64::MAX),
            image: (!disk.image.is_empty()).then(|| ImageSpec {
                image: disk.image.clone(),
            }),
        }
    });
    Volume {
        name: volume.name.clone(),
        device: volume.device.clone(),
        local_disk,
        connection: None,
    }
}

fn power(machine: &Machine) -> RuntimePower {
    match machine.spec.power.unwrap_or_default() {
        Power::On => RuntimePower::On,
        Power::Off => RuntimePower::Off,
    }
}

/// What the poollet remembers at the runtime machine.
fn annotations(
    machine: &Machine,
    runtime: Option<&RuntimeMachine>,
    interfaces: &Interfaces,
) -> BTreeMap<String, String> {
    // Those that the runtime still shows are remembered until they are gone.
    let status = runtime.and_then(|runtime| runtime.status.as_ref());
    let shown = |entry: &String| {
        let mut shown = status.iter().flat_map(|status| &status.network_interfaces);
        shown.any(|interface| interface.name == *entry)
    };
    let mut mapping = runtime.map(mapping).unwrap_or_default();
    mapping.retain(|entry, _| shown(entry));
    for (entry, nic) in &interfaces.objects {
        let mapped = Mapped {
            name: name(nic.as_ref()).to_owned(),
            uid: uid(nic.as_ref()).to_owned(),
        };
        mapping.insert(entry.clone(), mapped);
    }
    let metadata = runtime.and_then(|runtime| runtime.metadata.as_ref());
    let runtime_generation = metadata.map_or(0, |metadata| metadata.generation);
    let generation = machine.metadata.generation.unwrap_or_default();
    BTreeMap::from([
        (
            annotation::POOLLET_MACHINE_GENERATION.to_owned(),
            generation.to_string(),
        ),
        (
            annotation::POOLLET_IRI_GENERATION.to_owned(),
            runtime_generation.to_string(),
        ),
        (
            annotation::POOLLET_NIC_MAPPING.to_owned(),
            json!(mapping).to_string(),
        ),
    ])
}

fn update(machine: &Machine, runtime: &RuntimeMachine, interfaces: &Interfaces, plan: &mut Plan) {
    let (Some(metadata), Some(spec)) = (&runtime.metadata, &runtime.spec) else {
        return;
    };
    let id = &metadata.id;
    if metadata.deleted_at != 0 {
        return;
    }
    not_ready(machine, interfaces, plan);
    let mut changed = false;
    let mut kept = Vec::new();
    for present in &spec.network_interfaces {
        let keep = match interfaces.ready.get(&present.name) {
            Some(wanted) => wanted == present,
            None => {
                interfaces.waiting.contains_key(&present.name)
                    && !interfaces.lost.contains(&present.name)
            }
        };
        if keep {
            kept.push(present.name.as_str());
        } else {
            changed = true;
            plan.push(step(Call::Detach {
                id: id.clone(),
                name: present.name.clone(),
            }));
        }
    }
    for wanted in interfaces.in_order(machine) {
        if !kept.contains(&wanted.name.as_str()) {
            changed = true;
            plan.push(step(Call::Attach {
                id: id.clone(),
                interface: wanted.clone(),
            }));
        }
    }
    let wanted = i32::from(power(machine));
    if spec.power != wanted {
        changed = true;
        plan.push(step(Call::Power {
            id: id.clone(),
            power: wanted,
        }));
    }
    // The generation of the runtime machine is known only after the changes: annotate in the next plan.
    let annotations = annotations(machine, Some(runtime), interfaces);
    if !changed
        && annotations
            != metadata
                .annotations
                .iter()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect()
    {
        plan.push(step(Call::Annotate {
            id: id.clone(),
            annotations,
        }));
    }
}

/// Takes over the status, and writes handles to the interfaces.
fn report(
    world: &World,
    machine: &Machine,
    runtime: &RuntimeMachine,
    runtime_name: &str,
    interfaces: &Interfaces,
    plan: &mut Plan,
) {
    let Some(reported) = &runtime.status else {
        return;
    };
    let remembered = runtime.metadata.as_ref().and_then(|metadata| {
        metadata
            .annotations
            .get(annotation::POOLLET_IRI_GENERATION)?
            .parse::<i64>()
            .ok()
    });
    if remembered.is_some_and(|generation| reported.observed_generation < generation) {
        return;
    }
    for (entry, nic) in &interfaces.objects {
        if claim(nic, machine) != Claim::Ours {
            continue;
        }
        let found = reported
            .network_interfaces
            .iter()
            .find(|status| status.name == *entry);
        let handle = found.map_or("", |status| status.handle.as_str());
        if nic.spec.provider_id != handle {
            let value = if handle.is_empty() {
                json!(null)
            } else {
                json!(handle)
            };
            plan.push(Op::patch(
                Target::of(nic.as_ref()),
                json!({"spec": {"providerID": value}}),
            ));
        }
    }
    let wanted = status(machine, runtime, runtime_name, world.now_ms());
    if machine.status.as_ref() != Some(&wanted) {
        plan.push(Op::patch_status(Target::of(machine), json!(wanted)));
    }
}

/// What is watched for the Machines of a pool.
pub fn sources(pool: &str) -> Vec<Source> {
    let pool = format!("spec.machinePoolRef.name={pool}");
    let by_nic = |namespace: &str, nic: &str| format!("{namespace}/{nic}");
    let machines_of = move |world: &World, namespace: &str, nic: &str| -> Vec<Key> {
        let found = world.indexed::<Machine>(BY_NIC, &by_nic(namespace, nic));
        found
            .iter()
            .map(|machine| Key::of(machine.as_ref()))
            .collect()
    };
    let machines = Watch::<Machine>::new()
        .fields(pool)
        .own_key()
        .index(BY_NIC, move |machine| {
            let entries = machine.spec.network_interfaces.iter();
            entries
                .map(|entry| by_nic(namespace(machine), &entry.object_name(name(machine))))
                .collect()
        });
    let nics = Watch::<NetworkInterface>::new()
        .keys(move |nic, world| {
            let mut keys = machines_of(world, namespace(nic), name(nic));
            // A claim outlives the entry: the Machine must see it to release it.
            keys.extend(
                nic.spec
                    .machine_ref
                    .iter()
                    .map(|m| Key::new(namespace(nic), &m.name)),
            );
            keys
        })
        .index(BY_NETWORK, move |nic| {
            vec![by_nic(namespace(nic), &nic.spec.network_ref.name)]
        });
    let networks = Watch::<Network>::new().keys(move |network, world| {
        let network = by_nic(namespace(network), name(network));
        let nics = world.indexed::<NetworkInterface>(BY_NETWORK, &network);
        nics.iter()
            .flat_map(|nic| machines_of(world, namespace(nic.as_ref()), name(nic.as_ref())))
            .collect()
    });
    let prefixes = Watch::<Prefix>::new().keys(move |prefix, world| {
        let owner = controller_of(prefix).filter(|owner| owner.kind == "NetworkInterface");
        owner
            .map(|owner| machines_of(world, namespace(prefix), &owner.name))
            .unwrap_or_default()
    });
    let classes = Watch::<MachineClass>::new();
    vec![
        machines.build(),
        nics.build(),
        networks.build(),
        prefixes.build(),
        classes.build(),
    ]
}

#[async_trait]
impl Controller for Machines {
    fn name(&self) -> &'static str {
        "machines"
    }

    fn sources(&self) -> Vec<Source> {
        sources(&self.pool)
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        if let (Some(filter), Some(machine)) = (&self.watch_filter, world.by_key::<Machine>(key))
            && label_of(machine.as_ref(), label::WATCH_FILTER) != Some(filter)
        {
            return Plan::none();
        }
        plan_when_known(world, key, &self.runtime.snapshot())
    }

    async fn act(&self, _: &World, _: &Key, act: Act) -> Result<(), Error> {
        let Some(call) = act.payload::<Call>() else {
            return Err(Error::Bug(format!("unknown call {}", act.label)));
        };
        self.runtime.call(call.clone()).await.map_err(|status| {
            let class = class(&status);
            Error::act("machine runtime", class, status)
        })
    }
}

/// What a refusal of the runtime means for who asked.
pub fn class(status: &Status) -> Class {
    match status.code() {
        Code::InvalidArgument | Code::Unimplemented => Class::Permanent,
        Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition => Class::Conflict,
        _ => Class::Retry,
    }
}
