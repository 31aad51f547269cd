//! Derived identities: provider ids, names of OpenKCM-net objects, provenance metadata, group spelling.
//!
//! Everything is a pure function of its inputs, so that every part derives the same name again after a
//! restart and no part needs to remember one.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::meta::ObjectMeta;
use crate::names::{self, GROUPS};
use crate::validate;

/// Scheme of provider ids.
pub const SCHEME: &str = "openkcm-net://";

/// Why a text is not a provider id. Retrying is useless; the writer of the id must be repaired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The scheme is missing.
    #[error("provider id {0:?} does not start with {SCHEME:?}")]
    Scheme(String),
    /// Not four parts.
    #[error("provider id {0:?} does not have four parts")]
    Parts(String),
    /// The node part is no DNS subdomain.
    #[error("node {0:?} of the provider id is not a DNS subdomain")]
    Node(String),
}

/// Handle of a realized network, `Network.spec.providerID`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkProviderId {
    /// Namespace of the OpenKCM-net Network.
    pub namespace: String,
    /// Name of the OpenKCM-net Network.
    pub name: String,
    /// VNI in decimal.
    pub id: String,
    /// UID of the OpenKCM-net Network.
    pub uid: String,
}

/// Handle of a realized interface, `NetworkInterface.spec.providerID`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkInterfaceProviderId {
    /// Namespace of the OpenKCM-net NetworkInterface.
    pub namespace: String,
    /// Name of the OpenKCM-net NetworkInterface.
    pub name: String,
    /// OpenKCM-net Node.
    pub node: String,
    /// UID of the OpenKCM-net NetworkInterface.
    pub uid: String,
}

fn parts(text: &str) -> Result<[String; 4], IdError> {
    // The document also spells the scheme with capitals; both mean the same.
    let rest = text
        .get(..SCHEME.len())
        .filter(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
        .and_then(|_| text.get(SCHEME.len()..))
        .ok_or_else(|| IdError::Scheme(text.into()))?;
    let parts: Vec<String> = rest.split('/').map(str::to_owned).collect();
    <[String; 4]>::try_from(parts)
        .ok()
        .filter(|parts| parts.iter().all(|part| !part.is_empty()))
        .ok_or_else(|| IdError::Parts(text.into()))
}

impl std::fmt::Display for NetworkProviderId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            namespace,
            name,
            id,
            uid,
        } = self;
        write!(f, "{SCHEME}{namespace}/{name}/{id}/{uid}")
    }
}

impl std::str::FromStr for NetworkProviderId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let [namespace, name, id, uid] = parts(text)?;
        Ok(Self {
            namespace,
            name,
            id,
            uid,
        })
    }
}

impl std::fmt::Display for NetworkInterfaceProviderId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            namespace,
            name,
            node,
            uid,
        } = self;
        write!(f, "{SCHEME}{namespace}/{name}/{node}/{uid}")
    }
}

impl std::str::FromStr for NetworkInterfaceProviderId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let [namespace, name, node, uid] = parts(text)?;
        if validate::dns_subdomain(&node).is_some() {
            return Err(IdError::Node(node));
        }
        Ok(Self {
            namespace,
            name,
            node,
            uid,
        })
    }
}

/// UUID of version-5 shape over SHA-256 with the nil namespace.
///
/// RFC 9562 §5.5 defines version 5 over SHA-1; the reference provider uses SHA-256 with the same bit
/// layout, and the name is part of the contract between the parts.
pub fn uuid5_sha256(text: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update([0_u8; 16]);
    hasher.update(text.as_bytes());
    let digest = hasher.finalize();
    let mut hex = String::with_capacity(36);
    for (i, byte) in digest.iter().take(16).enumerate() {
        let byte = match i {
            6 => (byte & 0x0f) | 0x50,
            8 => (byte & 0x3f) | 0x80,
            _ => *byte,
        };
        if matches!(i, 4 | 6 | 8 | 10) {
            hex.push('-');
        }
        hex.push_str(&format!("{byte:02x}"));
    }
    hex
}

/// Name of the OpenKCM-net NetworkInterface of interface `nic` of runtime machine `machine_id`.
pub fn apinet_nic_name(machine_id: &str, nic: &str) -> String {
    uuid5_sha256(&format!("{machine_id}/{nic}"))
}

