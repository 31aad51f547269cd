//! IPAddress: deletes orphans, and lifts the protection of deleted ones once the IP or the interface that holds the address is gone.

use api::{
    apinet::{ClaimRef, IP, IPAddress, NetworkInterface},
    names::finalizer::IP_ADDRESS_PROTECTION,
};
use controller::{Controller, Key, Object, Op, Plan, Source, Watch, World, object};

use crate::collect::{claimer, grace_left};

/// IPAddresses by the uid of their claimer.
const BY_CLAIMER: &str = "apinet-ip-address-claimer";

pub struct IpAddressController;

impl Controller for IpAddressController {
    fn name(&self) -> &'static str {
        "ipaddress"
    }

    fn sources(&self) -> Vec<Source> {
        let addresses = Watch::<IPAddress>::new()
            .own_key()
            .index(BY_CLAIMER, |address| {
                vec![address.spec.claim_ref.uid.clone()]
            });
        vec![
            addresses.build(),
            Watch::<IP>::new().keys(held).build(),
            Watch::<NetworkInterface>::new().keys(held).build(),
        ]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(address) = world.by_key::<IPAddress>(key) else {
            return plan;
        };
        let claim = &address.spec.claim_ref;
        let is_held = match claim.resource.as_str() {
            "ips" => lives::<IP>(world, claim),
            "networkinterfaces" => lives::<NetworkInterface>(world, claim),
            _ => false,
        };
        if is_held {
            return plan;
        }
        let deleting = object::is_deleting(&*address);
        // Release by the server is final; only an address that nobody released may still be waiting for its holder.
        if let (false, Some(left)) = (deleting, grace_left(&*address, world.now_ms())) {
            plan.requeue_after(left);
            return plan;
        }
        let next = if deleting {
            Op::remove_finalizer(&*address, IP_ADDRESS_PROTECTION)
        } else {
            Some(Op::delete(&*address))
        };
        if let Some(next) = next {
            let target = claimer(&claim.group, &claim.resource, &claim.namespace, &claim.name);
            plan.extend(target.map(|target| Op::RequireGone {
                target,
                uid: claim.uid.clone(),
            }));
            plan.push(next);
        }
        plan
    }
}

/// The addresses that a claimer holds.
fn held<K: Object>(claimer: &K, world: &World) -> Vec<Key> {
    let held = world.indexed::<IPAddress>(BY_CLAIMER, object::uid(claimer));
    held.iter().map(|address| Key::of(&**address)).collect()
}

fn lives<K: Object>(world: &World, claim: &ClaimRef) -> bool {
    world
        .get::<K>(&claim.namespace, &claim.name)
        .is_some_and(|claimer| object::uid(&*claimer) == claim.uid)
}
