//! What the loop over cached answers does not do, because few connections need it: rate limits, change of the address family, and ICMP errors
//! about translated connections.
//!
//! An entry that needs it carries an epoch that the loop never accepts, so its packets come here without costing the others anything.

use crate::edit::{self, Side};
use crate::flow::key::{Transport, Tuple};
use crate::flow::{Action, Entry};
use crate::graph::{Context, Source, Walk};
use crate::icmp_error::{QuotedEnd, translate_inbound, translate_outbound};
use crate::nat64::{self, Ends, GROWTH_MAX};
use crate::packet::Packet;
use crate::time::Instant;
use crate::verdict::DropReason;
use core::net::IpAddr;
use core::ops::Range;

/// Makes an epoch that is never current.
const SLOW: u32 = 1 << 31;
/// Flags that a decision sets.
const DECIDED: u8 = Entry::FAMILY | Entry::PUBLIC | Entry::METERED | Entry::BY_DEFAULT;

/// What the packets of a decision need beyond the ordinary, and the epoch that its entry gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks {
    flags: u8,
    epoch: u32,
}

impl Marks {
    /// Of what was just decided.
    pub(crate) fn of(cx: &Context<'_>, walk: &Walk) -> Marks {
        let mut flags = 0;
        if walk.tuple.source.is_ipv4() != walk.leaves.source.is_ipv4() {
            flags |= Entry::FAMILY;
        }
        if matches!(cx.source, Source::Machine)
            && let Some(services) = cx.services()
        {
            let public = walk.public && services.public_meter.is_some();
            flags |= if public { Entry::PUBLIC } else { 0 };
            let metered = public || services.total_meter.is_some();
            flags |= if metered { Entry::METERED } else { 0 };
        }
        let slow = if flags == 0 { 0 } else { SLOW };
        flags |= if walk.public { Entry::BY_DEFAULT } else { 0 };
        let epoch = cx.tables.epoch ^ slow;
        Marks { flags, epoch }
    }

    /// Notes it on the entry.
    pub(crate) fn put(self, entry: &mut Entry) {
        entry.flags = entry.flags & !DECIDED | self.flags;
        entry.epoch = self.epoch;
    }
}

/// The epoch of the tables that an entry's epoch stands for.
pub(crate) const fn epoch(entry: u32) -> u32 {
    entry & !SLOW
}

/// An entry's epoch, brought up to that of the tables.
pub(crate) const fn current(entry: u32, tables: u32) -> u32 {
    tables ^ (entry & SLOW)
}

/// Whether an entry was decided with the current tables and comes here for another reason.
pub(crate) fn is_current(cx: &Context<'_>, entry: &Entry) -> bool {
    epoch(entry.epoch) == cx.tables.epoch && entry.action != Action::Undecided
}

/// Whether the machine's rate limits let a packet of `bytes` pass.
pub(crate) fn admit(
    cx: &Context<'_>,
    flags: u8,
    bytes: u16,
    now: Instant,
) -> Result<(), DropReason> {
    if flags & Entry::METERED == 0 {
        return Ok(());
    }
    let Some(services) = cx.services() else {
        return Ok(());
    };
    let bytes = u64::from(bytes);
    if flags & Entry::PUBLIC != 0
        && let Some(meter) = &services.public_meter
        && !meter.admit(bytes, now)
    {
        return Err(DropReason::PublicRate);
    }
    match &services.total_meter {
        Some(meter) if !meter.admit(bytes, now) => Err(DropReason::TotalRate),
        Some(_) | None => Ok(()),
    }
}

/// Changes the family of the IP packet at `place` in the frame, whose connection shows `from` before and `to` after; returns its new place.
pub(crate) fn change_family(
    packet: &mut dyn Packet,
    place: Range<usize>,
    from: &Tuple,
    to: &Tuple,
) -> Result<Range<usize>, DropReason> {
    let place = translate(packet, place, to.source, to)?;
    let bytes = packet.frame_mut().get_mut(place.clone());
    let bytes = bytes.ok_or(DropReason::Bug)?;
    if from.source_port != to.source_port {
        edit::set_port(bytes, Side::Source, to.source_port);
    }
    if from.destination_port != to.destination_port {
        edit::set_port(bytes, Side::Destination, to.destination_port);
    }
    Ok(place)
}

