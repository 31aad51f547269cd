//! The way to the internet: virtual IP, a NAT address that two hypervisors share, NAT64, a public load balancer on both, loss of an edge
//! and of an uplink.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lab::client::{self, Kind, METALNET_INTERFACE};
use lab::parts::METALNET_NAMESPACE;
use serde_json::{Value, json};

use crate::{Cleanup, alone, openkcm, run, succeed, text};

const LAB: &str = "it-outside";
const VIP: &str = "198.51.100.5";
const NAT: &str = "198.51.100.9";
const BALANCED: &str = "198.51.100.80";
const SERVER: &str = "203.0.113.1";
const LOAD_BALANCER: Kind = Kind {
    api_version: "networking.metalnet.openkcm.dev/v1alpha1",
    kind: "LoadBalancer",
    plural: "loadbalancers",
    namespaced: true,
};
/// The server as IPv6 machines see it (RFC 6052).
const SERVER_NAT64: &str = "64:ff9b::cb00:7101";
const PUBLIC_V6: &str = "2001:db8:100::55";
const SERVER_V6: &str = "2001:db8:203::1";
/// A machine with a public IPv6 address, beside those of the example.
const GREEN: &str = r#"
apiVersion: networking.openkcm.dev/v1alpha1
kind: Network
metadata: {name: green}
---
apiVersion: networking.openkcm.dev/v1alpha1
kind: NetworkInterface
metadata: {name: green-1-primary}
spec:
  networkRef: {name: green}
  ipFamilies: [IPv4, IPv6]
  ips: [{value: 10.0.0.1}, {value: "2001:db8:100::55"}]
---
apiVersion: compute.openkcm.dev/v1alpha1
kind: Machine
metadata: {name: green-1}
spec:
  machineClassRef: {name: small}
  machinePoolRef: {name: hv2}
  networkInterfaces:
    - name: primary
      networkInterfaceRef: {name: green-1-primary}
"#;
const LIMIT: Duration = Duration::from_secs(30);

fn exec(place: &str, command: &[&str]) -> Result<String, String> {
    let mut args = vec!["exec", "--name", LAB, place, "--"];
    args.extend(command);
    let output = run(&args);
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(text(&output))
    }
}

/// Tries until it works.
fn until<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(why) if Instant::now() > deadline => panic!("{what}: {why}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn ping(from: &str, to: &str) {
    until(&format!("ping from {from} to {to}"), || {
        exec(from, &["ping", "-n", "-c", "1", "-W", "1", to])
    });
}

/// Whom the internet's HTTP server sees when the machine asks it: address and port.
fn seen(machine: &str, server: &str) -> (String, u16) {
    let script = format!(
        "exec 3<>/dev/tcp/{server}/80 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && timeout 5 tail -n 1 <&3"
    );
    let answer = until(&format!("{machine} asks {server}"), || {
        exec(machine, &["timeout", "5", "bash", "-c", &script])
    });
    let mut words = answer.split_whitespace();
    let address = words.next().unwrap().to_owned();
    (address, words.next().unwrap().parse().unwrap())
}

fn edge_status(router: &str) -> Value {
    let program = program();
    let page = until("the edge's page", || {
        exec(router, &[&program, "edge", "status", "-o", "json"])
    });
    serde_json::from_str(&page).unwrap()
}

fn dropped(reason: &str) -> u64 {
    ["r1", "r2"]
        .iter()
        .map(|router| {
            let status = edge_status(router);
            let drops = status["drops"].as_array().unwrap().clone();
            let row = drops.iter().find(|row| row["name"] == reason).unwrap();
            row["dropped"].as_u64().unwrap()
        })
        .sum()
}

/// A process in a machine, ended with the test.
struct Server(Child);

