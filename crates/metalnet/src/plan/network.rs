//! What a node writes to a Network: its own finalizer while it uses the network, and the state of the peerings.

use std::collections::BTreeMap;

use api::names::finalizer::metalnet_network as finalizer;

use crate::model::{Network, State};

/// Everything the plan for one Network looks at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub network: &'a Network,
    pub node: &'a str,
    /// Whether this node uses the network; `None` while that is not known.
    pub used: Option<bool>,
    /// Whether the routes of the network and of its peers have been heard.
    pub heard: bool,
}

/// Writes to make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub finalizers: Option<Vec<String>>,
    pub peerings: Option<BTreeMap<u32, State>>,
}

/// Plans the writes. Nodes that do not use the network leave it alone, so that status does not flap between nodes.
pub fn plan(view: View<'_>) -> Plan {
    let View {
        network,
        node,
        used,
        heard,
    } = view;
    let mine = finalizer(node);
    let mut plan = Plan::default();
    match used {
        Some(true) if !network.meta.has_finalizer(&mine) && !network.meta.deleting => {
            let mut finalizers = network.meta.finalizers.clone();
            finalizers.push(mine);
            plan.finalizers = Some(finalizers);
        }
        Some(false) if network.meta.has_finalizer(&mine) => {
            plan.finalizers = Some(
                network
                    .meta
                    .finalizers
                    .iter()
                    .filter(|f| **f != mine)
                    .cloned()
                    .collect(),
            );
        }
        Some(_) | None => {}
    }
    if used == Some(true) && heard && !network.meta.deleting {
        let wanted: BTreeMap<u32, State> = network
            .peers
            .keys()
            .map(|vni| (vni.get(), State::Ready))
            .collect();
        let same = wanted.len() == network.peerings.len()
            && wanted
                .iter()
                .all(|(vni, state)| network.peerings.get(vni) == Some(&Some(*state)));
        if !same {
            plan.peerings = Some(wanted);
        }
    }
    plan
}
