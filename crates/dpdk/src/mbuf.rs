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

    #[inline]
    fn len(&self) -> usize {
        Mbuf::len(self)
    }
}
