//! A made-up region in which everything agrees: objects, data planes, metalbond servers, edges. Tests break one thing of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use metalnet::model::Uid;
use metalnet::plan::observed::{Balancer, Hop, Installed, Interface, Observed, Services};
use metalnet::services::{BalancedPort, NatShare, Transport};
use net::{PortRange, Prefix, Vni};
use path::snapshot::{Dataplane, EdgeReport, Objects, Route, RouteKind, RouteServer, Snapshot};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub const PARTITION: &str = "p";
const PUBLIC: u32 = 100;
const EDGE: &str = "fd00:ff::e";

pub fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn ready() -> Value {
    json!([{ "type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }])
}

pub fn vni(number: u32) -> Vni {
    Vni::new(number).unwrap()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A machine with one interface.
#[derive(Clone)]
pub struct Machine {
    pub name: &'static str,
    pub host: &'static str,
    pub network: &'static str,
    pub addresses: Vec<&'static str>,
    pub app: &'static str,
    pub vip: Option<&'static str>,
    pub nat: Option<(&'static str, u16, u16)>,
    /// Load balancer addresses that it serves.
    pub serves: Vec<&'static str>,
}

pub fn machine(
    name: &'static str,
    host: &'static str,
    network: &'static str,
    addresses: &[&'static str],
) -> Machine {
    Machine {
        name,
        host,
        network,
        addresses: addresses.to_vec(),
        app: name,
        vip: None,
        nat: None,
        serves: Vec::new(),
    }
}

/// Number of a name, for addresses and identities that follow from it.
fn number(name: &str) -> u16 {
    name.bytes().fold(7_u16, |sum, b| {
        sum.wrapping_mul(31).wrapping_add(u16::from(b))
    })
}

pub fn underlay(host: &str, what: &str) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, number(host), 0, 0, 0xd000, 0, 0, number(what))
}

/// Name, type, network, address, port, hosts that serve it.
pub type Balanced = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    u16,
    Vec<&'static str>,
);

pub struct Region {
    pub machines: Vec<Machine>,
    pub networks: Vec<(&'static str, u32)>,
    /// From, to, what is shown.
    pub peerings: Vec<(&'static str, &'static str, Vec<&'static str>)>,
    pub policies: Vec<Value>,
    pub balancers: Vec<Balanced>,
    /// Network and address.
    pub gateways: Vec<(&'static str, &'static str)>,
}

/// Two web servers, a database, a bastion with a public address, and an office.
pub fn shop() -> Region {
    let mut web_1 = machine("web-1", "hv1", "shop", &["10.50.1.0"]);
    let mut web_2 = machine("web-2", "hv2", "shop", &["10.50.1.1"]);
    for (web, first) in [(&mut web_1, 1024), (&mut web_2, 2048)] {
        web.app = "web";
        web.nat = Some(("198.51.100.9", first, first + 1024));
        web.serves = vec!["198.51.100.80", "10.50.9.9"];
    }
    let mut db = machine("db", "hv2", "shop", &["10.50.2.1"]);
    db.nat = Some(("198.51.100.9", 3072, 4096));
    let mut bastion = machine("bastion", "hv1", "shop", &["10.50.3.1"]);
    bastion.vip = Some("198.51.100.5");
    let clerk = machine("clerk", "hv2", "office", &["10.60.0.1"]);
    let six_1 = machine("six-1", "hv1", "six", &["2001:db8:100::1"]);
    let six_2 = machine("six-2", "hv2", "six", &["2001:db8:100::2"]);
    Region {
        machines: vec![web_1, web_2, db, bastion, clerk, six_1, six_2],
        networks: vec![("shop", 201), ("office", 202), ("six", 203)],
        peerings: vec![
            ("shop", "office", vec!["10.50.1.0/24"]),
            ("office", "shop", vec![]),
        ],
        policies: vec![],
        balancers: vec![
            (
                "web",
                "Public",
                "shop",
                "198.51.100.80",
                80,
                vec!["hv1", "hv2"],
            ),
            (
                "web-internal",
                "Internal",
                "shop",
                "10.50.9.9",
                80,
                vec!["hv1", "hv2"],
            ),
        ],
        gateways: vec![("shop", "198.51.100.9")],
    }
}

/// Only web servers reach the database, on its port; it opens no connections.
pub fn db_policy() -> Value {
    json!({
        "metadata": { "name": "db", "namespace": "default", "uid": "policy-db" },
        "spec": {
            "networkRef": { "name": "shop" },
            "networkInterfaceSelector": { "matchLabels": { "app": "db" } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [{ "objectSelector": { "kind": "NetworkInterface", "matchLabels": { "app": "web" } } }],
                "ports": [{ "protocol": "TCP", "port": 5432 }],
            }],
        },
    })
}

impl Region {
    fn vni(&self, network: &str) -> u32 {
        let found = self.networks.iter().find(|(name, _)| *name == network);
        found.unwrap().1
    }

    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            objects: self.objects(),
            ..Snapshot::default()
        };
        let routes = self.announced();
        for host in ["hv1", "hv2"] {
            snapshot.dataplanes.push(Dataplane {
                node: host.to_owned(),
                endpoint: format!("{host}:1337"),
                inventory: Ok(self.inventory(host, &routes)),
                rehearsals: Vec::new(),
            });
        }
        for server in ["r1", "r2"] {
            snapshot.servers.push(RouteServer {
                endpoint: server.to_owned(),
                routes: Ok(routes.clone()),
            });
        }
        snapshot.edges.push(EdgeReport {
            endpoint: "edge-r1".to_owned(),
            status: Ok(edge(&routes)),
        });
        snapshot
    }

    fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        for (name, vni) in &self.networks {
            let wanted = self.peerings.iter().filter(|(from, ..)| from == name);
            let peerings: Vec<Value> = wanted
                .map(|(_, to, shows)| {
                    let prefixes: Vec<Value> = shows
                        .iter()
                        .map(|prefix| json!({ "name": "p", "prefix": prefix }))
                        .collect();
                    json!({ "name": format!("to-{to}"), "networkRef": { "name": to }, "prefixes": prefixes })
                })
                .collect();
            let id = format!("openkcm-net://net/{name}/{vni}/uid-{name}");
            objects.networks.push(object(json!({
                "metadata": { "name": name, "namespace": "default", "uid": format!("user-{name}") },
                "spec": { "providerID": id, "peerings": peerings },
                "status": { "state": "Available", "conditions": ready() },
            })));
        }
        for machine in &self.machines {
            add_machine(&mut objects, machine);
        }
        for host in ["hv1", "hv2"] {
            objects.net_nodes.push(object(json!({
                "metadata": { "name": format!("{PARTITION}.{host}") },
                "spec": {},
                "status": { "conditions": ready() },
            })));
        }
        for policy in &self.policies {
            objects.policies.push(object(policy.clone()));
        }
        self.services(&mut objects);
        objects
    }

    fn services(&self, objects: &mut Objects) {
        for (name, kind, network, ip, port, _) in &self.balancers {
            objects.balancers.push(object(json!({
                "metadata": { "name": name, "namespace": "default" },
                "spec": { "type": kind, "networkRef": { "name": network }, "ports": [{ "protocol": "TCP", "port": port }] },
                "status": { "ips": [ip], "conditions": ready() },
            })));
            let served = self.machines.iter().filter(|m| m.serves.contains(ip));
            let destinations: Vec<Value> = served
                .map(|m| json!({ "ip": m.addresses[0], "targetRef": { "uid": "u", "name": format!("{}-nic", m.name) } }))
                .collect();
            objects.routings.push(object(json!({
                "metadata": { "name": name, "namespace": "default" },
                "networkRef": { "name": network, "uid": format!("user-{network}") },
                "destinations": destinations,
            })));
        }
        for (network, ip) in &self.gateways {
            objects.nat_gateways.push(object(json!({
                "metadata": { "name": network, "namespace": "default" },
                "spec": { "type": "Public", "ipFamily": "IPv4", "networkRef": { "name": network } },
                "status": { "ips": [ip], "conditions": ready() },
            })));
            objects.nat_tables.push(object(json!({
                "metadata": { "name": network, "namespace": "net" },
                "ips": [{ "ip": ip }],
            })));
        }
    }

    /// What metalnets announce.
    fn announced(&self) -> Vec<Route> {
        let mut routes = Vec::new();
        let mut add = |number: u32, prefix: Prefix, next_hop: Ipv6Addr, kind: RouteKind| {
            routes.push(Route {
                vni: vni(number),
                prefix,
                next_hop,
                kind,
            });
        };
        for machine in &self.machines {
            let here = underlay(machine.host, machine.name);
            let own = self.vni(machine.network);
            for ip in &machine.addresses {
                let prefix = Prefix::host(address(ip));
                add(own, prefix, here, RouteKind::Standard);
                if address(ip).is_ipv6() {
                    add(PUBLIC, prefix, here, RouteKind::Standard);
                }
            }
            if let Some(vip) = machine.vip {
                add(
                    PUBLIC,
                    Prefix::host(address(vip)),
                    underlay(machine.host, vip),
                    RouteKind::Standard,
                );
            }
            if let Some((ip, first, end)) = machine.nat {
                let at = underlay(machine.host, &format!("{}-nat", machine.name));
                let ports = PortRange::new(first, end).unwrap();
                add(PUBLIC, Prefix::host(address(ip)), at, RouteKind::Standard);
                add(PUBLIC, Prefix::host(address(ip)), at, RouteKind::Nat(ports));
            }
            for served in &machine.serves {
                let at = underlay(machine.host, &format!("{}-{served}", machine.name));
                add(own, Prefix::host(address(served)), at, RouteKind::Target);
            }
        }
        for (name, kind, network, ip, _, hosts) in &self.balancers {
            let number = if *kind == "Public" {
                PUBLIC
            } else {
                self.vni(network)
            };
            for host in hosts {
                add(
                    number,
                    Prefix::host(address(ip)),
                    underlay(host, name),
                    RouteKind::Standard,
                );
            }
        }
        for all in ["0.0.0.0/0", "::/0"] {
            add(
                PUBLIC,
                all.parse().unwrap(),
                EDGE.parse().unwrap(),
                RouteKind::Standard,
            );
        }
        routes
    }

    fn inventory(&self, host: &str, routes: &[Route]) -> Observed {
        let mut observed = Observed::default();
        for machine in self.machines.iter().filter(|m| m.host == host) {
            let uid = Uid::new(&format!("metal-{}", machine.name)).unwrap();
            observed.insert_interface(uid, interface(machine, self.vni(machine.network)));
        }
        for (name, _, network, ip, port, hosts) in &self.balancers {
            if hosts.contains(&host) {
                let uid = Uid::new(&format!("{name}-{host}")).unwrap();
                let served = self.machines.iter().filter(|m| m.serves.contains(ip));
                let targets = served.map(|m| underlay(m.host, &format!("{}-{ip}", m.name)));
                let ports = [BalancedPort {
                    transport: Transport::Tcp,
                    port: *port,
                }];
                observed.insert_balancer(
                    uid,
                    Balancer {
                        vni: vni(self.vni(network)),
                        address: address(ip),
                        ports: ports.into(),
                        underlay: underlay(host, name),
                        targets: targets.collect(),
                    },
                );
            }
        }
        let tables: Vec<Vni> = observed.vnis().collect();
        for table in tables {
            self.fill(&mut observed, table, routes, host);
        }
        observed
    }

    fn fill(&self, observed: &mut Observed, table: Vni, routes: &[Route], host: &str) {
        let shows = |exporter: Vni, prefix: &Prefix| {
            self.peerings.iter().any(|(from, to, shows)| {
                let agreed = self.peerings.iter().any(|(f, t, _)| f == to && t == from);
                let inside = |list: &Vec<&str>| {
                    list.is_empty()
                        || list.iter().any(|p| {
                            let p: Prefix = p.parse().unwrap();
                            p.contains(prefix.address())
                        })
                };
                agreed
                    && vni(self.vni(from)) == exporter
                    && vni(self.vni(to)) == table
                    && inside(shows)
            })
        };
        for route in routes.iter().filter(|r| r.kind == RouteKind::Standard) {
            let own = route.vni == table;
            let is_default = route.vni == vni(PUBLIC) && route.prefix.len() == 0;
            let crosses = !own && shows(route.vni, &route.prefix);
            let local = own
                && self
                    .machines
                    .iter()
                    .any(|m| m.host == host && underlay(host, m.name) == route.next_hop);
            if (own || is_default || crosses) && !local {
                let hop = Hop {
                    vni: if is_default { table } else { route.vni },
                    address: route.next_hop,
                };
                observed.set_route(table, route.prefix, Some(Installed::Hop(hop)));
            }
        }
    }
}

fn add_machine(objects: &mut Objects, machine: &Machine) {
    let Machine {
        name,
        host,
        network,
        addresses,
        app,
        vip,
        nat,
        serves,
    } = machine;
    let nic = format!("{name}-nic");
    let node = format!("{PARTITION}.{host}");
    objects.machines.push(object(json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "machineClassRef": { "name": "small" },
            "networkInterfaces": [{ "name": "nic", "networkInterfaceRef": { "name": nic } }],
        },
        "status": { "state": "Running" },
    })));
    objects.nics.push(object(json!({
        "metadata": { "name": nic, "namespace": "default", "uid": format!("user-{name}"), "labels": { "app": app } },
        "spec": {
            "providerID": format!("openkcm-net://net/{name}/{node}/net-{name}"),
            "networkRef": { "name": network },
            "machineRef": { "name": name, "uid": "m" },
        },
        "status": { "state": "Available", "ips": addresses, "virtualIP": vip, "conditions": ready() },
    })));
    objects.net_nics.push(object(json!({
        "metadata": { "name": name, "namespace": "net", "uid": format!("net-{name}") },
        "spec": { "nodeRef": { "name": node }, "networkRef": { "name": network }, "ips": addresses },
        "status": { "state": "Ready" },
    })));
    let families: Vec<&str> = addresses
        .iter()
        .map(|ip| {
            if address(ip).is_ipv4() {
                "IPv4"
            } else {
                "IPv6"
            }
        })
        .collect();
    objects.metal_nics.push(object(json!({
        "metadata": { "name": format!("net-{name}"), "namespace": "metal", "uid": format!("metal-{name}") },
        "spec": {
            "networkRef": { "name": network }, "ipFamilies": families, "ips": addresses, "nodeName": host, "virtualIP": vip,
            "nat": nat.map(|(ip, first, end)| json!({ "ip": ip, "port": first, "endPort": end })),
            "loadBalancerTargets": serves.iter().map(|ip| format!("{ip}/32")).collect::<Vec<_>>(),
        },
        "status": { "state": "Ready" },
    })));
    if let Some(ip) = vip {
        objects.virtual_ips.push(object(json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "type": "Public", "ipFamily": "IPv4", "targetRef": { "name": nic, "uid": format!("user-{name}") } },
            "status": { "ip": ip, "conditions": ready() },
        })));
    }
}

