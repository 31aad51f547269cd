//! The partition that a metalnetlet serves: its name, and which OpenKCM-net objects belong to it.

use std::collections::BTreeMap;

use api::{apinet, ids, names::finalizer};
use thiserror::Error;

/// Configuration that every plan of this crate shares.
#[derive(Clone, Debug)]
pub struct Partition {
    name: String,
    /// Namespace of the metalnet objects.
    pub metalnet_namespace: String,
    /// Labels that every published Node gets.
    pub node_labels: BTreeMap<String, String>,
    /// Mirror a Network only while this partition uses it or a peer of it.
    pub only_used_networks: bool,
    /// Whether peerings are realized here.
    pub peering: bool,
}

/// Why a partition name is unusable. Nothing heals this but another name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PartitionError {
    /// A dot would make `a` the owner of the nodes of `a.b`.
    #[error(
        "partition name {0:?} must be lower-case letters, digits and '-', at most 63, without dots"
    )]
    Name(String),
}

impl Partition {
    pub fn new(
        name: impl Into<String>,
        metalnet_namespace: impl Into<String>,
    ) -> Result<Partition, PartitionError> {
        let name = name.into();
        if api::validate::dns_label(&name).is_some() {
            return Err(PartitionError::Name(name));
        }
        Ok(Partition {
            name,
            metalnet_namespace: metalnet_namespace.into(),
            node_labels: BTreeMap::new(),
            only_used_networks: false,
            peering: true,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn finalizer(&self) -> String {
        finalizer::metalnetlet_partition(&self.name)
    }

    /// Name of the OpenKCM-net Node of a node of our cluster.
    pub fn apinet_node(&self, node: &str) -> String {
        ids::apinet_node_name(&self.name, node)
    }

    /// The node of our cluster behind an OpenKCM-net Node, if it is ours.
    pub fn cluster_node<'a>(&self, apinet_node: &'a str) -> Option<&'a str> {
        apinet_node
            .strip_prefix(&self.name)?
            .strip_prefix('.')
            .filter(|node| !node.is_empty())
    }

    /// The node of our cluster that an interface is on, if it is ours.
    pub fn node_of<'a>(&self, nic: &'a apinet::NetworkInterface) -> Option<&'a str> {
        self.cluster_node(&nic.spec.node_ref.name)
    }
}
