//! Public addresses, packet filters and load balancers, after parsing: the values that the plans compare.
//!
//! Like `model`, nothing here does IO, and what exists is valid. A rule is held in the one form that both the API and
//! dpservice translate into, so that only real differences show.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use net::PortRange;

use crate::model::{Meta, ObjectKey, Prefix, State};

/// The finalizer that holds a LoadBalancer until the data plane let go of it.
pub use api::names::finalizer::METALNET_LOAD_BALANCER as BALANCER_FINALIZER;

/// Most packet filter rules of one interface. Twice as many fit into dpservice, because new rules come before the old
/// ones go.
pub const RULES_MAX: usize = 2_000;
/// Most load balancer addresses one interface may serve.
pub const TARGETS_MAX: usize = 256;
/// Most ports of one load balancer: more do not fit into dpservice.
pub const BALANCED_PORTS_MAX: usize = 15;
/// Most targets of one load balancer: more do not fit into dpservice.
pub const BALANCER_TARGETS_MAX: usize = 64;

/// A share of a NAT address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NatShare {
    pub address: Ipv4Addr,
    pub ports: PortRange,
}

/// Which packets a rule looks at, as the machine sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Accept,
    Deny,
}

/// First and last port; `None` is every port.
pub type Ports = Option<(u16, u16)>;

/// Which packets of a protocol a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Matching {
    Any,
    Tcp { source: Ports, destination: Ports },
    Udp { source: Ports, destination: Ports },
    Icmp { kind: Option<u8>, code: Option<u8> },
}

/// A packet filter rule. Its id is the key under which it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    pub direction: Direction,
    pub action: Action,
    /// 0 is tried first.
    pub priority: u16,
    pub source: Prefix,
    pub destination: Prefix,
    pub matching: Matching,
}

/// Transport of a balanced port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A port that a load balancer serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BalancedPort {
    pub transport: Transport,
    pub port: u16,
}

/// What a LoadBalancer asks of the data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancerSpec {
    /// Whether the outside shall reach the address; else only its network.
    pub public: bool,
    pub address: IpAddr,
    pub ports: BTreeSet<BalancedPort>,
}

/// Why the spec of a LoadBalancer cannot be realised. Permanent until the spec changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BalancerError {
    #[error("the spec cannot be read: {0}")]
    Unreadable(String),
    #[error("ip: {0} is not an address that can be balanced")]
    AddressUse(IpAddr),
    #[error("ip {0} is not of family {1}")]
    FamilyMismatch(IpAddr, api::meta::IpFamily),
    #[error("IPv6 address {0} but this node runs without --enable-ipv6")]
    Ipv6Disabled(IpAddr),
    #[error("ports: {protocol} {port} cannot be balanced: TCP or UDP and 1 to 65535 are possible")]
    Port { protocol: String, port: i32 },
    #[error("ports: {0} entries, 1 to {max} are possible", max = BALANCED_PORTS_MAX)]
    PortCount(usize),
}

/// A LoadBalancer of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancer {
    pub meta: Meta,
    pub network: ObjectKey,
    pub spec: Result<BalancerSpec, BalancerError>,
    /// `status.state` as last seen.
    pub state: Option<State>,
}
