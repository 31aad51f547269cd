//! The objects metalnet works with, after parsing: what cannot be wrong here was checked at the edge (`parse`).
//!
//! Nothing in this file does IO. The API's own types stay in the shell, so that the plans compare plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

pub use net::{Prefix, Vni};

use crate::services::{NatShare, RULES_MAX, Rule, TARGETS_MAX};

/// The finalizer that holds a NetworkInterface until the data plane let go of it.
pub use api::names::finalizer::METALNET_NETWORK_INTERFACE as NIC_FINALIZER;

/// The identity of an interface in dpservice: the UID of its NetworkInterface.
///
/// Constructed only from text that dpservice accepts as an id (1 to 63 characters of `[A-Za-z0-9_-]`), which is also
/// a safe file name for the claim.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(Arc<str>);

/// Longest id that dpservice takes.
pub const ID_LENGTH_MAX: usize = 63;

impl Uid {
    /// Accepts `text` if dpservice and the claim folder can use it as it stands.
    pub fn new(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.len() <= ID_LENGTH_MAX;
        let plain = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        (fits && plain).then(|| Self(Arc::from(text)))
    }

    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name and namespace of an API object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What every API object carries and the plans need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub key: ObjectKey,
    pub uid: Uid,
    pub generation: i64,
    /// Passed back in locked patches; opaque.
    pub resource_version: String,
    pub finalizers: Vec<String>,
    pub deleting: bool,
}

impl Meta {
    /// Whether the object carries `finalizer`.
    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }

    /// Whether `self` is certainly an older state of the object than `other`.
    ///
    /// Resource versions are compared as numbers, which Kubernetes has promised since 1.35 and etcd has always
    /// delivered; a version that is not a number is never older.
    pub fn is_older_than(&self, other: &Self) -> bool {
        match (
            self.resource_version.parse::<u64>(),
            other.resource_version.parse::<u64>(),
        ) {
            (Ok(mine), Ok(theirs)) => mine < theirs,
            _ => false,
        }
    }
}

/// Which routes a peering lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    All,
    /// Only destinations that lie inside one of these; empty lets nothing through.
    Within(Vec<Prefix>),
}

impl Filter {
    /// Whether a route to `prefix` may cross.
    pub fn allows(&self, prefix: &Prefix) -> bool {
        match self {
            Self::All => true,
            Self::Within(list) => list
                .iter()
                .any(|allowed| allowed.len() <= prefix.len() && allowed.contains(prefix.address())),
        }
    }
}

/// State of a NetworkInterface or of a peering, as written to status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Pending,
    Ready,
    Error,
}

/// A Network, reduced to what this node needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub meta: Meta,
    /// `None` if the id is not a VNI; such a network cannot be used.
    pub vni: Option<Vni>,
    /// The VNIs into whose tables this network's routes go.
    pub peers: BTreeMap<Vni, Filter>,
    /// `status.peerings` as last seen, VNI to state; entries that cannot be read are left out.
    pub peerings: BTreeMap<u32, Option<State>>,
}

/// Why the spec of a NetworkInterface cannot be realised. Permanent until the spec changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The object does not fit its type, for example because an address cannot be parsed.
    #[error("the spec cannot be read: {0}")]
    Unreadable(String),
    #[error("ips: {0} is not an address a machine can use")]
    AddressUse(IpAddr),
    #[error("ips has {ips} entries but ipFamilies has {families}")]
    FamilyCount { ips: usize, families: usize },
    #[error("ips[{index}] is not of family {family}")]
    FamilyMismatch {
        index: usize,
        family: api::meta::IpFamily,
    },
    #[error("more than one address of family {0}")]
    FamilyTwice(api::meta::IpFamily),
    #[error("neither an IPv4 nor an IPv6 address is given")]
    NoAddress,
    #[error("IPv6 address or prefix {0} but this node runs without --enable-ipv6")]
    Ipv6Disabled(Prefix),
    #[error("metering: total rate {total} is below public rate {public}")]
    Metering { total: u64, public: u64 },
    #[error("hostname has {0} bytes, at most 63 are possible")]
    Hostname(usize),
    #[error("prefixes: {0} entries, at most {max} are possible", max = PREFIXES_MAX)]
    PrefixCount(usize),
    #[error("loadBalancerTargets: {0} entries, at most {max} are possible", max = TARGETS_MAX)]
    TargetCount(usize),
    #[error("firewallRules: {0} entries, at most {max} are possible", max = RULES_MAX)]
    RuleCount(usize),
    #[error("firewall rule {id:?}: {why}")]
    Rule { id: String, why: &'static str },
    #[error("virtualIP: {0} cannot stand for a machine")]
    VirtualIp(IpAddr),
    #[error("virtualIPs: an interface has at most one IPv4 address of its own besides {0}")]
    VirtualIpTwice(Ipv4Addr),
    #[error("nat: {0} cannot be shared: only IPv4 addresses can")]
    NatAddress(IpAddr),
    #[error("nat: ports {port} to {end_port} are no range")]
    NatPorts { port: i32, end_port: i32 },
}

/// Most alias prefixes one interface may carry.
pub const PREFIXES_MAX: usize = 256;

/// What a NetworkInterface asks of the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicSpec {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    /// Prefixes routed to the interface besides its addresses, host bits cleared.
    pub prefixes: BTreeSet<Prefix>,
    /// Those of `prefixes` that the outside reaches: public IPv6 addresses, which need no translation.
    pub public: BTreeSet<Prefix>,
    /// Mbit/s of egress; 0 means unlimited.
    pub total_rate: u64,
    pub public_rate: u64,
    pub hostname: String,
    /// The public address that stands for the interface alone.
    pub vip: Option<Ipv4Addr>,
    pub nat: Option<NatShare>,
    /// Load balancer addresses that the interface serves.
    pub targets: BTreeSet<Prefix>,
    /// Packet filter rules by id.
    pub rules: BTreeMap<String, Rule>,
    /// Parts that cannot be realised and are left out. A rule is never left out: without it the filter could let through
    /// what it must not, so a bad rule spoils the whole spec.
    pub problems: Vec<SpecError>,
}

impl NicSpec {
    /// The host prefixes of the interface's own addresses.
    pub fn host_prefixes(&self) -> impl Iterator<Item = Prefix> + use<> {
        let v4 = self.ipv4.map(|a| Prefix::host(a.into()));
        let v6 = self.ipv6.map(|a| Prefix::host(a.into()));
        v4.into_iter().chain(v6)
    }
}

/// The device of an interface as status shows it. Exactly one of the two is ever set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceStatus {
    Pci {
        domain: String,
        bus: String,
        slot: String,
        function: String,
    },
    Tap {
        name: String,
    },
}

/// Status of a NetworkInterface, as far as metalnet writes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NicStatus {
    /// The generation that the data plane was last seen to agree with.
    pub observed_generation: Option<i64>,
    pub state: Option<State>,
    pub device: Option<DeviceStatus>,
    pub prefixes: Vec<String>,
    /// Public addresses in use: the first, and all.
    pub virtual_ips: Vec<IpAddr>,
    pub nat: Option<NatShare>,
    pub targets: Vec<String>,
}

/// A NetworkInterface of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    pub meta: Meta,
    pub network: ObjectKey,
    pub spec: Result<NicSpec, SpecError>,
    pub status: NicStatus,
}
