//! Keeps a Network as long as an interface of its namespace names it. An interface that is being deleted still counts: its
//! packets may still flow, and a network must not go under it.

use api::{
    names::finalizer,
    networking::{Network, NetworkInterface},
};
use controller::{Controller, Key, Op, Plan, Source, Watch, World, object};

use crate::index::{self, NIC_NETWORK};

pub struct NetworkProtectionController;

impl Controller for NetworkProtectionController {
    fn name(&self) -> &'static str {
        "networkprotection"
    }

    fn sources(&self) -> Vec<Source> {
        let nics = index::nics()
            .keys(|nic, _| vec![Key::new(object::namespace(nic), &nic.spec.network_ref.name)]);
        vec![Watch::<Network>::new().own_key().build(), nics.build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let Some(network) = world.by_key::<Network>(key) else {
            return Plan::none();
        };
        let op = if !object::is_deleting(&*network) {
            Op::add_finalizer(&*network, finalizer::NETWORK)
        } else if world
            .indexed::<NetworkInterface>(NIC_NETWORK, &key.to_string())
            .is_empty()
        {
            Op::remove_finalizer(&*network, finalizer::NETWORK)
        } else {
            None
        };
        op.into_iter().collect::<Vec<_>>().into()
    }
}
