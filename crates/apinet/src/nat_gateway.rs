//! NATGateway: port blocks for the interfaces of its network, and the claims that tell the interfaces.
//!
//! An interface wants a block if it has an address of the gateway's family, no public one of that family, and no other gateway. The
//! table is written before the claim, so an interface never claims a gateway that has nothing for it. A claim without a block is
//! taken back. A block is given up when its interface is gone, not when it is being deleted: until then packets flow.
//! A block that must move first loses its claim, and stays in the table until no data plane has it: the claim and what the data plane
//! may have stand on the interface, so its version proves that both are gone.

use api::{
    apinet::{
        NATGateway, NATTable, NatGatewayStatus, NatTableIp, NatTableSection, NetworkInterface,
        NetworkInterfaceNat, Node, TargetReference,
    },
    held,
    meta::{Ip, IpFamily, LocalUidReference},
    names::{finalizer::DATA_PLANE, manager},
};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    collect::leftover,
    index::{self, GATEWAY_NETWORK, NIC_GATEWAY, NIC_IN_USE, NIC_NETWORK},
    ports::{Address, Assigned, Reported, Want, assign},
};

pub struct NatGatewayController;

impl Controller for NatGatewayController {
    fn name(&self) -> &'static str {
        "natgateway"
    }

    fn sources(&self) -> Vec<Source> {
        let gateways = index::gateways().own_key();
        let tables = Watch::<NATTable>::new().own_key();
        let nics = index::nics().keys(|nic, world| {
            let namespace = object::namespace(nic);
            let network = index::network(namespace, &nic.spec.network_ref.name);
            let near = world.indexed::<NATGateway>(GATEWAY_NETWORK, &network);
            near.iter().map(|gateway| Key::of(&**gateway)).collect()
        });
        // A hypervisor that is gone for good no longer holds addresses.
        let nodes = Watch::<Node>::new().removed_keys(|_, world| {
            let all = world.list::<NATGateway>();
            let going = all
                .iter()
                .filter(|gateway| object::is_deleting(&***gateway));
            going.map(|gateway| Key::of(&**gateway)).collect()
        });
        vec![
            gateways.build(),
            tables.build(),
            nics.build(),
            nodes.build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(gateway) = world.by_key::<NATGateway>(key) else {
            return leftover(world, world.by_key::<NATTable>(key).as_deref());
        };
        if object::is_deleting(&*gateway) {
            let op = match is_used(world, &gateway) {
                true => None,
                false => Op::remove_finalizer(&*gateway, DATA_PLANE),
            };
            return op.into_iter().collect::<Vec<_>>().into();
        }
        let network = index::network(&key.namespace, &gateway.spec.network_ref.name);
        let nics = world.indexed::<NetworkInterface>(NIC_NETWORK, &network);
        let table = world.by_key::<NATTable>(key);
        let mut plan = Plan::none();
        plan.extend(Op::add_finalizer(&*gateway, DATA_PLANE));
        let wants: Vec<Want> = nics.iter().filter_map(|nic| want(&gateway, nic)).collect();
        let before = table.as_ref().map_or(&[][..], |table| &table.ips);
        let by_uid: BTreeMap<&str, &Arc<NetworkInterface>> =
            nics.iter().map(|nic| (object::uid(&**nic), nic)).collect();
        let Assigned { rows, served } = assign(
            &addresses(&gateway),
            gateway.spec.ports_per_network_interface,
            before,
            &wants,
            &reported(world, &gateway),
            |uid, ip, section| {
                let nic = by_uid.get(uid);
                nic.is_some_and(|nic| is_tied(world, &gateway, nic, ip, section))
            },
        );
        if table.as_ref().is_none_or(|table| table.ips != rows) {
            let body = json!({
                "metadata": { "ownerReferences": [object::controller_reference(&*gateway)] },
                "ips": rows,
            });
            let target = Target::new::<NATTable>(&key.namespace, &key.name);
            plan.extend(as_seen(before, &rows, &by_uid));
            plan.push(Op::apply(target, manager::APINET, body));
        }
        plan.extend(nics.iter().filter_map(|nic| claim(&gateway, nic, &served)));
        let requested = nics
            .iter()
            .filter(|nic| !object::is_deleting(&***nic) && want(&gateway, nic).is_some());
        plan.extend(report(&gateway, served.len(), requested.count()));
        plan
    }
}

/// Whether a data plane may have the block of an interface, or may still be given it.
fn is_tied(
    world: &World,
    gateway: &NATGateway,
    nic: &NetworkInterface,
    ip: Ip,
    section: &NatTableSection,
) -> bool {
    let mut claims = nic.spec.nat_gateways.iter();
    if claims.any(|claim| claim.claim_ref.uid == object::uid(gateway)) {
        return true;
    }
    // A hypervisor that left the region has nothing any more.
    world.get::<Node>("", &nic.spec.node_ref.name).is_some()
        && used(nic, ip)
            .any(|(port, end_port)| port <= section.end_port && section.port <= end_port)
}

