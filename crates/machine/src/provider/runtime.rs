//! The MachineRuntime gRPC of the namespace provider. Calls record what is wanted and return; progress is read back by
//! ListMachines.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use api::ids::NetworkProviderId;
use api::meta::Ip;
use proto::event::{Event, EventSpec};
use proto::machine::machine_runtime_server::MachineRuntime;
use proto::machine::{
    AttachNetworkInterfaceRequest, AttachNetworkInterfaceResponse, AttachVolumeRequest,
    AttachVolumeResponse, CreateMachineRequest, CreateMachineResponse, DeleteMachineRequest,
    DeleteMachineResponse, DetachNetworkInterfaceRequest, DetachNetworkInterfaceResponse,
    DetachVolumeRequest, DetachVolumeResponse, EventFilter, ExecRequest, ExecResponse, GuestConfig,
    ListEventsRequest, ListEventsResponse, ListMachinesRequest, ListMachinesResponse, Machine,
    MachineFilter, MachineSpec, MachineState, MachineStatus, NetworkInterface,
    NetworkInterfaceState, NetworkInterfaceStatus, Power, StatusRequest, StatusResponse,
    UpdateMachineAnnotationsRequest, UpdateMachineAnnotationsResponse, UpdateMachinePowerRequest,
    UpdateMachinePowerResponse, UpdateVolumeRequest, UpdateVolumeResponse, VersionRequest,
    VersionResponse, Volume, VolumeState, VolumeStatus,
};
use proto::meta::ObjectMetadata;
use tonic::{Request, Response, Status};

use super::classes::{self, Class};
use super::record::{INTERFACES_MAX, Interface, Record, StoreError, Volume as StoredVolume};
use super::shell::Shell;
use super::{netns, netns_name};

/// Name that the runtime reports, and scheme of machine ids in `Machine.status.machineID`.
pub const RUNTIME_NAME: &str = "namespace";
/// Events that are kept for ListEvents.
pub const EVENTS_MAX: usize = 256;

/// The service.
pub struct Runtime {
    shell: Arc<Shell>,
    classes: Vec<Class>,
    netns_prefix: String,
    events: Mutex<VecDeque<Event>>,
}

type Answer<T> = Result<Response<T>, Status>;

fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn refused(error: StoreError) -> Status {
    match &error {
        StoreError::Full => Status::resource_exhausted(error.to_string()),
        StoreError::Io { .. } | StoreError::Interrupted => Status::unavailable(error.to_string()),
        StoreError::Corrupt { .. } => Status::internal(error.to_string()),
    }
}

fn unknown(id: &str) -> Status {
    Status::not_found(format!("machine {id} not found"))
}

impl Runtime {
    /// A service over the machines of `shell`.
    pub fn new(shell: Arc<Shell>, classes: Vec<Class>, netns_prefix: String) -> Runtime {
        Runtime {
            shell,
            classes,
            netns_prefix,
            events: Mutex::default(),
        }
    }

    /// Changes what is wanted of a machine that is not being deleted.
    async fn change<T>(
        &self,
        id: &str,
        reason: &str,
        change: impl FnOnce(&mut Record) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let mut result = Err(unknown(id));
        let apply = |record: &mut Record| {
            result = if record.is_deleted() {
                Err(Status::failed_precondition(format!(
                    "machine {} is being deleted",
                    record.id
                )))
            } else {
                change(record)
            };
            record.generation += i64::from(result.is_ok());
            result.is_ok()
        };
        let record = self.shell.store.update(id, apply).await.map_err(refused)?;
        let value = result?;
        if let Some(record) = record {
            self.note(&record, reason);
        }
        self.shell.wake(id).await;
        Ok(value)
    }

