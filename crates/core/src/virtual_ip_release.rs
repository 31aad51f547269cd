//! Frees VirtualIPs whose interface is gone, so that another interface can claim them.

use api::networking::{NetworkInterface, VirtualIP};
use controller::{Controller, Key, Op, Plan, Source, Target, Watch, World, object};
use serde_json::{Value, json};

use crate::index;

/// VirtualIPs by the uid of their target.
const BY_TARGET: &str = "core-virtual-ip-target";

pub struct VirtualIpReleaseController;

impl Controller for VirtualIpReleaseController {
    fn name(&self) -> &'static str {
        "virtualiprelease"
    }

    fn sources(&self) -> Vec<Source> {
        let addresses = Watch::<VirtualIP>::new().own_key().index(BY_TARGET, |vip| {
            vip.spec
                .target_ref
                .iter()
                .map(|target| target.uid.clone())
                .collect()
        });
        let nics = index::nics().keys(|nic, world| {
            let claimed = world.indexed::<VirtualIP>(BY_TARGET, object::uid(nic));
            claimed.iter().map(|vip| Key::of(&**vip)).collect()
        });
        vec![addresses.build(), nics.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(vip) = world.by_key::<VirtualIP>(key) else {
            return Plan::none();
        };
        let Some(claim) = &vip.spec.target_ref else {
            return Plan::none();
        };
        let nic = world.get::<NetworkInterface>(&key.namespace, &claim.name);
        let lives = nic.is_some_and(|nic| object::uid(&*nic) == claim.uid);
        if lives || object::is_deleting(&*vip) {
            return Plan::none();
        }
        let target = Target::new::<NetworkInterface>(&key.namespace, &claim.name);
        vec![
            Op::RequireGone {
                target,
                uid: claim.uid.clone(),
            },
            Op::locked(&*vip, json!({ "spec": { "targetRef": Value::Null } })),
        ]
        .into()
    }
}
