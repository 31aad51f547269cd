//! The free part of a prefix, and which block of it is given next.
//!
//! The free part is a sorted list of disjoint address ranges. A request for a length gets the smallest aligned block that still
//! fits, the lowest one of several, and of that block the start (best fit, lowest first). No address is kept back: the first
//! and the last one of a block are addresses like all others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::meta::{IpFamily, IpPrefix};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Exactly this block.
    Prefix(IpPrefix),
    /// Any block of this length in bits.
    Length(u8),
}

impl Request {
    /// Length in bits.
    pub fn bits(self) -> u8 {
        match self {
            Request::Prefix(prefix) => prefix.bits(),
            Request::Length(bits) => bits,
        }
    }
}

/// The addresses of a prefix that nobody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Free {
    family: IpFamily,
    /// First and last address, ascending, disjoint.
    ranges: Vec<(u128, u128)>,
}

impl Free {
    /// `whole` without everything in `taken`, in any order; what lies outside takes nothing away.
    pub fn new(whole: IpPrefix, taken: impl IntoIterator<Item = IpPrefix>) -> Free {
        let family = whole.family();
        let (first, last) = bounds(whole);
        let mut taken: Vec<(u128, u128)> = taken
            .into_iter()
            .filter(|prefix| prefix.family() == family)
            .map(bounds)
            .collect();
        taken.sort_unstable();
        let mut ranges = Vec::new();
        // The lowest address not looked at yet; `None` behind the highest address there is.
        let mut next = Some(first);
        for (from, to) in taken {
            let Some(at) = next.filter(|at| *at <= last) else {
                break;
            };
            if to < at {
                continue;
            }
            if from > last {
                break;
            }
            if from > at {
                ranges.push((at, from - 1));
            }
            next = to.checked_add(1);
        }
        if let Some(at) = next.filter(|at| *at <= last) {
            ranges.push((at, last));
        }
        Free { family, ranges }
    }

    /// The block that a request gets, as it was asked for; `None` when there is none.
    pub fn find(&self, request: Request) -> Option<IpPrefix> {
        match request {
            Request::Prefix(prefix) => self.covers(prefix).then_some(prefix),
            Request::Length(bits) => self.best(bits),
        }
    }

    /// Whether one range holds the whole block.
    fn covers(&self, prefix: IpPrefix) -> bool {
        let (first, last) = bounds(prefix);
        prefix.family() == self.family
            && self
                .ranges
                .iter()
                .any(|(from, to)| *from <= first && last <= *to)
    }

    fn best(&self, bits: u8) -> Option<IpPrefix> {
        let mut best: Option<(u8, u128)> = None;
        let ranges = self.ranges.iter();
        for (length, start) in ranges.flat_map(|range| blocks(self.family.bits(), *range)) {
            if length <= bits && best.is_none_or(|(longest, _)| length > longest) {
                best = Some((length, start));
            }
            if length == bits {
                break;
            }
        }
        let (_, start) = best?;
        IpPrefix::new(address(self.family, start)?, bits)
    }

    /// Takes a block away.
    pub fn remove(&mut self, prefix: IpPrefix) {
        if prefix.family() != self.family {
            return;
        }
        let (first, last) = bounds(prefix);
        let mut left = Vec::with_capacity(self.ranges.len().saturating_add(1));
        for (from, to) in self.ranges.drain(..) {
            if to < first || last < from {
                left.push((from, to));
                continue;
            }
            if from < first {
                left.push((from, first - 1));
            }
            if last < to {
                left.push((last + 1, to));
            }
        }
        self.ranges = left;
    }
}

/// First and last address of a prefix as numbers; an IPv4 address takes the low 32 bits.
fn bounds(prefix: IpPrefix) -> (u128, u128) {
    let width = prefix.family().bits();
    let all = u128::MAX >> (128 - width);
    let host = all.checked_shr(u32::from(prefix.bits())).unwrap_or(0);
    let number = match prefix.addr() {
        IpAddr::V4(addr) => u128::from(addr.to_bits()),
        IpAddr::V6(addr) => addr.to_bits(),
    };
    (number & !host, number | host)
}

fn address(family: IpFamily, number: u128) -> Option<IpAddr> {
    match family {
        IpFamily::IPv4 => Some(Ipv4Addr::from_bits(u32::try_from(number).ok()?).into()),
        IpFamily::IPv6 => Some(Ipv6Addr::from_bits(number).into()),
    }
}

/// The fewest aligned blocks that make up a range, ascending: length in bits and first address.
fn blocks(width: u8, (from, to): (u128, u128)) -> impl Iterator<Item = (u8, u128)> {
    let mut next = Some(from);
    std::iter::from_fn(move || {
        let at = next.filter(|at| *at <= to)?;
        // As large as the alignment of the start and the rest of the range allow; the whole of IPv6 does not fit into 128 bits.
        let rest = match (to - at).checked_add(1) {
            Some(count) => count.ilog2(),
            None => 128,
        };
        let size = at.trailing_zeros().min(rest).min(u32::from(width));
        next = 1_u128
            .checked_shl(size)
            .and_then(|count| at.checked_add(count));
        let length = u32::from(width) - size;
        Some((u8::try_from(length).ok()?, at))
    })
}
