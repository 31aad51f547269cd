//! Everything that an instance holds.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use futures::StreamExt as _;
use proto::dpdk;

use super::wire::{
    address, from_balanced, from_ports, from_prefix, from_rule, from_vni, optional, to_address,
};
use super::{Client, accepted, transport};
use crate::model::{Prefix, Uid, Vni};
use crate::plan::observed::{Balancer, Hop, Installed, Interface, Neighbor, Observed, Services};
use crate::plan::ops::{DpError, code};
use crate::services::NatShare;

/// Calls in flight while listing.
const LIST_PARALLEL_MAX: usize = 16;

/// Everything the instance holds: interfaces, their prefixes, and the routes of their VNIs.
pub(super) async fn list(mut client: Client) -> Result<Observed, DpError> {
    let reply = client
        .list_interfaces(dpdk::ListInterfacesRequest {})
        .await
        .map_err(transport)?
        .into_inner();
    accepted(reply.status)?;
    let mut observed = Observed::default();
    let mut interfaces = futures::stream::iter(reply.interfaces)
        .map(|interface| list_interface(client.clone(), interface))
        .buffer_unordered(LIST_PARALLEL_MAX);
    while let Some(interface) = interfaces.next().await {
        if let Some((uid, interface)) = interface? {
            observed.insert_interface(uid, interface);
        }
    }
    drop(interfaces);
    list_balancers(&mut client, &mut observed).await?;
    list_neighbors(&mut client, &mut observed).await?;
    let vnis: Vec<Vni> = observed.vnis().collect();
    let mut tables = futures::stream::iter(vnis)
        .map(|vni| list_table(client.clone(), vni))
        .buffer_unordered(LIST_PARALLEL_MAX);
    while let Some(table) = tables.next().await {
        let (vni, routes) = table?;
        for (prefix, hop) in routes {
            observed.set_route(vni, prefix, Some(Installed::Hop(hop)));
        }
    }
    Ok(observed)
}

async fn list_interface(
    mut client: Client,
    interface: dpdk::Interface,
) -> Result<Option<(Uid, Interface)>, DpError> {
    let dpdk::Interface {
        id,
        vni,
        primary_ipv4,
        primary_ipv6,
        underlay_route,
        pci_name,
        metering_params,
        hostname,
    } = interface;
    let Some(uid) = std::str::from_utf8(&id).ok().and_then(Uid::new) else {
        return Ok(None);
    };
    let request = dpdk::ListPrefixesRequest {
        interface_id: id.clone(),
    };
    let reply = client.list_prefixes(request).await;
    let reply = reply.map_err(transport)?.into_inner();
    accepted(reply.status)?;
    let prefixes = from_prefixes(&reply.prefixes)?;
    let services = list_services(client, id).await?;
    let dpdk::MeteringParams {
        total_rate,
        public_rate,
    } = metering_params.unwrap_or_default();
    let interface = Interface {
        vni: from_vni(vni)?,
        ipv4: optional(&primary_ipv4, Ipv4Addr::is_unspecified)?,
        ipv6: optional(&primary_ipv6, Ipv6Addr::is_unspecified)?,
        device: pci_name,
        total_rate,
        public_rate,
        hostname,
        underlay: address(&underlay_route, "underlay route")?,
        prefixes,
        services,
    };
    Ok(Some((uid, interface)))
}

fn from_prefixes(list: &[dpdk::Prefix]) -> Result<BTreeMap<Prefix, Ipv6Addr>, DpError> {
    list.iter()
        .map(|prefix| {
            let underlay = address(&prefix.underlay_route, "underlay route")?;
            Ok((from_prefix(prefix)?, underlay))
        })
        .collect()
}

async fn list_services(mut client: Client, id: Vec<u8>) -> Result<Services, DpError> {
    let interface_id = id;
    let request = dpdk::GetVipRequest {
        interface_id: interface_id.clone(),
    };
    let vip = client.get_vip(request).await;
    let vip = vip.map_err(transport)?.into_inner();
    let vip = if exists(vip.status)? {
        let ip = vip.vip_ip.unwrap_or_default();
        let underlay = address(&vip.underlay_route, "underlay route")?;
        Some((address(&ip.address, "VIP")?, underlay))
    } else {
        None
    };
    let request = dpdk::GetNatRequest {
        interface_id: interface_id.clone(),
    };
    let nat = client.get_nat(request).await;
    let nat = nat.map_err(transport)?.into_inner();
    let nat = if exists(nat.status)? {
        let ip = nat.nat_ip.unwrap_or_default();
        let share = NatShare {
            address: address(&ip.address, "NAT address")?,
            ports: from_ports(nat.min_port, nat.max_port)?,
        };
        Some((share, address(&nat.underlay_route, "underlay route")?))
    } else {
        None
    };
    let request = dpdk::ListLoadBalancerPrefixesRequest {
        interface_id: interface_id.clone(),
    };
    let served = client.list_load_balancer_prefixes(request).await;
    let served = served.map_err(transport)?.into_inner();
    accepted(served.status)?;
    let request = dpdk::ListFirewallRulesRequest { interface_id };
    let filter = client.list_firewall_rules(request).await;
    let filter = filter.map_err(transport)?.into_inner();
    accepted(filter.status)?;
    let rules = filter.rules.iter().map(|rule| {
        let id = String::from_utf8_lossy(&rule.id).into_owned();
        (id, from_rule(rule))
    });
    Ok(Services {
        vip,
        nat,
        targets: from_prefixes(&served.prefixes)?,
        rules: rules.collect(),
    })
}

