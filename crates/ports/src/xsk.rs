//! The memory and the rings that an AF_XDP socket shares with the kernel: safe pieces for the module `af_xdp`.
//!
//! The kernel owns a chunk of packet memory from the moment its address is put into a ring until it comes out of another one. Chunks are only
//! copied from and to, by address and with bounds checks, so a mistake in that bookkeeping can garble a packet but touch no other memory.
#![allow(
    unsafe_code,
    reason = "memory mapped from the kernel, and sockets that no safe wrapper knows"
)]

use std::io;
use std::marker::PhantomData;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

/// A mapping of memory, unmapped when dropped.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is plain memory; who may access which part is decided by the types that hold it.
unsafe impl Send for Map {}

impl Map {
    fn new(length: usize, fd: Option<(BorrowedFd<'_>, libc::off_t)>) -> io::Result<Map> {
        let (flags, raw, offset) = match fd {
            Some((fd, offset)) => (
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                offset,
            ),
            None => (
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            ),
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                raw,
                offset,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast::<libc::c_void>() != libc::MAP_FAILED => {
                Ok(Map { start, length })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Packet memory in chunks of equal size.
#[derive(Debug)]
pub(crate) struct Umem(Map);

impl Umem {
    /// Makes the memory and tells the socket about it.
    pub(crate) fn register(
        socket: BorrowedFd<'_>,
        chunks: usize,
        chunk_len: u32,
    ) -> io::Result<Umem> {
        let map = Map::new(chunks * chunk_len as usize, None)?;
        let registration = libc::xdp_umem_reg {
            addr: map.start.as_ptr() as u64,
            len: map.length as u64,
            chunk_size: chunk_len,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        option(socket, libc::XDP_UMEM_REG, &registration)?;
        Ok(Umem(map))
    }

    /// Copies bytes out; false if they are not inside.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let Some(place) = self.place(address, bytes.len()) else {
            return false;
        };
        // SAFETY: the range is inside the mapping (checked), which does not overlap with Rust's memory.
        unsafe { ptr::copy_nonoverlapping(place, bytes.as_mut_ptr(), bytes.len()) };
        true
    }

    /// Copies bytes in; false if there is no room.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Some(place) = self.place(address, bytes.len()) else {
            return false;
        };
        // SAFETY: as in `read`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        true
    }

    fn place(&self, address: u64, length: usize) -> Option<*mut u8> {
        let start = usize::try_from(address).ok()?;
        let inside = start.checked_add(length)? <= self.0.length;
        // SAFETY: `start` is at most the length of the mapping.
        inside.then(|| unsafe { self.0.start.as_ptr().add(start) })
    }
}

/// One of the four rings of a socket, with items of type `T`. We are its only producer or its only consumer.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    map: Map,
    producer: usize,
    consumer: usize,
    flags: usize,
    items: usize,
    size: u32,
    /// Our counter, published or not.
    own: u32,
    item: PhantomData<T>,
}

impl<T: Copy> Ring<T> {
    /// Sets the ring's size (a power of two) and maps it.
    pub(crate) fn open(
        socket: BorrowedFd<'_>,
        kind: libc::c_int,
        size: u32,
    ) -> io::Result<Ring<T>> {
        option(socket, kind, &size)?;
        let offsets = offsets(socket)?;
        let (offsets, place) = match kind {
            libc::XDP_RX_RING => (offsets.rx, libc::XDP_PGOFF_RX_RING),
            libc::XDP_TX_RING => (offsets.tx, libc::XDP_PGOFF_TX_RING),
            libc::XDP_UMEM_FILL_RING => (offsets.fr, libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t),
            _ => (
                offsets.cr,
                libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t,
            ),
        };
        let items = offsets.desc as usize;
        let length = items + size as usize * mem::size_of::<T>();
        Ok(Ring {
            map: Map::new(length, Some((socket, place)))?,
            producer: offsets.producer as usize,
            consumer: offsets.consumer as usize,
            flags: offsets.flags as usize,
            items,
            size,
            own: 0,
            item: PhantomData,
        })
    }

    fn counter(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the kernel told this offset of an aligned 32-bit counter inside the mapping, which both sides access atomically.
        unsafe { &*self.map.start.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    fn item(&self, number: u32) -> *mut T {
        let index = (number & (self.size - 1)) as usize;
        // SAFETY: `index` is below the number of items for which the mapping was made.
        unsafe {
            self.map
                .start
                .as_ptr()
                .add(self.items)
                .cast::<T>()
                .add(index)
        }
    }

    /// Puts an item in, unpublished; false if the ring is full.
    pub(crate) fn push(&mut self, item: T) -> bool {
        let taken = self.counter(self.consumer).load(Ordering::Acquire);
        if self.own.wrapping_sub(taken) >= self.size {
            return false;
        }
        // SAFETY: the slot is ours until it is published: the kernel has consumed its former item.
        unsafe { self.item(self.own).write(item) };
        self.own = self.own.wrapping_add(1);
        true
    }

    /// Publishes what was pushed.
    pub(crate) fn publish(&self) {
        self.counter(self.producer)
            .store(self.own, Ordering::Release);
    }

    /// Takes the oldest item, unreleased.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let produced = self.counter(self.producer).load(Ordering::Acquire);
        if self.own == produced {
            return None;
        }
        // SAFETY: the kernel has published the item and does not touch it before it is released.
        let item = unsafe { self.item(self.own).read() };
        self.own = self.own.wrapping_add(1);
        Some(item)
    }

    /// Gives the slots of popped items back.
    pub(crate) fn release(&self) {
        self.counter(self.consumer)
            .store(self.own, Ordering::Release);
    }

    /// What was pushed and not yet consumed.
    pub(crate) fn outstanding(&self) -> u32 {
        self.own
            .wrapping_sub(self.counter(self.consumer).load(Ordering::Acquire))
    }

    /// The kernel asks to be told about published items.
    pub(crate) fn needs_wakeup(&self) -> bool {
        self.counter(self.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

fn option<T>(socket: BorrowedFd<'_>, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length describe the live value `value`, of the type that each option used in this file takes.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            name,
            ptr::from_ref(value).cast(),
            length,
        )
    })
    .map(drop)
}

fn offsets(socket: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: all-zero bytes are a valid value of this structure of integers.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { mem::zeroed() };
    let mut length = mem::size_of_val(&offsets) as libc::socklen_t;
    // SAFETY: pointer and length describe the live, exclusively borrowed structure.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            ptr::from_mut(&mut offsets).cast(),
            ptr::from_mut(&mut length),
        )
    })?;
    Ok(offsets)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// An AF_XDP socket, not bound yet.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: makes a new descriptor.
    let fd = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds to a receive queue of a device; the kernel uses the device's own memory access if the driver can, else it copies.
pub(crate) fn bind(socket: BorrowedFd<'_>, index: u32, queue: u32) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_USE_NEED_WAKEUP,
        sxdp_ifindex: index,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let length = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: pointer and length describe a live address.
    check(unsafe { libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), length) })
        .map(drop)
}

/// Makes the kernel look at the transmit ring. Never blocks.
pub(crate) fn kick_transmit(socket: BorrowedFd<'_>) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    // SAFETY: an empty message without address.
    let sent = unsafe { libc::sendto(fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes the kernel look at the fill ring. Never blocks.
pub(crate) fn kick_receive(socket: BorrowedFd<'_>) {
    let fd = socket.as_raw_fd();
    let (none, length) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: an empty message without address. Errors come again at the next system call that matters.
    unsafe { libc::recvfrom(fd, ptr::null_mut(), 0, libc::MSG_DONTWAIT, none, length) };
}
