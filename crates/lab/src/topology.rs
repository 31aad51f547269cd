//! What a lab consists of, computed from its name and size: namespaces, links, addresses. Pure: nothing here touches the system.
//!
//! ```text
//!   host ──── mgmt (bridge br0, API server, controllers)            internet: behind the routers, see `outside`
//!                ├──── hv1 ──pf0── r1 ──pf0── hv2        pfN: underlay uplinks (veth, MTU 9100)
//!                └──── hv2 ──pf1── r2 ──pf1── hv1        mgmt0: management link of each hypervisor
//! ```
//!
//! Every name and address derives from a 16-bit id of the lab's name, so that several labs coexist on one machine.

use std::net::Ipv6Addr;

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

use crate::outside;

/// Most hypervisors of one lab: the underlay prefix and the MAC plan give each an 8-bit number.
pub const HYPERVISORS_MAX: u8 = 64;
/// Most routers of one lab. dpservice has two uplinks; one router per uplink.
pub const ROUTERS_MAX: u8 = 2;
/// Longest lab name, so that namespace names stay readable in tables.
pub const NAME_LEN_MAX: usize = 20;
/// MTU of the underlay links: a 1500-byte overlay packet plus the 40-byte outer header fits with room to spare.
pub const UNDERLAY_MTU: u32 = 9100;
/// Port of the API server.
pub const API_PORT: u16 = 6443;
/// Port on which metalbond servers accept peers.
pub const METALBOND_PORT: u16 = 4711;
/// Port of a metalbond server's status page.
pub const METALBOND_HTTP_PORT: u16 = 4712;

/// The plan of one lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    pub name: String,
    pub hypervisors: u8,
    pub routers: u8,
    id: u16,
}

/// One veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub left: End,
    pub right: End,
    pub mtu: u32,
}

/// One end of a veth pair: the device `name` in the namespace `netns` (`None` = the host).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub netns: Option<String>,
    pub name: String,
    pub mac: String,
    pub addresses: Vec<String>,
    /// The bridge of the same namespace that this end joins.
    pub bridge: Option<&'static str>,
}

/// One link of a hypervisor, at its far end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plug {
    pub netns: String,
    /// Pulls it.
    pub out: Vec<String>,
    /// Puts it in again.
    pub back: Vec<String>,
}

impl Topology {
    /// # Errors
    /// The name is not a DNS label of at most [`NAME_LEN_MAX`] characters, or a size is out of range.
    pub fn new(name: &str, hypervisors: u8, routers: u8) -> Result<Self> {
        let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty()
            || name.len() > NAME_LEN_MAX
            || !name.chars().all(ok)
            || name.starts_with('-')
            || name.ends_with('-')
        {
            bail!(
                "--name {name:?}: use 1 to {NAME_LEN_MAX} lower-case letters, digits and inner dashes"
            );
        }
        if hypervisors == 0 || hypervisors > HYPERVISORS_MAX {
            bail!("--hypervisors {hypervisors}: use 1 to {HYPERVISORS_MAX}");
        }
        if routers == 0 || routers > ROUTERS_MAX {
            bail!("--routers {routers}: use 1 to {ROUTERS_MAX} (dpservice has two uplinks)");
        }
        let digest = Sha256::digest(name.as_bytes());
        let id = u16::from_be_bytes([digest[0], digest[1]]);
        Ok(Self {
            name: name.to_owned(),
            hypervisors,
            routers,
            id,
        })
    }

