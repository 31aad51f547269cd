//! Packet buffers that are edited in place and travel from a receive queue to a transmit queue without a copy.
#![allow(
    unsafe_code,
    reason = "reads and writes DPDK's packet buffers through their headers"
)]

use crate::eal::Error;
use crate::sys;
use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

/// Free bytes in front of a received frame, which DPDK is built with (`RTE_PKTMBUF_HEADROOM`).
const HEADROOM: u16 = 128;
/// Buffers that each packet thread keeps at hand.
const CACHE: u32 = 256;

/// A pool of packet buffers; freed when its last user is gone.
#[derive(Clone, Debug)]
pub struct Pool(Arc<PoolHandle>);

#[derive(Debug)]
struct PoolHandle {
    pool: NonNull<sys::rte_mempool>,
    frame_max: u16,
    count: u32,
}

// SAFETY: a mempool may be used by any number of threads at the same time (its default operations are multi-producer and -consumer).
unsafe impl Send for PoolHandle {}
// SAFETY: as above.
unsafe impl Sync for PoolHandle {}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        // A pool with buffers abroad must stay: they point into it.
        // SAFETY: the pointer is valid until here, and no buffer is abroad when it is freed.
        unsafe {
            if sys::rte_mempool_avail_count(self.pool.as_ptr()) == self.count {
                sys::rte_mempool_free(self.pool.as_ptr());
            }
        }
    }
}

impl Pool {
    pub(crate) fn new(number: u32, count: u32, frame_max: u16) -> Result<Pool, Error> {
        let name = CString::new(format!("packets{number}")).map_err(|_| Error(22))?;
        let room = frame_max.checked_add(HEADROOM).ok_or(Error(22))?;
        let cache = if count >= CACHE * 4 { CACHE } else { 0 };
        // SAFETY: a NUL-terminated name that DPDK copies, and plain numbers.
        let pool = unsafe {
            sys::rte_pktmbuf_pool_create(
                name.as_ptr(),
                count,
                cache,
                0,
                room,
                sys::okm_main_socket(),
            )
        };
        let pool = NonNull::new(pool).ok_or_else(Error::last)?;
        Ok(Pool(Arc::new(PoolHandle {
            pool,
            frame_max,
            count,
        })))
    }

    /// Longest frame that a buffer holds.
    #[must_use]
    pub fn frame_max(&self) -> u16 {
        self.0.frame_max
    }

    /// An empty buffer; `None` if all are in use.
    #[must_use]
    pub fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: the pool is valid; the result is null or a fresh buffer that nobody else knows.
        NonNull::new(unsafe { sys::okm_mbuf_alloc(self.as_ptr()) }).map(|packet| Mbuf(Some(packet)))
    }

    /// Buffers that are neither in flight nor in a queue. Walks the pool: for tests and statistics.
    #[must_use]
    pub fn available(&self) -> u32 {
        // SAFETY: the pool is valid.
        unsafe { sys::rte_mempool_avail_count(self.as_ptr()) }
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.0.pool.as_ptr()
    }
}

/// What the sender of a packet left to be done, as the receiving driver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// The checksum of TCP or UDP, whose field holds the sum of the pseudo header.
    Checksum,
    /// That, and to cut TCP's payload into pieces of so many bytes.
    Segments(u16),
    /// Something else.
    Other,
}

/// What is to be done before a TCP packet is a frame on a wire: its checksum, and cutting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Bytes of TCP header and payload, which are the end of the frame.
    pub tcp_len: u32,
    /// Payload per frame; 0 if it is one frame.
    pub segment_len: u16,
}

/// Where a packet's headers are, for a driver that finishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Offset of the IP header.
    pub ip_start: u8,
    /// It is IPv6.
    pub is_v6: bool,
    /// Offset of the TCP header.
    pub tcp_start: u16,
    /// Bytes of the TCP header.
    pub tcp_header_len: u8,
}

/// An owned packet buffer of one segment, or an empty place for one. Dropping it gives the buffer back to its pool.
#[derive(Default)]
#[repr(transparent)]
pub struct Mbuf(Option<NonNull<sys::rte_mbuf>>);

