//! Virtual networks: who uses them, and the slots of their routes.

use super::{Engine, VniUse};
use crate::config::VniType;
use crate::error::ConfigError;
use crate::history::Change;
use crate::tables::{Target, VniRoutes};
use net::Vni;
use std::sync::Arc;

impl Engine {
    /// Whether any interface or load balancer uses the VNI.
    pub fn vni_in_use(&self, vni: Vni, kind: VniType) -> Result<bool, ConfigError> {
        match kind {
            VniType::Ipv4 | VniType::Ipv6 => Ok(self.vnis.contains_key(&vni)),
            VniType::Both => Err(ConfigError::WrongType),
        }
    }

    /// Drops the VNI's routes to other hosts. A VNI that is not in use is left alone, successfully.
    pub fn reset_vni(&mut self, vni: Vni, kind: VniType) -> Result<(), ConfigError> {
        match kind {
            VniType::Both => {}
            VniType::Ipv4 | VniType::Ipv6 => return Err(ConfigError::WrongType),
        }
        if let Some(used) = self.vnis.get(&vni).copied() {
            self.clear_remote_routes(used.slot);
        }
        Ok(())
    }

    pub(super) fn clear_remote_routes(&mut self, slot: u16) {
        let Some(routes) = self.edit_routes(slot, None) else {
            return;
        };
        let mut kept = VniRoutes::new(routes.vni);
        routes.for_each(|prefix, target| match target {
            Target::Own(_) | Target::Alias(_) => kept.insert(prefix, target),
            Target::Remote { .. } => {}
        });
        *routes = kept;
    }

    /// The slot of a VNI, or the one it would get.
    pub(super) fn vni_slot_for(&self, vni: Vni) -> Result<u16, ConfigError> {
        if let Some(used) = self.vnis.get(&vni) {
            return Ok(used.slot);
        }
        let vnis = &self.tables.vnis;
        let slot = vnis.iter().position(Option::is_none).unwrap_or(vnis.len());
        match u16::try_from(slot) {
            Ok(slot) if slot < self.limits.vnis_max => Ok(slot),
            Ok(_) | Err(_) => Err(ConfigError::VniInit),
        }
    }

    pub(super) fn acquire_vni(&mut self, vni: Vni, slot: u16) {
        let used = self.vnis.entry(vni).or_insert(VniUse { slot, users: 0 });
        used.users += 1;
        if used.users == 1 {
            let vnis = Arc::make_mut(&mut self.edit(Change::Nothing).vnis);
            let index = usize::from(slot);
            vnis.resize(vnis.len().max(index + 1), None);
            if let Some(place) = vnis.get_mut(index) {
                *place = Some(Arc::new(VniRoutes::new(vni)));
            }
        }
    }

    pub(super) fn release_vni(&mut self, vni: Vni) {
        let Some(used) = self.vnis.get_mut(&vni) else {
            return;
        };
        used.users -= 1;
        if used.users == 0 {
            let slot = usize::from(used.slot);
            self.vnis.remove(&vni);
            let tables = self.edit(Change::Everything);
            if let Some(place) = Arc::make_mut(&mut tables.vnis).get_mut(slot) {
                *place = None;
            }
            self.clear_neighbors(Some(vni));
        }
    }
}
