//! The MachineRuntime gRPC of the provider over a real socket: what is stored, what is refused and how.

use std::path::Path;
use std::sync::Arc;

use controller::Key;
use machine::provider::classes::Class;
use machine::provider::record::Store;
use machine::provider::runtime::Runtime;
use machine::provider::shell::Shell;
use proto::machine::machine_runtime_client::MachineRuntimeClient;
use proto::machine::machine_runtime_server::MachineRuntimeServer;
use proto::machine::{
    AttachNetworkInterfaceRequest, CreateMachineRequest, DeleteMachineRequest,
    DetachNetworkInterfaceRequest, ExecRequest, ListMachinesRequest, Machine, MachineFilter,
    MachineSpec, NetworkInterface, StatusRequest, UpdateMachineAnnotationsRequest,
    UpdateMachinePowerRequest, VersionRequest,
};
use proto::meta::ObjectMetadata;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

type Client = MachineRuntimeClient<Channel>;

async fn serve(state: &Path) -> (Client, mpsc::Receiver<Key>, tokio::task::JoinSet<()>) {
    let (send, keys) = mpsc::channel(64);
    let store = Store::open(state).unwrap();
    let shell = Arc::new(Shell::new(
        store,
        "lab.n1".into(),
        state.into(),
        Vec::new(),
        send,
    ));
    let capabilities = [("cpu".to_owned(), 1000), ("memory".to_owned(), 1 << 30)].into();
    let class = Class {
        name: "small".into(),
        capabilities,
        quantity: 3,
    };
    let runtime = Runtime::new(shell, vec![class], "t-".into());
    let socket = state.join("socket");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let service = MachineRuntimeServer::new(runtime);
        let server = tonic::transport::Server::builder();
        server
            .serve_with_incoming(service, UnixListenerStream::new(listener))
            .await
            .unwrap();
    });
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    (Client::new(endpoint.connect_lazy()), keys, tasks)
}

fn nic(name: &str) -> NetworkInterface {
    NetworkInterface {
        name: name.into(),
        network_id: "openkcm-net://ns/net/200/uid".into(),
        ips: vec!["10.0.0.1".into(), "FD00::1".into()],
        attributes: Default::default(),
    }
}

fn machine() -> Machine {
    let labels = [(
        "machinepoollet.openkcm.dev/machine-uid".to_owned(),
        "u1".to_owned(),
    )];
    Machine {
        metadata: Some(ObjectMetadata {
            labels: labels.into(),
            ..Default::default()
        }),
        spec: Some(MachineSpec {
            class: "small".into(),
            network_interfaces: vec![nic("a")],
            ..Default::default()
        }),
        status: None,
    }
}

async fn list(client: &mut Client, filter: Option<MachineFilter>) -> Vec<Machine> {
    client
        .list_machines(ListMachinesRequest { filter })
        .await
        .unwrap()
        .into_inner()
        .machines
}

#[tokio::test]
async fn machines_are_kept_verbatim_across_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let (mut client, mut keys, tasks) = serve(state.path()).await;
    let created = client
        .create_machine(CreateMachineRequest {
            machine: Some(machine()),
        })
        .await
        .unwrap();
    let created = created.into_inner().machine.unwrap();
    let id = created.metadata.as_ref().unwrap().id.clone();
    assert_eq!(keys.recv().await, Some(Key::cluster(&id)));
    let annotations = [("k".to_owned(), "v".to_owned())].into();
    let request = UpdateMachineAnnotationsRequest {
        machine_id: id.clone(),
        annotations,
    };
    client.update_machine_annotations(request).await.unwrap();
    let before = list(&mut client, None).await;
    drop(tasks);

    let (mut client, _keys, _tasks) = serve(state.path()).await;
    let after = list(&mut client, None).await;
    assert_eq!(before, after);
    let metadata = after[0].metadata.clone().unwrap();
    assert_eq!(metadata.labels, machine().metadata.unwrap().labels);
    assert_eq!(metadata.annotations["k"], "v");
    assert_eq!(
        metadata.generation, 1,
        "metadata does not change what is wanted"
    );
    let status = after[0].status.clone().unwrap();
    assert_eq!(
        (status.observed_generation, status.network_interfaces.len()),
        (1, 0)
    );
    assert_eq!(
        after[0].spec.clone().unwrap().network_interfaces[0].ips,
        ["10.0.0.1", "fd00::1"]
    );

    let found = machine::provider::machines(state.path()).unwrap();
    assert_eq!(found[0].netns, machine::provider::netns_name("t-", &id));
    let by_label = |value: &str| MachineFilter {
        id: String::new(),
        label_selector: [(
            "machinepoollet.openkcm.dev/machine-uid".to_owned(),
            value.to_owned(),
        )]
        .into(),
    };
    assert_eq!(list(&mut client, Some(by_label("u1"))).await.len(), 1);
    assert_eq!(list(&mut client, Some(by_label("u2"))).await.len(), 0);
    let unknown = MachineFilter {
        id: "nobody".into(),
        label_selector: Default::default(),
    };
    assert_eq!(list(&mut client, Some(unknown)).await.len(), 0);
}

