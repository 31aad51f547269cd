//! Drivers that carry frames between the packet engine and the outside: memory, TAP and AF_PACKET.
//!
//! A driver moves bytes and counts; it decides nothing. Native drivers (memory, TAP, AF_PACKET, AF_XDP) move [`Frame`]s; with the feature
//! `dpdk`, the module `dpdk` moves DPDK's own buffers, which are edited in place. What leaves through a port is always complete frames: a
//! TCP super-frame that a machine handed over in one piece is described to a kernel that can cut it (`tunnel`), or cut here (`segment`).
//!
//! A port belongs to one thread. A device with several queues is several ports, one per packet thread; threads hand packets to each
//! other through [`ring`]s. NICs that switch packets by rules are reached through [`offload`]. `unsafe` exists only in `sys`, `bpf`, `xsk` and [`ring`]. All drivers pass one suite: [`contract`].
//! Start with [`Port`], then [`memory`] as the shortest driver.

pub mod af_packet;
pub mod af_xdp;
mod bpf;
pub mod contract;
#[cfg(feature = "dpdk")]
pub mod dpdk;
mod frame;
pub mod memory;
pub mod offload;
mod poller;
pub mod ring;
mod segment;
mod sys;
pub mod tap;
mod tunnel;
mod xsk;

pub use af_packet::AfPacket;
pub use af_xdp::AfXdp;
pub use frame::{FRAME_MAX, Frame};
pub use memory::{MemoryPeer, MemoryPort};
pub use poller::{PORTS_READY_MAX, Poller, Ready, Waker};
pub use tap::{Tap, is_message_tap, open_message_tap};

use net::Mac;
use std::io;
use std::os::fd::BorrowedFd;

/// Frames that a driver moves with one system call at most.
pub const BATCH_MAX: usize = 64;

/// Bytes of an Ethernet header, which an MTU does not include.
pub const ETHERNET_LEN: usize = 14;

/// One attachment to the outside world (or one queue of it), used by exactly one thread. `P` is the driver's packet.
pub trait Port<P = Frame>: Send {
    /// Name of the network device as it was when the port was opened.
    fn name(&self) -> &str;

    /// Hardware address of the network device.
    fn mac(&self) -> Mac;

    /// Largest layer-3 packet that may be sent, in bytes.
    fn mtu(&self) -> usize;

    /// Readable while frames wait (or once some have come, see [`Port::is_level`]); to be put into a [`Poller`]. `None`: the driver can only
    /// be polled.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// Whether the descriptor is readable as long as frames wait. If not, it tells only of frames that came after [`Port::arm`]: while the
    /// caller is awake it has to look for itself, and once more after arming.
    fn is_level(&self) -> bool {
        true
    }

    /// To be called before waiting for readiness.
    fn arm(&mut self) {}

    /// Receives up to `packets.len()` frames into the first places and tells how many; never blocks.
    ///
    /// # Errors
    /// [`Gone`] when the device was removed: close the port, it will never work again.
    fn rx_burst(&mut self, packets: &mut [P]) -> Result<usize, Gone>;

    /// Sends frames in order and tells how many left; the others are dropped and counted by cause. Never blocks. The content of the
    /// places is used up.
    fn tx_burst(&mut self, packets: &mut [&mut P]) -> usize;

    /// What this port counted since it was opened.
    fn counters(&mut self) -> Counters;
}

/// The network device behind a port does not exist any more (its namespace was deleted, or somebody removed it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the network device is gone")]
pub struct Gone;

/// A port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {action}: {cause}")]
pub struct OpenError {
    /// Network device.
    pub device: String,
    /// What was tried, such as "create TAP".
    pub action: &'static str,
    /// What the kernel said. `EPERM`: permanent without CAP_NET_ADMIN/CAP_NET_RAW; `EBUSY`: another process holds it.
    pub cause: io::Error,
}

impl OpenError {
    pub(crate) fn new(device: &str, action: &'static str) -> impl FnOnce(io::Error) -> OpenError {
        move |cause| OpenError {
            device: device.to_owned(),
            action,
            cause,
        }
    }
}

/// Frames and bytes that crossed a port, and those that did not, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames handed to the engine.
    pub rx_packets: u64,
    /// Bytes of those.
    pub rx_bytes: u64,
    /// Frames that the device or the kernel took; a super-frame that was passed on whole counts as one.
    pub tx_packets: u64,
    /// Bytes of those.
    pub tx_bytes: u64,
    /// Frames lost before we read them: the receive queue was full.
    pub rx_full: u64,
    /// Received super-frames, which stand for many frames.
    pub rx_super: u64,
    /// Frames larger than a buffer, or with an offload that we cannot undo.
    pub rx_unusable: u64,
    /// Frames not sent because the transmit queue was full.
    pub tx_full: u64,
    /// Frames not sent because they exceed the MTU.
    pub tx_oversize: u64,
    /// Frames not sent because the device is down.
    pub tx_down: u64,
    /// Frames not sent for any other reason the kernel gave.
    pub tx_errors: u64,
}

impl Counters {
    /// Every counter with its name in telemetry.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, u64); 11] {
        let Counters {
            rx_packets,
            rx_bytes,
            tx_packets,
            tx_bytes,
            rx_full,
            rx_super,
            rx_unusable,
            tx_full,
            tx_oversize,
            tx_down,
            tx_errors,
        } = *self;
        [
            ("rx_packets", rx_packets),
            ("rx_bytes", rx_bytes),
            ("tx_packets", tx_packets),
            ("tx_bytes", tx_bytes),
            ("rx_full", rx_full),
            ("rx_super", rx_super),
            ("rx_unusable", rx_unusable),
            ("tx_full", tx_full),
            ("tx_oversize", tx_oversize),
            ("tx_down", tx_down),
            ("tx_errors", tx_errors),
        ]
    }

    fn received(&mut self, frame_len: usize) {
        self.rx_packets += 1;
        self.rx_bytes += frame_len as u64;
    }

    fn sent(&mut self, frame_len: usize) {
        self.tx_packets += 1;
        self.tx_bytes += frame_len as u64;
    }

    /// Files a failed transmission under its cause.
    fn not_sent(&mut self, error: &io::Error) {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS) => self.tx_full += 1,
            Some(libc::EMSGSIZE) => self.tx_oversize += 1,
            Some(libc::EIO | libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => self.tx_down += 1,
            _ => self.tx_errors += 1,
        }
    }
}
