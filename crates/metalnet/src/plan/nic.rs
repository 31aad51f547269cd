//! The next steps for one interface, from what is wanted to what is there.
//!
//! Steps of one answer may run at the same time; what must come later appears when the plan is asked again.

use std::net::IpAddr;

use super::desired::{Block, Want};
use super::observed::Interface;
use super::ops::{DpError, DpOp, InterfaceRequest, Part};
use crate::model::{
    DeviceStatus, NIC_FINALIZER, Nic, NicSpec, NicStatus, ObjectKey, Prefix, State, Uid, Vni,
};

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
    /// Whether something that is about to go still holds its virtual IP.
    pub vip_held: bool,
    /// Whether a call may still be carried out that was made for an older spec.
    pub pending: bool,
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

/// dpservice does not delete everything with an interface: what has addresses goes first. The rules go with it.
fn removal(uid: &Uid, interface: &Interface) -> Vec<DpOp> {
    let prefixes = interface.prefixes.keys();
    let mut ops: Vec<DpOp> = prefixes
        .map(|prefix| DpOp::DeletePrefix {
            uid: uid.clone(),
            prefix: *prefix,
        })
        .collect();
    let services = &interface.services;
    ops.extend(
        services
            .targets
            .keys()
            .map(|prefix| delete_target(uid, prefix)),
    );
    ops.extend(services.nat.map(|_| DpOp::DeleteNat { uid: uid.clone() }));
    ops.extend(services.vip.map(|_| DpOp::DeleteVip { uid: uid.clone() }));
    if ops.is_empty() {
        ops.push(DpOp::DeleteInterface { uid: uid.clone() });
    }
    ops
}

fn delete_target(uid: &Uid, prefix: &Prefix) -> DpOp {
    DpOp::DeleteTargetPrefix {
        uid: uid.clone(),
        prefix: *prefix,
    }
}

/// Not possible now. What exists keeps running; the status says why nothing more happens.
fn blocked(view: View<'_>, nic: &Nic, block: Block) -> Plan {
    let invalid = nic.spec.as_ref().err().map(ToString::to_string);
    let (state, warning) = reason(block, &nic.network, invalid);
    Plan {
        warning: Some(warning),
        status: status(view, nic, state, seen_before(nic)),
        ..Plan::default()
    }
}

/// What to tell about an object that is not realised. `invalid` is what is wrong with its spec.
pub(super) fn reason(
    block: Block,
    network: &ObjectKey,
    invalid: Option<String>,
) -> (State, Warning) {
    let name = &network.name;
    let (state, reason, note) = match block {
        Block::NetworkMissing => (
            State::Pending,
            "NetworkNotFound",
            format!("Network {name} does not exist"),
        ),
        Block::NetworkDeleting => (
            State::Pending,
            "NetworkDeleting",
            format!("Network {name} is being deleted"),
        ),
        Block::NetworkInvalid => (
            State::Error,
            "NetworkInvalid",
            format!("Network {name} has no valid id"),
        ),
        Block::SpecInvalid => (State::Error, "InvalidSpec", invalid.unwrap_or_default()),
    };
    (state, Warning { reason, note })
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
        Some(interface) => {
            let mut ops = rules(view.uid, spec, interface);
            let guarded = ops.is_empty();
            ops.extend(prefixes(view.uid, spec, interface));
            ops.extend(services(view.uid, spec, interface, guarded));
            ops
        }
    };
    // Whoever is about to free an address does it without us; creating on top of it now would only be refused.
    plan.dp.retain(|op| match op {
        DpOp::CreatePrefix { .. } => !view.occupied,
        DpOp::CreatePart { part, .. } => !(view.vip_held && matches!(**part, Part::Vip(_))),
        _ => true,
    });
    // What failed may not be wanted any more.
    let done = plan.dp.is_empty() && !view.occupied && !view.vip_held;
    if let Some(failure) = view.failure.filter(|_| !done) {
        return failed(view, nic, plan, "DataPlane", failure.to_string());
    }
    if !done {
        return plan;
    }
    // Only now, with nothing left to do, is it true that what this generation no longer has is gone.
    let generation = match view.pending {
        true => seen_before(nic),
        false => Some(nic.meta.generation),
    };
    if spec.problems.is_empty() {
        plan.status = status(view, nic, State::Ready, generation);
        return plan;
    }
    let problems: Vec<String> = spec.problems.iter().map(ToString::to_string).collect();
    plan.status = status(view, nic, State::Error, generation);
    plan.warning = Some(Warning {
        reason: "InvalidSpec",
        note: problems.join("; "),
    });
    plan
}

