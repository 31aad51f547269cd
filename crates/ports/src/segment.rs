//! Checksums that a sender left unfinished, and TCP super-frames that it left to be cut.
//!
//! A kernel with transmit offloads (the default of veth and of our TAP devices), or receive coalescing, hands over frames whose checksum holds
//! only the pseudo header, and TCP frames of up to 64 KiB. [`accept`] finishes what is small and notes the rest in the frame as
//! [`Pending`]; the engine edits headers and never looks at the note. The sending port then either describes the frame to its kernel
//! ([`describe`]), which moves 64 KiB at the price of one packet, or does the work itself ([`cut`]). Either way the pseudo header is summed
//! anew from the final addresses, so an edited address or port needs no further care. Pure.

use crate::ETHERNET_LEN;
use crate::frame::Frame;
use crate::sys::VNET_HEADER_LEN;
use net::{checksum, protocol};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Frames that one super-frame may become: 64 KiB at the smallest segment that Linux accepts is about as many.
const SEGMENTS_MAX: usize = 1400;
/// Shorter frames are finished at once: they cost little, and they may be padded, which [`Pending`] does not provide for.
const PENDING_LEN_MIN: usize = 256;
/// Longest headers of a segment: Ethernet, outer IPv6 with an option, inner IPv4 and TCP with all options.
pub(crate) const HEADERS_MAX: usize = 192;

/// Bytes of the tunnel's header: IPv6 without extensions.
const OUTER_LEN: usize = 40;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// Offset of the checksum in a TCP header (RFC 9293 §3.1).
const TCP_CHECKSUM: usize = 16;
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

/// Notes what is left to be done for a received frame, or does it. `Err` if it cannot be done here.
pub(crate) fn settle(offload: &Offload, frame: &mut [u8]) -> Result<Option<Pending>, Undoable> {
    let length = frame.len();
    match (offload.segments, offload.checksum) {
        (Segments::None, None) => Ok(None),
        (Segments::None, Some((start, TCP_CHECKSUM)))
            if length >= PENDING_LEN_MIN && start < length =>
        {
            Ok(Some(Pending {
                tcp_len: length - start,
                segment_len: 0,
            }))
        }
        (Segments::None, Some(_)) => finish_checksum(offload, frame)
            .then_some(None)
            .ok_or(Undoable),
        (Segments::Tcp(segment_len), Some((start, TCP_CHECKSUM)))
            if segment_len != 0 && start < length =>
        {
            Ok(Some(Pending {
                tcp_len: length - start,
                segment_len,
            }))
        }
        (Segments::Tcp(_), _) => Err(Undoable),
    }
}

/// What a sender left to be done cannot be done here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Undoable;

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

/// What is left to do for a TCP frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Bytes of TCP header and payload, which are the end of the frame however its front is edited.
    pub(crate) tcp_len: usize,
    /// Payload per segment; 0 if it is one frame.
    pub(crate) segment_len: usize,
}

impl Pending {
    /// Whether it is more than one frame.
    pub(crate) fn is_super(self) -> bool {
        self.segment_len != 0
    }
}

/// Takes note of what the kernel left undone in a frame just received, or does it. False if it cannot be undone.
#[must_use]
pub(crate) fn accept(header: &[u8; VNET_HEADER_LEN], frame: &mut Frame) -> bool {
    let Some(offload) = Offload::parse(header) else {
        return false;
    };
    let settled = settle(&offload, frame.frame_mut());
    frame.pending = settled.unwrap_or(None);
    settled.is_ok()
}

/// Length of the longest frame that this one becomes on a wire.
pub(crate) fn wire_len(frame: &Frame) -> usize {
    match frame.pending.filter(|pending| pending.is_super()) {
        Some(pending) => dataplane::wire_len(frame.frame(), pending.tcp_len, pending.segment_len),
        None => frame.len(),
    }
}

/// The header that tells a kernel what is left to do, after putting the pseudo header's sum where it belongs. `None` if the frame is not
/// plain TCP over IP: a tunnel cannot be described.
pub(crate) fn describe(frame: &mut Frame) -> Option<[u8; VNET_HEADER_LEN]> {
    describe_within(frame, Within::Nothing)
}

/// The same for a device at whose exit the program of [`crate::tunnel`] waits: our tunnel may be in front, with nothing but its header.
pub(crate) fn describe_tunnelled(frame: &mut Frame) -> Option<[u8; VNET_HEADER_LEN]> {
    describe_within(frame, Within::Tunnel)
}

