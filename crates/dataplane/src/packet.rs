//! Packets: what the engine needs of a buffer ([`Packet`]), and the buffer of drivers that have none of their own ([`PacketBuf`]).

/// Free bytes in front of a received frame, enough for every encapsulation (40 bytes of IPv6 today).
pub const HEADROOM_MIN: usize = 128;

/// A frame in contiguous memory with at least [`HEADROOM_MIN`] free bytes in front of it when it was received.
///
/// The packet loop is compiled for each implementation (our own buffers, DPDK mbufs, AF_XDP frames), so these calls cost nothing; rare
/// packets are handled through `dyn Packet`. Implementations never panic and never move bytes. `false` means "unchanged".
pub trait Packet {
    /// The frame.
    fn frame(&self) -> &[u8];

    /// The frame, to be edited.
    fn frame_mut(&mut self) -> &mut [u8];

    /// Replaces the first `remove` bytes by `add` others (whatever was there) and keeps at most `keep` bytes behind them; false if there
    /// is no headroom, or fewer than `remove` bytes.
    #[must_use]
    fn reframe(&mut self, remove: usize, add: usize, keep: usize) -> bool;

    /// Sets the length, growing at the end if needed (whatever was there); false if the buffer is too small.
    #[must_use]
    fn resize(&mut self, length: usize) -> bool;

    /// Empties the packet and restores its headroom, so that an answer can be written with [`Packet::resize`].
    fn clear(&mut self);

    /// [`Packet::reframe`] and the frame afterwards; `None` means "unchanged".
    #[inline(always)]
    fn reframed(&mut self, remove: usize, add: usize, keep: usize) -> Option<&mut [u8]> {
        self.reframe(remove, add, keep).then(|| self.frame_mut())
    }

    /// Whether the port that sends it will cut this packet into ones of at most `length` bytes, counted from `ip_offset`. True only for a
    /// TCP super-frame that a kernel handed over in one piece (segmentation offload), and of any length.
    fn is_cut_to(&self, _ip_offset: usize, _length: u16) -> bool {
        false
    }

    /// Length of the frame.
    #[inline]
    fn len(&self) -> usize {
        self.frame().len()
    }

    /// Whether there is no frame.
    #[inline]
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Grows the frame by `count` bytes at the front; false if there is no headroom.
    #[must_use]
    #[inline]
    fn prepend(&mut self, count: usize) -> bool {
        self.reframe(0, count, usize::MAX)
    }

    /// Removes `count` bytes from the front; false if there are fewer.
    #[must_use]
    #[inline]
    fn trim_front(&mut self, count: usize) -> bool {
        self.reframe(count, 0, usize::MAX)
    }
}

/// Length of the longest frame that a TCP super-frame becomes: its last `tcp_len` bytes are TCP header and payload, of which each frame
/// gets `segment_len` bytes.
#[must_use]
pub fn wire_len(frame: &[u8], tcp_len: usize, segment_len: usize) -> usize {
    let start = frame.len().saturating_sub(tcp_len);
    // The data offset, in words (RFC 9293 §3.1).
    let offset = frame.get(start + 12).copied().unwrap_or(0) >> 4;
    (start + usize::from(offset) * 4 + segment_len).min(frame.len())
}

/// A frame inside a fixed buffer with room in front of it.
///
/// A driver receives into [`PacketBuf::receive_area`] and then calls [`PacketBuf::set_received`]; encapsulation grows the
/// frame to the front with [`PacketBuf::prepend`]. The buffer never reallocates.
#[derive(Clone, Debug)]
pub struct PacketBuf {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Where a received frame starts.
    origin: usize,
}

/// No frame: what the invariants of [`PacketBuf`] exclude. Far from the path of packets, so that no instruction there prepares for it.
#[cold]
#[inline(never)]
fn nothing<'a>() -> &'a [u8] {
    &[]
}

/// Bytes of a cache line.
const LINE: usize = 64;
/// What an allocation takes in front of its bytes (two words, with glibc and musl).
const ALLOCATION_HEADER: usize = 16;

