//! Rules of the interfaces' packet filters.

use super::Engine;
use crate::error::ConfigError;
use crate::history::Change;
use crate::objects::FirewallRule;

impl Engine {
    /// Adds a rule to an interface's packet filter. It holds for existing connections as well.
    pub fn create_firewall_rule(
        &mut self,
        id: &str,
        rule: FirewallRule,
    ) -> Result<(), ConfigError> {
        let (port, _, _) = self.dependent(id)?;
        let mut firewall = self.services_of(id)?.firewall.clone();
        if firewall.rule(&rule.id).is_some() {
            return Err(ConfigError::AlreadyExists);
        }
        let name = rule.id.clone();
        if !firewall.add(rule) {
            return Err(ConfigError::OutOfMemory);
        }
        let rule = firewall.change(&name).ok_or(ConfigError::NotFound)?;
        self.edit_port(port, Change::Filter { port, rule }, |services| {
            services.firewall = firewall;
        });
        Ok(())
    }

    /// A rule of an interface.
    pub fn firewall_rule(&self, id: &str, rule: &str) -> Result<&FirewallRule, ConfigError> {
        let firewall = &self.services_of(id)?.firewall;
        firewall.rule(rule).ok_or(ConfigError::NotFound)
    }

    /// Removes a rule.
    pub fn delete_firewall_rule(&mut self, id: &str, rule: &str) -> Result<(), ConfigError> {
        let (port, _, _) = self.dependent(id)?;
        let mut firewall = self.services_of(id)?.firewall.clone();
        let change = firewall.change(rule).ok_or(ConfigError::NotFound)?;
        if !firewall.remove(rule) {
            return Err(ConfigError::NotFound);
        }
        let change = Change::Filter { port, rule: change };
        self.edit_port(port, change, |services| {
            services.firewall = firewall;
        });
        Ok(())
    }

    /// Rules of an interface in order of creation.
    pub fn firewall_rules(
        &self,
        id: &str,
    ) -> Result<impl Iterator<Item = &FirewallRule>, ConfigError> {
        Ok(self.services_of(id)?.firewall.rules())
    }

    /// Connections each rule of an interface has decided, by rule id, in order of creation.
    pub fn firewall_hits(&self, id: &str) -> Result<Vec<(String, u64)>, ConfigError> {
        let hits = self.services_of(id)?.firewall.hits();
        Ok(hits.map(|(rule, hits)| (rule.to_owned(), hits)).collect())
    }
}