fn interface(machine: &Machine, number: u32) -> Interface {
    let v4 = |ip: &&str| ip.parse::<Ipv4Addr>().ok();
    let v6 = |ip: &&str| ip.parse::<Ipv6Addr>().ok();
    let nat = machine.nat.map(|(ip, first, end)| {
        let share = NatShare {
            address: ip.parse().unwrap(),
            ports: PortRange::new(first, end).unwrap(),
        };
        (
            share,
            underlay(machine.host, &format!("{}-nat", machine.name)),
        )
    });
    let targets = machine.serves.iter().map(|served| {
        let at = underlay(machine.host, &format!("{}-{served}", machine.name));
        (Prefix::host(address(served)), at)
    });
    Interface {
        vni: vni(number),
        ipv4: machine.addresses.iter().find_map(v4),
        ipv6: machine.addresses.iter().find_map(v6),
        device: "dtap0".to_owned(),
        total_rate: 0,
        public_rate: 0,
        hostname: String::new(),
        underlay: underlay(machine.host, machine.name),
        prefixes: BTreeMap::new(),
        services: Services {
            vip: machine
                .vip
                .map(|ip| (ip.parse().unwrap(), underlay(machine.host, ip))),
            nat,
            targets: targets.collect(),
            rules: BTreeMap::new(),
        },
    }
}