#[tokio::test]
async fn errors_have_the_codes_of_the_interface() {
    let state = tempfile::tempdir().unwrap();
    let (mut client, _keys, _tasks) = serve(state.path()).await;
    let created = client
        .create_machine(CreateMachineRequest {
            machine: Some(machine()),
        })
        .await
        .unwrap();
    let id = created.into_inner().machine.unwrap().metadata.unwrap().id;

    let nobody = || "nobody".to_owned();
    let deleted = client
        .delete_machine(DeleteMachineRequest {
            machine_id: nobody(),
        })
        .await;
    assert_eq!(deleted.unwrap_err().code(), Code::NotFound);
    let powered = client
        .update_machine_power(UpdateMachinePowerRequest {
            machine_id: nobody(),
            power: 1,
        })
        .await;
    assert_eq!(powered.unwrap_err().code(), Code::NotFound);
    let executed = client
        .exec(ExecRequest {
            machine_id: nobody(),
        })
        .await;
    assert_eq!(executed.unwrap_err().code(), Code::NotFound);

    let mut attach = async |interface: Option<NetworkInterface>| {
        let request = AttachNetworkInterfaceRequest {
            machine_id: id.clone(),
            network_interface: interface,
        };
        client
            .attach_network_interface(request)
            .await
            .map(|_| ())
            .map_err(|status| status.code())
    };
    assert_eq!(attach(Some(nic("b"))).await, Ok(()));
    assert_eq!(attach(Some(nic("b"))).await, Err(Code::AlreadyExists));
    assert_eq!(attach(None).await, Err(Code::InvalidArgument));
    assert_eq!(
        attach(Some(NetworkInterface {
            network_id: String::new(),
            ..nic("c")
        }))
        .await,
        Err(Code::InvalidArgument)
    );
    assert_eq!(
        attach(Some(NetworkInterface {
            ips: vec!["x".into()],
            ..nic("c")
        }))
        .await,
        Err(Code::InvalidArgument)
    );

    let mut detach = async |name: &str| {
        let request = DetachNetworkInterfaceRequest {
            machine_id: id.clone(),
            name: name.into(),
        };
        client
            .detach_network_interface(request)
            .await
            .map(|_| ())
            .map_err(|status| status.code())
    };
    assert_eq!(detach("b").await, Ok(()));
    assert_eq!(detach("b").await, Err(Code::NotFound));

    let mut other_class = machine();
    other_class.spec.as_mut().unwrap().class = "huge".into();
    for wrong in [None, Some(Machine::default()), Some(other_class)] {
        let refused = client
            .create_machine(CreateMachineRequest { machine: wrong })
            .await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    }
    let machines = list(&mut client, None).await;
    assert_eq!(machines.len(), 1);
    assert_eq!(
        machines[0].metadata.clone().unwrap().generation,
        3,
        "refused changes do not count"
    );

    client
        .delete_machine(DeleteMachineRequest {
            machine_id: id.clone(),
        })
        .await
        .unwrap();
    client
        .delete_machine(DeleteMachineRequest {
            machine_id: id.clone(),
        })
        .await
        .unwrap();
    let request = AttachNetworkInterfaceRequest {
        machine_id: id,
        network_interface: Some(nic("z")),
    };
    let late = client.attach_network_interface(request).await;
    assert_eq!(late.unwrap_err().code(), Code::FailedPrecondition);
    assert_ne!(
        list(&mut client, None).await[0]
            .metadata
            .clone()
            .unwrap()
            .deleted_at,
        0
    );
}

