//! Calls for public addresses, packet filters and load balancers.

use std::net::Ipv6Addr;

use proto::dpdk;

use super::wire::{id, to_address, to_balanced, to_prefix, to_rule};
use super::{Client, created, done, transport};
use crate::model::Uid;
use crate::plan::observed::Neighbor;
use crate::plan::ops::{BalancerRequest, DpDone, DpError, Part, RULE_CHANGING, code};
use crate::services::Rule;

pub(super) async fn create_part(
    mut client: Client,
    uid: &Uid,
    part: &Part,
) -> Result<DpDone, DpError> {
    match part {
        Part::Vip(address) => {
            let request = dpdk::CreateVipRequest {
                interface_id: id(uid),
                vip_ip: Some(to_address((*address).into())),
                preferred_underlay_route: Vec::new(),
            };
            let reply = client.create_vip(request).await;
            let reply = reply.map_err(transport)?.into_inner();
            created(reply.status, &reply.underlay_route)
        }
        Part::Nat(share) => {
            let request = dpdk::CreateNatRequest {
                interface_id: id(uid),
                nat_ip: Some(to_address(share.address.into())),
                min_port: u32::from(share.ports.first()),
                max_port: u32::from(share.ports.end()),
                preferred_underlay_route: Vec::new(),
            };
            let reply = client.create_nat(request).await;
            let reply = reply.map_err(transport)?.into_inner();
            created(reply.status, &reply.underlay_route)
        }
        Part::Target(prefix) => {
            let request = dpdk::CreateLoadBalancerPrefixRequest {
                interface_id: id(uid),
                prefix: Some(to_prefix(prefix)),
                preferred_underlay_route: Vec::new(),
            };
            let reply = client.create_load_balancer_prefix(request).await;
            let reply = reply.map_err(transport)?.into_inner();
            created(reply.status, &reply.underlay_route)
        }
        Part::Rule { id, rule } => create_rule(&mut client, uid, id, rule).await,
    }
}

async fn create_rule(
    client: &mut Client,
    uid: &Uid,
    rule_id: &str,
    rule: &Rule,
) -> Result<DpDone, DpError> {
    let request = dpdk::CreateFirewallRuleRequest {
        interface_id: id(uid),
        rule: Some(to_rule(rule_id, rule)),
    };
    let reply = client.create_firewall_rule(request).await;
    done(reply, |reply| reply.status)
}

pub(super) async fn delete_rule(
    client: &mut Client,
    uid: &Uid,
    rule_id: &str,
) -> Result<DpDone, DpError> {
    let request = dpdk::DeleteFirewallRuleRequest {
        interface_id: id(uid),
        rule_id: rule_id.as_bytes().to_vec(),
    };
    let reply = client.delete_firewall_rule(request).await;
    done(reply, |reply| reply.status)
}

/// The new content stands in under another id while the old one goes; see [`crate::plan::ops::DpOp::ReplaceRule`].
pub(super) async fn replace_rule(
    mut client: Client,
    uid: &Uid,
    rule_id: &str,
    rule: &Rule,
) -> Result<DpDone, DpError> {
    let absent_is_fine = |result: Result<DpDone, DpError>| match result {
        Err(error) if error.code() != Some(code::NOT_FOUND) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    };
    absent_is_fine(delete_rule(&mut client, uid, RULE_CHANGING).await)?;
    create_rule(&mut client, uid, RULE_CHANGING, rule).await?;
    absent_is_fine(delete_rule(&mut client, uid, rule_id).await)?;
    create_rule(&mut client, uid, rule_id, rule).await?;
    absent_is_fine(delete_rule(&mut client, uid, RULE_CHANGING).await)?;
    Ok(DpDone::Done)
}

pub(super) async fn create_balancer(
    mut client: Client,
    uid: &Uid,
    request: &BalancerRequest,
) -> Result<DpDone, DpError> {
    let BalancerRequest {
        vni,
        address,
        ports,
    } = request;
    let request = dpdk::CreateLoadBalancerRequest {
        loadbalancer_id: id(uid),
        loadbalanced_ip: Some(to_address(*address)),
        vni: vni.get(),
        loadbalanced_ports: ports.iter().map(to_balanced).collect(),
        preferred_underlay_route: Vec::new(),
    };
    let reply = client.create_load_balancer(request).await;
    let reply = reply.map_err(transport)?.into_inner();
    created(reply.status, &reply.underlay_route)
}

pub(super) async fn create_neighbor(
    client: &mut Client,
    neighbor: Neighbor,
    underlay: Ipv6Addr,
) -> Result<DpDone, DpError> {
    let Neighbor { vni, share } = neighbor;
    let request = dpdk::CreateNeighborNatRequest {
        nat_ip: Some(to_address(share.address.into())),
        vni: vni.get(),
        min_port: u32::from(share.ports.first()),
        max_port: u32::from(share.ports.end()),
        underlay_route: underlay.to_string().into_bytes(),
    };
    let reply = client.create_neighbor_nat(request).await;
    done(reply, |reply| reply.status)
}

pub(super) async fn delete_neighbor(
    client: &mut Client,
    neighbor: Neighbor,
) -> Result<DpDone, DpError> {
    let Neighbor { vni, share } = neighbor;
    let request = dpdk::DeleteNeighborNatRequest {
        nat_ip: Some(to_address(share.address.into())),
        vni: vni.get(),
        min_port: u32::from(share.ports.first()),
        max_port: u32::from(share.ports.end()),
    };
    let reply = client.delete_neighbor_nat(request).await;
    done(reply, |reply| reply.status)
}