/// The proof that interfaces whose block goes have let go of it: they are still as we saw them.
fn as_seen(
    before: &[NatTableIp],
    rows: &[NatTableIp],
    nics: &BTreeMap<&str, &Arc<NetworkInterface>>,
) -> Vec<Op> {
    let all = |rows: &[NatTableIp]| -> BTreeSet<(Ip, i32, i32, String)> {
        let sections = rows
            .iter()
            .flat_map(|row| row.sections.iter().map(|section| (row.ip, section)));
        let known = sections.filter_map(|(ip, section)| {
            let target = section.target_ref.as_ref()?;
            Some((ip, section.port, section.end_port, target.uid.clone()))
        });
        known.collect()
    };
    let kept = all(rows);
    let gone = all(before)
        .into_iter()
        .filter(|block| !kept.contains(block));
    let uids: BTreeSet<String> = gone.map(|(_, _, _, uid)| uid).collect();
    let seen = uids.iter().filter_map(|uid| nics.get(uid.as_str()));
    seen.map(|nic| Op::require_same(&***nic)).collect()
}

/// Ports of an address that a data plane reports or may have for an interface.
fn used(nic: &NetworkInterface, ip: Ip) -> impl Iterator<Item = (i32, i32)> {
    let reported = nic.status.iter().flat_map(|status| &status.nat_ips);
    let reported: Vec<(i32, i32)> = reported
        .filter(|nat| nat.ip == Some(ip))
        .map(|nat| (nat.port, nat.end_port))
        .collect();
    let held = held::of(&nic.metadata)
        .into_iter()
        .filter(move |held| held.ip() == ip);
    reported
        .into_iter()
        .chain(held.filter_map(|held| held.ports))
}

fn addresses(gateway: &NATGateway) -> Vec<Address> {
    let entries = gateway.spec.ips.iter();
    entries
        .filter_map(|entry| {
            Some(Address {
                ip: entry.ip?,
                draining: entry.draining,
            })
        })
        .collect()
}

/// The claim of an interface on a gateway of a family.
fn claim_of(nic: &NetworkInterface, family: IpFamily) -> Option<&NetworkInterfaceNat> {
    let claims = &nic.spec.nat_gateways;
    claims.iter().find(|claim| claim.ip_family == family)
}

/// What an interface wants of the gateway.
fn want(gateway: &NATGateway, nic: &NetworkInterface) -> Option<Want> {
    let family = gateway.spec.ip_family;
    let ip: Ip = nic
        .spec
        .ips
        .iter()
        .copied()
        .find(|ip| ip.family() == family)?;
    let public = nic.spec.public_ips.iter();
    let has_public = public
        .filter_map(|entry| entry.ip_family.or(entry.ip.map(Ip::family)))
        .any(|of| of == family);
    // One that is going gets nothing new, and loses nothing before it is gone.
    let open = match claim_of(nic, family) {
        Some(claim) => claim.claim_ref.uid == object::uid(gateway),
        None => !object::is_deleting(nic),
    };
    (open && !has_public).then(|| Want {
        ip,
        target: TargetReference {
            uid: object::uid(nic).to_owned(),
            name: object::name(nic).to_owned(),
            node_ref: nic.spec.node_ref.clone(),
        },
    })
}

/// Ports of the gateway's addresses that data planes report. A hypervisor that left the region reports nothing any more.
fn reported(world: &World, gateway: &NATGateway) -> Vec<Reported> {
    let mut out = Vec::new();
    for ip in gateway.spec.ips.iter().filter_map(|entry| entry.ip) {
        for nic in users(world, object::namespace(gateway), ip) {
            out.extend(used(&nic, ip).map(|(port, end_port)| Reported {
                uid: object::uid(&*nic).to_owned(),
                ip,
                port,
                end_port,
            }));
        }
    }
    out
}

/// Interfaces whose data plane reports an address.
pub(crate) fn users(world: &World, namespace: &str, ip: Ip) -> Vec<Arc<NetworkInterface>> {
    let mut nics = world.indexed::<NetworkInterface>(NIC_IN_USE, &index::in_use(namespace, ip));
    nics.retain(|nic| world.get::<Node>("", &nic.spec.node_ref.name).is_some());
    nics
}

fn is_used(world: &World, gateway: &NATGateway) -> bool {
    let claims = world.indexed::<NetworkInterface>(NIC_GATEWAY, object::uid(gateway));
    let mut ips = gateway.spec.ips.iter().filter_map(|entry| entry.ip);
    !claims.is_empty() || ips.any(|ip| !users(world, object::namespace(gateway), ip).is_empty())
}

/// Brings the claim of an interface in line with the table.
fn claim(gateway: &NATGateway, nic: &NetworkInterface, served: &BTreeSet<String>) -> Option<Op> {
    let family = gateway.spec.ip_family;
    let served = served.contains(object::uid(nic));
    let mut claims = nic.spec.nat_gateways.clone();
    match claim_of(nic, family) {
        None if served => claims.push(NetworkInterfaceNat {
            ip_family: family,
            claim_ref: LocalUidReference::new(object::name(gateway), object::uid(gateway)),
        }),
        Some(claim) if claim.claim_ref.uid == object::uid(gateway) && !served => {
            claims.retain(|claim| claim.ip_family != family);
        }
        Some(_) | None => return None,
    }
    Some(Op::locked(
        nic,
        json!({ "spec": { "natGateways": claims } }),
    ))
}

fn report(gateway: &NATGateway, used: usize, requested: usize) -> Option<Op> {
    let status = NatGatewayStatus {
        used_nat_ips: i64::try_from(used).ok(),
        requested_nat_ips: i64::try_from(requested).ok(),
        observed_generation: gateway.metadata.generation,
    };
    (gateway.status.as_ref() != Some(&status))
        .then(|| Op::patch_status(Target::of(gateway), json!(status)))
}
