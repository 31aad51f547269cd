//! Where the parts of a lab that carry packets and routes can be asked: their control ports and status pages, each in its namespace. Pure.

use std::path::PathBuf;

use anyhow::Result;

use crate::outside::EDGE_HTTP_PORT;
use crate::state::Record;
use crate::topology::METALBOND_HTTP_PORT;
use crate::up;

/// Port of dpservice's control protocol, on loopback of the hypervisor's namespace.
pub const DPSERVICE_PORT: u16 = 1337;

/// One address in one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The hypervisor (as OpenKCM-net calls its node) or the part.
    pub name: String,
    pub netns: String,
    pub address: String,
}

/// A lab as somebody sees it who wants to look into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    pub lab: String,
    pub api_url: String,
    pub kubeconfig: PathBuf,
    pub dataplanes: Vec<Place>,
    pub metalbond: Vec<Place>,
    pub edges: Vec<Place>,
}

/// # Errors
/// The record holds sizes that no lab has.
pub fn endpoints(record: &Record) -> Result<Endpoints> {
    let topology = record.topology()?;
    let place = |name: String, role: &str, port: u16| Place {
        name,
        netns: topology.netns(role),
        address: format!("[::1]:{port}"),
    };
    let router = |part: &str, port: u16| {
        let routers = topology.router_names();
        routers
            .map(|router| place(format!("{part}-{router}"), &router, port))
            .collect()
    };
    Ok(Endpoints {
        lab: record.name.clone(),
        api_url: topology.api_url(),
        kubeconfig: up::layout(record)?.admin_kubeconfig(),
        dataplanes: topology
            .hypervisor_names()
            .map(|hv| place(format!("{}.{hv}", record.name), &hv, DPSERVICE_PORT))
            .collect(),
        metalbond: router("metalbond", METALBOND_HTTP_PORT),
        edges: router("edge", EDGE_HTTP_PORT),
    })
}