// SAFETY: a buffer has one owner, and pools take buffers back from any thread.
unsafe impl Send for Mbuf {}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        if let Some(packet) = self.0.take() {
            // SAFETY: owned and valid; nobody uses it afterwards.
            unsafe { sys::okm_mbuf_free(packet.as_ptr()) }
        }
    }
}

impl std::fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mbuf")
            .field("len", &self.frame().len())
            .finish_non_exhaustive()
    }
}

impl Mbuf {
    #[inline]
    fn header(&self) -> Option<&sys::rte_mbuf> {
        // SAFETY: an owned buffer's header is valid and only accessed through its owner, here borrowed shared.
        self.0.map(|packet| unsafe { packet.as_ref() })
    }

    #[inline]
    fn header_mut(&mut self) -> Option<&mut sys::rte_mbuf> {
        // SAFETY: as in `header`, here borrowed exclusively.
        self.0.map(|mut packet| unsafe { packet.as_mut() })
    }

    /// Whether this is only a place for a buffer.
    #[must_use]
    #[inline]
    pub fn is_vacant(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the whole frame is in this one buffer, which is what all methods here are about.
    #[must_use]
    #[inline]
    pub fn is_contiguous(&self) -> bool {
        self.header().is_none_or(|header| header.nb_segs == 1)
    }

    /// The frame.
    #[must_use]
    #[inline]
    pub fn frame(&self) -> &[u8] {
        let Some(header) = self.header() else {
            return &[];
        };
        let (start, length) = (bounded(header), usize::from(header.data_len));
        // SAFETY: the frame lies within the buffer: `data_off + data_len <= buf_len` holds for every buffer that DPDK hands out and
        // is kept by every method below; it is initialized memory of the pool, borrowed with `self`.
        unsafe { std::slice::from_raw_parts(header.buf_addr.cast::<u8>().add(start), length) }
    }

    /// The frame, to be edited.
    #[inline]
    pub fn frame_mut(&mut self) -> &mut [u8] {
        let Some(header) = self.header_mut() else {
            return &mut [];
        };
        let (start, length) = (bounded(header), usize::from(header.data_len));
        // SAFETY: as in `frame`; the exclusive borrow of `self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(header.buf_addr.cast::<u8>().add(start), length) }
    }

    /// Length of the frame.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.header()
            .map_or(0, |header| usize::from(header.data_len))
    }

    /// Whether there is no frame.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Free bytes in front of the frame.
    #[must_use]
    #[inline]
    pub fn headroom(&self) -> usize {
        self.header()
            .map_or(0, |header| usize::from(header.data_off))
    }

    /// Free bytes behind the frame.
    #[must_use]
    #[inline]
    pub fn tailroom(&self) -> usize {
        self.header().map_or(0, |header| {
            usize::from(header.buf_len - header.data_off - header.data_len)
        })
    }

    /// Makes the frame begin at `start` of the buffer and be `length` bytes long; false (and unchanged) if it does not fit.
    #[must_use]
    #[inline]
    pub fn place(&mut self, start: usize, length: usize) -> bool {
        let Some(header) = self.header_mut() else {
            return false;
        };
        if start + length > usize::from(header.buf_len) {
            return false;
        }
        header.data_off = start as u16;
        header.data_len = length as u16;
        header.pkt_len = length as u32;
        true
    }

    /// Empties the buffer and restores its headroom.
    pub fn clear(&mut self) {
        // Fails only for a place without buffer, which is empty.
        let _ = self.place(usize::from(HEADROOM), 0);
        if self.is_unfinished() {
            self.set_unfinished(None);
        }
    }

    /// Whether the driver says of a packet just received that its sender may have left something to be done.
    #[must_use]
    #[inline]
    pub fn may_have_left(&self) -> bool {
        self.header()
            .is_some_and(|header| header.ol_flags & sys::OKM_LEFT_FLAGS != 0)
    }

    /// What the driver says about that; it is forgotten afterwards.
    pub fn take_left(&mut self) -> Left {
        let Some(packet) = self.0 else {
            return Left::Nothing;
        };
        let mut segment_len = 0;
        // SAFETY: an owned, valid buffer and a live number.
        let left = unsafe { sys::okm_mbuf_take_left(packet.as_ptr(), &mut segment_len) };
        match left as sys::okm_left {
            sys::okm_left_OKM_LEFT_NOTHING => Left::Nothing,
            sys::okm_left_OKM_LEFT_CHECKSUM => Left::Checksum,
            sys::okm_left_OKM_LEFT_SEGMENTS => Left::Segments(segment_len),
            _ => Left::Other,
        }
    }

