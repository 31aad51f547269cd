//! Input of requests, checked completely before anything is done. Each failure carries the exact text that clients know.

use super::Failure;
use net::Vni;
use proto::dpdk::{IpAddress, IpVersion, Prefix};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest identifier, host name or version string.
pub(super) const ID_LEN_MAX: usize = 63;
/// Longest name of a boot file.
pub(super) const BOOT_FILENAME_LEN_MAX: usize = 31;

/// A text of 1 to 63 characters.
pub(super) fn id(bytes: Vec<u8>, name: &str) -> Result<String, Failure> {
    let text = String::from_utf8(bytes).map_err(|_| Failure::invalid(name))?;
    if text.is_empty() || text.len() > ID_LEN_MAX || text.contains('\0') {
        return Err(Failure::invalid(name));
    }
    Ok(text)
}

/// An address in the form its `ipver` promises.
pub(super) fn address(value: Option<IpAddress>, name: &str) -> Result<IpAddr, Failure> {
    let IpAddress { ipver, address } = value.unwrap_or_default();
    let parsed = match IpVersion::try_from(ipver) {
        Ok(IpVersion::Ipv4) => ipv4(&address).map(IpAddr::V4),
        Ok(IpVersion::Ipv6) => ipv6(&address).map(IpAddr::V6),
        Err(_) => None,
    };
    parsed.ok_or_else(|| Failure::invalid(name))
}

pub(super) fn ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

pub(super) fn ipv6(text: &[u8]) -> Option<Ipv6Addr> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A prefix as it was given: host bits stay, and a length beyond the family's is the engine's business.
///
/// Only a length that no family could have (more than 8 bits) is bad input.
pub(super) fn prefix(
    value: Option<Prefix>,
    ip_name: &str,
    length_name: &str,
) -> Result<(IpAddr, u8), Failure> {
    let Prefix {
        ip,
        length,
        underlay_route: _,
    } = value.unwrap_or_default();
    let length = u8::try_from(length).map_err(|_| Failure::invalid(length_name));
    // The order in which several mistakes are reported is part of the protocol for routes only: see `route_prefix`.
    let ip = address(ip, ip_name)?;
    Ok((ip, length?))
}

/// The prefix of a route: its length is checked first.
pub(super) fn route_prefix(value: Option<Prefix>) -> Result<(IpAddr, u8), Failure> {
    let Prefix {
        ip,
        length,
        underlay_route: _,
    } = value.unwrap_or_default();
    let length = u8::try_from(length).map_err(|_| Failure::invalid("route.prefix.length"))?;
    Ok((address(ip, "route.prefix.ip")?, length))
}

/// An underlay address chosen by the client. Empty and `::` ask for a generated one.
///
/// It must lie in this host's /64 and carry the flag 0x80 in byte 10, "generated elsewhere", which keeps it apart from ours.
pub(super) fn preferred_underlay(host: Ipv6Addr, text: &[u8]) -> Result<Option<Ipv6Addr>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = || Failure::invalid("preferred_underlay_route");
    let address = ipv6(text).ok_or_else(invalid)?;
    if address.is_unspecified() {
        return Ok(None);
    }
    let same_host = address.to_bits() >> 64 == host.to_bits() >> 64;
    let external = address.octets()[10] & 0x80 != 0;
    if same_host && external {
        Ok(Some(address))
    } else {
        Err(invalid())
    }
}

/// A VNI of a new object. The protocol has room for more bits than a VNI has.
pub(super) fn new_vni(value: u32) -> Result<Vni, Failure> {
    Vni::new(value).ok_or_else(|| Failure::Invalid("VNI exceeds 24-bit range".to_owned()))
}

/// An address as the protocol shows it.
pub(super) fn show(address: IpAddr) -> IpAddress {
    let ipver = match address {
        IpAddr::V4(_) => IpVersion::Ipv4,
        IpAddr::V6(_) => IpVersion::Ipv6,
    };
    IpAddress {
        ipver: ipver.into(),
        address: address.to_string().into_bytes(),
    }
}

/// An underlay address as the protocol shows it.
pub(super) fn text(address: Ipv6Addr) -> Vec<u8> {
    address.to_string().into_bytes()
}

/// Prefixes of an interface, with the underlay address of each, as the protocol shows them.
pub(super) fn prefixes(found: Vec<(net::Prefix, Ipv6Addr)>) -> Vec<Prefix> {
    let shown = found.into_iter().map(|(prefix, underlay)| Prefix {
        ip: Some(show(prefix.address())),
        length: u32::from(prefix.len()),
        underlay_route: text(underlay),
    });
    shown.collect()
}