    fn note(&self, record: &Record, reason: &str) {
        let event = Event {
            spec: Some(EventSpec {
                involved_object_meta: Some(metadata(record)),
                reason: reason.to_owned(),
                message: format!("{reason}: generation {}", record.generation),
                r#type: "Normal".to_owned(),
                event_time: now_ns() / 1_000_000_000,
                action: reason.to_owned(),
            }),
        };
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() >= EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    fn show(&self, record: &Record) -> Machine {
        Machine {
            metadata: Some(metadata(record)),
            spec: Some(spec(record)),
            status: Some(self.status_of(record)),
        }
    }

    fn status_of(&self, record: &Record) -> MachineStatus {
        let running = self.shell.has_namespace(&record.netns);
        let state = match (record.is_deleted(), record.power_on, running) {
            (true, _, _) => MachineState::MachineTerminating,
            (false, false, false) => MachineState::MachineStopped,
            (false, false, true) | (false, true, false) => MachineState::MachinePending,
            (false, true, true) if record.started || record.is_complete() => {
                MachineState::MachineRunning
            }
            (false, true, true) => MachineState::MachinePending,
        };
        let attached = record.interfaces.iter().filter_map(|interface| {
            let handle = record.known.get(&interface.name)?.handle.clone()?;
            Some(NetworkInterfaceStatus {
                name: interface.name.clone(),
                handle,
                state: NetworkInterfaceState::NetworkInterfaceAttached.into(),
            })
        });
        let volumes = record.volumes.iter().map(|volume| VolumeStatus {
            name: volume.name.clone(),
            handle: volume.handle.clone(),
            state: VolumeState::VolumeAttached.into(),
        });
        MachineStatus {
            // The status is made from the record of this very generation.
            observed_generation: record.generation,
            state: state.into(),
            image_ref: String::new(),
            volumes: volumes.collect(),
            network_interfaces: attached.collect(),
            machine_conditions: Vec::new(),
        }
    }
}

fn metadata(record: &Record) -> ObjectMetadata {
    let map = |map: &std::collections::BTreeMap<String, String>| -> HashMap<String, String> {
        map.iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    ObjectMetadata {
        id: record.id.clone(),
        annotations: map(&record.annotations),
        labels: map(&record.labels),
        generation: record.generation,
        created_at: record.created_at,
        deleted_at: record.deleted_at,
    }
}

fn spec(record: &Record) -> MachineSpec {
    let interfaces = record.interfaces.iter().map(|interface| {
        let Interface {
            name,
            network_id,
            ips,
            attributes,
        } = interface.clone();
        NetworkInterface {
            name,
            network_id,
            ips,
            attributes: attributes.into_iter().collect(),
        }
    });
    let volumes = record.volumes.iter().map(|volume| Volume {
        name: volume.name.clone(),
        device: volume.device.clone(),
        ..Volume::default()
    });
    let power = if record.power_on {
        Power::On
    } else {
        Power::Off
    };
    MachineSpec {
        power: power.into(),
        class: record.class.clone(),
        ignition_data: record.ignition.clone(),
        volumes: volumes.collect(),
        network_interfaces: interfaces.collect(),
        guest_config: Some(GuestConfig {
            hostname: record.hostname.clone(),
        }),
    }
}

/// Parses an interface, so that later stages never meet a bad one.
fn interface(interface: Option<NetworkInterface>) -> Result<Interface, Status> {
    let Some(NetworkInterface {
        name,
        network_id,
        ips,
        attributes,
    }) = interface
    else {
        return Err(Status::invalid_argument("network interface is missing"));
    };
    if name.is_empty() {
        return Err(Status::invalid_argument("network interface has no name"));
    }
    if let Err(error) = network_id.parse::<NetworkProviderId>() {
        return Err(Status::invalid_argument(format!(
            "network interface {name}: {error}"
        )));
    }
    let mut parsed = Vec::new();
    for ip in ips {
        let ip: Ip = ip.parse().map_err(|error| {
            Status::invalid_argument(format!("network interface {name}: {error}"))
        })?;
        parsed.push(ip.to_string());
    }
    Ok(Interface {
        name,
        network_id,
        ips: parsed,
        attributes: attributes.into_iter().collect(),
    })
}

fn volume(volume: Option<Volume>) -> Result<StoredVolume, Status> {
    let volume = volume.ok_or_else(|| Status::invalid_argument("volume is missing"))?;
    let handle = volume
        .connection
        .map(|connection| connection.handle)
        .unwrap_or_default();
    Ok(StoredVolume {
        name: volume.name,
        device: volume.device,
        handle,
    })
}

fn power_on(power: i32) -> bool {
    power != i32::from(Power::Off)
}

fn selected(record: &Record, filter: Option<&MachineFilter>) -> bool {
    let Some(MachineFilter { id, label_selector }) = filter else {
        return true;
    };
    (id.is_empty() || record.id == *id)
        && label_selector
            .iter()
            .all(|(key, value)| record.labels.get(key) == Some(value))
}

fn reported(event: &Event, filter: Option<&EventFilter>) -> bool {
    let Some(EventFilter {
        id,
        label_selector,
        events_from_time,
        events_to_time,
    }) = filter
    else {
        return true;
    };
    let Some(spec) = &event.spec else {
        return false;
    };
    let Some(meta) = &spec.involved_object_meta else {
        return false;
    };
    (id.is_empty() || meta.id == *id)
        && label_selector
            .iter()
            .all(|(key, value)| meta.labels.get(key) == Some(value))
        && (*events_from_time == 0 || spec.event_time >= *events_from_time)
        && (*events_to_time == 0 || spec.event_time <= *events_to_time)
}

#[tonic::async_trait]
impl MachineRuntime for Runtime {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            runtime_name: RUNTIME_NAME.to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn list_events(&self, request: Request<ListEventsRequest>) -> Answer<ListEventsResponse> {
        let filter = request.into_inner().filter;
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let events = events
            .iter()
            .filter(|event| reported(event, filter.as_ref()))
            .cloned();
        Ok(Response::new(ListEventsResponse {
            events: events.collect(),
        }))
    }

    async fn list_machines(
        &self,
        request: Request<ListMachinesRequest>,
    ) -> Answer<ListMachinesResponse> {
        let filter = request.into_inner().filter;
        let all = self.shell.store.all();
        let machines = all
            .iter()
            .filter(|record| selected(record, filter.as_ref()));
        Ok(Response::new(ListMachinesResponse {
            machines: machines.map(|record| self.show(record)).collect(),
        }))
    }

    async fn create_machine(
        &self,
        request: Request<CreateMachineRequest>,
    ) -> Answer<CreateMachineResponse> {
        let machine = request.into_inner().machine;
        let Some(Machine {
            metadata,
            spec: Some(spec),
            status: _,
        }) = machine
        else {
            return Err(Status::invalid_argument("machine has no spec"));
        };
        let metadata = metadata.unwrap_or_default();
        if !self.classes.iter().any(|class| class.name == spec.class) {
            let text = format!("machine class {:?} is not offered here", spec.class);
            return Err(Status::invalid_argument(text));
        }
        let mut interfaces = Vec::new();
        for wanted in spec.network_interfaces {
            let wanted = interface(Some(wanted))?;
            accept(&interfaces, &wanted)?;
            interfaces.push(wanted);
        }
        let volumes: Result<Vec<_>, Status> = spec
            .volumes
            .into_iter()
            .map(|wanted| volume(Some(wanted)))
            .collect();
        let id = uuid::Uuid::new_v4().to_string();
        let record = Record {
            netns: netns_name(&self.netns_prefix, &id),
            id: id.clone(),
            labels: metadata.labels.into_iter().collect(),
            annotations: metadata.annotations.into_iter().collect(),
            generation: 1,
            created_at: now_ns(),
            deleted_at: 0,
            class: spec.class,
            power_on: power_on(spec.power),
            hostname: spec
                .guest_config
                .map(|config| config.hostname)
                .unwrap_or_default(),
            ignition: spec.ignition_data,
            volumes: volumes?,
            interfaces,
            ..Record::default()
        };
        let shown = self.show(&record);
        self.note(&record, "Created");
        self.shell.store.insert(record).await.map_err(refused)?;
        self.shell.wake(&id).await;
        Ok(Response::new(CreateMachineResponse {
            machine: Some(shown),
        }))
    }

    async fn delete_machine(
        &self,
        request: Request<DeleteMachineRequest>,
    ) -> Answer<DeleteMachineResponse> {
        let id = request.into_inner().machine_id;
        let mark = |record: &mut Record| {
            let first = !record.is_deleted();
            if first {
                record.deleted_at = now_ns();
                record.generation += 1;
            }
            first
        };
        let record = self.shell.store.update(&id, mark).await.map_err(refused)?;
        let record = record.ok_or_else(|| unknown(&id))?;
        self.note(&record, "Deleting");
        self.shell.wake(&id).await;
        Ok(Response::new(DeleteMachineResponse {}))
    }

    async fn update_machine_annotations(
        &self,
        request: Request<UpdateMachineAnnotationsRequest>,
    ) -> Answer<UpdateMachineAnnotationsResponse> {
        let UpdateMachineAnnotationsRequest {
            machine_id,
            annotations,
        } = request.into_inner();
        // Metadata only: the generation stays.
        let change = |record: &mut Record| {
            record.annotations = annotations.into_iter().collect();
            true
        };
        let record = self
            .shell
            .store
            .update(&machine_id, change)
            .await
            .map_err(refused)?;
        record.ok_or_else(|| unknown(&machine_id))?;
        Ok(Response::new(UpdateMachineAnnotationsResponse {}))
    }

    async fn update_machine_power(
        &self,
        request: Request<UpdateMachinePowerRequest>,
    ) -> Answer<UpdateMachinePowerResponse> {
        let UpdateMachinePowerRequest { machine_id, power } = request.into_inner();
        let change = |record: &mut Record| {
            record.power_on = power_on(power);
            Ok(())
        };
        self.change(&machine_id, "PowerChanged", change).await?;
        Ok(Response::new(UpdateMachinePowerResponse {}))
    }

    async fn attach_volume(
        &self,
        request: Request<AttachVolumeRequest>,
    ) -> Answer<AttachVolumeResponse> {
        let AttachVolumeRequest {
            machine_id,
            volume: wanted,
        } = request.into_inner();
        let wanted = volume(wanted)?;
        let change = |record: &mut Record| {
            if record
                .volumes
                .iter()
                .any(|volume| volume.name == wanted.name)
            {
                return Err(Status::already_exists(format!(
                    "volume {} is attached",
                    wanted.name
                )));
            }
            record.volumes.push(wanted);
            Ok(())
        };
        self.change(&machine_id, "VolumeAttached", change).await?;
        Ok(Response::new(AttachVolumeResponse {}))
    }

    async fn detach_volume(
        &self,
        request: Request<DetachVolumeRequest>,
    ) -> Answer<DetachVolumeResponse> {
        let DetachVolumeRequest { machine_id, name } = request.into_inner();
        let change = |record: &mut Record| {
            let before = record.volumes.len();
            record.volumes.retain(|volume| volume.name != name);
            let gone = record.volumes.len() < before;
            if gone {
                Ok(())
            } else {
                Err(Status::not_found(format!("volume {name} not found")))
            }
        };
        self.change(&machine_id, "VolumeDetached", change).await?;
        Ok(Response::new(DetachVolumeResponse {}))
    }

    async fn update_volume(
        &self,
        request: Request<UpdateVolumeRequest>,
    ) -> Answer<UpdateVolumeResponse> {
        let UpdateVolumeRequest {
            machine_id,
            volume: wanted,
        } = request.into_inner();
        let wanted = volume(wanted)?;
        let change = |record: &mut Record| {
            let slot = record
                .volumes
                .iter_mut()
                .find(|volume| volume.name == wanted.name);
            let Some(slot) = slot else {
                return Err(Status::not_found(format!(
                    "volume {} not found",
                    wanted.name
                )));
            };
            *slot = wanted;
            Ok(())
        };
        self.change(&machine_id, "VolumeUpdated", change).await?;
        Ok(Response::new(UpdateVolumeResponse {}))
    }

    async fn attach_network_interface(
        &self,
        request: Request<AttachNetworkInterfaceRequest>,
    ) -> Answer<AttachNetworkInterfaceResponse> {
        let AttachNetworkInterfaceRequest {
            machine_id,
            network_interface,
        } = request.into_inner();
        let wanted = interface(network_interface)?;
        let change = |record: &mut Record| {
            accept(&record.interfaces, &wanted)?;
            record.interfaces.push(wanted);
            Ok(())
        };
        self.change(&machine_id, "NetworkInterfaceAttaching", change)
            .await?;
        Ok(Response::new(AttachNetworkInterfaceResponse {}))
    }

    async fn detach_network_interface(
        &self,
        request: Request<DetachNetworkInterfaceRequest>,
    ) -> Answer<DetachNetworkInterfaceResponse> {
        let DetachNetworkInterfaceRequest { machine_id, name } = request.into_inner();
        let change = |record: &mut Record| {
            let before = record.interfaces.len();
            record.interfaces.retain(|interface| interface.name != name);
            // A later interface of this name is another one and must be attached anew.
            if let Some(known) = record.known.get_mut(&name) {
                known.handle = None;
            }
            let gone = record.interfaces.len() < before;
            let missing = || Status::not_found(format!("network interface {name} not found"));
            if gone { Ok(()) } else { Err(missing()) }
        };
        self.change(&machine_id, "NetworkInterfaceDetaching", change)
            .await?;
        Ok(Response::new(DetachNetworkInterfaceResponse {}))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let machine_class_status = self.classes.iter().map(classes::status).collect();
        Ok(Response::new(StatusResponse {
            machine_class_status,
        }))
    }

    /// The URL names the namespace file; whoever may enter namespaces on this node runs `nsenter --net=<path>`. There is no
    /// streaming server, because a namespace has no console to stream.
    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let id = request.into_inner().machine_id;
        let record = self.shell.store.get(&id).ok_or_else(|| unknown(&id))?;
        if !self.shell.has_namespace(&record.netns) {
            return Err(Status::unavailable(format!("machine {id} does not run")));
        }
        let url = format!("file://{}", netns::path(&record.netns).display());
        Ok(Response::new(ExecResponse { url }))
    }
}

/// Another interface may be added.
fn accept(present: &[Interface], wanted: &Interface) -> Result<(), Status> {
    if present
        .iter()
        .any(|interface| interface.name == wanted.name)
    {
        let text = format!("network interface {} exists", wanted.name);
        return Err(Status::already_exists(text));
    }
    if present.len() >= INTERFACES_MAX {
        let text = format!("a machine has at most {INTERFACES_MAX} network interfaces");
        return Err(Status::resource_exhausted(text));
    }
    Ok(())
}