#[tokio::test]
async fn a_change_that_cannot_be_stored_did_not_happen() {
    let state = tempfile::tempdir().unwrap();
    let (mut client, mut keys, tasks) = serve(state.path()).await;
    let request = CreateMachineRequest {
        machine: Some(machine()),
    };
    let created = client.create_machine(request).await.unwrap();
    let id = created.into_inner().machine.unwrap().metadata.unwrap().id;
    assert_eq!(keys.recv().await, Some(Key::cluster(&id)));
    let before = list(&mut client, None).await;

    // The disk fails: the folder of the records is away.
    let (folder, away) = (state.path().join("machines"), state.path().join("away"));
    std::fs::rename(&folder, &away).unwrap();
    let attach = |name: &str| AttachNetworkInterfaceRequest {
        machine_id: id.clone(),
        network_interface: Some(nic(name)),
    };
    let detach = |name: &str| DetachNetworkInterfaceRequest {
        machine_id: id.clone(),
        name: name.into(),
    };
    let refused = client.attach_network_interface(attach("b")).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    let refused = client.detach_network_interface(detach("a")).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    let request = CreateMachineRequest {
        machine: Some(machine()),
    };
    let refused = client.create_machine(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    assert_eq!(list(&mut client, None).await, before);
    assert!(keys.try_recv().is_err(), "nobody was woken for nothing");

    // It heals: the same call is the first of its name.
    std::fs::rename(&away, &folder).unwrap();
    client.attach_network_interface(attach("b")).await.unwrap();
    drop(tasks);
    let (mut client, _keys, _tasks) = serve(state.path()).await;
    let after = list(&mut client, None).await;
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].metadata.clone().unwrap().generation, 2);
    assert_eq!(after[0].spec.clone().unwrap().network_interfaces.len(), 2);
}

/// What is made of it is in the provider's plan; here it must arrive there.
#[tokio::test]
async fn a_change_of_power_is_wanted_and_wakes() {
    let state = tempfile::tempdir().unwrap();
    let (mut client, mut keys, _tasks) = serve(state.path()).await;
    let request = CreateMachineRequest {
        machine: Some(machine()),
    };
    let created = client.create_machine(request).await.unwrap();
    let id = created.into_inner().machine.unwrap().metadata.unwrap().id;
    assert_eq!(keys.recv().await, Some(Key::cluster(&id)));
    for (power, generation) in [(1, 2), (0, 3)] {
        let request = UpdateMachinePowerRequest {
            machine_id: id.clone(),
            power,
        };
        client.update_machine_power(request).await.unwrap();
        assert_eq!(keys.recv().await, Some(Key::cluster(&id)));
        let machine = list(&mut client, None).await.remove(0);
        assert_eq!(machine.spec.unwrap().power, power);
        assert_eq!(machine.metadata.unwrap().generation, generation);
    }
}

#[tokio::test]
async fn version_and_classes() {
    let state = tempfile::tempdir().unwrap();
    let (mut client, _keys, _tasks) = serve(state.path()).await;
    let version = client
        .version(VersionRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(version.runtime_name, "namespace");
    let status = client
        .status(StatusRequest {})
        .await
        .unwrap()
        .into_inner()
        .machine_class_status;
    assert_eq!(status[0].quantity, 3);
    assert_eq!(
        status[0]
            .machine_class
            .clone()
            .unwrap()
            .capabilities
            .unwrap()
            .resources["cpu"],
        1000
    );
}