impl Server {
    /// Serves what the internet serves, on an address of the machine's own.
    fn start(machine: &str, address: &str) -> Server {
        exec(machine, &["ip", "address", "add", address, "dev", "lo"]).unwrap();
        let program = program();
        let command = [&program, "lab", "internet", "--address", address];
        let child = openkcm()
            .args(["exec", "--name", LAB, machine, "--"])
            .args(command)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Server(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The executable under test.
fn program() -> String {
    openkcm().get_program().to_str().unwrap().to_owned()
}

/// Puts services on machines' interfaces in metalnet's own objects; whoever writes these in a region is stopped meanwhile.
async fn services(wanted: &[(&str, Value)]) {
    let kubeconfig = succeed(&["kubeconfig", "--name", LAB]);
    let client = client::connect(kubeconfig.trim().as_ref()).await.unwrap();
    let api = client::api(&client, METALNET_INTERFACE, METALNET_NAMESPACE);
    for (machine, spec) in wanted {
        let all = api.list(&kube::api::ListParams::default()).await.unwrap();
        let interface = all
            .items
            .iter()
            .find(|object| object.data["spec"]["hostname"] == *machine)
            .unwrap();
        let patch = json!({ "spec": spec });
        let patch = kube::api::Patch::Merge(&patch);
        let name = interface.metadata.name.as_deref().unwrap();
        api.patch(name, &kube::api::PatchParams::default(), &patch)
            .await
            .unwrap();
    }
}

/// A public load balancer of red-1's network with an instance on each hypervisor.
async fn load_balancer() {
    let kubeconfig = succeed(&["kubeconfig", "--name", LAB]);
    let client = client::connect(kubeconfig.trim().as_ref()).await.unwrap();
    let interfaces = client::api(&client, METALNET_INTERFACE, METALNET_NAMESPACE);
    let all = interfaces
        .list(&kube::api::ListParams::default())
        .await
        .unwrap();
    let red = all
        .items
        .iter()
        .find(|object| object.data["spec"]["hostname"] == "red-1")
        .unwrap();
    let api = client::api(&client, LOAD_BALANCER, METALNET_NAMESPACE);
    for hypervisor in ["hv1", "hv2"] {
        let instance = json!({
            "apiVersion": LOAD_BALANCER.api_version,
            "kind": LOAD_BALANCER.kind,
            "metadata": { "name": format!("balanced-{hypervisor}"), "namespace": METALNET_NAMESPACE },
            "spec": {
                "networkRef": red.data["spec"]["networkRef"],
                "type": "Public",
                "ipFamily": "IPv4",
                "ip": BALANCED,
                "ports": [{ "protocol": "TCP", "port": 80 }],
                "nodeName": hypervisor,
            },
        });
        let instance = serde_json::from_value(instance).unwrap();
        api.create(&kube::api::PostParams::default(), &instance)
            .await
            .unwrap();
    }
}

#[test]
fn machines_and_the_internet_reach_each_other_through_the_edges() {
    let _alone = alone();
    let _cleanup = Cleanup(LAB);
    succeed(&["up", "--name", LAB]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let kubeconfig = succeed(&["kubeconfig", "--name", LAB]);
        let client = client::connect(kubeconfig.trim().as_ref()).await.unwrap();
        let manifest = include_str!("../../../../examples/two-hosts.yaml");
        client::apply(&client, manifest).await.unwrap();
        client::apply(&client, GREEN).await.unwrap();
    });
    ping("red-1", "10.0.0.2");
    ping("blue-2", "10.0.0.2");
    // IPv6 needs no service.
    ping("green-1", SERVER_V6);
    ping("internet", PUBLIC_V6);
    assert_eq!(seen("green-1", SERVER_V6).0, PUBLIC_V6);
    succeed(&["kill", "--name", LAB, "metalnetlet", "--signal", "STOP"]);
    runtime.block_on(services(&[
        (
            "red-1",
            json!({ "virtualIP": VIP, "loadBalancerTargets": [format!("{BALANCED}/32")] }),
        ),
        (
            "red-2",
            json!({
                "nat": { "ip": NAT, "port": 1024, "endPort": 2048 },
                "loadBalancerTargets": [format!("{BALANCED}/32")],
            }),
        ),
        (
            "blue-1",
            json!({ "nat": { "ip": NAT, "port": 2048, "endPort": 3072 } }),
        ),
    ]));

    // Both ways, and with its own address.
    ping("internet", VIP);
    ping("red-1", SERVER);
    assert_eq!(seen("red-1", SERVER).0, VIP);

    // One address, two hypervisors, each with its own ports, whichever router the answers come by.
    for (machine, ports) in [("red-2", 1024..2048), ("blue-1", 2048..3072)] {
        ping(machine, SERVER);
        for server in [SERVER, SERVER, SERVER, SERVER_NAT64] {
            let (address, port) = seen(machine, server);
            assert_eq!(address, NAT);
            assert!(ports.contains(&port), "{machine}: {port}");
        }
    }

    // From the machine with the shared address to the one with the virtual IP and back: an edge is the way round.
    ping("blue-1", VIP);

    balanced(&runtime);

    // Neither virtual IP nor NAT: nothing leaves the region.
    let before = dropped("source_unknown");
    assert!(exec("blue-2", &["ping", "-n", "-c", "1", "-W", "1", SERVER]).is_err());
    assert!(dropped("source_unknown") > before);

    losses();
    // A stopped process would make the end of the lab wait.
    succeed(&["kill", "--name", LAB, "metalnetlet", "--signal", "CONT"]);
}

/// Both hypervisors announce the address, both machines answer with it, and each connection stays with one of them.
fn balanced(runtime: &tokio::runtime::Runtime) {
    let _servers = ["red-1", "red-2"].map(|machine| Server::start(machine, BALANCED));
    runtime.block_on(load_balancer());
    let mut hosts = BTreeSet::new();
    until("both hypervisors announce the balanced address", || {
        assert_eq!(seen("internet", BALANCED).0, SERVER);
        for router in ["r1", "r2"] {
            let status = edge_status(router);
            let routes = status["routes"].as_array().unwrap().clone();
            let row = routes
                .into_iter()
                .find(|row| row["prefix"] == format!("{BALANCED}/32"));
            let hops = row.map_or(0, |row| row["hops"].as_array().unwrap().len());
            hosts.insert((router, hops));
        }
        let all = ["r1", "r2"].iter().all(|r| hosts.contains(&(*r, 2)));
        all.then_some(()).ok_or(format!("{hosts:?}"))
    });
    for _ in 0..12 {
        assert_eq!(seen("internet", BALANCED).0, SERVER);
    }
}

/// An uplink of a router fails, then each edge is killed: pings go on.
fn losses() {
    let both = |what: &str| {
        let failed = |from: &str, to: &str| {
            // Addresses that answers come by differ with the source: both routers are used.
            until(&format!("{what}: {from} to {to}"), || {
                exec(
                    from,
                    &["ping", "-n", "-q", "-c", "5", "-i", "0.05", "-W", "1", to],
                )
            });
        };
        failed("internet", VIP);
        failed("red-1", SERVER);
        failed("red-2", SERVER);
    };
    exec("r1", &["ip", "link", "set", "inet0", "down"]).unwrap();
    both("without the first router's uplink");
    exec("r1", &["ip", "link", "set", "inet0", "up"]).unwrap();
    exec(
        "r1",
        &[
            "ip",
            "route",
            "replace",
            "default",
            "via",
            "192.0.2.1",
            "dev",
            "inet0",
        ],
    )
    .unwrap();
    for router in ["r1", "r2"] {
        succeed(&["kill", "--name", LAB, &format!("edge-{router}")]);
        both(&format!("after the loss of edge-{router}"));
        let status = edge_status(router);
        assert_eq!(status["announced"], json!(["0.0.0.0/0", "::/0"]));
    }
}
