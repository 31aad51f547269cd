//! The control plane of a region as it runs: API server, controller manager, apinetlet and metalnetlet with their own
//! identities, from kubeconfig files. metalnet, machine pool agent and machine provider are played by small controllers.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    apinet,
    compute::{Machine, MachinePool},
    ids,
    ipam::Prefix,
    metalnet,
    names::{finalizer::METALNET_NETWORK_INTERFACE, identity, manager},
    networking::{self, Network, NetworkInterface, NetworkInterfaceState, NetworkState, VirtualIP},
};
use apiserver::{
    pki::Identity,
    testing::{TestServer, spawn},
};
use clap::{Args, FromArgMatches};
use controller::{
    Cluster, Controller, Key, Object, Op, Options, Plan, Runner, Source, Target, Watch, World,
    object,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::DynamicObject,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const NS: &str = "default";
pub const APINET_NS: &str = "openkcm-net-system";
const METALNET_NS: &str = "metalnet-system";
const DEADLINE: Duration = Duration::from_secs(20);
/// Two full rounds of the server's garbage collector, should it need them.
const GONE_DEADLINE: Duration = Duration::from_secs(70);

/// metalnet of node `n1`: holds its interfaces, gives each a device once its Network is there.
struct FakeMetalnet;

impl Controller for FakeMetalnet {
    fn name(&self) -> &'static str {
        "fake-metalnet"
    }

    fn sources(&self) -> Vec<Source> {
        let networks = Watch::<metalnet::Network>::new()
            .namespace(METALNET_NS)
            .keys(|_, world| {
                let nics = world.list::<metalnet::NetworkInterface>();
                nics.iter().map(|nic| Key::of(&**nic)).collect()
            });
        let nics = Watch::<metalnet::NetworkInterface>::new()
            .namespace(METALNET_NS)
            .own_key();
        vec![nics.build(), networks.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(nic) = world.by_key::<metalnet::NetworkInterface>(key) else {
            return plan;
        };
        if object::is_deleting(&*nic) {
            plan.extend(Op::remove_finalizer(&*nic, METALNET_NETWORK_INTERFACE));
            return plan;
        }
        plan.extend(Op::add_finalizer(&*nic, METALNET_NETWORK_INTERFACE));
        let status = json!({
            "state": "Ready",
            "tapDevice": { "name": "dtapvf_0" },
            "virtualIP": nic.spec.virtual_ip,
        });
        let wanted: metalnet::NetworkInterfaceStatus =
            serde_json::from_value(status.clone()).expect("a status");
        let network = world.get::<metalnet::Network>(METALNET_NS, &nic.spec.network_ref.name);
        if network.is_some() && nic.status.as_ref() != Some(&wanted) {
            plan.push(Op::patch_status(Target::of(&*nic), status));
        }
        plan
    }
}

/// metalnet of node `n1` again: exchanges the routes of every peering that it is asked for.
struct FakePeers;

impl Controller for FakePeers {
    fn name(&self) -> &'static str {
        "fake-peers"
    }

    fn sources(&self) -> Vec<Source> {
        let networks = Watch::<metalnet::Network>::new().namespace(METALNET_NS);
        vec![networks.own_key().build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let network = world.by_key::<metalnet::Network>(key);
        let Some(network) = network.filter(|network| !network.spec.peered_ids.is_empty()) else {
            return plan;
        };
        let ids = network.spec.peered_ids.iter();
        let peerings: Vec<_> = ids
            .map(|id| json!({ "id": id, "state": "Ready" }))
            .collect();
        let status = json!({ "peerings": peerings });
        let wanted: metalnet::NetworkStatus =
            serde_json::from_value(status.clone()).expect("a status");
        if network.status.as_ref() != Some(&wanted) {
            plan.push(Op::patch_status(Target::of(&*network), status));
        }
        plan
    }
}

/// Machine pool agent and machine provider of node `n1`: an OpenKCM-net interface for each claimed interface, its handle
/// into the user's one; gone with it.
struct FakeHypervisor;

impl Controller for FakeHypervisor {
    fn name(&self) -> &'static str {
        "fake-hypervisor"
    }

    fn sources(&self) -> Vec<Source> {
        let all = |world: &World| {
            let nics = world.list::<NetworkInterface>();
            nics.iter().map(|nic| Key::of(&**nic)).collect::<Vec<_>>()
        };
        vec![
            Watch::<NetworkInterface>::new().own_key().build(),
            Watch::<Machine>::new()
                .keys(move |_, world| all(world))
                .build(),
            Watch::<Network>::new()
                .keys(move |_, world| all(world))
                .build(),
            Watch::<Prefix>::new()
                .keys(move |_, world| all(world))
                .build(),
            Watch::<apinet::NetworkInterface>::new()
                .keys(|nic, _| {
                    let key =
                        object::annotation(nic, "test/for").and_then(|for_| for_.split_once('/'));
                    key.map(|(namespace, name)| Key::new(namespace, name))
                        .into_iter()
                        .collect()
                })
                .build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let name = ids::apinet_nic_name(&key.namespace, &key.name);
        let made = world.get::<apinet::NetworkInterface>(APINET_NS, &name);
        let user = world
            .by_key::<NetworkInterface>(key)
            .filter(|nic| !object::is_deleting(&**nic));
        if let Some(claim) = user.as_ref().and_then(|user| claim(world, user)) {
            plan.push(claim);
            return plan;
        }
        let claim = user.as_ref().and_then(|user| user.spec.machine_ref.clone());
        let machine = claim.and_then(|claim| world.get::<Machine>(&key.namespace, &claim.name));
        let placed = machine.is_some_and(|machine| machine.spec.machine_pool_ref.is_some());
        let Some(user) = user.filter(|_| placed) else {
            plan.extend(
                made.filter(|made| !object::is_deleting(&**made))
                    .map(|made| Op::delete(&*made)),
            );
            return plan;
        };
        let network = world.get::<Network>(&key.namespace, &user.spec.network_ref.name);
        let id = network.and_then(|network| {
            network
                .spec
                .provider_id
                .parse::<ids::NetworkProviderId>()
                .ok()
        });
        let Some(id) = id else { return plan };
        match made {
            None => {
                let Some(ips) = addresses(world, &user) else {
                    return plan;
                };
                let body = json!({
                    "metadata": { "annotations": { "test/for": key.to_string() } },
                    "spec": {
                        "nodeRef": { "name": "lab.n1" },
                        "networkRef": { "name": id.name },
                        "ips": ips,
                    },
                });
                let target = Target::new::<apinet::NetworkInterface>(APINET_NS, name);
                plan.push(Op::apply(target, manager::PROVIDER, body));
            }
            Some(made) => {
                let handle = ids::NetworkInterfaceProviderId {
                    namespace: APINET_NS.to_owned(),
                    name,
                    node: "lab.n1".to_owned(),
                    uid: object::uid(&*made).to_owned(),
                };
                if user.spec.provider_id != handle.to_string() {
                    let body = json!({ "spec": { "providerID": handle.to_string() } });
                    plan.push(Op::patch(Target::of(&*user), body));
                }
            }
        }
        plan
    }
}

/// The claim of a free interface for the machine that names it.
fn claim(world: &World, nic: &NetworkInterface) -> Option<Op> {
    let names = |machine: &Machine| {
        let entries = machine.spec.network_interfaces.iter();
        let mut refs = entries.filter_map(|entry| entry.network_interface_ref.as_ref());
        refs.any(|named| named.name == object::name(nic))
    };
    let machines = world.list::<Machine>();
    let machine = machines
        .iter()
        .find(|machine| object::namespace(&***machine) == object::namespace(nic) && names(machine))
        .filter(|_| nic.spec.machine_ref.is_none())?;
    let claim = json!({ "name": object::name(&**machine), "uid": object::uid(&**machine) });
    let body = json!({ "spec": { "machineRef": claim } });
    Some(Op::patch(Target::of(nic), body))
}

/// The addresses of an interface, given or allocated; nothing until all are known.
fn addresses(world: &World, nic: &NetworkInterface) -> Option<Vec<String>> {
    let address = |(index, ip): (usize, &networking::IpSource)| match ip.value {
        Some(value) => Some(value.to_string()),
        None => {
            let (namespace, name) = (object::namespace(nic), object::name(nic));
            let prefix = world.get::<Prefix>(namespace, &format!("{name}-{index}"))?;
            let block = prefix.spec.prefix?.to_string();
            block.split('/').next().map(str::to_owned)
        }
    };
    nic.spec.ips.iter().enumerate().map(address).collect()
}

/// A running control plane. Everything ends when it is dropped.
pub struct Region {
    server: TestServer,
    pub client: Client,
    folder: tempfile::TempDir,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

/// Parses the flags of a part as the executable does.
pub fn args<A: Args + FromArgMatches>(flags: &[String]) -> A {
    let command = A::augment_args(clap::Command::new("part").no_binary_name(true));
    A::from_arg_matches(&command.get_matches_from(flags)).expect("flags")
}

pub async fn client_of(kubeconfig: &str) -> Client {
    let file = Kubeconfig::from_yaml(kubeconfig).expect("yaml");
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("config")).expect("client")
}

impl Region {
    pub async fn start() -> Region {
        let server = spawn().await.expect("server");
        let client = client_of(&server.kubeconfig().expect("kubeconfig")).await;
        let folder = tempfile::tempdir().expect("folder");
        let mut region = Region {
            server,
            client,
            folder,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        };
        region
            .put(
                "",
                json!({ "metadata": { "name": "n1" } }),
                "v1",
                "Node",
                "nodes",
            )
            .await;
        let (user, group) = identity::CONTROLLER_MANAGER;
        let file = region.kubeconfig(user, group);
        let manager = args(&[format!("--kubeconfig={file}"), "--leader-elect".to_owned()]);
        let stop = region.stop.clone();
        region.tasks.spawn(async move {
            core_controllers::manager::run(manager, stop)
                .await
                .expect("controller manager");
        });
        let file = region.kubeconfig(&identity::apinetlet(APINET_NS), identity::APINETLETS);
        let apinetlet = args(&[
            format!("--kubeconfig={file}"),
            format!("--api-net-kubeconfig={file}"),
            format!("--api-net-namespace={APINET_NS}"),
        ]);
        let stop = region.stop.clone();
        region
            .tasks
            .spawn(async move { apinetlet::run(apinetlet, stop).await.expect("apinetlet") });
        let file = region.kubeconfig(&identity::metalnetlet("lab"), identity::METALNETLETS);
        let metalnetlet = args(&[
            "--name=lab".to_owned(),
            format!("--kubeconfig={file}"),
            format!("--metalnet-kubeconfig={file}"),
            format!("--metalnet-namespace={METALNET_NS}"),
        ]);
        let stop = region.stop.clone();
        region.tasks.spawn(async move {
            metalnetlet::run(metalnetlet, stop)
                .await
                .expect("metalnetlet")
        });
        region.fakes().await;
        region
    }

    async fn fakes(&mut self) {
        let metalnet = Identity {
            user: identity::metalnet("n1"),
            groups: vec![identity::METALNETS.to_owned()],
        };
        let metalnet = client_of(&self.server.kubeconfig_for(&metalnet).expect("kubeconfig")).await;
        let fakes: [(Client, Arc<dyn Controller>); 3] = [
            (metalnet.clone(), Arc::new(FakeMetalnet)),
            (metalnet, Arc::new(FakePeers)),
            (self.client.clone(), Arc::new(FakeHypervisor)),
        ];
        for (client, fake) in fakes {
            let mut runner = Runner::new(fake.name(), Cluster::new(client));
            runner.controller(fake, Options::default());
            let stop = self.stop.clone();
            self.tasks
                .spawn(async move { runner.run(stop).await.expect("fake") });
        }
    }

    fn kubeconfig(&self, user: &str, group: &str) -> String {
        let identity = Identity {
            user: user.to_owned(),
            groups: vec![group.to_owned()],
        };
        let path: PathBuf = self.folder.path().join(user.replace([':', '.'], "-"));
        let text = self.server.kubeconfig_for(&identity).expect("kubeconfig");
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    }

    /// The door to the objects of any kind.
    pub fn any(
        &self,
        namespace: &str,
        api_version: &str,
        kind: &str,
        plural: &str,
    ) -> Api<DynamicObject> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = kube::core::ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        match namespace {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        }
    }

    /// Creates an object of any kind.
    pub async fn put(
        &self,
        namespace: &str,
        body: Value,
        api_version: &str,
        kind: &str,
        plural: &str,
    ) {
        let mut object: DynamicObject = serde_json::from_value(body).expect("an object");
        object.types = Some(kube::core::TypeMeta {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        });
        self.any(namespace, api_version, kind, plural)
            .create(&PostParams::default(), &object)
            .await
            .expect("created");
    }

    async fn create<K: Object>(&self, namespace: &str, mut body: Value) {
        let kind = controller::Kind::of::<K>();
        body["kind"] = json!(kind.kind);
        self.put(
            namespace,
            body,
            &kind.api_version(),
            &kind.kind,
            &kind.plural,
        )
        .await;
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub async fn get<K>(&self, namespace: &str, name: &str) -> Option<K>
    where
        K: Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        self.api(namespace).get_opt(name).await.expect("an answer")
    }

    /// Reads until the condition holds; returns the object.
    pub async fn until<K>(&self, name: &str, holds: impl Fn(&K) -> bool) -> K
    where
        K: Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = self.get::<K>(NS, name).await;
            if let Some(object) = found.clone().filter(|object| holds(object)) {
                return object;
            }
            assert!(
                Instant::now() < deadline,
                "{name} did not get there: {found:#?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn until_gone<K>(&self, namespace: &str)
    where
        K: Object + kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let deadline = Instant::now() + GONE_DEADLINE;
        loop {
            let left = self
                .api::<K>(namespace)
                .list(&ListParams::default())
                .await
                .expect("a list")
                .items;
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left over: {left:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn network(&self) -> Network {
        self.create::<Network>(NS, json!({ "metadata": { "name": "blue" }, "spec": {} }))
            .await;
        self.until::<Network>("blue", |network| {
            network.status.as_ref().and_then(|s| s.state) == Some(NetworkState::Available)
        })
        .await
    }

    pub async fn pool(&self, slots: u32) {
        let pools: Api<MachinePool> = Api::all(self.client.clone());
        let pool = json!({
            "apiVersion": "compute.openkcm.dev/v1alpha1",
            "kind": "MachinePool",
            "metadata": { "name": "n1" },
            "spec": { "providerID": "test://n1" },
        });
        let params = PatchParams::apply("test").force();
        pools
            .patch("n1", &params, &Patch::Apply(&pool))
            .await
            .expect("pool");
        let count = slots.to_string();
        let status = json!({ "status": {
            "state": "Ready",
            "conditions": [{ "type": "Ready", "status": "True" }],
            "availableMachineClasses": [{ "name": "small" }],
            "capacity": { "class/machine.small": count },
            "allocatable": { "class/machine.small": count },
        } });
        pools
            .patch_status("n1", &PatchParams::default(), &Patch::Merge(&status))
            .await
            .expect("status");
        self.put(
            "",
            json!({ "metadata": { "name": "small" }, "capabilities": { "cpu": "1", "memory": "1Gi" } }),
            "compute.openkcm.dev/v1alpha1",
            "MachineClass",
            "machineclasses",
        )
        .await;
    }

    async fn machine(&self, name: &str, ip: &str, extra: Value) {
        let mut spec = json!({
            "networkRef": { "name": "blue" },
            "ipFamilies": ["IPv4"],
            "ips": [{ "value": ip }],
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let entry = json!({
            "name": "nic",
            "ephemeral": { "networkInterfaceTemplate": { "spec": spec } },
        });
        let body = json!({
            "metadata": { "name": name },
            "spec": { "machineClassRef": { "name": "small" }, "networkInterfaces": [entry] },
        });
        self.create::<Machine>(NS, body).await;
    }

    async fn available(&self, nic: &str) -> NetworkInterface {
        self.until::<NetworkInterface>(nic, |nic| {
            nic.status.as_ref().and_then(|s| s.state) == Some(NetworkInterfaceState::Available)
        })
        .await
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a part ended well");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_becomes_available_with_a_vni_and_frees_it_when_deleted() {
    let region = Region::start().await;
    let network = region.network().await;
    let id: ids::NetworkProviderId = network.spec.provider_id.parse().expect("a provider id");
    let ids: Api<apinet::NetworkID> = Api::all(region.client.clone());
    assert!(
        ids.get_opt(&id.id).await.expect("an answer").is_some(),
        "VNI {} is locked",
        id.id
    );
    region
        .api::<Network>(NS)
        .delete("blue", &DeleteParams::default())
        .await
        .expect("deleted");
    region.until_gone::<Network>(NS).await;
    region.until_gone::<apinet::Network>(APINET_NS).await;
    region.until_gone::<metalnet::Network>(METALNET_NS).await;
    assert!(
        ids.get_opt(&id.id).await.expect("an answer").is_none(),
        "VNI {} is free",
        id.id
    );
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_gets_a_connected_interface_quickly_and_leaves_nothing() {
    let region = Region::start().await;
    region.network().await;
    region.pool(100).await;
    let mut taken = Vec::new();
    for number in 0..20 {
        let name = format!("vm{number}");
        let started = Instant::now();
        region
            .machine(&name, &format!("10.0.0.{}", number + 1), json!({}))
            .await;
        region.available(&format!("{name}-nic")).await;
        taken.push(started.elapsed());
    }
    taken.sort();
    println!(
        "machine to available interface: median {:?}, worst {:?}",
        taken[10], taken[19]
    );
    assert!(taken[10] < Duration::from_millis(1500), "{taken:?}");
    let nic = region.available("vm0-nic").await;
    assert_eq!(json!(nic.status.expect("status").ips), json!(["10.0.0.1"]));
    let machines = region.api::<Machine>(NS);
    machines
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await
        .expect("deleted");
    region.until_gone::<NetworkInterface>(NS).await;
    region
        .until_gone::<apinet::NetworkInterface>(APINET_NS)
        .await;
    region
        .until_gone::<metalnet::NetworkInterface>(METALNET_NS)
        .await;
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_ip_reaches_the_interface_and_its_address_is_freed_last() {
    let region = Region::start().await;
    region.network().await;
    region.pool(1).await;
    let spec =
        json!({ "metadata": { "name": "www" }, "spec": { "type": "Public", "ipFamily": "IPv4" } });
    region.create::<VirtualIP>(NS, spec).await;
    let shown = |vip: &VirtualIP| vip.status.as_ref().and_then(|status| status.ip);
    let vip = region
        .until::<VirtualIP>("www", |vip| shown(vip).is_some())
        .await;
    let address = shown(&vip).expect("an address");
    let extra = json!({ "virtualIP": { "virtualIPRef": { "name": "www" } } });
    region.machine("vm", "10.0.0.1", extra).await;
    region
        .until::<NetworkInterface>("vm-nic", |nic| {
            nic.status.as_ref().and_then(|status| status.virtual_ip) == Some(address)
        })
        .await;
    region
        .api::<VirtualIP>(NS)
        .delete("www", &DeleteParams::default())
        .await
        .expect("deleted");
    region.until_gone::<VirtualIP>(NS).await;
    region.until_gone::<apinet::IP>(APINET_NS).await;
    let locks: Api<apinet::IPAddress> = Api::all(region.client.clone());
    let deadline = Instant::now() + DEADLINE;
    while locks
        .get_opt(&address.to_string())
        .await
        .expect("an answer")
        .is_some()
    {
        assert!(Instant::now() < deadline, "{address} is still locked");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let nic = region.available("vm-nic").await;
    assert_eq!(nic.status.expect("status").virtual_ip, None);
    region.stop().await;
}
