//! Public addresses: an IP object holds an address, an IPAddress named after the address is its lock. A network interface whose own
//! IPv6 address is public holds the lock itself: the outside reaches such addresses directly, so no two networks may have one.

use super::{Draft, PROBES_MAX, apinet, claim_of, lock_object, refused, release_lock, set_spec};
use crate::kinds::Kind;
use crate::nature::Nature;
use crate::object;
use crate::region::Region;
use crate::registry::{Write, store_key};
use crate::status::{Failure, Outcome, Reason};
use api::meta::IpFamily;
use api::names::{APINET, finalizer, label};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Reserves the address of an IP object and completes the object.
pub fn reserve(region: &Region, ip: &mut Value, claim: Value, draft: &mut Draft) -> Outcome<()> {
    let text = |path: &str| {
        ip.pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let name = object::metadata_text(ip, "name").to_owned();
    let (given, family) = (text("/spec/ip"), text("/spec/ipFamily"));
    let refuse =
        |field: &str, value: &str, why: &str| refused((APINET, "IP"), &name, field, value, why);
    let kind = apinet(region, "ipaddresses")?;
    let taken = |address: IpAddr| {
        let lock = address.to_string();
        region.cache.get(kind.id, &lock).is_some() || draft.has(&store_key(kind, "", &lock))
    };
    let address = if given.is_empty() {
        let prefixes: Vec<IpNet> = region
            .ranges
            .public
            .iter()
            .filter(|prefix| family_of(prefix.addr()) == family)
            .copied()
            .collect();
        if prefixes.is_empty() {
            return Err(refuse(
                "spec.ipFamily",
                &family,
                "no public prefix of this family is configured",
            ));
        }
        let free = prefixes
            .iter()
            .find_map(|prefix| pick(*prefix, &region.nature, &taken));
        free.ok_or_else(|| {
            Failure::new(
                Reason::Conflict,
                format!("all public {family} addresses are allocated"),
            )
        })?
    } else {
        let address: IpAddr = given
            .parse()
            .map_err(|_| refuse("spec.ip", &given, "must be an IP address"))?;
        if !region
            .ranges
            .public
            .iter()
            .any(|prefix| prefix.contains(&address))
        {
            return Err(refuse(
                "spec.ip",
                &given,
                "must be in one of the region's public prefixes",
            ));
        }
        if taken(address) {
            return Err(refuse("spec.ip", &given, "is already allocated"));
        }
        address
    };
    let lock_name = address.to_string();
    draft.insert(kind, "", &lock(region, kind, address, claim));
    set_spec(ip, "ip", json!(lock_name));
    set_spec(ip, "ipFamily", json!(family_of(address)));
    let mut labels = object::metadata(ip, "labels")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    labels.insert(label::IP_FAMILY.to_owned(), json!(family_of(address)));
    labels.insert(label::IP.to_owned(), json!(address_label(address)));
    object::set_metadata(ip, "labels", Value::Object(labels));
    Ok(())
}

fn lock(region: &Region, kind: &Kind, address: IpAddr, claim: Value) -> Value {
    let name = address.to_string();
    let mut lock = lock_object(
        region,
        kind,
        &name,
        json!({ "ip": name, "claimRef": claim }),
    );
    object::set_metadata(
        &mut lock,
        "finalizers",
        json!([finalizer::IP_ADDRESS_PROTECTION]),
    );
    lock
}

/// The public ones among the own IPv6 addresses of an interface, with their places in the list. Its IPv4 addresses mean something
/// within its network only: the outside reaches IPv4 by translation.
fn own(write: &Write<'_>, interface: &Value) -> Vec<(usize, IpAddr)> {
    if write.kind.plural != "networkinterfaces" {
        return Vec::new();
    }
    let listed = interface.pointer("/spec/ips").and_then(Value::as_array);
    let parsed = listed.into_iter().flatten().enumerate();
    parsed
        .filter_map(|(index, ip)| Some((index, ip.as_str()?.parse::<IpAddr>().ok()?)))
        .filter(|(_, ip)| {
            let public = &write.region.ranges.public;
            ip.is_ipv6() && public.iter().any(|prefix| prefix.contains(ip))
        })
        .collect()
}

/// Locks the public addresses that a new interface brings with it. They never change during its life.
pub fn reserve_own(write: &Write<'_>, interface: &Value, draft: &mut Draft) -> Outcome<()> {
    let kind = apinet(write.region, "ipaddresses")?;
    for (index, address) in own(write, interface) {
        let name = address.to_string();
        if write.region.cache.get(kind.id, &name).is_some() {
            return Err(refused(
                (write.kind.group, write.kind.kind),
                object::metadata_text(interface, "name"),
                &format!("spec.ips[{index}]"),
                &name,
                "is a public address and already allocated",
            ));
        }
        let claim = claim_of(write.kind.plural, write.namespace, interface);
        draft.insert(kind, "", &lock(write.region, kind, address, claim));
    }
    Ok(())
}

/// Frees what [`reserve_own`] locked.
pub async fn release_own(write: &Write<'_>, interface: &Value, draft: &mut Draft) -> Outcome<()> {
    let uid = object::metadata_text(interface, "uid");
    for (_, address) in own(write, interface) {
        release_lock(
            write.region,
            "ipaddresses",
            &address.to_string(),
            uid,
            draft,
        )
        .await?;
    }
    Ok(())
}

fn family_of(address: IpAddr) -> &'static str {
    IpFamily::of(address).as_str()
}

