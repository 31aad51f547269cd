//! Value types shared by all groups: addresses, prefixes, references and the Kubernetes metadata types.
//!
//! An address or prefix is parsed once, here, by the rules of the API: strict dotted IPv4 (no leading
//! zeros), IPv6 in any textual form, printed in canonical form; prefixes keep their host bits.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::macros::words;

pub use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    Condition, LabelSelector, ObjectMeta, OwnerReference, Time,
};

words! {
    /// Address family.
    IpFamily { IPv4, IPv6 }
}

words! {
    /// Transport protocol.
    Protocol { TCP, UDP, SCTP }
}

impl IpFamily {
    /// Family of an address. An IPv4-mapped IPv6 address counts as IPv6.
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::IPv4,
            IpAddr::V6(_) => Self::IPv6,
        }
    }

    /// Length of a prefix that holds exactly one address: 32 or 128.
    pub const fn bits(self) -> u8 {
        match self {
            Self::IPv4 => 32,
            Self::IPv6 => 128,
        }
    }
}

/// Why a text is not an address or prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not a textual IP address.
    #[error("not a valid IP address: {0:?}")]
    Ip(String),
    /// Not `address/length`.
    #[error("not a valid IP prefix: {0:?}")]
    Prefix(String),
}

/// An IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ip(pub IpAddr);

impl Ip {
    /// Address family.
    pub const fn family(self) -> IpFamily {
        IpFamily::of(self.0)
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Ip {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.parse()
            .map(Ip)
            .map_err(|_| ParseError::Ip(text.into()))
    }
}

impl From<IpAddr> for Ip {
    fn from(addr: IpAddr) -> Self {
        Self(addr)
    }
}

/// `address/length`; the host bits stay as they were typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpPrefix(pub IpNet);

impl IpPrefix {
    /// A prefix; `None` when the length does not fit the family.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        IpNet::new(addr, len).ok().map(Self)
    }

    /// The prefix that holds exactly this address.
    pub fn host(addr: IpAddr) -> Self {
        Self(IpNet::from(addr))
    }

    /// Address part, host bits included.
    pub const fn addr(self) -> IpAddr {
        match self.0 {
            IpNet::V4(net) => IpAddr::V4(net.addr()),
            IpNet::V6(net) => IpAddr::V6(net.addr()),
        }
    }

    /// Length in bits.
    pub const fn bits(self) -> u8 {
        match self.0 {
            IpNet::V4(net) => net.prefix_len(),
            IpNet::V6(net) => net.prefix_len(),
        }
    }

    /// Address family.
    pub const fn family(self) -> IpFamily {
        IpFamily::of(self.addr())
    }

    /// True when the prefix holds exactly one address.
    pub const fn is_host(self) -> bool {
        self.bits() == self.family().bits()
    }

    /// The same prefix with the host bits cleared.
    pub fn masked(self) -> Self {
        Self(self.0.trunc())
    }

    /// True when `inner` lies completely inside this prefix.
    pub fn contains(self, inner: Self) -> bool {
        self.0.contains(&inner.0)
    }

    /// True when the address lies inside this prefix.
    pub fn contains_ip(self, ip: IpAddr) -> bool {
        self.0.contains(&ip)
    }

    /// True when both prefixes share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for IpPrefix {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::Prefix(text.into());
        let (_, len) = text.split_once('/').ok_or_else(bad)?;
        // A sign or a leading zero is no length, although an integer parser would take it.
        let plain =
            len.bytes().all(|b| b.is_ascii_digit()) && (len == "0" || !len.starts_with('0'));
        if !plain {
            return Err(bad());
        }
        text.parse().map(IpPrefix).map_err(|_| bad())
    }
}

impl From<IpNet> for IpPrefix {
    fn from(net: IpNet) -> Self {
        Self(net)
    }
}

/// Whether a label selector matches. An empty selector matches everything; an expression with an operator nobody knows matches
/// nothing.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let mut by_labels = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    by_labels.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|expression| {
            let value = labels.get(&expression.key);
            let listed =
                value.is_some_and(|value| expression.values.iter().flatten().any(|v| v == value));
            match expression.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

macro_rules! text_scalar {
    ($ty:ident, $format:literal, $description:literal) => {
        impl Serialize for $ty {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
        impl JsonSchema for $ty {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($ty).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "format": $format, "description": $description})
            }
        }
    };
}
text_scalar!(Ip, "ip", "IP address.");
text_scalar!(IpPrefix, "ip-prefix", "IP prefix, address/length.");

/// Names an object of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct LocalObjectReference {
    /// Name of the object.
    pub name: String,
}

impl LocalObjectReference {
    /// Reference to `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}

/// Names an object of the same namespace, and which of the objects that ever had this name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct LocalUidReference {
    /// Name of the object.
    pub name: String,
    /// UID of the object.
    pub uid: String,
}

impl LocalUidReference {
    /// Reference to `name` with `uid`.
    pub fn new(name: impl Into<String>, uid: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            uid: uid.into(),
        }
    }
}

/// Names an object, possibly of another namespace.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct UidReference {
    /// Namespace of the object; empty means the namespace of the object that holds the reference.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// UID of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// One key of a Secret of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct SecretKeySelector {
    /// Name of the Secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Key inside the Secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
}

words! {
    /// What a taint does to machines that do not tolerate it.
    TaintEffect { NoSchedule, NoExecute }
}

/// Keeps machines away from a pool unless they tolerate it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Taint {
    /// Key of the taint.
    pub key: String,
    /// Value of the taint.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// What happens to machines that do not tolerate the taint.
    pub effect: TaintEffect,
}

words! {
    /// How a toleration compares its value.
    TolerationOperator { Equal, Exists }
}

/// Lets a machine run on a pool in spite of a taint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Toleration {
    /// Key of the taint; empty with operator Exists tolerates every taint.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// How the value is compared; absent means Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// Value of the taint.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Effect of the taint; absent means every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

impl Toleration {
    /// True when this toleration accepts the taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        if self.effect.is_some_and(|effect| effect != taint.effect) {
            return false;
        }
        match self.operator.unwrap_or_default() {
            TolerationOperator::Exists => self.key.is_empty() || self.key == taint.key,
            TolerationOperator::Equal => self.key == taint.key && self.value == taint.value,
        }
    }
}
