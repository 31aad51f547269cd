//! Names of the shared indexes. One name means one function per kind in the whole process, so they live in one place.

use api::{compute::Machine, networking::NetworkInterface};
use controller::{Key, Watch, object};

/// Machines by pool; `UNSCHEDULED` for those without one.
pub const MACHINE_POOL: &str = "core-machine-pool";
/// No pool has this name, because it is no DNS name.
pub const UNSCHEDULED: &str = "<none>";
/// Machines by the key of every interface that is made for them.
pub const MACHINE_EPHEMERAL_NIC: &str = "core-machine-ephemeral-nic";
/// Interfaces by the uid of their controller.
pub const NIC_CONTROLLER: &str = "core-nic-controller";
/// Interfaces by the uid of the machine that claims them.
pub const NIC_MACHINE: &str = "core-nic-machine";
/// Interfaces by the key of their network.
pub const NIC_NETWORK: &str = "core-nic-network";

pub fn machines() -> Watch<Machine> {
    Watch::<Machine>::new()
        .index(MACHINE_POOL, |machine| {
            let pool = machine
                .spec
                .machine_pool_ref
                .as_ref()
                .map(|pool| pool.name.clone());
            match pool {
                Some(pool) => vec![pool],
                None if object::is_deleting(machine) => Vec::new(),
                None => vec![UNSCHEDULED.to_owned()],
            }
        })
        .index(MACHINE_EPHEMERAL_NIC, |machine| {
            let entries = machine.spec.network_interfaces.iter();
            let made = entries.filter(|entry| entry.ephemeral.is_some());
            let namespace = object::namespace(machine);
            made.map(|entry| Key::new(namespace, entry.object_name(object::name(machine))))
                .map(|key| key.to_string())
                .collect()
        })
}

pub fn nics() -> Watch<NetworkInterface> {
    Watch::<NetworkInterface>::new()
        .index(NIC_CONTROLLER, |nic| {
            object::controller_of(nic)
                .map(|owner| owner.uid.clone())
                .into_iter()
                .collect()
        })
        .index(NIC_MACHINE, |nic| {
            nic.spec
                .machine_ref
                .iter()
                .map(|machine| machine.uid.clone())
                .collect()
        })
        .index(NIC_NETWORK, |nic| {
            vec![Key::new(object::namespace(nic), &nic.spec.network_ref.name).to_string()]
        })
}