/// An edge that has heard everything.
fn edge(routes: &[Route]) -> edge::status::Status {
    let mut table: BTreeMap<String, Vec<edge::status::Hop>> = BTreeMap::new();
    let public = routes
        .iter()
        .filter(|r| r.vni == vni(PUBLIC) && r.prefix.len() > 0);
    for route in public {
        let hops = table.entry(route.prefix.to_string()).or_default();
        match route.kind {
            RouteKind::Nat(ports) => {
                hops.retain(|hop| hop.address != route.next_hop);
                hops.push(edge::status::Hop {
                    address: route.next_hop,
                    ports: Some([ports.first(), ports.end()]),
                });
            }
            RouteKind::Standard | RouteKind::Target => hops.push(edge::status::Hop {
                address: route.next_hop,
                ports: None,
            }),
        }
    }
    let routes = table
        .into_iter()
        .map(|(prefix, hops)| edge::status::Route { prefix, hops });
    edge::status::Status {
        address: EDGE.parse().unwrap(),
        device: "edge0".to_owned(),
        mtu: 1500,
        public_prefixes: vec!["198.51.100.0/24".to_owned(), "2001:db8:100::/64".to_owned()],
        announced: vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
        servers: Vec::new(),
        routes_total: 0,
        routes: routes.collect(),
        ignored: Vec::new(),
        paths: Vec::new(),
        drops: Vec::new(),
        driver: Vec::new(),
    }
}
