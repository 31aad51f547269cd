//! Undoes the offloads of a local sender: finishes checksums and cuts TCP super-frames into frames that a wire could carry.
//!
//! A veth peer with transmit offloads (the default), or receive coalescing, hands over frames whose checksum holds only the pseudo header, and
//! TCP frames of up to 64 KiB. The engine edits checksums incrementally and the far side checks them, so both must be plain
//! frames before they enter. Pure.

use crate::ETHERNET_LEN;
use crate::sys::VNET_HEADER_LEN;
use net::{checksum, protocol};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Frames that one super-frame may become: 64 KiB at the smallest segment that Linux accepts is about as many.
const SEGMENTS_MAX: usize = 1400;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// How a frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segments {
    /// It is one frame.
    None,
    /// TCP with this much payload per segment.
    Tcp(usize),
}

/// What the kernel left undone (`struct virtio_net_hdr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offload {
    /// Offset of the layer-4 header whose checksum is missing, and of the checksum field in it.
    pub(crate) checksum: Option<(usize, usize)>,
    pub(crate) segments: Segments,
}

impl Offload {
    /// `None` for an offload that cannot be undone here.
    pub(crate) fn parse(header: &[u8; VNET_HEADER_LEN]) -> Option<Offload> {
        let [
            flags,
            kind,
            _,
            _,
            size_a,
            size_b,
            start_a,
            start_b,
            offset_a,
            offset_b,
        ] = *header;
        let word = |a, b| usize::from(u16::from_ne_bytes([a, b]));
        let checksum = (flags & NEEDS_CHECKSUM != 0)
            .then(|| (word(start_a, start_b), word(offset_a, offset_b)));
        let segments = match kind & !GSO_ECN {
            GSO_NONE => Segments::None,
            GSO_TCPV4 | GSO_TCPV6 => Segments::Tcp(word(size_a, size_b)),
            _ => return None,
        };
        Some(Offload { checksum, segments })
    }
}

/// Completes the checksum, whose field holds the sum of the pseudo header. False if the offsets do not fit the frame.
#[must_use]
pub(crate) fn finish_checksum(offload: &Offload, frame: &mut [u8]) -> bool {
    let Some((start, offset)) = offload.checksum else {
        return true;
    };
    let Some(covered) = frame.get_mut(start..) else {
        return false;
    };
    let value = match checksum::checksum(covered) {
        // RFC 768: a transmitted zero means "no checksum".
        0 => 0xffff,
        value => value,
    };
    match covered
        .get_mut(offset..)
        .and_then(|field| field.first_chunk_mut::<2>())
    {
        Some(field) => {
            *field = value.to_be_bytes();
            true
        }
        None => false,
    }
}

/// Cuts a super-frame. `None` if it is not a TCP frame this module understands.
pub(crate) fn cut(offload: &Offload, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let Segments::Tcp(size) = offload.segments else {
        return None;
    };
    let (tcp_start, _) = offload.checksum?;
    let layers = Layers::parse(frame, tcp_start)?;
    let data_offset = usize::from(*frame.get(tcp_start + 12)? >> 4) * 4;
    let (headers, payload) = frame.split_at_checked(tcp_start + data_offset)?;
    if size == 0 || data_offset < 20 || payload.len().div_ceil(size) > SEGMENTS_MAX {
        return None;
    }
    let last = payload.len().div_ceil(size).saturating_sub(1);
    payload
        .chunks(size)
        .enumerate()
        .map(|(number, chunk)| {
            let mut segment = Vec::with_capacity(headers.len() + chunk.len());
            segment.extend_from_slice(headers);
            segment.extend_from_slice(chunk);
            layers.fix(&mut segment, number)?;
            fix_tcp(&mut segment, &layers, number, number * size, number == last)?;
            Some(segment)
        })
        .collect()
}

/// Offsets of the IP headers of a frame, outermost first; a tunnelled frame has two.
struct Layers {
    headers: [Option<(usize, bool)>; 2],
    tcp_start: usize,
}