/// Whether there is what was asked for.
fn exists(status: Option<dpdk::Status>) -> Result<bool, DpError> {
    match accepted(status) {
        Ok(()) => Ok(true),
        Err(error) if error.code() == Some(code::SNAT_NO_DATA) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn list_balancers(client: &mut Client, observed: &mut Observed) -> Result<(), DpError> {
    let reply = client
        .list_load_balancers(dpdk::ListLoadBalancersRequest {})
        .await;
    let reply = reply.map_err(transport)?.into_inner();
    accepted(reply.status)?;
    let mut balancers = futures::stream::iter(reply.loadbalancers)
        .map(|balancer| list_balancer(client.clone(), balancer))
        .buffer_unordered(LIST_PARALLEL_MAX);
    while let Some(balancer) = balancers.next().await {
        if let Some((uid, balancer)) = balancer? {
            observed.insert_balancer(uid, balancer);
        }
    }
    Ok(())
}

async fn list_balancer(
    mut client: Client,
    balancer: dpdk::Loadbalancer,
) -> Result<Option<(Uid, Balancer)>, DpError> {
    let dpdk::Loadbalancer {
        id,
        vni,
        ip,
        ports,
        underlay_route,
    } = balancer;
    let Some(uid) = std::str::from_utf8(&id).ok().and_then(Uid::new) else {
        return Ok(None);
    };
    let request = dpdk::ListLoadBalancerTargetsRequest {
        loadbalancer_id: id,
    };
    let reply = client.list_load_balancer_targets(request).await;
    let reply = reply.map_err(transport)?.into_inner();
    accepted(reply.status)?;
    let targets = reply.target_ips.iter();
    let targets = targets.map(|target| address(&target.address, "target"));
    let balancer = Balancer {
        vni: from_vni(vni)?,
        address: address(&ip.unwrap_or_default().address, "balanced address")?,
        ports: ports.iter().map(from_balanced).collect::<Result<_, _>>()?,
        underlay: address(&underlay_route, "underlay route")?,
        targets: targets.collect::<Result<_, _>>()?,
    };
    Ok(Some((uid, balancer)))
}

async fn list_neighbors(client: &mut Client, observed: &mut Observed) -> Result<(), DpError> {
    // The unspecified address stands for every address.
    let request = dpdk::ListNeighborNatsRequest {
        nat_ip: Some(to_address(Ipv4Addr::UNSPECIFIED.into())),
    };
    let reply = client.list_neighbor_nats(request).await;
    let reply = reply.map_err(transport)?.into_inner();
    accepted(reply.status)?;
    for entry in reply.nat_entries {
        let shared = entry.actual_nat_ip.unwrap_or_default();
        let neighbor = Neighbor {
            vni: from_vni(entry.vni)?,
            share: NatShare {
                address: address(&shared.address, "NAT address")?,
                ports: from_ports(entry.min_port, entry.max_port)?,
            },
        };
        let underlay = address(&entry.underlay_route, "underlay route")?;
        observed.set_neighbor(neighbor, Some(underlay));
    }
    Ok(())
}

async fn list_table(mut client: Client, vni: Vni) -> Result<(Vni, Vec<(Prefix, Hop)>), DpError> {
    let reply = client
        .list_routes(dpdk::ListRoutesRequest { vni: vni.get() })
        .await
        .map_err(transport)?
        .into_inner();
    match accepted(reply.status) {
        // The last interface of the VNI went while we were listing.
        Err(error) if error.code() == Some(code::NO_VNI) => return Ok((vni, Vec::new())),
        other => other?,
    }
    let route = |route: dpdk::Route| {
        let prefix = from_prefix(&route.prefix.unwrap_or_default())?;
        let hop = address(
            &route.nexthop_address.unwrap_or_default().address,
            "next hop",
        )?;
        Ok((
            prefix,
            Hop {
                vni: from_vni(route.nexthop_vni)?,
                address: hop,
            },
        ))
    };
    let routes: Result<Vec<_>, DpError> = reply.routes.into_iter().map(route).collect();
    Ok((vni, routes?))
}
