//! What a plan can ask for, and what may come back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use net::{PortRange, Prefix};

use super::observed::{Hop, Neighbor, Observed};
use crate::model::{Meta, NicStatus, State, Uid, Vni};
use crate::services::{BalancedPort, NatShare, Rule};

/// A route's place in dpservice: the table and the prefix, host bits cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    pub vni: Vni,
    pub prefix: Prefix,
}

/// Everything dpservice needs to create an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceRequest {
    pub vni: Vni,
    pub device: String,
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    pub total_rate: u64,
    pub public_rate: u64,
    pub hostname: String,
    /// The packet filter that the interface must not be without for a moment, by rule id.
    pub rules: BTreeMap<String, Rule>,
}

/// Everything dpservice needs to create a load balancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancerRequest {
    pub vni: Vni,
    pub address: IpAddr,
    pub ports: BTreeSet<BalancedPort>,
}

/// Something that belongs to an interface and can be added and taken away while it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Vip(Ipv4Addr),
    Nat(NatShare),
    /// A load balancer address that the interface serves.
    Target(Prefix),
    /// A packet filter rule.
    Rule {
        id: String,
        rule: Rule,
    },
}

/// Id of the copy of a rule that stands in while the rule changes; no rule of an object may have it.
pub const RULE_CHANGING: &str = "~";

/// A call to dpservice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DpOp {
    Initialize,
    List,
    CreateInterface {
        uid: Uid,
        request: Box<InterfaceRequest>,
    },
    DeleteInterface {
        uid: Uid,
    },
    CreatePrefix {
        uid: Uid,
        prefix: Prefix,
    },
    DeletePrefix {
        uid: Uid,
        prefix: Prefix,
    },
    CreatePart {
        uid: Uid,
        part: Box<Part>,
    },
    DeleteVip {
        uid: Uid,
    },
    DeleteNat {
        uid: Uid,
    },
    DeleteTargetPrefix {
        uid: Uid,
        prefix: Prefix,
    },
    DeleteRule {
        uid: Uid,
        id: String,
    },
    /// Gives a rule another content without a moment in which neither the old nor the new one holds: the new content
    /// first under the id [`RULE_CHANGING`], then under its own.
    ReplaceRule {
        uid: Uid,
        id: String,
        rule: Box<Rule>,
    },
    CreateBalancer {
        uid: Uid,
        request: Box<BalancerRequest>,
    },
    DeleteBalancer {
        uid: Uid,
    },
    CreateTarget {
        uid: Uid,
        target: Ipv6Addr,
    },
    DeleteTarget {
        uid: Uid,
        target: Ipv6Addr,
    },
    CreateNeighbor {
        neighbor: Neighbor,
        underlay: Ipv6Addr,
    },
    /// Deletes and creates at once: dpservice cannot change a share.
    ReplaceNeighbor {
        neighbor: Neighbor,
        underlay: Ipv6Addr,
    },
    DeleteNeighbor {
        neighbor: Neighbor,
    },
    CreateRoute {
        key: RouteKey,
        hop: Hop,
    },
    /// Changes the next hop without a gap where dpservice can, else deletes and creates at once.
    ReplaceRoute {
        key: RouteKey,
        hop: Hop,
    },
    DeleteRoute {
        key: RouteKey,
    },
}

/// What a successful call to dpservice returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DpDone {
    Done,
    /// The id of the instance that was initialised.
    Instance(String),
    /// The underlay address that dpservice made for what was created.
    Underlay(Ipv6Addr),
    /// An interface was created together with its rules.
    Guarded(Ipv6Addr),
    Inventory(Box<Observed>),
}

/// Why a call to dpservice did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DpError {
    /// dpservice carried out the call and refused.
    #[error("dpservice answered {code} {message}")]
    Code { code: u32, message: String },
    /// dpservice could not understand an argument; repeating does not help.
    #[error("dpservice rejected an argument: {0}")]
    Argument(String),
    /// This instance has not been initialised: it is a new one.
    #[error("dpservice is not initialised")]
    Uninitialized,
    /// Whether the call was carried out is unknown.
    #[error("dpservice cannot be reached: {0}")]
    Unavailable(String),
}

/// dpservice's codes that decide a path here.
pub mod code {
    pub const NOT_FOUND: u32 = 201;
    pub const ALREADY_EXISTS: u32 = 202;
    pub const NO_VM: u32 = 205;
    pub const NO_VNI: u32 = 206;
    pub const ROUTE_EXISTS: u32 = 301;
    pub const ROUTE_NOT_FOUND: u32 = 302;
    pub const ROUTE_BAD_PORT: u32 = 304;
    pub const DNAT_EXISTS: u32 = 323;
    pub const SNAT_NO_DATA: u32 = 341;
    pub const SNAT_EXISTS: u32 = 343;
    pub const PORT_STOP: u32 = 382;
    pub const PORT_METER: u32 = 383;
    pub const VM_HANDLE: u32 = 402;
    pub const VNF_DELETE: u32 = 403;
    pub const NO_BACKIP: u32 = 421;
    pub const NO_LB: u32 = 422;
}

impl DpError {
    /// dpservice's status code, if it answered with one.
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Code { code, .. } => Some(*code),
            Self::Argument(_) | Self::Uninitialized | Self::Unavailable(_) => None,
        }
    }

    /// Whether the cause is the instance rather than the request: worth nothing in a status.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Uninitialized | Self::Unavailable(_))
    }
}

/// What a next hop is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HopKind {
    Standard,
    /// The hop owns these ports of the NAT address.
    Nat(PortRange),
    /// The hop is a target of the load balancer with this address.
    Target,
}

/// One destination that other hosts shall reach through us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Announcement {
    pub vni: Vni,
    pub prefix: Prefix,
    pub underlay: Ipv6Addr,
    pub kind: HopKind,
}

/// A change for the metalbond client. It keeps the set itself, so these cannot fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BondOp {
    Subscribe(Vni),
    Unsubscribe(Vni),
    Announce(Announcement),
    Withdraw(Announcement),
}

/// A change of the claim folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimOp {
    Take { uid: Uid, claim: String },
    Release { uid: Uid },
}

/// A write to the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiOp {
    /// Replaces the finalizers; refused by the server if the object changed since `meta` was read.
    NicFinalizers {
        meta: Box<Meta>,
        finalizers: Vec<String>,
    },
    NicStatus {
        meta: Box<Meta>,
        status: NicStatus,
    },
    NetworkFinalizers {
        meta: Box<Meta>,
        finalizers: Vec<String>,
    },
    NetworkPeerings {
        meta: Box<Meta>,
        peerings: BTreeMap<u32, State>,
    },
    BalancerFinalizers {
        meta: Box<Meta>,
        finalizers: Vec<String>,
    },
    BalancerStatus {
        meta: Box<Meta>,
        state: State,
    },
    /// A warning for the people who look at the object.
    Warn {
        kind: &'static str,
        meta: Box<Meta>,
        reason: &'static str,
        note: String,
    },
}

/// Why a write to the API did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The object changed meanwhile: look again, then retry.
    #[error("conflict")]
    Conflict,
    #[error("not found")]
    NotFound,
    /// The server refused; repeating the same write does not help.
    #[error("refused: {0}")]
    Refused(String),
    #[error("unavailable: {0}")]
    Unavailable(String),
}
