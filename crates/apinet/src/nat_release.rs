//! NetworkInterface: drops the claims on NAT gateways that are gone or going.

use api::apinet::{NATGateway, NetworkInterface};
use controller::{Controller, Key, Op, Plan, Source, Target, World, object};
use serde_json::json;

use crate::index::{self, NIC_GATEWAY};

pub struct NatReleaseController;

impl Controller for NatReleaseController {
    fn name(&self) -> &'static str {
        "natrelease"
    }

    fn sources(&self) -> Vec<Source> {
        let claimers = |gateway: &NATGateway, world: &World| {
            let nics = world.indexed::<NetworkInterface>(NIC_GATEWAY, object::uid(gateway));
            nics.iter().map(|nic| Key::of(&**nic)).collect::<Vec<_>>()
        };
        let gateways = index::gateways()
            .keys(move |gateway, world| match object::is_deleting(gateway) {
                true => claimers(gateway, world),
                false => Vec::new(),
            })
            .removed_keys(claimers);
        vec![index::nics().own_key().build(), gateways.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(nic) = world.by_key::<NetworkInterface>(key) else {
            return plan;
        };
        if object::is_deleting(&*nic) {
            return plan;
        }
        let mut kept = Vec::new();
        for claim in &nic.spec.nat_gateways {
            let reference = &claim.claim_ref;
            let gateway = world
                .get::<NATGateway>(&key.namespace, &reference.name)
                .filter(|gateway| object::uid(&**gateway) == reference.uid);
            match gateway {
                Some(gateway) if object::is_deleting(&*gateway) => {}
                Some(_) => kept.push(claim.clone()),
                // Perhaps only our cache has not seen it yet.
                None => {
                    plan.push(Op::RequireGone {
                        target: Target::new::<NATGateway>(&key.namespace, &reference.name),
                        uid: reference.uid.clone(),
                    });
                }
            }
        }
        if kept.len() < nic.spec.nat_gateways.len() {
            plan.push(Op::locked(
                &*nic,
                json!({ "spec": { "natGateways": kept } }),
            ));
        }
        plan
    }
}