/// Name of the OpenKCM-net Node of node `node` in partition `partition`.
pub fn apinet_node_name(partition: &str, node: &str) -> String {
    format!("{partition}.{node}")
}

/// Name of the NetworkInterface made for entry `entry` of machine `machine`.
pub fn ephemeral_nic_name(machine: &str, entry: &str) -> String {
    format!("{machine}-{entry}")
}

/// Name of the ipam Prefix made for `ips[index]` of an interface or load balancer.
pub fn ephemeral_ip_prefix_name(owner: &str, index: usize) -> String {
    format!("{owner}-{index}")
}

/// Name of the ipam Prefix made for `prefixes[index]` of an interface.
pub fn ephemeral_prefix_name(nic: &str, index: usize) -> String {
    format!("{nic}-pf-{index}")
}

/// Name of a PrefixAllocation made for a Prefix. `request` says what it asks for and how often that was tried, so that another
/// request gets another name. The prefix's name is cut so that the result stays a name.
pub fn allocation_name(prefix: &str, uid: &str, request: &str) -> String {
    const SUFFIX: usize = 5;
    let digest: String = uuid5_sha256(&format!("{uid}/{request}"))
        .chars()
        .take(SUFFIX)
        .collect();
    let room = validate::name::SUBDOMAIN_MAX - SUFFIX - 1;
    let head: String = prefix.chars().take(room).collect();
    format!("{}-{digest}", head.trim_end_matches(['-', '.']))
}

/// Value of the label [`names::label::IP`]: a label value may not hold `:` nor start or end with `-`.
/// The reference breaks on addresses such as `2001:db8::`; padding with `0` keeps the value unique,
/// because `0` in front of or behind `::` is the same address.
pub fn ip_label(ip: crate::meta::Ip) -> String {
    let text = ip.to_string().replace(':', "-");
    let head = if text.starts_with('-') { "0" } else { "" };
    let tail = if text.ends_with('-') { "0" } else { "" };
    format!("{head}{text}{tail}")
}

/// Which object of the layer above an object was made for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Namespace of the source.
    pub namespace: String,
    /// Name of the source.
    pub name: String,
    /// UID of the source.
    pub uid: String,
}

impl Origin {
    /// Labels that say where an object came from; `base` is one of [`names::origin`].
    pub fn labels(&self, base: &str) -> BTreeMap<String, String> {
        BTreeMap::from([
            (format!("{base}-namespace"), self.namespace.clone()),
            (format!("{base}-uid"), self.uid.clone()),
        ])
    }

    /// Annotations that say where an object came from. The name is no label, because a name may be
    /// longer than a label value.
    pub fn annotations(&self, base: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(format!("{base}-name"), self.name.clone())])
    }

    /// Where an object came from, when all three marks are there.
    pub fn of(meta: &ObjectMeta, base: &str) -> Option<Self> {
        let labels = meta.labels.as_ref()?;
        let annotations = meta.annotations.as_ref()?;
        Some(Self {
            namespace: labels.get(&format!("{base}-namespace"))?.clone(),
            name: annotations.get(&format!("{base}-name"))?.clone(),
            uid: labels.get(&format!("{base}-uid"))?.clone(),
        })
    }
}

/// True when `object` was made by a controller of ephemeral objects for the owner with `owner_uid`.
pub fn is_ephemeral_of(object: &ObjectMeta, owner_uid: &str) -> bool {
    let marked = object
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(names::annotation::EPHEMERAL_MANAGED_BY))
        .is_some_and(|value| value == names::annotation::EPHEMERAL_MANAGER);
    let controlled = object
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && owner.uid == owner_uid);
    marked && controlled
}

/// The group as the server stores it. Documents spell `networking.OpenKCM.dev`; group names are DNS
/// names, so case does not matter, and only the lower-case form exists inside. `None` when the text is
/// no other spelling of one of our groups.
pub fn canonical_group(group: &str) -> Option<&'static str> {
    GROUPS
        .into_iter()
        .find(|ours| ours.eq_ignore_ascii_case(group))
}

/// `apiVersion` with the group in its canonical spelling; unchanged when the group is not ours.
pub fn canonical_api_version(api_version: &str) -> std::borrow::Cow<'_, str> {
    match api_version.split_once('/') {
        Some((group, version)) => match canonical_group(group) {
            Some(ours) if ours != group => format!("{ours}/{version}").into(),
            _ => api_version.into(),
        },
        None => api_version.into(),
    }
}
