//! The address plan: a Prefix gives parts of itself to PrefixAllocations, and asks for its own part with one.
//!
//! Start at [`serve`] for how a part is given so that nobody else can get it, at [`blocks`] for which part it is.

pub mod blocks;
mod prefix;
mod scheduler;
mod serve;

pub use prefix::PrefixController;
pub use scheduler::PrefixAllocationSchedulerController;
pub use serve::{ALLOCATIONS_MAX, GONE_MAX, SERVED_MAX};

use api::{
    ipam::{Prefix, PrefixAllocation, PrefixAllocationPhase, PrefixPhase},
    meta::IpPrefix,
};
use blocks::{Free, Request};
use controller::object;

/// What an allocation asks for; `None` for a spec that the server would not have accepted.
fn request(allocation: &PrefixAllocation) -> Option<Request> {
    wanted(allocation.spec.prefix, allocation.spec.prefix_length)
}

fn wanted(prefix: Option<IpPrefix>, length: Option<i32>) -> Option<Request> {
    match (prefix, length) {
        (Some(prefix), _) => Some(Request::Prefix(prefix)),
        (None, Some(length)) => u8::try_from(length).ok().map(Request::Length),
        (None, None) => None,
    }
}

fn phase(allocation: &PrefixAllocation) -> PrefixAllocationPhase {
    let status = allocation.status.as_ref();
    status.and_then(|status| status.phase).unwrap_or_default()
}

fn is_allocated(prefix: &Prefix) -> bool {
    let status = prefix.status.as_ref();
    status.is_some_and(|status| status.phase == Some(PrefixPhase::Allocated))
}

/// A prefix from which parts are given.
fn gives(prefix: &Prefix) -> bool {
    is_allocated(prefix) && !object::is_deleting(prefix)
}

/// Whether a prefix can ever answer a request: it must be of the family, and longer requests only.
fn is_compatible(parent: &Prefix, family: Option<api::meta::IpFamily>, request: Request) -> bool {
    let Some(own) = parent.spec.prefix else {
        return false;
    };
    let family = family.or(match request {
        Request::Prefix(prefix) => Some(prefix.family()),
        Request::Length(_) => None,
    });
    family == Some(own.family())
        && own.bits() < request.bits()
        && request.bits() <= own.family().bits()
}

/// What nobody has of a prefix.
fn free(parent: &Prefix) -> Option<Free> {
    let status = parent.status.as_ref();
    let used = status
        .into_iter()
        .flat_map(|status| status.used.iter().copied());
    Some(Free::new(parent.spec.prefix?, used))
}

/// Whether a prefix could answer a request now.
fn fits(parent: &Prefix, family: Option<api::meta::IpFamily>, request: Request) -> bool {
    gives(parent)
        && is_compatible(parent, family, request)
        && free(parent).is_some_and(|free| free.find(request).is_some())
}
