//! Carries out the steps of [`super::plan`]: namespaces, devices and DHCP clients.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::apinet::NetworkInterface;
use api::meta::IpFamily;
use api::names::label;
use async_trait::async_trait;
use controller::object::label as label_of;
use controller::plan::Act;
use controller::{Class, Controller, Error, Key, Plan, Source, Watch, World};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::links::{Links, News};
use super::netns::{self, NetError};
use super::plan::{self, Device, Inputs, Progress, Step, Take};
use super::record::{Record, Store, StoreError, device_name};
use super::{dhcp4, dhcp6};

/// Devices that are configured at a time; each needs a few short-lived processes.
pub const CONFIGURING_MAX: usize = 128;
/// Keys waiting for the runner.
pub const KEYS_MAX: usize = 4096;

/// First pause after a step that failed although the device is there; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
const BY_MACHINE: &str = "machine";

/// A device in work or done, and the task that does it.
struct Entry {
    device: Device,
    /// Index of the TAP when it was taken from our namespace.
    index: Option<u32>,
    /// Tells this entry from an earlier one under the same name.
    serial: u64,
    task: Option<AbortHandle>,
}

#[derive(Default)]
struct State {
    devices: BTreeMap<String, BTreeMap<String, Entry>>,
    namespaces: BTreeSet<String>,
    serial: u64,
    tasks: JoinSet<()>,
}

/// What all parts of the provider share.
pub struct Shell {
    /// The machines.
    pub store: Store,
    /// Devices of our own namespace.
    pub links: Links,
    node: String,
    script: PathBuf,
    keys: mpsc::Sender<Key>,
    slots: Arc<Semaphore>,
    state: Mutex<State>,
}