impl PacketBuf {
    /// Longest frame of [`PacketBuf::new`]: a 1500-byte packet, its Ethernet header, an IPv6 header and some spare.
    pub const FRAME_MAX: usize = 2048 - HEADROOM_MIN;

    /// An empty buffer for frames of up to [`PacketBuf::FRAME_MAX`] bytes.
    #[must_use]
    pub fn new() -> PacketBuf {
        PacketBuf::with_frame_max(Self::FRAME_MAX)
    }

    /// An empty buffer for frames of up to `frame_max` bytes (jumbo frames).
    #[must_use]
    pub fn with_frame_max(frame_max: usize) -> PacketBuf {
        // An odd number of cache lines apart, the headers of a pool spread over all sets of the first-level cache. (With buffers of
        // 2 KiB, a burst would crowd into a few of them and push itself out.) What is added goes to the headroom.
        let lines = (HEADROOM_MIN + frame_max + ALLOCATION_HEADER).div_ceil(LINE) | 1;
        let length = lines * LINE - ALLOCATION_HEADER;
        let origin = length - frame_max;
        PacketBuf {
            bytes: vec![0; length].into_boxed_slice(),
            start: origin,
            end: origin,
            origin,
        }
    }

    /// Empties the buffer and restores its headroom.
    pub fn clear(&mut self) {
        self.start = self.origin;
        self.end = self.origin;
    }

    /// Where a driver writes a received frame; call [`PacketBuf::set_received`] with its length afterwards.
    pub fn receive_area(&mut self) -> &mut [u8] {
        self.clear();
        self.bytes.get_mut(self.origin..).unwrap_or_default()
    }

    /// Declares the first `length` bytes of the receive area to be the frame; cut to what fits.
    pub fn set_received(&mut self, length: usize) {
        self.start = self.origin;
        self.end = (self.start + length).min(self.bytes.len());
    }

    /// Copies a whole frame in; false (and left empty) if it is longer than the buffer allows.
    pub fn fill(&mut self, frame: &[u8]) -> bool {
        let fits = match self.receive_area().get_mut(..frame.len()) {
            Some(area) => {
                area.copy_from_slice(frame);
                true
            }
            None => false,
        };
        self.set_received(if fits { frame.len() } else { 0 });
        fits
    }

    /// The frame.
    #[must_use]
    #[inline]
    pub fn frame(&self) -> &[u8] {
        let frame = self.bytes.get(self.start..self.end);
        frame.unwrap_or_else(nothing)
    }

    /// The frame, to be edited.
    #[inline]
    pub fn frame_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// Length of the frame.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there is no frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Free bytes in front of the frame.
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.start
    }

    /// Sets the length, growing at the end if needed; false (and unchanged) if the buffer is too small.
    #[must_use]
    pub fn resize(&mut self, length: usize) -> bool {
        let end = self.start + length;
        if end > self.bytes.len() {
            return false;
        }
        self.end = end;
        true
    }
}

impl Packet for PacketBuf {
    #[inline(always)]
    fn frame(&self) -> &[u8] {
        PacketBuf::frame(self)
    }

    #[inline(always)]
    fn frame_mut(&mut self) -> &mut [u8] {
        PacketBuf::frame_mut(self)
    }

    #[inline(always)]
    fn len(&self) -> usize {
        PacketBuf::len(self)
    }

    #[inline(always)]
    fn reframe(&mut self, remove: usize, add: usize, keep: usize) -> bool {
        self.reframed(remove, add, keep).is_some()
    }

    #[inline(always)]
    fn reframed(&mut self, remove: usize, add: usize, keep: usize) -> Option<&mut [u8]> {
        let kept = self.start + remove;
        let available = self.end.checked_sub(kept)?;
        let end = kept + available.min(keep);
        let start = kept.checked_sub(add)?;
        let frame = self.bytes.get_mut(start..end)?;
        (self.start, self.end) = (start, end);
        Some(frame)
    }

    fn resize(&mut self, length: usize) -> bool {
        PacketBuf::resize(self, length)
    }

    fn clear(&mut self) {
        PacketBuf::clear(self);
    }
}

impl Default for PacketBuf {
    fn default() -> Self {
        PacketBuf::new()
    }
}
