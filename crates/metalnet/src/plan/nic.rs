//! The next steps for one interface, from what is wanted to what is there.
//!
//! Steps of one answer may run at the same time; what must come later appears when the plan is asked again.

use super::desired::{Block, Want};
use super::observed::Interface;
use super::ops::{DpError, DpOp, InterfaceRequest};
use crate::model::{DeviceStatus, NIC_FINALIZER, Nic, NicSpec, NicStatus, State, Uid, Vni};

/// A claimed device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// dpservice's name of it.
    pub name: String,
    pub status: DeviceStatus,
}

/// The claim of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim<'a> {
    None,
    /// A claim exists, but this machine has no such device.
    Gone,
    Held(&'a Device),
}

/// Everything the plan for one interface looks at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub uid: &'a Uid,
    pub nic: Option<&'a Nic>,
    pub want: Want<'a>,
    pub claim: Claim<'a>,
    /// Whether a device is free to be claimed.
    pub free: bool,
    /// What dpservice holds; `None` if there is nothing, or if that is not known (`live` false).
    pub interface: Option<&'a Interface>,
    /// Whether the inventory is current.
    pub live: bool,
    /// Whether a route to another host still occupies one of the interface's addresses.
    pub occupied: bool,
    /// The last failure that was not transient.
    pub failure: Option<&'a DpError>,
}

/// A claim to take or to give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimStep {
    Take,
    Release,
}

/// A warning for the object's events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub reason: &'static str,
    pub note: String,
}

/// Steps to take now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub dp: Vec<DpOp>,
    pub claim: Option<ClaimStep>,
    pub finalizers: Option<Vec<String>>,
    pub status: Option<NicStatus>,
    pub warning: Option<Warning>,
}

/// Plans the next steps.
pub fn plan(view: View<'_>) -> Plan {
    match (view.want, view.nic) {
        (Want::Unknown, _) => Plan::default(),
        (Want::Absent, _) | (Want::Blocked(_) | Want::Present { .. }, None) => teardown(view),
        (Want::Blocked(block), Some(nic)) => blocked(view, nic, block),
        (Want::Present { spec, vni }, Some(nic)) => present(view, nic, spec, vni),
    }
}

/// Nobody wants it: interface, then claim, then finalizer. Nothing is released while dpservice may still hold it.
fn teardown(view: View<'_>) -> Plan {
    let mut plan = Plan::default();
    if !view.live {
        return plan;
    }
    if let Some(interface) = view.interface {
        plan.dp = removal(view.uid, interface);
        return plan;
    }
    if view.claim != Claim::None {
        plan.claim = Some(ClaimStep::Release);
        return plan;
    }
    if let Some(nic) = view
        .nic
        .filter(|nic| nic.meta.deleting && nic.meta.has_finalizer(NIC_FINALIZER))
    {
        let rest = nic.meta.finalizers.iter().filter(|f| *f != NIC_FINALIZER);
        plan.finalizers = Some(rest.cloned().collect());
    }
    plan
}

/// dpservice does not delete an interface's prefixes with it: they go first.
fn removal(uid: &Uid, interface: &Interface) -> Vec<DpOp> {
    if interface.prefixes.is_empty() {
        return vec![DpOp::DeleteInterface { uid: uid.clone() }];
    }
    interface
        .prefixes
        .keys()
        .map(|prefix| DpOp::DeletePrefix {
            uid: uid.clone(),
            prefix: *prefix,
        })
        .collect()
}

/// Not possible now. What exists keeps running; the status says why nothing more happens.
fn blocked(view: View<'_>, nic: &Nic, block: Block) -> Plan {
    let (state, reason, note) = match block {
        Block::NetworkMissing => (
            State::Pending,
            "NetworkNotFound",
            format!("Network {} does not exist", nic.network.name),
        ),
        Block::NetworkDeleting => (
            State::Pending,
            "NetworkDeleting",
            format!("Network {} is being deleted", nic.network.name),
        ),
        Block::NetworkInvalid => (
            State::Error,
            "NetworkInvalid",
            format!("Network {} has no valid id", nic.network.name),
        ),
        Block::SpecInvalid => {
            let note = nic
                .spec
                .as_ref()
                .err()
                .map(ToString::to_string)
                .unwrap_or_default();
            (State::Error, "InvalidSpec", note)
        }
    };
    Plan {
        warning: Some(Warning { reason, note }),
        status: status(view, nic, state),
        ..Plan::default()
    }
}

