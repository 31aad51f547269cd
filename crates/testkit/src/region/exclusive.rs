//! What must hold at any moment: nothing is used by a data plane that its object does not hold, and nothing is used twice.
//!
//! The registry says to whom a public address is given; a data plane that still has it for anybody else, or for nobody, would take
//! or send the packets of its next owner.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::ids::Origin;
use api::names::{APINET, METALNET, origin};
use controller::object;
use kube_core::DynamicObject;
use metalnet::services::NatShare;

use crate::region::plane::overlap;
use crate::region::store::PUBLIC;
use crate::region::{Region, machines};

/// Looks at all data planes.
pub fn check(region: &Region) -> Result<(), String> {
    let registry = Registry::of(region);
    machines::never(region, &registry.names)?;
    let mut used = Used::default();
    for host in &region.hosts {
        let Some(plane) = &host.plane else {
            continue;
        };
        let (engine, host) = (&plane.engine, &host.name);
        for interface in engine.interfaces() {
            let (id, vni) = (interface.spec.id.as_str(), interface.spec.vni.get());
            let Some(network) = registry.networks.get(id) else {
                return Err(format!(
                    "{host} still has interface {id}, whose object is gone"
                ));
            };
            let owner = registry.interfaces.get(id).cloned().unwrap_or_default();
            if !registry.made.contains_key(&owner) {
                return Err(format!(
                    "{host} still has interface {id}, which OpenKCM-net has given up"
                ));
            }
            used.network(vni, network)?;
            if let Ok(vip) = engine.vip(id) {
                registry.held(vip.address.into(), host, |claim| claim.uid == owner)?;
                used.alone(vip.address.into(), id)?;
            }
            for (prefix, _) in engine.prefixes(id).unwrap_or_default() {
                if public(prefix.address()) {
                    registry.held(prefix.address(), host, |claim| claim.uid == owner)?;
                    used.alone(prefix.address(), id)?;
                }
            }
            if let Ok(nat) = engine.nat(id) {
                let of_network = registry.made.get(&owner);
                registry.held(nat.address.into(), host, |claim| {
                    registry.gateways.get(&claim.uid) == of_network
                })?;
                let share = NatShare {
                    address: nat.address,
                    ports: nat.ports,
                };
                used.share(share, id)?;
            }
        }
        for balancer in engine.load_balancers() {
            let Some(owner) = registry.balancers.get(&balancer.id) else {
                return Err(format!(
                    "{host} still has load balancer {}, whose object is gone",
                    balancer.id
                ));
            };
            if public(balancer.address) {
                registry.held(balancer.address, host, |claim| claim.uid == *owner)?;
                used.balanced(balancer.address, owner)?;
            }
        }
    }
    used.kinds()
}

/// Who an address is given to.
struct Claim {
    uid: String,
    name: String,
}

/// What the objects say, by the uid of what data planes know.
struct Registry {
    /// Networks of metalnet interfaces.
    networks: BTreeMap<String, String>,
    /// OpenKCM-net's interfaces behind metalnet's, by uid.
    interfaces: BTreeMap<String, String>,
    /// Networks of OpenKCM-net's interfaces.
    made: BTreeMap<String, String>,
    /// Names of OpenKCM-net's interfaces by the uid of metalnet's.
    names: BTreeMap<String, String>,
    /// Networks of NAT gateways.
    gateways: BTreeMap<String, String>,
    /// Load balancers of OpenKCM-net behind metalnet's, by uid.
    balancers: BTreeMap<String, String>,
    /// Addresses that exist, with whom they are given to.
    claims: BTreeMap<String, Option<Claim>>,
}

fn text<'a>(object: &'a DynamicObject, path: &str) -> &'a str {
    let value = object.data.pointer(path);
    value.and_then(|value| value.as_str()).unwrap_or_default()
}

fn uid(object: &DynamicObject) -> String {
    object.metadata.uid.clone().unwrap_or_default()
}

fn networks(region: &Region, group: &str, plural: &str) -> BTreeMap<String, String> {
    let all = region.store.of(group, plural);
    all.map(|change| {
        let network = text(&change.object, "/spec/networkRef/name");
        (uid(&change.object), network.to_owned())
    })
    .collect()
}

/// The uid that stands behind a metalnet object.
fn behind(object: &DynamicObject, base: &str) -> String {
    Origin::of(&object.metadata, base).map_or_else(String::new, |origin| origin.uid)
}

