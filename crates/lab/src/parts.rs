//! The processes of a lab: which binary with which flags in which namespace. Pure.
//!
//! The command lines are those of a data centre; only the addresses are the lab's.

use std::path::{Path, PathBuf};

use crate::outside::{EDGE_HTTP_PORT, PUBLIC_PREFIXES, ROLE as INTERNET, edge_address};
use crate::topology::{METALBOND_HTTP_PORT, METALBOND_PORT, Topology};

/// Namespace of the region's OpenKCM-net objects.
pub const APINET_NAMESPACE: &str = "openkcm-net-system";
/// Namespace of the metalnet objects.
pub const METALNET_NAMESPACE: &str = "metalnet-system";
/// VNI in which public addresses are announced.
pub const PUBLIC_VNI: u32 = 100;
/// TAP devices per hypervisor: the limit of machine ports of dpservice.
pub const TAPS_PER_HYPERVISOR: u16 = 126;

/// One process of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Name in `lab status`, `lab logs`, `lab kill`: `apiserver`, `metalnet-hv1` …
    pub name: String,
    pub netns: String,
    pub argv: Vec<String>,
}

/// Where the lab keeps its files.
#[derive(Debug, Clone)]
pub struct Layout {
    pub state: PathBuf,
    pub openkcm: PathBuf,
    pub dpservice: PathBuf,
    /// The machine's iperf3, if it has one: then the internet has a server of it.
    pub iperf3: Option<PathBuf>,
}

impl Layout {
    pub fn kubeconfig(&self, identity: &str) -> PathBuf {
        self.state
            .join("kubeconfig")
            .join(format!("{identity}.yaml"))
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.kubeconfig("admin")
    }

    pub fn apiserver_state(&self) -> PathBuf {
        self.state.join("apiserver")
    }

    pub fn provider_state(&self, hypervisor: &str) -> PathBuf {
        self.state.join(hypervisor).join("provider")
    }

    pub fn log(&self, part: &str) -> PathBuf {
        self.state.join("logs").join(format!("{part}.log"))
    }

    pub fn machine_classes(&self) -> PathBuf {
        self.state.join("machine-classes.json")
    }
}

/// An identity that needs a kubeconfig: file stem, certificate CN and O.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub file: String,
    pub common_name: String,
    pub organization: String,
}

pub fn identities(topology: &Topology) -> Vec<Identity> {
    let id = |file: String, common_name: String, organization: &str| Identity {
        file,
        common_name,
        organization: organization.to_owned(),
    };
    let mut all = vec![
        id("admin".into(), "openkcm:admin".into(), "system:masters"),
        id(
            "controller-manager".into(),
            "openkcm:system:controller-manager".into(),
            "openkcm:system:controllers",
        ),
        id(
            "apinetlet".into(),
            format!("apinet.openkcm.dev:system:apinetlet:{APINET_NAMESPACE}"),
            "apinet.openkcm.dev:system:apinetlets",
        ),
        id(
            "metalnetlet".into(),
            format!("apinet.openkcm.dev:system:metalnetlet:{}", topology.name),
            "apinet.openkcm.dev:system:metalnetlets",
        ),
    ];
    for hv in topology.hypervisor_names() {
        all.push(id(
            format!("metalnet-{hv}"),
            format!("networking.metalnet.openkcm.dev:system:metalnet:{hv}"),
            "networking.metalnet.openkcm.dev:system:metalnets",
        ));
        all.push(id(
            format!("machinepoollet-{hv}"),
            format!("compute.openkcm.dev:system:machinepool:{hv}"),
            "compute.openkcm.dev:system:machinepools",
        ));
        all.push(id(
            format!("provider-{hv}"),
            format!(
                "networking.openkcm.dev:system:networkplugin:{}.{hv}",
                topology.name
            ),
            "networking.openkcm.dev:system:networkplugins",
        ));
    }
    all
}

