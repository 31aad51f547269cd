//! A device's way into a machine and back, with real namespaces, a real TAP and real DHCP clients. Needs root, iproute2,
//! util-linux and udhcpc.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::meta::Ip;
use controller::plan::Act;
use controller::sim::Sim;
use controller::{Controller, Key, World};
use machine::provider::plan::{Step, Take};
use machine::provider::record::{Interface, Record, Store};
use machine::provider::shell::{Machines, Shell};
use machine::provider::{dhcp4, links, netns};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::plane::Plane;

const TAP: &str = "dtapvf_7";
const DEADLINE: Duration = Duration::from_secs(20);

struct Bed {
    shell: Arc<Shell>,
    machines: Machines,
    world: World,
    keys: mpsc::Receiver<Key>,
    id: String,
    netns: String,
}

impl Bed {
    async fn act(&self, step: Step) {
        let key = Key::cluster(&self.id);
        let done = self
            .machines
            .act(&self.world, &key, Act::new(step.clone()))
            .await;
        done.unwrap_or_else(|error| panic!("{step:?}: {error}"));
    }

    /// Waits until the machine is to be planned again.
    async fn woken(&mut self) {
        let key = tokio::time::timeout(DEADLINE, self.keys.recv()).await;
        assert_eq!(key.expect("nothing happened"), Some(Key::cluster(&self.id)));
    }

    fn take(&self) -> Step {
        Step::Take(Take {
            interface: "primary".into(),
            tap: TAP.into(),
            ips: ["10.0.0.7", "fd00:10::7"]
                .map(|ip| ip.parse::<Ip>().unwrap())
                .to_vec(),
            handle: "handle".into(),
        })
    }

    async fn addresses(&self) -> Vec<String> {
        let found = netns::addresses(&self.netns, "eth0")
            .await
            .unwrap()
            .unwrap_or_default();
        found
            .into_iter()
            .filter(|address| !address.starts_with("fe80"))
            .collect()
    }

    /// Default routes of the machine, without what differs from run to run.
    async fn routes(&self) -> Vec<String> {
        let mut routes = Vec::new();
        for family in ["-4", "-6"] {
            let out = tokio::process::Command::new("ip")
                .args(["-n", &self.netns, family, "route", "show", "default"])
                .output()
                .await
                .unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            routes.extend(
                text.lines()
                    .map(|line| line.split(" metric").next().unwrap().trim().to_owned()),
            );
        }
        routes
    }
}

async fn scenario(state: &std::path::Path) {
    let id = uuid::Uuid::new_v4().to_string();
    let name = machine::provider::netns_name(&format!("t{}-", std::process::id()), &id);
    let store = Store::open(state).unwrap();
    let interface = Interface {
        name: "primary".into(),
        ..Interface::default()
    };
    let record = Record {
        id: id.clone(),
        netns: name.clone(),
        power_on: true,
        interfaces: vec![interface],
        ..Record::default()
    };
    store.insert(record).await.unwrap();
    let script = dhcp4::install(state).unwrap();
    let (send, keys) = mpsc::channel(64);
    let shell = Arc::new(Shell::new(store, "lab.n1".into(), script, Vec::new(), send));
    let (news_in, news) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let watching = links::watch(&shell.links, news_in, stop.clone());
    let following = shell.follow(news, stop.clone());
    let world = Sim::new(Vec::new()).world();
    let machines = Machines(shell.clone());
    let mut bed = Bed {
        shell: shell.clone(),
        machines,
        world,
        keys,
        id,
        netns: name.clone(),
    };
    let steps = async {
        let result = Box::pin(life(&mut bed)).await;
        stop.cancel();
        result
    };
    let (watched, (), ()) = tokio::join!(watching, following, steps);
    watched.unwrap();
    assert!(!netns::path(&name).exists(), "the namespace is still there");
}

async fn life(bed: &mut Bed) {
    // The machine appears before its device.
    bed.act(Step::CreateNamespace).await;
    bed.act(Step::Remember {
        interface: "primary".into(),
        namespace: "ns".into(),
    })
    .await;
    bed.act(bed.take()).await;
    bed.woken().await;
    assert_eq!(
        bed.shell.store.get(&bed.id).unwrap().known["primary"].handle,
        None
    );

    // The device appears: it is told at once, moved and configured by DHCP.
    let plane = Plane::start(TAP, "10.0.0.7", "fd00:10::7");
    bed.woken().await;
    let start = Instant::now();
    bed.act(bed.take()).await;
    bed.woken().await;
    println!(
        "device there → configured for both families: {:?}",
        start.elapsed()
    );
    let record = bed.shell.store.get(&bed.id).unwrap();
    assert_eq!(record.known["primary"].handle.as_deref(), Some("handle"));
    assert!(record.started);
    assert_eq!(bed.addresses().await, ["10.0.0.7", "fd00:10::7"]);
    assert_eq!(
        bed.routes().await,
        [
            "default via 169.254.0.1 dev eth0",
            "default via fe80::1 dev eth0 proto ra"
        ]
    );

    // The data plane dies and comes back: the new device is found and configured again.
    drop(plane);
    assert_eq!(netns::addresses(&bed.netns, "eth0").await.unwrap(), None);
    let plane = Plane::start(TAP, "10.0.0.7", "fd00:10::7");
    let start = Instant::now();
    bed.woken().await;
    bed.act(bed.take()).await;
    bed.woken().await;
    println!(
        "device back → configured for both families: {:?}",
        start.elapsed()
    );
    assert_eq!(bed.addresses().await, ["10.0.0.7", "fd00:10::7"]);

    // Detached: the device is back here, and a machine that goes leaves nothing.
    bed.act(Step::Release {
        interface: "primary".into(),
        tap: Some(TAP.into()),
    })
    .await;
    assert_eq!(bed.addresses().await, Vec::<String>::new());
    let here = std::process::Command::new("ip")
        .args(["-o", "link", "show", TAP])
        .output()
        .unwrap();
    assert!(here.status.success(), "the device did not come back");
    bed.act(Step::RemoveNamespace).await;
    bed.act(Step::RemoveRecord).await;
    assert_eq!(bed.shell.store.get(&bed.id), None);
    drop(plane);
}

#[test]
fn a_device_is_configured_recovers_and_leaves() {
    // A namespace of our own stands for the hypervisor; threads and processes started from here inherit it.
    let own = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let state = tempfile::tempdir().unwrap();
        runtime.block_on(scenario(state.path()));
    });
    if let Err(panic) = own.join() {
        std::panic::resume_unwind(panic);
    }
}