    pub fn hypervisor_names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.hypervisors).map(|i| format!("hv{i}"))
    }

    pub fn router_names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.routers).map(|j| format!("r{j}"))
    }

    /// The namespace of a part of the lab: `mgmt`, `hv1`, `r1` …
    pub fn netns(&self, role: &str) -> String {
        format!("okcm-{}-{role}", self.name)
    }

    /// Prefix of the namespaces of all machines; each hypervisor appends its name, its provider the machine's id.
    pub fn machine_netns_prefix(&self) -> String {
        format!("okcm-{}-vm-", self.name)
    }

    pub fn netns_all(&self) -> Vec<String> {
        self.roles().map(|role| self.netns(&role)).collect()
    }

    /// The parts of the lab that have a namespace of their own.
    pub fn roles(&self) -> impl Iterator<Item = String> + use<> {
        ["mgmt".to_owned(), outside::ROLE.to_owned()]
            .into_iter()
            .chain(self.router_names())
            .chain(self.hypervisor_names())
    }

    /// The device on the host that leads into the lab's management network; at most 15 characters.
    pub fn host_device(&self) -> String {
        format!("okcm{:04x}", self.id)
    }

    fn mgmt_address(&self, low: u32) -> Ipv6Addr {
        let [hi, lo] = [(low >> 16) as u16, (low & 0xffff) as u16];
        Ipv6Addr::new(0xfd4b, self.id, 0, 0, 0, 0, hi, lo)
    }

    pub fn api_address(&self) -> Ipv6Addr {
        self.mgmt_address(1)
    }

    pub fn api_url(&self) -> String {
        format!("https://[{}]:{API_PORT}", self.api_address())
    }

    /// The /64 of hypervisor `i` (1-based): its host address is `::1`, dpservice generates underlay addresses below `:d000::/68`.
    pub fn underlay_address(&self, hypervisor: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd4c, self.id, u16::from(hypervisor), 0, 0, 0, 0, 1)
    }

    pub fn router_address(&self, router: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd4c, self.id, 0xff00 + u16::from(router), 0, 0, 0, 0, 1)
    }

    /// Where all underlay addresses are in.
    pub fn underlay_prefix(&self) -> String {
        format!("fd4c:{:x}::/32", self.id)
    }

    pub(crate) fn mac(&self, role: u8, a: u8, b: u8) -> String {
        let [x, y] = self.id.to_be_bytes();
        format!("02:{x:02x}:{y:02x}:{role:02x}:{a:02x}:{b:02x}")
    }

    /// Every veth pair: management links first, then the underlay, then the outside.
    pub fn links(&self) -> Vec<Link> {
        let mut links = vec![Link {
            left: End {
                netns: None,
                name: self.host_device(),
                mac: self.mac(0, 0, 1),
                addresses: vec![format!("{}/64", self.mgmt_address(0xffff))],
                bridge: None,
            },
            right: End {
                netns: Some(self.netns("mgmt")),
                name: "host0".into(),
                mac: self.mac(0, 0, 2),
                addresses: vec![],
                bridge: Some("br0"),
            },
            mtu: 1500,
        }];
        for i in 1..=self.hypervisors {
            links.push(self.management_link(i));
        }
        for i in 1..=self.hypervisors {
            for j in 1..=self.routers {
                links.push(self.uplink(i, j));
            }
        }
        links.extend(outside::links(self));
        links
    }

    fn management_link(&self, i: u8) -> Link {
        Link {
            left: End {
                netns: Some(self.netns(&format!("hv{i}"))),
                name: "mgmt0".into(),
                mac: self.mac(1, i, 1),
                addresses: vec![format!("{}/64", self.mgmt_address(0x1_0000 + u32::from(i)))],
                bridge: None,
            },
            right: End {
                netns: Some(self.netns("mgmt")),
                name: format!("hv{i}"),
                mac: self.mac(1, i, 2),
                addresses: vec![],
                bridge: Some("br0"),
            },
            mtu: 1500,
        }
    }

    fn uplink(&self, i: u8, j: u8) -> Link {
        Link {
            left: End {
                netns: Some(self.netns(&format!("hv{i}"))),
                name: format!("pf{}", j - 1),
                mac: self.mac(2, i, j),
                addresses: vec![format!("fe80::{i:x}/64")],
                bridge: None,
            },
            right: End {
                netns: Some(self.netns(&format!("r{j}"))),
                name: format!("hv{i}"),
                mac: self.router_mac(i, j),
                addresses: vec![format!("fe80::ff:{j:x}/64")],
                bridge: None,
            },
            mtu: UNDERLAY_MTU,
        }
    }

    fn router_mac(&self, i: u8, j: u8) -> String {
        self.mac(3, i, j)
    }

    /// Lines for `ip -batch` in each namespace, after the links exist: addresses, neighbours and routes of the underlay.
    pub fn underlay_batches(&self) -> Vec<(String, Vec<String>)> {
        let mut batches = Vec::new();
        for i in 1..=self.hypervisors {
            let mut lines = vec![format!(
                "addr add {}/128 dev lo nodad",
                self.underlay_address(i)
            )];
            let mut hops = String::new();
            for j in 1..=self.routers {
                let device = format!("pf{}", j - 1);
                // dpservice takes its next hop from the neighbour entry that carries the router flag, like on a real fabric
                // where a router advertisement sets it.
                lines.push(format!(
                    "neigh replace fe80::ff:{j:x} lladdr {} dev {device} router nud permanent",
                    self.router_mac(i, j)
                ));
                lines.push(format!(
                    "route add {}/128 via fe80::ff:{j:x} dev {device} src {}",
                    self.router_address(j),
                    self.underlay_address(i)
                ));
                hops.push_str(&format!(" nexthop via fe80::ff:{j:x} dev {device}"));
            }
            lines.push(format!(
                "route add {} src {}{hops}",
                self.underlay_prefix(),
                self.underlay_address(i)
            ));
            batches.push((self.netns(&format!("hv{i}")), lines));
        }
        for j in 1..=self.routers {
            let mut lines = vec![format!(
                "addr add {}/128 dev lo nodad",
                self.router_address(j)
            )];
            for i in 1..=self.hypervisors {
                lines.extend(self.way_to_hypervisor(i, j));
            }
            batches.push((self.netns(&format!("r{j}")), lines));
        }
        batches.extend(outside::batches(self));
        batches
    }

    /// What router `j` needs to reach hypervisor `i`.
    fn way_to_hypervisor(&self, i: u8, j: u8) -> [String; 2] {
        [
            format!(
                "neigh replace fe80::{i:x} lladdr {} dev hv{i} nud permanent",
                self.mac(2, i, j)
            ),
            format!(
                "route replace fd4c:{:x}:{i:x}::/64 via fe80::{i:x} dev hv{i} src {}",
                self.id,
                self.router_address(j)
            ),
        ]
    }

    /// The far ends of a hypervisor's links, with the lines for `ip -batch` that pull its plugs there and put them in again.
    /// The kernel forgets a device's IPv6 addresses, neighbours and routes while it is down.
    pub fn plugs(&self, hypervisor: u8) -> Vec<Plug> {
        let device = format!("hv{hypervisor}");
        let plug = |role: &str, rest: Vec<String>| Plug {
            netns: self.netns(role),
            out: vec![format!("link set {device} down")],
            back: [vec![format!("link set {device} up")], rest].concat(),
        };
        let routers = (1..=self.routers).map(|j| {
            let mut rest = vec![format!("addr replace fe80::ff:{j:x}/64 dev {device} nodad")];
            rest.extend(self.way_to_hypervisor(hypervisor, j));
            plug(&format!("r{j}"), rest)
        });
        routers
            .chain(std::iter::once(plug("mgmt", Vec::new())))
            .collect()
    }

    pub fn api_address_line(&self) -> String {
        format!("addr add {}/64 dev br0 nodad", self.api_address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_out_of_range_are_refused() {
        for (name, hypervisors, routers) in [
            ("", 1, 1),
            ("Upper", 1, 1),
            ("-x", 1, 1),
            ("a", 0, 1),
            ("a", 65, 1),
            ("a", 1, 0),
            ("a", 1, 3),
        ] {
            assert!(
                Topology::new(name, hypervisors, routers).is_err(),
                "{name} {hypervisors} {routers}"
            );
        }
    }

    #[test]
    fn two_labs_share_no_name_and_no_address() {
        let a = Topology::new("a", 2, 2).unwrap();
        let b = Topology::new("b", 2, 2).unwrap();
        assert_ne!(a.host_device(), b.host_device());
        assert!(a.netns_all().iter().all(|n| !b.netns_all().contains(n)));
        assert_ne!(a.api_address(), b.api_address());
    }

    #[test]
    fn device_names_fit_the_kernel_and_macs_are_unique() {
        let t = Topology::new("a-name-of-20-letters", 64, 2).unwrap();
        let ends: Vec<End> = t
            .links()
            .into_iter()
            .flat_map(|l| [l.left, l.right])
            .collect();
        assert!(ends.iter().all(|e| e.name.len() <= 15));
        let mut macs: Vec<&String> = ends.iter().map(|e| &e.mac).collect();
        macs.sort();
        macs.dedup();
        assert_eq!(macs.len(), ends.len());
    }

    #[test]
    fn what_a_router_forgets_with_a_link_is_told_again() {
        let t = Topology::new("x", 2, 2).unwrap();
        let told = t.underlay_batches();
        for plug in t.plugs(2) {
            let lost = told
                .iter()
                .filter(|(netns, _)| *netns == plug.netns)
                .flat_map(|(_, lines)| lines)
                .filter(|line| line.contains("dev hv2"));
            for line in lost {
                assert!(plug.back.contains(line), "{line}");
            }
        }
        assert_eq!(t.plugs(2).len(), 3);
    }

    #[test]
    fn every_hypervisor_has_one_uplink_per_router_with_the_router_flag() {
        let t = Topology::new("x", 2, 2).unwrap();
        let batches = t.underlay_batches();
        let (_, hv1) = &batches[0];
        assert_eq!(hv1.iter().filter(|l| l.contains(" router ")).count(), 2);
        assert!(
            hv1.iter().any(
                |l| l.contains("nexthop via fe80::ff:1 dev pf0 nexthop via fe80::ff:2 dev pf1")
            )
        );
    }
}