/// Every part in start order. They may all start at once: each retries what is not there yet.
pub fn parts(topology: &Topology, layout: &Layout) -> Vec<Part> {
    let mut all = management(topology, layout);
    for j in 1..=topology.routers {
        let router = format!("r{j}");
        all.push(Part {
            name: format!("metalbond-{router}"),
            netns: topology.netns(&router),
            argv: argv(
                &layout.openkcm,
                [
                    "metalbond".into(),
                    "server".into(),
                    "--listen".into(),
                    format!("[{}]:{METALBOND_PORT}", topology.router_address(j)),
                    "--http".into(),
                    format!("[::1]:{METALBOND_HTTP_PORT}"),
                ],
            ),
        });
        all.push(edge(topology, layout, j));
    }
    all.extend(internet(topology, layout));
    for i in 1..=topology.hypervisors {
        all.extend(hypervisor(topology, layout, i));
    }
    all
}

fn metalbond_servers(topology: &Topology) -> impl Iterator<Item = String> {
    let address = |j| format!("[{}]:{METALBOND_PORT}", topology.router_address(j));
    (1..=topology.routers).map(address)
}

/// The edge of router `j`. It uses all metalbond servers, like everybody.
fn edge(topology: &Topology, layout: &Layout, j: u8) -> Part {
    let router = format!("r{j}");
    let servers: Vec<String> = metalbond_servers(topology).collect();
    Part {
        name: format!("edge-{router}"),
        netns: topology.netns(&router),
        argv: argv(
            &layout.openkcm,
            [
                "edge".into(),
                "--address".into(),
                edge_address(topology, j).to_string(),
                "--public-prefix".into(),
                PUBLIC_PREFIXES.join(","),
                "--public-vni".into(),
                PUBLIC_VNI.to_string(),
                "--server".into(),
                servers.join(","),
                "--http".into(),
                format!("[::1]:{EDGE_HTTP_PORT}"),
            ],
        ),
    }
}

/// The servers in the internet.
fn internet(topology: &Topology, layout: &Layout) -> Vec<Part> {
    let part = |name: &str, argv: Vec<String>| Part {
        name: name.to_owned(),
        netns: topology.netns(INTERNET),
        argv,
    };
    let own = argv(&layout.openkcm, ["lab".into(), "internet".into()]);
    let iperf3 = layout.iperf3.as_ref();
    let iperf3 = iperf3.map(|program| part("iperf3", argv(program, ["--server".into()])));
    std::iter::once(part("internet", own))
        .chain(iperf3)
        .collect()
}

fn management(topology: &Topology, layout: &Layout) -> Vec<Part> {
    let part = |name: &str, args: Vec<String>| Part {
        name: name.to_owned(),
        netns: topology.netns("mgmt"),
        argv: argv(&layout.openkcm, args),
    };
    let kubeconfig = |identity: &str| path(&layout.kubeconfig(identity));
    vec![
        part(
            "apiserver",
            vec![
                "apiserver".into(),
                "--state".into(),
                path(&layout.apiserver_state()),
                "--bind-address".into(),
                topology.api_address().to_string(),
                "--secure-port".into(),
                crate::topology::API_PORT.to_string(),
                "--advertise".into(),
                topology.api_url(),
                "--public-prefix".into(),
                PUBLIC_PREFIXES.join(","),
            ],
        ),
        part(
            "controller-manager",
            vec![
                "controller-manager".into(),
                "--kubeconfig".into(),
                kubeconfig("controller-manager"),
            ],
        ),
        part(
            "apinetlet",
            vec![
                "apinetlet".into(),
                "--kubeconfig".into(),
                kubeconfig("apinetlet"),
                "--api-net-kubeconfig".into(),
                kubeconfig("apinetlet"),
                "--api-net-namespace".into(),
                APINET_NAMESPACE.into(),
            ],
        ),
        part(
            "metalnetlet",
            vec![
                "metalnetlet".into(),
                "--name".into(),
                topology.name.clone(),
                "--kubeconfig".into(),
                kubeconfig("metalnetlet"),
                "--metalnet-kubeconfig".into(),
                kubeconfig("metalnetlet"),
                "--metalnet-namespace".into(),
                METALNET_NAMESPACE.into(),
            ],
        ),
    ]
}