    /// Whether there is a note of what is to be done. To be asked of packets that [`Mbuf::take_left`] has seen, or that are our own.
    #[must_use]
    #[inline]
    pub fn is_unfinished(&self) -> bool {
        self.header()
            .is_some_and(|header| header.ol_flags & sys::OKM_NOTE_FLAG != 0)
    }

    /// The note.
    #[must_use]
    #[inline]
    pub fn unfinished(&self) -> Option<Unfinished> {
        let packet = self.0.filter(|_| self.is_unfinished())?;
        let (mut tcp_len, mut segment_len) = (0, 0);
        // SAFETY: an owned, valid buffer and two live numbers.
        unsafe { sys::okm_mbuf_noted(packet.as_ptr(), &mut tcp_len, &mut segment_len) };
        Some(Unfinished {
            tcp_len,
            segment_len,
        })
    }

    /// Notes what is to be done, or that nothing is.
    pub fn set_unfinished(&mut self, unfinished: Option<Unfinished>) {
        let Some(packet) = self.0 else {
            return;
        };
        match unfinished {
            // SAFETY: an owned, valid buffer.
            Some(note) => unsafe {
                sys::okm_mbuf_note(packet.as_ptr(), note.tcp_len, note.segment_len);
            },
            // SAFETY: as above.
            None => unsafe { sys::okm_mbuf_forget(packet.as_ptr()) },
        }
    }

    /// Lets the sending driver do what is noted.
    pub fn describe(&mut self, headers: Headers) {
        let Headers {
            ip_start,
            is_v6,
            tcp_start,
            tcp_header_len,
        } = headers;
        if let Some(packet) = self.0 {
            // SAFETY: an owned, valid buffer.
            unsafe {
                sys::okm_mbuf_describe(
                    packet.as_ptr(),
                    ip_start,
                    tcp_start,
                    tcp_header_len,
                    i32::from(is_v6),
                );
            }
        }
    }

    pub(crate) fn into_raw(mut self) -> *mut sys::rte_mbuf {
        self.0.take().map_or(std::ptr::null_mut(), NonNull::as_ptr)
    }

    /// # Safety
    /// `packet` is null or a valid buffer that the caller owns.
    #[inline]
    pub(crate) unsafe fn from_raw(packet: *mut sys::rte_mbuf) -> Mbuf {
        Mbuf(NonNull::new(packet))
    }
}

#[inline]
fn bounded(header: &sys::rte_mbuf) -> usize {
    debug_assert!(header.data_off + header.data_len <= header.buf_len);
    usize::from(header.data_off)
}

impl dataplane::Packet for Mbuf {
    #[inline]
    fn frame(&self) -> &[u8] {
        Mbuf::frame(self)
    }

    #[inline]
    fn frame_mut(&mut self) -> &mut [u8] {
        Mbuf::frame_mut(self)
    }

    #[inline]
    fn reframe(&mut self, remove: usize, add: usize, keep: usize) -> bool {
        let (start, length) = (self.headroom(), self.len());
        let Some(left) = length.checked_sub(remove) else {
            return false;
        };
        let Some(front) = (start + remove).checked_sub(add) else {
            return false;
        };
        self.place(front, left.min(keep) + add)
    }

    fn resize(&mut self, length: usize) -> bool {
        self.place(self.headroom(), length)
    }

    fn clear(&mut self) {
        Mbuf::clear(self);
    }

    fn is_cut_to(&self, ip_offset: usize, length: u16) -> bool {
        let unfinished = self.unfinished().filter(|note| note.segment_len != 0);
        unfinished.is_some_and(|note| {
            let (tcp_len, segment_len) = (note.tcp_len as usize, usize::from(note.segment_len));
            dataplane::wire_len(Mbuf::frame(self), tcp_len, segment_len)
                <= ip_offset + usize::from(length)
        })
    }

    #[inline]
    fn len(&self) -> usize {
        Mbuf::len(self)
    }
}
