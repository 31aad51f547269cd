//! The machine runtime as the poollet sees it: calls, and a snapshot of its machines that plans read.
//!
//! The interface has no watch, so the snapshot is refreshed by listing: after every call of ours, often while something is
//! in progress, and rarely otherwise. A change wakes the Machine that the runtime machine carries in its labels.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use api::names::label;
use controller::Key;
use proto::machine::machine_runtime_client::MachineRuntimeClient;
use proto::machine::{
    AttachNetworkInterfaceRequest, CreateMachineRequest, DeleteMachineRequest,
    DetachNetworkInterfaceRequest, ListMachinesRequest, Machine, MachineClassStatus, MachineFilter,
    MachineState, NetworkInterface, StatusRequest, UpdateMachineAnnotationsRequest,
    UpdateMachinePowerRequest, VersionRequest,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How often machines are listed while one of them is in progress.
const BUSY_PERIOD: Duration = Duration::from_millis(100);
/// A call that takes longer has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the classes are read.
const CLASSES_PERIOD: Duration = Duration::from_secs(60);

/// A call to the runtime.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Make a machine.
    Create(Box<Machine>),
    /// Remove a machine.
    Delete {
        /// Machine id of the runtime.
        id: String,
    },
    /// Add a network interface.
    Attach {
        /// Machine id of the runtime.
        id: String,
        /// The interface.
        interface: NetworkInterface,
    },
    /// Remove a network interface.
    Detach {
        /// Machine id of the runtime.
        id: String,
        /// Name of the interface.
        name: String,
    },
    /// Switch a machine on or off.
    Power {
        /// Machine id of the runtime.
        id: String,
        /// `proto::machine::Power`.
        power: i32,
    },
    /// Replace the annotations of a machine.
    Annotate {
        /// Machine id of the runtime.
        id: String,
        /// All annotations.
        annotations: BTreeMap<String, String>,
    },
}

/// What plans read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Machines by id.
    pub machines: BTreeMap<String, Arc<Machine>>,
    /// Offered classes.
    pub classes: Vec<MachineClassStatus>,
    /// Name of the runtime, the scheme of machine ids.
    pub name: String,
    /// The last listing succeeded.
    pub healthy: bool,
    /// Answers to calls of ours so far: a listing that was asked for before the last of them may know less than we do.
    pub answers: u64,
}

impl Snapshot {
    /// Runtime machines that carry this label value.
    pub fn labelled<'a>(
        &'a self,
        key: &'a str,
        value: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Machine>> {
        self.machines
            .values()
            .filter(move |machine| label_of(machine, key) == Some(value))
    }

    /// A machine was made. Returns the Machine to look at again: nothing else may ever change.
    pub fn created(&mut self, machine: Machine) -> Option<Key> {
        self.answers += 1;
        let (id, key) = (id_of(&machine).to_owned(), key_of(&machine));
        self.machines.insert(id, Arc::new(machine));
        key
    }

    /// One machine was looked at; `found` is empty when it is gone. Returns the Machine to look at again if anything has changed.
    pub fn refreshed(&mut self, id: &str, found: Vec<Machine>) -> Option<Key> {
        self.answers += 1;
        let before = self.machines.remove(id);
        for machine in found {
            self.machines
                .insert(id_of(&machine).to_owned(), Arc::new(machine));
        }
        let after = self.machines.get(id);
        let key = after.or(before.as_ref()).and_then(|found| key_of(found));
        key.filter(|_| after != before.as_ref())
    }

    /// Everything was listed. Returns the Machines of what changed; nothing, and nothing is taken over, when a call was answered
    /// since the listing was asked for: what it did may not be in it.
    pub fn listed(&mut self, asked_at: u64, found: Vec<Machine>) -> Option<Vec<Key>> {
        self.healthy = true;
        if asked_at != self.answers {
            return None;
        }
        let found = found
            .into_iter()
            .map(|machine| (id_of(&machine).to_owned(), Arc::new(machine)));
        let before = std::mem::replace(&mut self.machines, found.collect());
        let gone = before
            .values()
            .filter(|machine| !self.machines.contains_key(id_of(machine)));
        let changed = self
            .machines
            .values()
            .filter(|machine| before.get(id_of(machine)) != Some(*machine));
        Some(
            gone.chain(changed)
                .filter_map(|machine| key_of(machine))
                .collect(),
        )
    }