/// What may be in front of the IP header of a frame that is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Nothing,
    Tunnel,
}

fn describe_within(frame: &mut Frame, within: Within) -> Option<[u8; VNET_HEADER_LEN]> {
    let mut header = [0; VNET_HEADER_LEN];
    let Some(pending) = frame.pending else {
        return Some(header);
    };
    let start = frame.len().checked_sub(pending.tcp_len)?;
    let bytes = frame.frame_mut();
    let layers = Layers::parse(bytes, start)?;
    let is_v6 = match layers.headers {
        [Some((_, is_v6)), None] => is_v6,
        [Some((outer, true)), Some((inner, is_v6))]
            if within == Within::Tunnel && inner == outer + OUTER_LEN =>
        {
            is_v6
        }
        _ => return None,
    };
    let seed = !checksum::finish(layers.pseudo_header(bytes, pending.tcp_len)?);
    let tcp = bytes.get_mut(start..)?;
    *tcp.get_mut(TCP_CHECKSUM..)?.first_chunk_mut()? = seed.to_be_bytes();
    let headers_len = start + usize::from(*tcp.get(12)? >> 4) * 4;
    let has_cwr = *tcp.get(13)? & CWR != 0;
    let word = |value: usize| u16::try_from(value).ok().map(u16::to_ne_bytes);
    let [
        flags,
        kind,
        len_a,
        len_b,
        size_a,
        size_b,
        start_a,
        start_b,
        offset_a,
        offset_b,
    ] = &mut header;
    *flags = NEEDS_CHECKSUM;
    [*start_a, *start_b] = word(start)?;
    [*offset_a, *offset_b] = word(TCP_CHECKSUM)?;
    if pending.is_super() {
        *kind = if is_v6 { GSO_TCPV6 } else { GSO_TCPV4 } | if has_cwr { GSO_ECN } else { 0 };
        [*len_a, *len_b] = word(headers_len)?;
        [*size_a, *size_b] = word(pending.segment_len)?;
    }
    Some(header)
}

/// Finishes the checksum of a frame that is not a super-frame. False if it is not the TCP frame it was.
#[must_use]
pub(crate) fn finish(frame: &mut Frame) -> bool {
    let Some(pending) = frame.pending.take() else {
        return true;
    };
    finish_tcp(frame.frame_mut(), pending.tcp_len).is_some()
}

/// Writes the checksum of a frame whose last `tcp_len` bytes are TCP. `None` if they are not.
pub(crate) fn finish_tcp(bytes: &mut [u8], tcp_len: usize) -> Option<()> {
    let start = bytes.len().checked_sub(tcp_len)?;
    let layers = Layers::parse(bytes, start)?;
    let pseudo = layers.pseudo_header(bytes, tcp_len)?;
    let tcp = bytes.get_mut(start..)?;
    *tcp.get_mut(TCP_CHECKSUM..)?.first_chunk_mut()? = [0, 0];
    let value = checksum::finish(checksum::sum(pseudo, tcp));
    *tcp.get_mut(TCP_CHECKSUM..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}

/// One frame of a super-frame: its headers, and where its payload is in the super-frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    headers: [u8; HEADERS_MAX],
    headers_len: usize,
    payload: (usize, usize),
}

impl Segment {
    pub(crate) const EMPTY: Segment = Segment {
        headers: [0; HEADERS_MAX],
        headers_len: 0,
        payload: (0, 0),
    };

    /// Both parts of the frame; `whole` is the super-frame.
    pub(crate) fn parts<'a>(&'a self, whole: &'a [u8]) -> [&'a [u8]; 2] {
        let (start, end) = self.payload;
        [
            self.headers.get(..self.headers_len).unwrap_or_default(),
            whole.get(start..end).unwrap_or_default(),
        ]
    }
}

/// A super-frame while it is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    layers: Layers,
    headers_len: usize,
    segment_len: usize,
    count: usize,
}

impl Cut {
    /// Frames that come out.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Writes frame `number` of `whole`, with complete checksums. False if the headers do not agree with each other.
    #[must_use]
    pub(crate) fn write(&self, whole: &[u8], number: usize, segment: &mut Segment) -> bool {
        let before = number * self.segment_len;
        let start = self.headers_len + before;
        let end = (start + self.segment_len).min(whole.len());
        let mut fill = || -> Option<()> {
            let headers = segment.headers.get_mut(..self.headers_len)?;
            headers.copy_from_slice(whole.get(..self.headers_len)?);
            let payload = whole.get(start..end)?;
            let length = self.headers_len + payload.len();
            self.layers.fix(headers, length, number)?;
            let last = number + 1 == self.count;
            fix_tcp(headers, payload, &self.layers, number, before, last)
        };
        let done = fill().is_some();
        segment.headers_len = self.headers_len;
        segment.payload = (start.min(end), end);
        done
    }
}