impl Shell {
    /// `namespaces` are the machine namespaces that exist; keys to plan go to `keys`.
    pub fn new(
        store: Store,
        node: String,
        script: PathBuf,
        namespaces: Vec<String>,
        keys: mpsc::Sender<Key>,
    ) -> Shell {
        let state = State {
            namespaces: namespaces.into_iter().collect(),
            ..State::default()
        };
        Shell {
            store,
            links: Links::default(),
            node,
            script,
            keys,
            slots: Arc::new(Semaphore::new(CONFIGURING_MAX)),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a machine to be planned.
    pub async fn wake(&self, id: &str) {
        // The runner ends only at shutdown.
        let _ = self.keys.send(Key::cluster(id)).await;
    }

    /// True when the machine's namespace exists.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.state().namespaces.contains(name)
    }

    /// Forgets what was done with a device whose name came up anew, so that it is configured again.
    pub async fn follow(&self, mut news: mpsc::Receiver<News>, shutdown: CancellationToken) {
        loop {
            let (tap, index) = tokio::select! {
                news = news.recv() => match news {
                    Some(news) => news,
                    None => return,
                },
                () = shutdown.cancelled() => return,
            };
            let mut woken = Vec::new();
            for (id, devices) in &mut self.state().devices {
                devices.retain(|_, entry| {
                    let replaced = entry.device.tap == tap && entry.index != Some(index);
                    if replaced {
                        if let Some(task) = &entry.task {
                            task.abort();
                        }
                        woken.push(id.clone());
                    }
                    !replaced
                });
            }
            for id in woken {
                tracing::info!(machine = id, tap, "device is back");
                self.wake(&id).await;
            }
        }
    }

    fn devices_of(&self, id: &str) -> BTreeMap<String, Device> {
        let state = self.state();
        let entries = state.devices.get(id).into_iter().flatten();
        entries
            .map(|(name, entry)| (name.clone(), entry.device.clone()))
            .collect()
    }

    fn drop_device(&self, id: &str, interface: &str) {
        let mut state = self.state();
        let Some(devices) = state.devices.get_mut(id) else {
            return;
        };
        if let Some(task) = devices.remove(interface).and_then(|entry| entry.task) {
            task.abort();
        }
        if devices.is_empty() {
            state.devices.remove(id);
        }
    }

    async fn execute(self: &Arc<Self>, id: &str, step: Step) -> Result<(), StepError> {
        let Some(record) = self.store.get(id) else {
            return Ok(());
        };
        match step {
            Step::CreateNamespace => {
                netns::create(&record.netns).await?;
                self.state().namespaces.insert(record.netns.clone());
            }
            Step::RemoveNamespace => {
                netns::remove(&record.netns).await?;
                self.state().namespaces.remove(&record.netns);
            }
            Step::Remember {
                interface,
                namespace,
            } => {
                let remember = |record: &mut Record| record.remember(interface, namespace);
                self.store.update(id, remember).await?;
            }
            Step::Forget { interface } => {
                self.store
                    .update(id, |record| record.forget(&interface))
                    .await?;
            }
            Step::Take(take) => self.take(&record, take),
            Step::Release { interface, tap } => {
                self.drop_device(id, &interface);
                if let Some(device) = record.device(&interface) {
                    // Without a name to give back the device stays, but nothing can use it.
                    let tap = tap.unwrap_or_else(|| device.clone());
                    netns::release(&record.netns, &device, &tap).await?;
                }
            }
            Step::RemoveRecord => {
                for interface in record.known.keys() {
                    self.drop_device(id, interface);
                }
                self.store.remove(id).await?;
                tracing::info!(machine = id, netns = record.netns, "machine is gone");
            }
        }
        Ok(())
    }

    /// Starts the task that moves and configures a device.
    fn take(self: &Arc<Self>, record: &Arc<Record>, take: Take) {
        let index = self.links.index(&take.tap);
        let mut state = self.state();
        while state.tasks.try_join_next().is_some() {}
        state.serial += 1;
        let serial = state.serial;
        let (tap, interface) = (take.tap.clone(), take.interface.clone());
        let work = Arc::clone(self).configure(Arc::clone(record), take, serial);
        let task = Some(state.tasks.spawn(work));
        let device = Device {
            tap,
            progress: Progress::Configuring,
        };
        let entry = Entry {
            device,
            index,
            serial,
            task,
        };
        let before = state
            .devices
            .entry(record.id.clone())
            .or_default()
            .insert(interface, entry);
        if let Some(task) = before.and_then(|entry| entry.task) {
            task.abort();
        }
    }

    async fn configure(self: Arc<Self>, record: Arc<Record>, take: Take, serial: u64) {
        // Closed never: the semaphore lives as long as the shell.
        let Ok(_slot) = self.slots.acquire().await else {
            return;
        };
        let started = tokio::time::Instant::now();
        let mut pause = RETRY_MIN;
        let progress = loop {
            match self.move_and_configure(&record, &take).await {
                Ok(()) => break Progress::Attached,
                Err(NetError::NoDevice(device)) => {
                    tracing::info!(machine = record.id, device, "device is not there yet");
                    break Progress::Missing;
                }
                Err(error) => {
                    tracing::warn!(machine = record.id, err = %error, "device not configured yet");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        };
        if progress == Progress::Attached {
            let took = started.elapsed();
            tracing::info!(
                machine = record.id,
                interface = take.interface,
                tap = take.tap,
                ?took,
                "attached"
            );
            let attach = |record: &mut Record| record.attached(&take.interface, &take.handle);
            if let Err(error) = self.store.update(&record.id, attach).await {
                tracing::error!(machine = record.id, err = %error, "attachment not recorded");
            }
        }
        let returned = {
            let mut state = self.state();
            let entry = state
                .devices
                .get_mut(&record.id)
                .and_then(|d| d.get_mut(&take.interface));
            let Some(entry) = entry.filter(|entry| entry.serial == serial) else {
                return;
            };
            entry.device.progress = progress;
            entry.task = None;
            // It came back between our look and now: nobody will tell us again.
            progress == Progress::Missing && self.links.index(&take.tap) != entry.index
        };
        if returned {
            self.drop_device(&record.id, &take.interface);
        }
        self.wake(&record.id).await;
    }

    async fn move_and_configure(&self, record: &Record, take: &Take) -> Result<(), NetError> {
        let known = record.known.get(&take.interface);
        let Some(slot) = known.map(|known| known.slot) else {
            return Err(NetError::NoDevice(take.tap.clone()));
        };
        let (netns, device) = (&record.netns, device_name(slot));
        if self.links.index(&take.tap).is_some() {
            if netns::addresses(netns, &device).await?.is_some() {
                netns::delete(netns, &device).await?;
            }
            netns::take(&take.tap, netns, &device).await?;
        } else {
            let Some(have) = netns::addresses(netns, &device).await? else {
                return Err(NetError::NoDevice(take.tap.clone()));
            };
            // After a restart of ours: the machine kept everything.
            if take.ips.iter().all(|ip| have.contains(&ip.to_string())) {
                return Ok(());
            }
        }
        netns::up(netns, &device).await?;
        let v4 = async {
            if take.has(IpFamily::IPv4) {
                dhcp4::configure(netns, &device, slot, &self.script).await;
            }
        };
        let v6 = async {
            if take.has(IpFamily::IPv6) {
                dhcp6::configure(netns, &device, slot, &record.id).await;
            }
        };
        tokio::join!(v4, v6);
        Ok(())
    }
}

/// Why a step failed; all may heal.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is watched for the machines of a node.
pub fn sources(node: &str) -> Vec<Source> {
    let machine = |nic: &NetworkInterface| label_of(nic, label::MACHINE_ID).map(str::to_owned);
    let watch = Watch::<NetworkInterface>::new()
        .labels(label::MACHINE_ID)
        .fields(format!("spec.nodeRef.name={node}"))
        .keys(move |nic, _| machine(nic).map(Key::cluster).into_iter().collect())
        .index(BY_MACHINE, move |nic| machine(nic).into_iter().collect());
    vec![watch.build()]
}

/// OpenKCM-net's interfaces of a machine.
pub fn live(world: &World, id: &str) -> Vec<Arc<NetworkInterface>> {
    world.indexed::<NetworkInterface>(BY_MACHINE, id)
}

/// The controller of all machines of this node; keys are machine ids.
pub struct Machines(pub Arc<Shell>);

#[async_trait]
impl Controller for Machines {
    fn name(&self) -> &'static str {
        "machines"
    }

    fn sources(&self) -> Vec<Source> {
        sources(&self.0.node)
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let shell = &self.0;
        let record = shell.store.get(&key.name);
        let live = live(world, &key.name);
        plan::plan(&Inputs {
            record: record.as_deref(),
            live: &live,
            devices: &shell.devices_of(&key.name),
            netns: record
                .as_ref()
                .is_some_and(|record| shell.has_namespace(&record.netns)),
            node: &shell.node,
        })
    }

    async fn act(&self, _: &World, key: &Key, act: Act) -> Result<(), Error> {
        let Some(step) = act.payload::<Step>() else {
            return Err(Error::Bug(format!("unknown step {}", act.label)));
        };
        let done = self.0.execute(&key.name, step.clone()).await;
        done.map_err(|error| Error::act(act.label.clone(), Class::Retry, error))
    }
}