/// The same for an ICMP error about such a connection, which travels like the packets that show `from` before and `to` after.
fn change_error_family(
    packet: &mut dyn Packet,
    place: Range<usize>,
    sender: IpAddr,
    to: &Tuple,
) -> Result<Range<usize>, DropReason> {
    // An error may come from any router on the way.
    let source = match (sender, to.destination) {
        (IpAddr::V4(router), IpAddr::V6(_)) => IpAddr::V6(nat64::embed(router)),
        _ => to.source,
    };
    let place = translate(packet, place, source, to)?;
    let bytes = packet.frame_mut().get_mut(place.clone());
    let bytes = bytes.ok_or(DropReason::Bug)?;
    let is_done = match to.destination {
        IpAddr::V6(_) => translate_inbound(bytes, destination_end(to)),
        IpAddr::V4(_) => translate_outbound(bytes, source_end(to)),
    };
    if is_done {
        Ok(place)
    } else {
        Err(DropReason::NotTranslatable)
    }
}

fn source_end(tuple: &Tuple) -> QuotedEnd {
    QuotedEnd {
        address: tuple.source,
        port: tuple.source_port,
    }
}

fn destination_end(tuple: &Tuple) -> QuotedEnd {
    QuotedEnd {
        address: tuple.destination,
        port: tuple.destination_port,
    }
}

/// Gives the packet the other family: from `source` to the destination of `to`. What it quotes, if it is an error, went the other way.
fn translate(
    packet: &mut dyn Packet,
    place: Range<usize>,
    source: IpAddr,
    to: &Tuple,
) -> Result<Range<usize>, DropReason> {
    match (source, to.source, to.destination) {
        (IpAddr::V4(source), IpAddr::V4(quoted_destination), IpAddr::V4(destination)) => {
            let bytes = packet.frame_mut().get_mut(place.clone());
            let bytes = bytes.ok_or(DropReason::Bug)?;
            let quoted = Ends {
                source: destination,
                destination: quoted_destination,
            };
            let ends = Ends {
                source,
                destination,
            };
            let moved = nat64::to_v4(bytes, ends, quoted);
            let moved = moved.map_err(|_| DropReason::NotTranslatable)?;
            Ok(place.start + moved.start..place.start + moved.end)
        }
        (IpAddr::V6(source), IpAddr::V6(quoted_destination), IpAddr::V6(destination)) => {
            // A quotation grows behind, the packet itself to the front, where the tunnel was.
            if !packet.resize(place.end + GROWTH_MAX) {
                return Err(DropReason::NotTranslatable);
            }
            let quoted = Ends {
                source: destination,
                destination: quoted_destination,
            };
            let ends = Ends {
                source,
                destination,
            };
            let moved = nat64::to_v6(packet.frame_mut(), place, ends, quoted);
            moved.map_err(|_| DropReason::NotTranslatable)
        }
        _ => Err(DropReason::Bug),
    }
}

/// Translates an ICMP error inside and out; returns the place of the packet in the frame afterwards.
pub(crate) fn translate_error(
    packet: &mut dyn Packet,
    place: Range<usize>,
    sender: IpAddr,
    from: &Tuple,
    to: &Tuple,
) -> Result<Range<usize>, DropReason> {
    if from.source.is_ipv4() != to.source.is_ipv4() {
        return change_error_family(packet, place, sender, to);
    }
    let bytes = packet.frame_mut().get_mut(place.clone());
    let bytes = bytes.ok_or(DropReason::Bug)?;
    let mut is_done = true;
    // An echo has its identifier at both ends. The end whose address stays is left alone: the error may come from any router on the way.
    let is_echo = matches!(from.transport, Transport::Echo { .. });
    if from.destination != to.destination
        || !is_echo && from.destination_port != to.destination_port
    {
        is_done &= translate_inbound(bytes, destination_end(to));
    }
    if from.source != to.source || !is_echo && from.source_port != to.source_port {
        is_done &= translate_outbound(bytes, source_end(to));
    }
    if is_done {
        Ok(place)
    } else {
        Err(DropReason::IcmpUnrelated)
    }
}