    /// Something is in progress: the next look is soon.
    pub fn is_busy(&self) -> bool {
        self.machines.values().any(|machine| in_progress(machine))
    }
}

/// A label of a runtime machine.
pub fn label_of<'a>(machine: &'a Machine, key: &str) -> Option<&'a str> {
    machine
        .metadata
        .as_ref()?
        .labels
        .get(key)
        .map(String::as_str)
}

/// Id of a runtime machine.
pub fn id_of(machine: &Machine) -> &str {
    machine
        .metadata
        .as_ref()
        .map_or("", |metadata| metadata.id.as_str())
}

/// The Machine that a runtime machine was made for.
pub fn key_of(machine: &Machine) -> Option<Key> {
    let namespace = label_of(machine, label::POOLLET_MACHINE_NAMESPACE)?;
    let name = label_of(machine, label::POOLLET_MACHINE_NAME)?;
    Some(Key::new(namespace, name))
}

fn in_progress(machine: &Machine) -> bool {
    let Some(status) = &machine.status else {
        return true;
    };
    let deleted = machine
        .metadata
        .as_ref()
        .is_some_and(|metadata| metadata.deleted_at != 0);
    let wanted = machine
        .spec
        .as_ref()
        .map_or(0, |spec| spec.network_interfaces.len());
    let pending = status.state == i32::from(MachineState::MachinePending);
    deleted || pending || status.network_interfaces.len() < wanted
}

/// The connection and the snapshot.
pub struct Runtime {
    client: MachineRuntimeClient<Channel>,
    snapshot: RwLock<Arc<Snapshot>>,
    keys: mpsc::Sender<Key>,
    pool_key: Key,
}