impl Layers {
    fn parse(frame: &[u8], tcp_start: usize) -> Option<Layers> {
        let mut headers = [None; 2];
        let mut at = ETHERNET_LEN;
        for slot in &mut headers {
            let is_v6 = *frame.get(at)? >> 4 == 6;
            *slot = Some((at, is_v6));
            let next;
            (next, at) = if is_v6 {
                skip_ipv6(frame, at)?
            } else {
                skip_ipv4(frame, at)?
            };
            if next == protocol::TCP && at == tcp_start {
                return Some(Layers { headers, tcp_start });
            }
            if next != protocol::IPV4 && next != protocol::IPV6 {
                return None;
            }
        }
        None
    }

    /// Lengths and identifications of all IP headers of segment `number`.
    fn fix(&self, segment: &mut [u8], number: usize) -> Option<()> {
        let length = segment.len();
        for (at, is_v6) in self.headers.into_iter().flatten() {
            let header = segment.get_mut(at..)?;
            if is_v6 {
                let payload = u16::try_from(length.checked_sub(at + 40)?).ok()?;
                *header.get_mut(4..)?.first_chunk_mut()? = payload.to_be_bytes();
                continue;
            }
            let header_len = usize::from(*header.first()? & 0x0f) * 4;
            let total = u16::try_from(length - at).ok()?;
            *header.get_mut(2..)?.first_chunk_mut()? = total.to_be_bytes();
            let id = u16::from_be_bytes(*header.get(4..)?.first_chunk()?);
            *header.get_mut(4..)?.first_chunk_mut()? = id.wrapping_add(number as u16).to_be_bytes();
            *header.get_mut(10..)?.first_chunk_mut()? = [0, 0];
            let value = checksum::checksum(header.get(..header_len)?);
            *header.get_mut(10..)?.first_chunk_mut()? = value.to_be_bytes();
        }
        Some(())
    }

    /// Sum of the pseudo header that the TCP checksum covers.
    fn pseudo_header(&self, segment: &[u8]) -> Option<u32> {
        let (at, is_v6) = self.headers.into_iter().flatten().last()?;
        let header = segment.get(at..)?;
        let length = segment.len().checked_sub(self.tcp_start)?;
        Some(if is_v6 {
            let source = Ipv6Addr::from(*header.get(8..)?.first_chunk::<16>()?);
            let destination = Ipv6Addr::from(*header.get(24..)?.first_chunk::<16>()?);
            checksum::pseudo_v6(
                source,
                destination,
                protocol::TCP,
                u32::try_from(length).ok()?,
            )
        } else {
            let source = Ipv4Addr::from(*header.get(12..)?.first_chunk::<4>()?);
            let destination = Ipv4Addr::from(*header.get(16..)?.first_chunk::<4>()?);
            checksum::pseudo_v4(
                source,
                destination,
                protocol::TCP,
                u16::try_from(length).ok()?,
            )
        })
    }
}

fn skip_ipv4(frame: &[u8], at: usize) -> Option<(u8, usize)> {
    let header_len = usize::from(*frame.get(at)? & 0x0f) * 4;
    (header_len >= 20).then_some((*frame.get(at + 9)?, at + header_len))
}

/// Skips the header and the extension headers a tunnel may carry (Linux adds an encapsulation limit, RFC 2473 §4.1.1).
fn skip_ipv6(frame: &[u8], at: usize) -> Option<(u8, usize)> {
    let mut next = *frame.get(at + 6)?;
    let mut at = at + 40;
    while matches!(
        next,
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS
    ) {
        next = *frame.get(at)?;
        at += (usize::from(*frame.get(at + 1)?) + 1) * 8;
    }
    Some((next, at))
}

fn fix_tcp(
    segment: &mut [u8],
    layers: &Layers,
    number: usize,
    payload_before: usize,
    last: bool,
) -> Option<()> {
    let pseudo = layers.pseudo_header(segment)?;
    let tcp = segment.get_mut(layers.tcp_start..)?;
    let sequence = u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?);
    let sequence = sequence.wrapping_add(u32::try_from(payload_before).ok()?);
    *tcp.get_mut(4..)?.first_chunk_mut()? = sequence.to_be_bytes();
    let flags = tcp.get_mut(13)?;
    if !last {
        *flags &= !(FIN | PSH);
    }
    if number > 0 {
        *flags &= !CWR;
    }
    *tcp.get_mut(16..)?.first_chunk_mut()? = [0, 0];
    let value = checksum::finish(checksum::sum(pseudo, tcp));
    *tcp.get_mut(16..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
