//! The MachineRuntime gRPC of the namespace provider. Calls record what is wanted and return; progress is read back by
//! ListMachines.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use proto::event::{Event, EventSpec};
use proto::machine::machine_runtime_server::MachineRuntime;
use proto::machine::{
    AttachNetworkInterfaceRequest, AttachNetworkInterfaceResponse, AttachVolumeRequest,
    AttachVolumeResponse, CreateMachineRequest, CreateMachineResponse, DeleteMachineRequest,
    DeleteMachineResponse, DetachNetworkInterfaceRequest, DetachNetworkInterfaceResponse,
    DetachVolumeRequest, DetachVolumeResponse, EventFilter, ExecRequest, ExecResponse,
    ListEventsRequest, ListEventsResponse, ListMachinesRequest, ListMachinesResponse, Machine,
    MachineFilter, StatusRequest, StatusResponse, UpdateMachineAnnotationsRequest,
    UpdateMachineAnnotationsResponse, UpdateMachinePowerRequest, UpdateMachinePowerResponse,
    UpdateVolumeRequest, UpdateVolumeResponse, VersionRequest, VersionResponse,
};
use tonic::{Request, Response, Status};

use super::classes::{self, Class};
use super::record::{Record, StoreError};
use super::shell::Shell;
use super::{desk, netns, netns_name};

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
            result = desk::change(record, change);
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
                involved_object_meta: Some(desk::metadata(record)),
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
        desk::show(record, self.shell.has_namespace(&record.netns))
    }
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
        let id = uuid::Uuid::new_v4().to_string();
        let netns = netns_name(&self.netns_prefix, &id);
        let machine = request.into_inner().machine;
        let record = desk::create(machine, &self.classes, id.clone(), netns, now_ns())?;
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
        let mark = |record: &mut Record| desk::delete(record, now_ns());
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
            record.power_on = desk::power_on(power);
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
        let wanted = desk::volume(wanted)?;
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
        let wanted = desk::volume(wanted)?;
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
        let change = |record: &mut Record| desk::attach(record, network_interface);
        self.change(&machine_id, "NetworkInterfaceAttaching", change)
            .await?;
        Ok(Response::new(AttachNetworkInterfaceResponse {}))
    }

    async fn detach_network_interface(
        &self,
        request: Request<DetachNetworkInterfaceRequest>,
    ) -> Answer<DetachNetworkInterfaceResponse> {
        let DetachNetworkInterfaceRequest { machine_id, name } = request.into_inner();
        let change = |record: &mut Record| desk::detach(record, &name);
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