fn present(view: View<'_>, nic: &Nic, spec: &NicSpec, vni: Vni) -> Plan {
    let mut plan = Plan::default();
    if !nic.meta.has_finalizer(NIC_FINALIZER) {
        let mut finalizers = nic.meta.finalizers.clone();
        finalizers.push(NIC_FINALIZER.to_owned());
        plan.finalizers = Some(finalizers);
    }
    let device = match view.claim {
        Claim::Held(device) => device,
        Claim::None if view.free || view.interface.is_some() => {
            plan.claim = Some(ClaimStep::Take);
            return plan;
        }
        Claim::None => {
            return failed(
                view,
                nic,
                plan,
                "NoDevice",
                "every device of this node is in use".to_owned(),
            );
        }
        Claim::Gone => {
            let note = "the claimed device does not exist on this node any more".to_owned();
            return failed(view, nic, plan, "DeviceMissing", note);
        }
    };
    // The finalizer comes before the first trace in the data plane, or a deletion could overtake us.
    if plan.finalizers.is_some() || !view.live {
        return plan;
    }
    plan.dp = match view.interface {
        None if view.occupied => Vec::new(),
        None => vec![DpOp::CreateInterface {
            uid: view.uid.clone(),
            request: Box::new(request(spec, vni, device)),
        }],
        Some(interface) if !interface.matches(spec, vni, &device.name) => {
            removal(view.uid, interface)
        }
        Some(interface) => prefixes(view.uid, spec, interface),
    };
    if view.occupied {
        // The route planner is about to free the prefixes; creating them now would only be refused.
        plan.dp
            .retain(|op| !matches!(op, DpOp::CreatePrefix { .. }));
    }
    if let Some(failure) = view.failure {
        return failed(view, nic, plan, "DataPlane", failure.to_string());
    }
    if plan.dp.is_empty() && !view.occupied {
        plan.status = status(view, nic, State::Ready);
    }
    plan
}

fn failed(view: View<'_>, nic: &Nic, mut plan: Plan, reason: &'static str, note: String) -> Plan {
    plan.warning = Some(Warning { reason, note });
    plan.status = status(view, nic, State::Error);
    plan
}

fn request(spec: &NicSpec, vni: Vni, device: &Device) -> InterfaceRequest {
    let NicSpec {
        ipv4,
        ipv6,
        prefixes: _,
        total_rate,
        public_rate,
        hostname,
    } = spec;
    InterfaceRequest {
        vni,
        device: device.name.clone(),
        ipv4: *ipv4,
        ipv6: *ipv6,
        total_rate: *total_rate,
        public_rate: *public_rate,
        hostname: hostname.clone(),
    }
}

/// A prefix that equals one of the addresses needs nothing: dpservice routes the address already.
fn prefixes(uid: &Uid, spec: &NicSpec, interface: &Interface) -> Vec<DpOp> {
    let wanted = |prefix: &_| {
        spec.prefixes.contains(prefix) && !spec.host_prefixes().any(|host| host == *prefix)
    };
    let extra = interface.prefixes.keys().filter(|prefix| !wanted(prefix));
    let extra = extra.map(|prefix| DpOp::DeletePrefix {
        uid: uid.clone(),
        prefix: *prefix,
    });
    let missing = spec
        .prefixes
        .iter()
        .filter(|prefix| wanted(prefix) && !interface.prefixes.contains_key(prefix));
    let missing = missing.map(|prefix| DpOp::CreatePrefix {
        uid: uid.clone(),
        prefix: *prefix,
    });
    extra.chain(missing).collect()
}

/// The status to write, if it differs. The device stays visible as long as it is claimed, whatever the state.
fn status(view: View<'_>, nic: &Nic, state: State) -> Option<NicStatus> {
    let device = match view.claim {
        Claim::Held(device) => Some(device.status.clone()),
        Claim::None | Claim::Gone => None,
    };
    let prefixes = match (view.interface, &nic.spec) {
        (Some(interface), Ok(spec)) => {
            let routed = spec
                .prefixes
                .iter()
                .filter(|prefix| interface.owned().any(|(owned, _)| owned == **prefix));
            routed.map(ToString::to_string).collect()
        }
        (None, _) | (Some(_), Err(_)) => nic.status.prefixes.clone(),
    };
    let status = NicStatus {
        state: Some(state),
        device,
        prefixes,
    };
    (status != nic.status).then_some(status)
}
