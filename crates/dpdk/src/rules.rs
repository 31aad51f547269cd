//! Rules of the engine in a NIC: flattened here, made rte_flow in `rules.c`.
#![allow(unsafe_code, reason = "calls into DPDK")]

use crate::device::{RulePort, Started};
use crate::eal::Error;
use crate::sys;
use dataplane::PortId;
use dataplane::offload::{Action, Ipv4Match, Ipv6Match, Item, Rule};
use std::ffi::c_char;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

/// Length of texts in the shim (`OKM_NAME_LEN`).
const TEXT_LEN: usize = 64;

/// A rule was not installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Its port is not started: try again when it is.
    #[error("the port is not started")]
    Stopped,
    /// It has more items or actions than fit: a bug.
    #[error("the rule is too long")]
    TooLong,
    /// The device or its driver cannot: permanent for such rules.
    #[error("{text} ({source})")]
    Refused {
        /// What the driver said.
        text: String,
        /// Its error number.
        source: Error,
    },
}

/// A rule in a NIC; removed when dropped.
#[derive(Debug)]
pub struct InstalledRule {
    port: Weak<Started>,
    rule: NonNull<sys::rte_flow>,
}

// SAFETY: the pointer is only passed to DPDK, under the control lock.
unsafe impl Send for InstalledRule {}

impl Drop for InstalledRule {
    fn drop(&mut self) {
        // Without the port, which flushed its rules when it stopped, the pointer is stale.
        let Some(port) = self.port.upgrade() else {
            return;
        };
        let control = port.eal.control();
        // SAFETY: a rule of a port that is started as long as `port` is held; it is destroyed once.
        unsafe { sys::okm_rule_destroy(port.port, self.rule.as_ptr()) };
        drop(control);
    }
}

impl InstalledRule {
    /// Asks the device whether it can, and installs the rule. `number` tells DPDK's numbers of the engine's ports.
    ///
    /// # Errors
    /// The port is stopped, or the device refuses.
    pub fn install(
        port: &RulePort,
        rule: &Rule,
        number: impl Fn(PortId) -> Option<u16>,
    ) -> Result<InstalledRule, RuleError> {
        let started = port.0.upgrade().ok_or(RuleError::Stopped)?;
        let flat = flatten(rule, started.port, number)?;
        let mut created = std::ptr::null_mut();
        let mut text: [c_char; TEXT_LEN] = [0; TEXT_LEN];
        let control = started.eal.control();
        // SAFETY: live structures; the text has the length that the shim expects.
        let result = unsafe { sys::okm_rule_create(&flat, &mut created, text.as_mut_ptr()) };
        drop(control);
        match (Error::check(result), NonNull::new(created)) {
            (Ok(_), Some(rule)) => Ok(InstalledRule {
                port: Arc::downgrade(&started),
                rule,
            }),
            (Ok(_), None) => Err(RuleError::Stopped),
            (Err(source), _) => Err(RuleError::Refused {
                text: text
                    .iter()
                    .take_while(|byte| **byte != 0)
                    .map(|byte| char::from(*byte as u8))
                    .collect(),
                source,
            }),
        }
    }

    /// Packets and bytes that matched so far; `None` if the rule is gone or was not asked to count.
    #[must_use]
    pub fn hits(&self) -> Option<(u64, u64)> {
        let port = self.port.upgrade()?;
        let (mut packets, mut bytes) = (0, 0);
        let control = port.eal.control();
        // SAFETY: a rule of a started port, and live numbers.
        let result =
            unsafe { sys::okm_rule_query(port.port, self.rule.as_ptr(), &mut packets, &mut bytes) };
        drop(control);
        (result == 0).then_some((packets, bytes))
    }
}

fn flatten(
    rule: &Rule,
    port: u16,
    number: impl Fn(PortId) -> Option<u16>,
) -> Result<sys::okm_rule, RuleError> {
    // SAFETY: all-zero bytes are a valid value of this plain structure.
    let mut flat: sys::okm_rule = unsafe { std::mem::zeroed() };
    flat.port = port;
    flat.transfer = u8::from(rule.transfer);
    flat.priority = rule.priority;
    for item in &rule.pattern {
        let place = flat.items.get_mut(usize::from(flat.item_count));
        *place.ok_or(RuleError::TooLong)? = flat_item(item);
        flat.item_count += 1;
    }
    for action in &rule.actions {
        let place = flat.actions.get_mut(usize::from(flat.action_count));
        *place.ok_or(RuleError::TooLong)? = flat_action(action, &number)?;
        flat.action_count += 1;
    }
    Ok(flat)
}

