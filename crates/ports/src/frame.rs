//! The packet buffer of the native drivers: large enough for a super-frame, and aware of a checksum that is still to be finished.

use crate::segment::{self, Pending};
use dataplane::{HEADROOM_MIN, Packet};

/// Longest frame: a packet of 64 KiB, its Ethernet header, and a tunnel's header that a kernel has put in front.
pub const FRAME_MAX: usize = 65_536 + 128;

/// A frame with headroom, or an empty place whose memory is allocated at first use and kept ever after.
///
/// A machine's TCP may hand over up to 64 KiB in one piece and leave the checksum to us; such a frame travels through the engine as it is,
/// and the port that sends it either passes both on or does the work (`segment`).
#[derive(Clone, Debug, Default)]
pub struct Frame {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    pub(crate) pending: Option<Pending>,
}

impl Frame {
    /// An empty frame.
    #[must_use]
    pub fn new() -> Frame {
        Frame::default()
    }

    /// Empties the frame and restores its headroom.
    pub fn clear(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = vec![0; HEADROOM_MIN + FRAME_MAX];
        }
        self.start = HEADROOM_MIN;
        self.end = HEADROOM_MIN;
        self.pending = None;
    }

    /// Where a driver writes a received frame; call [`Frame::set_received`] with its length afterwards.
    pub fn receive_area(&mut self) -> &mut [u8] {
        self.clear();
        self.bytes.get_mut(HEADROOM_MIN..).unwrap_or_default()
    }

    /// Declares the first `length` bytes of the receive area to be the frame; cut to what fits.
    pub fn set_received(&mut self, length: usize) {
        self.start = HEADROOM_MIN.min(self.bytes.len());
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

    /// Copies in a TCP super-frame as a kernel hands it over: the TCP header begins at `tcp_start`, its checksum holds the pseudo header's
    /// sum, and the payload is to be cut into pieces of `segment_len`. False (and left empty) if that cannot be.
    pub fn fill_super(&mut self, frame: &[u8], tcp_start: usize, segment_len: usize) -> bool {
        let fits = self.fill(frame) && tcp_start < frame.len() && segment_len != 0;
        if fits {
            self.pending = Some(Pending {
                tcp_len: frame.len() - tcp_start,
                segment_len,
            });
        } else {
            self.set_received(0);
        }
        fits
    }

    /// Free bytes in front of the frame.
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.start
    }

    /// The frame.
    #[must_use]
    #[inline]
    pub fn frame(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// The frame, to be edited.
    #[inline]
    pub fn frame_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// Length of the frame, in bytes.
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
}

impl Packet for Frame {
    #[inline]
    fn frame(&self) -> &[u8] {
        Frame::frame(self)
    }

    #[inline]
    fn frame_mut(&mut self) -> &mut [u8] {
        Frame::frame_mut(self)
    }

    #[inline]
    fn reframe(&mut self, remove: usize, add: usize, keep: usize) -> bool {
        let kept = self.start + remove;
        if add > kept || kept > self.end {
            return false;
        }
        self.end = self.end.min(kept.saturating_add(keep));
        self.start = kept - add;
        true
    }

    fn resize(&mut self, length: usize) -> bool {
        let end = self.start + length;
        if end > self.bytes.len() {
            return false;
        }
        self.end = end;
        true
    }

    fn clear(&mut self) {
        Frame::clear(self);
    }

    fn is_cut_to(&self, ip_offset: usize, length: u16) -> bool {
        let is_super = self.pending.is_some_and(Pending::is_super);
        is_super && segment::wire_len(self) <= ip_offset + usize::from(length)
    }

    #[inline]
    fn len(&self) -> usize {
        Frame::len(self)
    }
}