impl Runtime {
    /// Prepares the connection to `endpoint` (`unix:///path`); it is made when first needed. Changes wake keys of
    /// Machines, and `pool_key` when classes or health changed.
    pub fn new(
        endpoint: &str,
        dial_timeout: Duration,
        keys: mpsc::Sender<Key>,
        pool_key: Key,
    ) -> anyhow::Result<Runtime> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())
            .with_context(|| format!("machine runtime endpoint {endpoint:?}"))?
            .connect_timeout(dial_timeout)
            .timeout(CALL_TIMEOUT);
        let client = MachineRuntimeClient::new(endpoint.connect_lazy());
        Ok(Runtime {
            client,
            snapshot: RwLock::default(),
            keys,
            pool_key,
        })
    }

    /// The latest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Snapshot) -> T) -> T {
        let mut slot = self
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut snapshot = (**slot).clone();
        let result = change(&mut snapshot);
        *slot = Arc::new(snapshot);
        result
    }

    /// Makes a call and refreshes what it touched. Removing what is not there succeeds.
    pub async fn call(&self, call: Call) -> Result<(), Status> {
        let mut client = self.client.clone();
        let id = match call {
            Call::Create(machine) => {
                let request = CreateMachineRequest {
                    machine: Some(*machine),
                };
                let created = client.create_machine(request).await?.into_inner().machine;
                if let Some(machine) = created {
                    let key = self.change(|snapshot| snapshot.created(machine));
                    self.wake(key).await;
                }
                return Ok(());
            }
            Call::Delete { id } => {
                tolerate(
                    client
                        .delete_machine(DeleteMachineRequest {
                            machine_id: id.clone(),
                        })
                        .await,
                )?;
                id
            }
            Call::Attach { id, interface } => {
                let machine_id = id.clone();
                let network_interface = Some(interface);
                let request = AttachNetworkInterfaceRequest {
                    machine_id,
                    network_interface,
                };
                client.attach_network_interface(request).await?;
                id
            }
            Call::Detach { id, name } => {
                let request = DetachNetworkInterfaceRequest {
                    machine_id: id.clone(),
                    name,
                };
                tolerate(client.detach_network_interface(request).await)?;
                id
            }
            Call::Power { id, power } => {
                let request = UpdateMachinePowerRequest {
                    machine_id: id.clone(),
                    power,
                };
                client.update_machine_power(request).await?;
                id
            }
            Call::Annotate { id, annotations } => {
                let annotations = annotations.into_iter().collect();
                let request = UpdateMachineAnnotationsRequest {
                    machine_id: id.clone(),
                    annotations,
                };
                client.update_machine_annotations(request).await?;
                id
            }
        };
        self.refresh(&id).await
    }

    async fn refresh(&self, id: &str) -> Result<(), Status> {
        let filter = MachineFilter {
            id: id.to_owned(),
            label_selector: Default::default(),
        };
        let request = ListMachinesRequest {
            filter: Some(filter),
        };
        let found = self
            .client
            .clone()
            .list_machines(request)
            .await?
            .into_inner()
            .machines;
        let key = self.change(|snapshot| snapshot.refreshed(id, found));
        self.wake(key).await;
        Ok(())
    }

    async fn wake(&self, key: Option<Key>) {
        if let Some(key) = key {
            // The runner ends only at shutdown.
            let _ = self.keys.send(key).await;
        }
    }

    /// Lists everything once. Returns the keys of what changed, and whether something is in progress.
    async fn list(&self) -> Result<(Vec<Key>, bool), Status> {
        let before = self.snapshot();
        let request = ListMachinesRequest { filter: None };
        let found = self
            .client
            .clone()
            .list_machines(request)
            .await?
            .into_inner()
            .machines;
        let keys = self.change(|snapshot| snapshot.listed(before.answers, found));
        let busy = keys.is_none() || self.snapshot().is_busy();
        let mut keys = keys.unwrap_or_default();
        if !before.healthy {
            keys.push(self.pool_key.clone());
        }
        Ok((keys, busy))
    }

    async fn read_classes(&self) -> Result<bool, Status> {
        let mut client = self.client.clone();
        let name = client
            .version(VersionRequest::default())
            .await?
            .into_inner()
            .runtime_name;
        let classes = client
            .status(StatusRequest {})
            .await?
            .into_inner()
            .machine_class_status;
        let before = self.snapshot();
        let changed = before.name != name || before.classes != classes;
        self.change(|snapshot| {
            snapshot.name = name;
            snapshot.classes = classes;
        });
        Ok(changed)
    }

    /// Waits until the runtime has answered once, so that plans never take "not asked yet" for "nothing there".
    pub async fn connect(
        &self,
        patience: Duration,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let answered = async {
                self.read_classes().await?;
                self.list().await
            };
            match answered.await {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > patience => {
                    return Err(error).context("machine runtime does not answer");
                }
                Err(error) => tracing::debug!(err = %error, "machine runtime does not answer yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(BUSY_PERIOD) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Keeps the snapshot fresh until shutdown.
    pub async fn watch(&self, relist_period: Duration, shutdown: CancellationToken) {
        let mut classes_read = Instant::now();
        loop {
            let period = match self.list().await {
                Ok((keys, busy)) => {
                    for key in keys {
                        // The runner ends only at shutdown.
                        let _ = self.keys.send(key).await;
                    }
                    if busy { BUSY_PERIOD } else { relist_period }
                }
                Err(error) => {
                    if self.snapshot().healthy {
                        tracing::warn!(err = %error, "machine runtime does not answer");
                        self.change(|snapshot| snapshot.healthy = false);
                        let _ = self.keys.send(self.pool_key.clone()).await;
                    }
                    BUSY_PERIOD
                }
            };
            if classes_read.elapsed() > CLASSES_PERIOD {
                classes_read = Instant::now();
                if let Ok(true) = self.read_classes().await {
                    let _ = self.keys.send(self.pool_key.clone()).await;
                }
            }
            let deadline = Instant::now() + period;
            // A call of ours may have started something: then the next look is soon.
            while Instant::now() < deadline {
                let busy = self.snapshot().is_busy();
                tokio::select! {
                    () = tokio::time::sleep(BUSY_PERIOD.min(period)) => {}
                    () = shutdown.cancelled() => return,
                }
                if busy {
                    break;
                }
            }
        }
    }
}

fn tolerate<T>(answer: Result<T, Status>) -> Result<(), Status> {
    match answer {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(status),
    }
}
