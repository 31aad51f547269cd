//! ipam Prefixes as far as this part reads them: what has been allocated, and for whom.

use api::{
    ipam::{Prefix, PrefixPhase},
    meta::IpPrefix,
};
use controller::{World, object};

/// The block of a Prefix, once it has been allocated.
pub(crate) fn allocated(prefix: &Prefix) -> Option<IpPrefix> {
    let phase = prefix.status.as_ref().and_then(|status| status.phase);
    let usable = phase == Some(PrefixPhase::Allocated) && !object::is_deleting(prefix);
    prefix.spec.prefix.filter(|_| usable)
}

/// The block of the Prefix made for an owner. A Prefix of the expected name that is not controlled by the owner is
/// somebody else's: two owners may derive the same name.
pub(crate) fn ephemeral(
    world: &World,
    namespace: &str,
    name: &str,
    owner_uid: &str,
) -> Option<IpPrefix> {
    let prefix = world.get::<Prefix>(namespace, name)?;
    object::is_controlled_by(&*prefix, owner_uid)
        .then(|| allocated(&prefix))
        .flatten()
}