fn hypervisor(topology: &Topology, layout: &Layout, i: u8) -> Vec<Part> {
    let hv = format!("hv{i}");
    let netns = topology.netns(&hv);
    let socket = layout.state.join(&hv).join("machine-runtime.sock");
    let part = |name: &str, argv: Vec<String>| Part {
        name: format!("{name}-{hv}"),
        netns: netns.clone(),
        argv,
    };
    let mut dpservice: Vec<String> = vec!["--pf0".into(), "pf0".into()];
    if topology.routers > 1 {
        dpservice.extend(["--pf1".into(), "pf1".into()]);
    }
    dpservice.extend(
        [
            "--ipv6",
            &topology.underlay_address(i).to_string(),
            "--uplink-driver",
            "af-packet",
            "--machine-driver",
            "tap",
            "--tap-count",
            &TAPS_PER_HYPERVISOR.to_string(),
            "--enable-ipv6-overlay",
            "--grpc-port",
            "1337",
            "--grpc-bind",
            "::1",
        ]
        .map(str::to_owned),
    );
    let mut metalnet: Vec<String> = [
        "metalnet",
        "--kubeconfig",
        &path(&layout.kubeconfig(&format!("metalnet-{hv}"))),
        "--node-name",
        &hv,
        "--register-node",
        "--metalnet-namespace",
        METALNET_NAMESPACE,
        "--dp-service-address",
        "[::1]:1337",
        "--tapdevice-mod",
        "--tap-count",
        &TAPS_PER_HYPERVISOR.to_string(),
        "--enable-ipv6",
        "--public-vni",
        &PUBLIC_VNI.to_string(),
        "--metalnet-dir",
        &path(&layout.state.join(&hv).join("metalnet")),
        "--router-address",
        &edge_address(topology, 1).to_string(),
    ]
    .map(str::to_owned)
    .to_vec();
    for server in metalbond_servers(topology) {
        metalnet.extend(["--metalbond-peer".into(), server]);
    }
    vec![
        part("dpservice", argv(&layout.dpservice, dpservice)),
        part("metalnet", argv(&layout.openkcm, metalnet)),
        part(
            "provider",
            argv(
                &layout.openkcm,
                [
                    "machine-provider".into(),
                    "namespace".into(),
                    "--address".into(),
                    path(&socket),
                    "--state".into(),
                    path(&layout.provider_state(&hv)),
                    "--apinet-kubeconfig".into(),
                    path(&layout.kubeconfig(&format!("provider-{hv}"))),
                    "--apinet-node-name".into(),
                    format!("{}.{hv}", topology.name),
                    "--netns-prefix".into(),
                    // A prefix of its own: a provider removes namespaces of its prefix that it has no machine for.
                    format!("{}{hv}-", topology.machine_netns_prefix()),
                    "--supported-machine-classes".into(),
                    path(&layout.machine_classes()),
                ],
            ),
        ),
        part(
            "machinepoollet",
            argv(
                &layout.openkcm,
                [
                    "machinepoollet".into(),
                    "--kubeconfig".into(),
                    path(&layout.kubeconfig(&format!("machinepoollet-{hv}"))),
                    "--machine-pool-name".into(),
                    hv.clone(),
                    "--provider-id".into(),
                    format!("namespace://{}/{hv}", topology.name),
                    "--machine-runtime-endpoint".into(),
                    format!("unix://{}", path(&socket)),
                ],
            ),
        ),
    ]
}

fn argv(program: &Path, args: impl IntoIterator<Item = String>) -> Vec<String> {
    std::iter::once(path(program)).chain(args).collect()
}

fn path(p: &Path) -> String {
    p.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_its_own_name_and_every_hypervisor_its_four() {
        let topology = Topology::new("x", 3, 2).unwrap();
        let layout = Layout {
            state: "/s".into(),
            openkcm: "/b/openkcm".into(),
            dpservice: "/b/dpservice".into(),
            iperf3: Some("/b/iperf3".into()),
        };
        let all = parts(&topology, &layout);
        let mut names: Vec<&str> = all.iter().map(|p| p.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 4 + 2 * 2 + 2 + 3 * 4);
        for part in ["dpservice", "metalnet", "provider", "machinepoollet"] {
            assert!(names.contains(&format!("{part}-hv3").as_str()));
        }
    }

    #[test]
    fn each_node_has_identities_of_its_own() {
        let topology = Topology::new("x", 2, 1).unwrap();
        let all = identities(&topology);
        let mut names: Vec<&String> = all.iter().map(|i| &i.common_name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 4 + 2 * 3);
    }
}
