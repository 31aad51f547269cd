//! What guests behind vhost leave to be done, on DPDK's buffers: noted when it is received, done or passed on to another guest when it is sent.

use crate::segment::{self, Cut, Offload, Pending, Segments};
use ::dpdk::{Guest, Headers, Left, Mbuf, Unfinished};

/// Takes note of what the sender of a packet just received left to be done, or does it. False if it cannot be done.
#[must_use]
pub(super) fn accept(packet: &mut Mbuf) -> bool {
    let segments = match packet.take_left() {
        Left::Nothing => return true,
        Left::Other => return false,
        Left::Checksum => Segments::None,
        Left::Segments(length) => Segments::Tcp(usize::from(length)),
    };
    let Some(checksum) = segment::checksum_place(packet.frame()) else {
        return false;
    };
    let offload = Offload {
        checksum: Some(checksum),
        segments,
    };
    let Ok(pending) = segment::settle(&offload, packet.frame_mut()) else {
        return false;
    };
    packet.set_unfinished(pending.and_then(note));
    true
}

fn note(pending: Pending) -> Option<Unfinished> {
    Some(Unfinished {
        tcp_len: u32::try_from(pending.tcp_len).ok()?,
        segment_len: u16::try_from(pending.segment_len).ok()?,
    })
}

/// How a packet leaves.
pub(super) enum Leaving {
    /// As it is now.
    Whole,
    /// As several frames.
    Cut(Cut),
    /// Not at all: it is not the TCP packet any more that was noted.
    Refused,
}

/// Finishes a packet, or describes it to the driver if the guest behind the port takes it unfinished.
pub(super) fn prepare(packet: &mut Mbuf, guest: Guest) -> Leaving {
    let Some(note) = packet.unfinished() else {
        return Leaving::Whole;
    };
    let pending = Pending {
        tcp_len: note.tcp_len as usize,
        segment_len: usize::from(note.segment_len),
    };
    if let Some(headers) = headers(packet.frame(), pending, guest) {
        packet.describe(headers);
        return Leaving::Whole;
    }
    if pending.is_super() {
        return match segment::cut_bytes(packet.frame(), pending) {
            Some(cut) => Leaving::Cut(cut),
            None => Leaving::Refused,
        };
    }
    packet.set_unfinished(None);
    match segment::finish_tcp(packet.frame_mut(), pending.tcp_len) {
        Some(()) => Leaving::Whole,
        None => Leaving::Refused,
    }
}

/// Where the headers are, if the guest takes such a packet.
fn headers(frame: &[u8], pending: Pending, guest: Guest) -> Option<Headers> {
    if !guest.checksum {
        return None;
    }
    let plain = segment::plain_tcp(frame, pending)?;
    let takes_super = if plain.is_v6 {
        guest.segments_v6
    } else {
        guest.segments_v4
    };
    // DPDK's driver cannot tell that only the first frame may carry CWR (RFC 3168 §6.1.2).
    if pending.is_super() && (!takes_super || plain.has_cwr) {
        return None;
    }
    Some(Headers {
        ip_start: u8::try_from(plain.ip_start).ok()?,
        is_v6: plain.is_v6,
        tcp_start: u16::try_from(plain.tcp_start).ok()?,
        tcp_header_len: u8::try_from(plain.header_len).ok()?,
    })
}
