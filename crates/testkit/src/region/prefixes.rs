//! The address plan: a root Prefix, parts that people cut from it, and parts that interfaces get for themselves. No part has two
//! owners at any moment, and none is lost.

use std::collections::{BTreeMap, BTreeSet};

use api::ipam::{Prefix, PrefixAllocation, PrefixAllocationPhase};
use api::meta::IpPrefix;
use controller::object;
use rand::Rng;
use serde_json::{Value, json};

use crate::region::Region;
use crate::region::user::apply;

/// The Prefix that everything is cut from.
const ROOT: &str = "r";
/// Small enough that it runs out.
const ROOT_PREFIX: &str = "10.200.0.0/27";

/// Somebody plans addresses.
pub fn act(region: &mut Region) -> Result<(), String> {
    let prefixes = region.store.list::<Prefix>();
    if !prefixes.iter().any(|prefix| object::name(prefix) == ROOT) {
        let spec = json!({ "prefix": ROOT_PREFIX });
        return apply::<Prefix>(region, ROOT, json!({}), spec);
    }
    let n = region.rng.random_range(0..4);
    let (parent, length) = match n {
        0 => ("c1", 31),
        _ => (ROOT, region.rng.random_range(28..31)),
    };
    let spec = json!({
        "ipFamily": "IPv4", "prefixLength": length, "parentRef": { "name": parent },
    });
    apply::<Prefix>(region, &format!("c{n}"), json!({}), spec)
}

/// What an interface says that wants a part for itself.
pub fn ephemeral() -> Value {
    json!([{ "ephemeral": { "prefixTemplate": { "spec": {
        "ipFamily": "IPv4", "prefixLength": 30, "parentRef": { "name": ROOT },
    } } } }])
}

/// The same for a single address.
pub fn ephemeral_address() -> Value {
    json!({ "ephemeral": { "prefixTemplate": { "spec": {
        "ipFamily": "IPv4", "prefixLength": 32, "parentRef": { "name": ROOT },
    } } } })
}

/// Parts that were given, by the Prefix that they are of.
fn given(region: &Region) -> BTreeMap<String, Vec<(String, IpPrefix)>> {
    let mut given: BTreeMap<String, Vec<(String, IpPrefix)>> = BTreeMap::new();
    for allocation in region.store.list::<PrefixAllocation>() {
        let status = allocation.status.clone().unwrap_or_default();
        if status.phase != Some(PrefixAllocationPhase::Allocated) {
            continue;
        }
        let parent = allocation.spec.prefix_ref.clone();
        if let (Some(parent), Some(part)) = (parent, status.prefix) {
            let name = object::name(&allocation).to_owned();
            given.entry(parent.name).or_default().push((name, part));
        }
    }
    given
}

fn overlap(one: IpPrefix, two: IpPrefix) -> bool {
    let (one, two) = (one.masked(), two.masked());
    let holds = |outer: &IpPrefix, inner: &IpPrefix| outer.0.contains(&inner.0.addr());
    holds(&one, &two) || holds(&two, &one)
}

/// At any time.
pub fn never(region: &Region) -> Result<(), String> {
    let prefixes = region.store.list::<Prefix>();
    for (parent, parts) in given(region) {
        for (at, (name, part)) in parts.iter().enumerate() {
            let mut others = parts.iter().skip(at + 1);
            if let Some((other, same)) = others.find(|(_, other)| overlap(*part, *other)) {
                return Err(format!("{part} of {name} and {same} of {other} overlap"));
            }
            let parent = prefixes
                .iter()
                .find(|prefix| object::name(*prefix) == parent);
            let used = parent.and_then(|parent| Some(parent.status.as_ref()?.used.clone()));
            if used.is_some_and(|used| !used.contains(part)) {
                return Err(format!(
                    "{name} has {part}, which its Prefix would give again"
                ));
            }
        }
    }
    Ok(())
}

/// At rest, every part that is taken has an owner.
pub fn at_rest(region: &Region) -> Result<(), String> {
    never(region)?;
    let given = given(region);
    for prefix in region.store.list::<Prefix>() {
        let parts = given.get(object::name(&prefix));
        let owned = parts
            .into_iter()
            .flatten()
            .map(|(_, part)| part.to_string());
        let owned: BTreeSet<String> = owned.collect();
        let status = prefix.status.clone().unwrap_or_default();
        let used: BTreeSet<String> = status.used.iter().map(ToString::to_string).collect();
        if owned != used {
            let name = object::name(&prefix);
            return Err(format!(
                "of {name} {used:?} are taken, {owned:?} have an owner"
            ));
        }
    }
    Ok(())
}