/// A filter never becomes wider on the way from one set of rules to another: first what is new, then what changes, one
/// at a time, and only then goes what is too much.
fn rules(uid: &Uid, spec: &NicSpec, interface: &Interface) -> Vec<DpOp> {
    let present = &interface.services.rules;
    let missing = spec
        .rules
        .iter()
        .filter(|(id, _)| !present.contains_key(*id));
    let missing: Vec<DpOp> = missing
        .map(|(id, rule)| DpOp::CreatePart {
            uid: uid.clone(),
            part: Box::new(Part::Rule {
                id: id.clone(),
                rule: *rule,
            }),
        })
        .collect();
    if !missing.is_empty() {
        return missing;
    }
    let mut changed = spec
        .rules
        .iter()
        .filter(|(id, rule)| present.get(*id) != Some(&Some(**rule)));
    if let Some((id, rule)) = changed.next() {
        return vec![DpOp::ReplaceRule {
            uid: uid.clone(),
            id: id.clone(),
            rule: Box::new(*rule),
        }];
    }
    let extra = present.keys().filter(|id| !spec.rules.contains_key(*id));
    let extra = extra.map(|id| DpOp::DeleteRule {
        uid: uid.clone(),
        id: id.clone(),
    });
    extra.collect()
}

/// Virtual IP, NAT and load balancer addresses. Nothing opens a new way to the machine before its filter stands
/// (`guarded`). What changes goes first and comes back at the next look.
fn services(uid: &Uid, spec: &NicSpec, interface: &Interface, guarded: bool) -> Vec<DpOp> {
    let present = &interface.services;
    let create = |part| DpOp::CreatePart {
        uid: uid.clone(),
        part: Box::new(part),
    };
    let mut ops = Vec::new();
    match (spec.vip, present.vip) {
        (None, None) => {}
        (Some(address), None) => ops.extend(guarded.then(|| create(Part::Vip(address)))),
        (Some(address), Some((vip, _))) if vip == address => {}
        (Some(_) | None, Some(_)) => ops.push(DpOp::DeleteVip { uid: uid.clone() }),
    }
    match (spec.nat, present.nat) {
        (None, None) => {}
        (Some(share), None) => ops.extend(guarded.then(|| create(Part::Nat(share)))),
        (Some(share), Some((nat, _))) if nat == share => {}
        (Some(_) | None, Some(_)) => ops.push(DpOp::DeleteNat { uid: uid.clone() }),
    }
    let extra = present
        .targets
        .keys()
        .filter(|prefix| !spec.targets.contains(*prefix));
    ops.extend(extra.map(|prefix| delete_target(uid, prefix)));
    let missing = spec
        .targets
        .iter()
        .filter(|prefix| guarded && !present.targets.contains_key(*prefix));
    ops.extend(missing.map(|prefix| create(Part::Target(*prefix))));
    ops
}

fn failed(view: View<'_>, nic: &Nic, mut plan: Plan, reason: &'static str, note: String) -> Plan {
    plan.warning = Some(Warning { reason, note });
    plan.status = status(view, nic, State::Error, seen_before(nic));
    plan
}

fn request(spec: &NicSpec, vni: Vni, device: &Device) -> InterfaceRequest {
    let NicSpec {
        ipv4,
        ipv6,
        prefixes: _,
        public: _,
        total_rate,
        public_rate,
        hostname,
        vip: _,
        nat: _,
        targets: _,
        rules,
        problems: _,
    } = spec;
    InterfaceRequest {
        vni,
        device: device.name.clone(),
        ipv4: *ipv4,
        ipv6: *ipv6,
        total_rate: *total_rate,
        public_rate: *public_rate,
        hostname: hostname.clone(),
        rules: rules.clone(),
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

/// The generation that the data plane agreed with last; 0 says that there was none yet, unlike saying nothing.
fn seen_before(nic: &Nic) -> Option<i64> {
    nic.status.observed_generation.or(Some(0))
}

/// The status to write, if it differs. The device stays visible as long as it is claimed, whatever the state.
fn status(
    view: View<'_>,
    nic: &Nic,
    state: State,
    observed_generation: Option<i64>,
) -> Option<NicStatus> {
    let device = match view.claim {
        Claim::Held(device) => Some(device.status.clone()),
        Claim::None | Claim::Gone => None,
    };
    let mut status = NicStatus {
        observed_generation,
        state: Some(state),
        device,
        ..nic.status.clone()
    };
    if let (Some(interface), Ok(spec)) = (view.interface, &nic.spec) {
        let routed = |prefix: &&Prefix| interface.owned().any(|(owned, _)| owned == **prefix);
        let asked = spec.prefixes.difference(&spec.public);
        status.prefixes = asked.filter(routed).map(ToString::to_string).collect();
        let services = &interface.services;
        let vip = services.vip.map(|(address, _)| IpAddr::V4(address));
        let public = spec.public.iter().filter(routed).map(Prefix::address);
        status.virtual_ips = vip.into_iter().chain(public).collect();
        status.nat = services.nat.map(|(share, _)| share);
        let served = services.targets.keys();
        status.targets = served.map(ToString::to_string).collect();
    }
    (status != nic.status).then_some(status)
}
