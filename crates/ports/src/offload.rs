//! A NIC that carries out rules by itself, below the packet drivers.
//!
//! Whoever holds a [`RuleDevice`] talks to it from a thread of its own: installing a rule may take a millisecond. What rules mean, and what they do to a
//! packet, is in [`dataplane::offload`].

use dataplane::offload::{Nic, Rule};

/// Names rules in a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleHandle(pub u64);

/// The device does not do what a rule asks for. What it was asked stays in software: trying the same again is in vain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device refused a rule: {reason}")]
pub struct Refusal {
    /// What the device or its driver said.
    pub reason: String,
}

/// What matched rules since they were installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Packets.
    pub packets: u64,
    /// Bytes as the device counts them.
    pub bytes: u64,
}

/// Installs rules, asks for their counters, removes them.
pub trait RuleDevice: Send {
    /// Which of the engine's ports are the device's.
    fn nic(&self) -> Nic;

    /// Installs all of these rules or none.
    ///
    /// # Errors
    /// If the device refuses one of them.
    fn install(&mut self, rules: &[Rule]) -> Result<RuleHandle, Refusal>;

    /// What matched; `None` if the rules are gone, because their port was stopped.
    fn hits(&mut self, rules: RuleHandle) -> Option<Hits>;

    /// Removes rules; unknown ones are ignored.
    fn remove(&mut self, rules: RuleHandle);
}