/// Prepares to cut a super-frame. `None` if it is not a TCP frame this module understands.
pub(crate) fn cut(frame: &Frame) -> Option<Cut> {
    cut_bytes(frame.frame(), frame.pending?)
}

/// The same for a frame in any buffer.
pub(crate) fn cut_bytes(whole: &[u8], pending: Pending) -> Option<Cut> {
    if !pending.is_super() {
        return None;
    }
    let tcp_start = whole.len().checked_sub(pending.tcp_len)?;
    let layers = Layers::parse(whole, tcp_start)?;
    let data_offset = usize::from(*whole.get(tcp_start + 12)? >> 4) * 4;
    let headers_len = tcp_start + data_offset;
    let payload_len = whole.len().checked_sub(headers_len)?;
    let count = payload_len.div_ceil(pending.segment_len).max(1);
    if data_offset < 20 || headers_len > HEADERS_MAX || count > SEGMENTS_MAX {
        return None;
    }
    Some(Cut {
        layers,
        headers_len,
        segment_len: pending.segment_len,
        count,
    })
}

/// Offsets of the IP headers of a frame, outermost first; a tunnelled frame has two.
#[derive(Clone, Copy, Debug)]
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

    /// Lengths and identifications of all IP headers of segment `number`, which is `length` bytes long.
    fn fix(&self, segment: &mut [u8], length: usize, number: usize) -> Option<()> {
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
    fn pseudo_header(&self, segment: &[u8], length: usize) -> Option<u32> {
        let (at, is_v6) = self.headers.into_iter().flatten().last()?;
        let header = segment.get(at..)?;
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

/// Where the checksum of a TCP or UDP packet is: offset of its header, and in it.
#[cfg(feature = "dpdk")]
pub(crate) fn checksum_place(frame: &[u8]) -> Option<(usize, usize)> {
    /// Offset of the checksum in a UDP header (RFC 768).
    const UDP_CHECKSUM: usize = 6;
    let (next, at) = match frame.get(ETHERNET_LEN)? >> 4 {
        4 => skip_ipv4(frame, ETHERNET_LEN)?,
        6 => skip_ipv6(frame, ETHERNET_LEN)?,
        _ => return None,
    };
    match next {
        protocol::TCP => Some((at, TCP_CHECKSUM)),
        protocol::UDP => Some((at, UDP_CHECKSUM)),
        _ => None,
    }
}

/// A TCP packet that is in no tunnel.
#[cfg(feature = "dpdk")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlainTcp {
    pub(crate) ip_start: usize,
    pub(crate) is_v6: bool,
    pub(crate) tcp_start: usize,
    pub(crate) header_len: usize,
    pub(crate) has_cwr: bool,
}

/// The headers of such a packet.
#[cfg(feature = "dpdk")]
pub(crate) fn plain_tcp(frame: &[u8], pending: Pending) -> Option<PlainTcp> {
    let tcp_start = frame.len().checked_sub(pending.tcp_len)?;
    let [Some((ip_start, is_v6)), None] = Layers::parse(frame, tcp_start)?.headers else {
        return None;
    };
    Some(PlainTcp {
        ip_start,
        is_v6,
        tcp_start,
        header_len: usize::from(*frame.get(tcp_start + 12)? >> 4) * 4,
        has_cwr: *frame.get(tcp_start + 13)? & CWR != 0,
    })
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
    headers: &mut [u8],
    payload: &[u8],
    layers: &Layers,
    number: usize,
    payload_before: usize,
    last: bool,
) -> Option<()> {
    let tcp_len = headers.len().checked_sub(layers.tcp_start)? + payload.len();
    let pseudo = layers.pseudo_header(headers, tcp_len)?;
    let tcp = headers.get_mut(layers.tcp_start..)?;
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
    *tcp.get_mut(TCP_CHECKSUM..)?.first_chunk_mut()? = [0, 0];
    // A TCP header is a multiple of four bytes: the payload continues at an even place.
    let value = checksum::finish(checksum::sum(checksum::sum(pseudo, tcp), payload));
    *tcp.get_mut(TCP_CHECKSUM..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