impl Registry {
    fn of(region: &Region) -> Registry {
        let store = &region.store;
        let interfaces = store.of(METALNET, "networkinterfaces").map(|change| {
            let owner = behind(&change.object, origin::METALNET_NETWORK_INTERFACE);
            (uid(&change.object), owner)
        });
        let instances = store.of(APINET, "instances").filter_map(|change| {
            let set = object::controller_of(&change.object)?;
            let balancer = region.set_owners.get(&set.uid)?;
            Some((uid(&change.object), balancer.clone()))
        });
        let instances: BTreeMap<String, String> = instances.collect();
        let balancers = store.of(METALNET, "loadbalancers").map(|change| {
            let instance = behind(&change.object, origin::METALNET_INSTANCE);
            let owner = instances.get(&instance).cloned().unwrap_or_default();
            (uid(&change.object), owner)
        });
        let claims = store.of(APINET, "ips").map(|change| {
            let claim = Claim {
                uid: text(&change.object, "/spec/claimRef/uid").to_owned(),
                name: text(&change.object, "/spec/claimRef/name").to_owned(),
            };
            let address = text(&change.object, "/spec/ip").to_owned();
            (address, Some(claim).filter(|claim| !claim.uid.is_empty()))
        });
        let interfaces: BTreeMap<String, String> = interfaces.collect();
        let names = store.of(APINET, "networkinterfaces");
        let names = names.map(|change| (uid(&change.object), change.key.name.clone()));
        let names: BTreeMap<String, String> = names.collect();
        let behind = interfaces.iter();
        let behind = behind.filter_map(|(low, made)| Some((low.clone(), names.get(made)?.clone())));
        Registry {
            names: behind.collect(),
            networks: networks(region, METALNET, "networkinterfaces"),
            interfaces,
            made: networks(region, APINET, "networkinterfaces"),
            gateways: networks(region, APINET, "natgateways"),
            balancers: balancers.collect(),
            claims: claims.collect(),
        }
    }

    /// A public address in use must be that of its user.
    fn held(
        &self,
        address: IpAddr,
        host: &str,
        is_user: impl Fn(&Claim) -> bool,
    ) -> Result<(), String> {
        match self.claims.get(&address.to_string()) {
            None => Err(format!("{host} uses {address}, which nobody holds")),
            Some(None) => Err(format!("{host} uses {address}, which is free for anybody")),
            Some(Some(claim)) if !is_user(claim) => Err(format!(
                "{host} uses {address}, which {} has got meanwhile",
                claim.name
            )),
            Some(Some(_)) => Ok(()),
        }
    }
}

/// What data planes use.
#[derive(Default)]
struct Used {
    networks: BTreeMap<u32, String>,
    vips: BTreeMap<IpAddr, String>,
    shares: Vec<(NatShare, String)>,
    balanced: BTreeMap<IpAddr, String>,
}

impl Used {
    fn network(&mut self, vni: u32, network: &str) -> Result<(), String> {
        let known = self
            .networks
            .entry(vni)
            .or_insert_with(|| network.to_owned());
        match known == network {
            true => Ok(()),
            false => Err(format!("VNI {vni} is used for {known} and for {network}")),
        }
    }

    fn alone(&mut self, address: IpAddr, id: &str) -> Result<(), String> {
        match self.vips.insert(address, id.to_owned()) {
            Some(other) => Err(format!("{address} is used by {other} and by {id}")),
            None => Ok(()),
        }
    }

    fn share(&mut self, share: NatShare, id: &str) -> Result<(), String> {
        if let Some((other, owner)) = self.shares.iter().find(|(s, _)| overlap(s, &share)) {
            return Err(format!(
                "ports of {share:?} of {id} and of {other:?} of {owner} overlap"
            ));
        }
        self.shares.push((share, id.to_owned()));
        Ok(())
    }

    /// Several hypervisors serve one balancer's address.
    fn balanced(&mut self, address: IpAddr, owner: &str) -> Result<(), String> {
        match self.balanced.insert(address, owner.to_owned()) {
            Some(other) if other != owner => {
                Err(format!("{address} is balanced by {other} and by {owner}"))
            }
            _ => Ok(()),
        }
    }

    /// An address is of one kind.
    fn kinds(&self) -> Result<(), String> {
        let shared: BTreeSet<IpAddr> = self.shares.iter().map(|(s, _)| s.address.into()).collect();
        let own: BTreeSet<IpAddr> = self.vips.keys().copied().collect();
        let balanced: BTreeSet<IpAddr> = self.balanced.keys().copied().collect();
        for (one, two) in [(&shared, &own), (&shared, &balanced), (&own, &balanced)] {
            if let Some(address) = one.intersection(two).next() {
                return Err(format!("{address} is used in two ways"));
            }
        }
        Ok(())
    }
}

fn public(address: IpAddr) -> bool {
    PUBLIC.iter().any(|prefix| {
        let prefix: Result<net::Prefix, _> = prefix.parse();
        prefix.is_ok_and(|prefix| prefix.contains(address))
    })
}
