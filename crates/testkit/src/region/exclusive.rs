//! What must hold at any moment: nothing is used by a data plane that its object does not hold, and nothing is used twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use api::ids::Origin;
use api::names::{APINET, METALNET, origin};
use metalnet::services::NatShare;

use crate::region::Region;
use crate::region::plane::overlap;
use crate::region::store::PUBLIC;

/// Looks at all data planes.
pub fn check(region: &Region) -> Result<(), String> {
    let owners = owners(region, "networkinterfaces");
    let balancers = owners_of_balancers(region);
    let locked = locked(region);
    let all = region.store.of(APINET, "networkinterfaces");
    let made: BTreeSet<String> = all
        .filter_map(|change| change.object.metadata.uid.clone())
        .collect();
    let mut networks: BTreeMap<u32, String> = BTreeMap::new();
    let mut vips: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
    let mut shares: Vec<(NatShare, String)> = Vec::new();
    for host in &region.hosts {
        let Some(plane) = &host.plane else {
            continue;
        };
        let engine = &plane.engine;
        for interface in engine.interfaces() {
            let (id, vni) = (interface.spec.id.clone(), interface.spec.vni.get());
            let Some(network) = owners.get(&id) else {
                return Err(format!(
                    "{} still has interface {id}, whose object is gone",
                    host.name
                ));
            };
            if !made.contains(&owner(region, &id)) {
                return Err(format!(
                    "{} still has interface {id}, which OpenKCM-net has given up",
                    host.name
                ));
            }
            let known = networks.entry(vni).or_insert_with(|| network.clone());
            if known != network {
                return Err(format!("VNI {vni} is used for {known} and for {network}"));
            }
            if let Ok(vip) = engine.vip(&id) {
                held(&locked, vip.address, &host.name)?;
                if let Some(other) = vips.insert(vip.address, id.clone()) {
                    return Err(format!("{} is used by {other} and by {id}", vip.address));
                }
            }
            if let Ok(nat) = engine.nat(&id) {
                held(&locked, nat.address, &host.name)?;
                let share = NatShare {
                    address: nat.address,
                    ports: nat.ports,
                };
                if let Some((other, owner)) = shares.iter().find(|(s, _)| overlap(s, &share)) {
                    return Err(format!(
                        "ports of {share:?} of {id} and of {other:?} of {owner} overlap"
                    ));
                }
                shares.push((share, id.clone()));
            }
        }
        for balancer in engine.load_balancers() {
            if !balancers.contains(&balancer.id) {
                return Err(format!(
                    "{} still has load balancer {}, whose object is gone",
                    host.name, balancer.id
                ));
            }
            if let IpAddr::V4(address) = balancer.address
                && public(address)
            {
                held(&locked, address, &host.name)?;
            }
        }
    }
    match shares
        .iter()
        .find(|(share, _)| vips.contains_key(&share.address))
    {
        Some((share, id)) => Err(format!("{share:?} of {id} is somebody's virtual IP too")),
        None => Ok(()),
    }
}

/// The uid of the OpenKCM-net interface behind a metalnet one.
fn owner(region: &Region, uid: &str) -> String {
    let mut all = region.store.of(METALNET, "networkinterfaces");
    let nic = all.find(|change| change.object.metadata.uid.as_deref() == Some(uid));
    let origin =
        nic.and_then(|nic| Origin::of(&nic.object.metadata, origin::METALNET_NETWORK_INTERFACE));
    origin.map(|origin| origin.uid).unwrap_or_default()
}

fn public(address: Ipv4Addr) -> bool {
    PUBLIC.iter().any(|prefix| {
        let prefix: Result<net::Prefix, _> = prefix.parse();
        prefix.is_ok_and(|prefix| prefix.contains(address.into()))
    })
}

/// A public address in use must be somebody's.
fn held(locked: &BTreeSet<String>, address: Ipv4Addr, host: &str) -> Result<(), String> {
    match locked.contains(&address.to_string()) {
        true => Ok(()),
        false => Err(format!("{host} uses {address}, which is free for anybody")),
    }
}

fn locked(region: &Region) -> BTreeSet<String> {
    let all = region.store.of(APINET, "ipaddresses");
    all.map(|change| change.key.name.clone()).collect()
}

/// Networks by the uid of the interface.
fn owners(region: &Region, plural: &str) -> BTreeMap<String, String> {
    let all = region.store.of(METALNET, plural);
    all.filter_map(|change| {
        let uid = change.object.metadata.uid.clone()?;
        let network = change
            .object
            .data
            .pointer("/spec/networkRef/name")?
            .as_str()?;
        Some((uid, network.to_owned()))
    })
    .collect()
}

fn owners_of_balancers(region: &Region) -> BTreeSet<String> {
    let all = region.store.of(METALNET, "loadbalancers");
    all.filter_map(|change| change.object.metadata.uid.clone())
        .collect()
}