/// The address as a label value: no colons, and a letter or digit at both ends (`::1` has neither in its short form).
fn address_label(address: IpAddr) -> String {
    let short = address.to_string().replace(':', "-");
    match address {
        IpAddr::V6(v6) if short.starts_with('-') || short.ends_with('-') => v6
            .segments()
            .map(|segment| format!("{segment:04x}"))
            .join("-"),
        _ => short,
    }
}

/// A free address of a prefix: a random start, then upwards, once around. Network and broadcast address and the subnet-router
/// anycast address (RFC 4291, 2.6.1) are left out where the prefix is large enough to have them.
fn pick(prefix: IpNet, nature: &Nature, taken: &impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let (first, last) = match prefix {
        IpNet::V4(net) => {
            let (first, last) = (
                u128::from(net.network().to_bits()),
                u128::from(net.broadcast().to_bits()),
            );
            if net.prefix_len() < 31 {
                (first + 1, last - 1)
            } else {
                (first, last)
            }
        }
        IpNet::V6(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            if net.prefix_len() < 127 {
                (first + 1, last)
            } else {
                (first, last)
            }
        }
    };
    let span = (last - first).saturating_add(1);
    let start = nature.below(span);
    let probes = span.min(u128::from(PROBES_MAX));
    (0..probes)
        .map(|step| {
            // start + step cannot overflow in the sum of offsets: step is small, and the wrap is by subtraction.
            let offset = if step < span - start {
                start + step
            } else {
                step - (span - start)
            };
            address(prefix, first + offset)
        })
        .find(|address| !taken(*address))
}

fn address(prefix: IpNet, bits: u128) -> IpAddr {
    match prefix {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_usable_address_is_found_once() {
        for (prefix, usable) in [
            ("192.0.2.0/29", 6),
            ("192.0.2.4/31", 2),
            ("192.0.2.9/32", 1),
            ("0.0.0.0/30", 2),
            ("fd00::/126", 3),
        ] {
            let prefix: IpNet = prefix.parse().expect("a prefix");
            let mut used = HashSet::new();
            while let Some(address) =
                pick(prefix, &Nature::real(), &|address| used.contains(&address))
            {
                assert!(prefix.contains(&address));
                assert!(used.insert(address));
            }
            assert_eq!(used.len(), usable, "{prefix}");
        }
    }

    #[test]
    fn labels_have_no_dash_at_their_ends() {
        assert_eq!(
            address_label("fd00::1".parse().expect("address")),
            "fd00--1"
        );
        assert_eq!(
            address_label("::1".parse().expect("address")),
            "0000-0000-0000-0000-0000-0000-0000-0001"
        );
        assert_eq!(
            address_label("10.0.0.1".parse().expect("address")),
            "10.0.0.1"
        );
    }
}
