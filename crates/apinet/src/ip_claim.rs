//! IP: drops the claim of an interface that is gone. Ephemeral IPs have an owner and go with it; a static one (of a user's
//! VirtualIP) would otherwise stay claimed by the dead for ever.
//!
//! The server writes a claim and its claimer in one transaction, so a claimer that an uncached read does not find is dead
//! and not merely late.

use api::apinet::{IP, NetworkInterface};
use controller::{Controller, Key, Op, Plan, Source, Watch, World, object};
use serde_json::{Value, json};

use crate::collect::claimer;

/// IPs by the uid of their claimer.
const BY_CLAIMER: &str = "apinet-ip-claimer";

pub struct IpClaimController;

impl Controller for IpClaimController {
    fn name(&self) -> &'static str {
        "ipclaim"
    }

    fn sources(&self) -> Vec<Source> {
        let ips = Watch::<IP>::new().own_key().index(BY_CLAIMER, |ip| {
            ip.spec
                .claim_ref
                .iter()
                .map(|claim| claim.uid.clone())
                .collect()
        });
        let nics = Watch::<NetworkInterface>::new().keys(|nic, world| {
            let claimed = world.indexed::<IP>(BY_CLAIMER, object::uid(nic));
            claimed.iter().map(|ip| Key::of(&**ip)).collect()
        });
        vec![ips.build(), nics.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(ip) = world.by_key::<IP>(key) else {
            return Plan::none();
        };
        let Some(claim) = &ip.spec.claim_ref else {
            return Plan::none();
        };
        // Only kinds whose life we watch; owners clean up what they own.
        let owned = object::controller_of(&*ip).is_some_and(|owner| owner.uid == claim.uid);
        if claim.resource != "networkinterfaces" || owned || object::is_deleting(&*ip) {
            return Plan::none();
        }
        let nic = world.get::<NetworkInterface>(&key.namespace, &claim.name);
        if nic.is_some_and(|nic| object::uid(&*nic) == claim.uid) {
            return Plan::none();
        }
        let Some(target) = claimer(&claim.group, &claim.resource, &key.namespace, &claim.name)
        else {
            return Plan::none();
        };
        vec![
            Op::RequireGone {
                target,
                uid: claim.uid.clone(),
            },
            Op::locked(&*ip, json!({ "spec": { "claimRef": Value::Null } })),
        ]
        .into()
    }
}