fn flat_item(item: &Item) -> sys::okm_item {
    // SAFETY: all-zero bytes are a valid value of this plain structure.
    let mut flat: sys::okm_item = unsafe { std::mem::zeroed() };
    flat.ttl = -1;
    let kind = match item {
        Item::Ethernet { ethertype } => {
            flat.first = *ethertype;
            sys::okm_item_kind_OKM_ITEM_ETHERNET
        }
        Item::Ipv4(Ipv4Match {
            source,
            destination,
            protocol,
            ttl,
        }) => {
            (flat.protocol, flat.ttl) = (*protocol, ttl.map_or(-1, i16::from));
            (flat.source_bits, flat.destination_bits) = (32, 32);
            put(&mut flat.source, &source.octets());
            put(&mut flat.destination, &destination.octets());
            sys::okm_item_kind_OKM_ITEM_IPV4
        }
        Item::Ipv6(Ipv6Match {
            source,
            destination,
            next_header,
            hop_limit,
            unmarked,
        }) => {
            flat.protocol = next_header.unwrap_or(0);
            flat.ttl = hop_limit.map_or(-1, i16::from);
            flat.unmarked = u8::from(*unmarked);
            if let Some(source) = source {
                flat.source_bits = 128;
                flat.source = source.octets();
            }
            if let Some((destination, bits)) = destination {
                flat.destination_bits = *bits;
                flat.destination = destination.octets();
            }
            sys::okm_item_kind_OKM_ITEM_IPV6
        }
        Item::Tcp {
            source,
            destination,
        } => {
            (flat.first, flat.second) = (*source, *destination);
            sys::okm_item_kind_OKM_ITEM_TCP
        }
        Item::Udp {
            source,
            destination,
        } => {
            (flat.first, flat.second) = (*source, *destination);
            sys::okm_item_kind_OKM_ITEM_UDP
        }
        Item::Echo { kind, identifier } => {
            (flat.protocol, flat.first) = (*kind, *identifier);
            sys::okm_item_kind_OKM_ITEM_ECHO
        }
    };
    flat.kind = kind as u8;
    flat
}

fn flat_action(
    action: &Action,
    number: &impl Fn(PortId) -> Option<u16>,
) -> Result<sys::okm_action, RuleError> {
    let (kind, value, bytes): (u32, u32, &[u8]) = match action {
        Action::RawDecap(length) => (
            sys::okm_action_kind_OKM_ACTION_RAW_DECAP,
            u32::try_from(*length).map_err(|_| RuleError::TooLong)?,
            &[],
        ),
        Action::RawEncap(header) => (sys::okm_action_kind_OKM_ACTION_RAW_ENCAP, 0, header),
        Action::SetSourceMac(mac) => (sys::okm_action_kind_OKM_ACTION_SET_MAC_SRC, 0, &mac.0),
        Action::SetDestinationMac(mac) => (sys::okm_action_kind_OKM_ACTION_SET_MAC_DST, 0, &mac.0),
        Action::SetIpv4Source(address) => (
            sys::okm_action_kind_OKM_ACTION_SET_IPV4_SRC,
            0,
            &address.octets(),
        ),
        Action::SetIpv4Destination(address) => (
            sys::okm_action_kind_OKM_ACTION_SET_IPV4_DST,
            0,
            &address.octets(),
        ),
        Action::SetIpv6Source(address) => (
            sys::okm_action_kind_OKM_ACTION_SET_IPV6_SRC,
            0,
            &address.octets(),
        ),
        Action::SetIpv6Destination(address) => (
            sys::okm_action_kind_OKM_ACTION_SET_IPV6_DST,
            0,
            &address.octets(),
        ),
        Action::SetSourcePort(port) => (
            sys::okm_action_kind_OKM_ACTION_SET_TP_SRC,
            u32::from(*port),
            &[],
        ),
        Action::SetDestinationPort(port) => (
            sys::okm_action_kind_OKM_ACTION_SET_TP_DST,
            u32::from(*port),
            &[],
        ),
        Action::SetTtl(ttl) => (
            sys::okm_action_kind_OKM_ACTION_SET_TTL,
            u32::from(*ttl),
            &[],
        ),
        Action::DecrementTtl => (sys::okm_action_kind_OKM_ACTION_DEC_TTL, 0, &[]),
        Action::Count => (sys::okm_action_kind_OKM_ACTION_COUNT, 0, &[]),
        Action::Age { timeout_s } => (sys::okm_action_kind_OKM_ACTION_AGE, *timeout_s, &[]),
        Action::Port(port) => (
            sys::okm_action_kind_OKM_ACTION_PORT,
            u32::from(number(*port).ok_or(RuleError::Stopped)?),
            &[],
        ),
        Action::Software => (sys::okm_action_kind_OKM_ACTION_SOFTWARE, 0, &[]),
    };
    // SAFETY: all-zero bytes are a valid value of this plain structure.
    let mut flat: sys::okm_action = unsafe { std::mem::zeroed() };
    if bytes.len() > flat.bytes.len() {
        return Err(RuleError::TooLong);
    }
    (flat.kind, flat.value, flat.length) = (kind as u8, value, bytes.len() as u8);
    put(&mut flat.bytes, bytes);
    Ok(flat)
}

/// Copies bytes to the front of a longer field.
fn put(field: &mut [u8], bytes: &[u8]) {
    for (to, from) in field.iter_mut().zip(bytes) {
        *to = *from;
    }
}
