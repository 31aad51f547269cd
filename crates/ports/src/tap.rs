//! A kernel TAP device: the machine's network card is the kernel end, we are the wire.
//!
//! Checksum and TCP segmentation offloads are offered to the kernel (`IFF_VNET_HDR`, `TUNSETOFFLOAD`), so a machine's TCP hands over up to
//! 64 KiB with one system call, and takes as much with one from another machine. The device lives as long as its ports: it may be moved to
//! another network namespace and renamed, they keep working. It is created *down* and has to be brought up by whoever configures the
//! machine: brought up in the hypervisor's own namespace it would be autoconfigured as an uplink of the hypervisor by our router
//! advertisements.

use crate::segment::{self, Segment};
use crate::sys::{self, VNET_HEADER_LEN};
use crate::{Counters, ETHERNET_LEN, Frame, Gone, OpenError, Port};
use net::Mac;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Frames that the kernel queues towards us before it drops (its default of 500 is short for a burst of TCP).
const TX_QUEUE_LEN: u32 = 1024;
/// The header of a frame of which nothing is left to do.
const PLAIN: [u8; VNET_HEADER_LEN] = [0; VNET_HEADER_LEN];

/// Frames that the kernel queues for a reader of messages: those of a whole table may come at once.
const MESSAGE_QUEUE_LEN: u32 = 100_000;

/// Opens the TAP device `name` for messages: nonblocking, one frame per read and write, nothing in front of it. It is brought up. A device that
/// exists keeps its settings; otherwise it is created, and ends with the descriptor.
///
/// # Errors
/// As [`Tap::create`]; a device that exists may be open already (`EBUSY`) or be none of this kind (`EINVAL`).
pub fn open_message_tap(name: &str) -> Result<OwnedFd, OpenError> {
    let control = sys::control_socket().map_err(OpenError::new(name, "open control socket"))?;
    let is_new = sys::index(control.as_fd(), name).is_err();
    let attach = |several| -> Result<File, OpenError> {
        let file = open_tun(name)?;
        let attached = sys::tap_attach(file.as_fd(), name, several);
        attached.map_err(OpenError::new(name, "open TAP for messages"))?;
        Ok(file)
    };
    let file = match attach(false) {
        // One that was made with several queues can only be opened as such.
        Err(error) if !is_new && error.cause.raw_os_error() == Some(libc::EINVAL) => {
            attach(true).map_err(|_| error)?
        }
        attached => attached?,
    };
    if is_new {
        sys::set_tx_queue_len(control.as_fd(), name, MESSAGE_QUEUE_LEN)
            .map_err(OpenError::new(name, "set queue length"))?;
    }
    sys::set_up(control.as_fd(), name).map_err(OpenError::new(name, "bring up"))?;
    Ok(file.into())
}

/// Whether the device of an open message TAP exists still. Waiting for frames does not tell.
#[must_use]
pub fn is_message_tap(descriptor: BorrowedFd<'_>) -> bool {
    sys::tap_is_attached(descriptor)
}

fn open_tun(name: &str) -> Result<File, OpenError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(OpenError::new(name, "open /dev/net/tun"))
}

/// An open TAP device, or one queue of it.
#[derive(Debug)]
pub struct Tap {
    name: String,
    mac: Mac,
    mtu: usize,
    file: File,
    counters: Counters,
}

impl Tap {
    /// Creates the device `name` in the caller's network namespace, with hardware address `mac` and `mtu`.
    ///
    /// # Errors
    /// The name is in use (`EBUSY`), too long (`EINVAL`), or the process lacks CAP_NET_ADMIN (`EPERM`) or `/dev/net/tun` (`ENOENT`).
    pub fn create(name: &str, mac: Mac, mtu: usize) -> Result<Tap, OpenError> {
        let tap = Tap::queue(name, mac, mtu, true, false)?;
        tap.configure()?;
        Ok(tap)
    }

    /// Creates the device with `queues` queues, among which the kernel spreads its flows.
    ///
    /// # Errors
    /// As [`Tap::create`].
    pub fn create_queues(
        name: &str,
        mac: Mac,
        mtu: usize,
        queues: usize,
    ) -> Result<Vec<Tap>, OpenError> {
        let taps = (0..queues.max(1))
            .map(|number| Tap::queue(name, mac, mtu, number == 0, queues > 1))
            .collect::<Result<Vec<_>, _>>()?;
        taps.first().map_or(Ok(()), Tap::configure)?;
        Ok(taps)
    }

    /// Brings the device up, for a kernel's end that nobody else looks after.
    ///
    /// # Errors
    /// The device is gone (`ENODEV`), or the process lacks CAP_NET_ADMIN (`EPERM`).
    pub fn bring_up(&self) -> Result<(), OpenError> {
        let failed = |action| OpenError::new(&self.name, action);
        let control = sys::control_socket().map_err(failed("open control socket"))?;
        sys::set_up(control.as_fd(), &self.name).map_err(failed("bring up"))
    }

    fn queue(
        name: &str,
        mac: Mac,
        mtu: usize,
        first: bool,
        several: bool,
    ) -> Result<Tap, OpenError> {
        let file = open_tun(name)?;
        sys::tap_create(file.as_fd(), name, first, several)
            .map_err(OpenError::new(name, "create TAP"))?;
        Ok(Tap {
            name: name.to_owned(),
            mac,
            mtu,
            file,
            counters: Counters::default(),
        })
    }

    fn configure(&self) -> Result<(), OpenError> {
        let name = &self.name;
        let control = sys::control_socket().map_err(OpenError::new(name, "open control socket"))?;
        sys::set_mac(control.as_fd(), name, self.mac)
            .map_err(OpenError::new(name, "set hardware address"))?;
        sys::set_mtu(control.as_fd(), name, self.mtu).map_err(OpenError::new(name, "set MTU"))?;
        sys::set_tx_queue_len(control.as_fd(), name, TX_QUEUE_LEN)
            .map_err(OpenError::new(name, "set queue length"))
    }

    /// Writes one frame; the kernel takes it whole or not at all.
    fn write(&mut self, header: &[u8; VNET_HEADER_LEN], parts: [&[u8]; 2]) -> bool {
        let [first, second] = parts;
        let length = first.len() + second.len();
        let vector = [
            IoSlice::new(header),
            IoSlice::new(first),
            IoSlice::new(second),
        ];
        match self.file.write_vectored(&vector) {
            Ok(written) if written == length + VNET_HEADER_LEN => {
                self.counters.sent(length);
                true
            }
            Ok(_) => {
                self.counters.tx_errors += 1;
                false
            }
            Err(error) => {
                self.counters.not_sent(&error);
                false
            }
        }
    }

    fn send(&mut self, packet: &mut Frame) -> bool {
        if segment::wire_len(packet) > self.mtu + ETHERNET_LEN {
            self.counters.tx_oversize += 1;
            return false;
        }
        if let Some(header) = segment::describe(packet) {
            return self.write(&header, [packet.frame(), &[]]);
        }
        // Not plain TCP any more (the engine has put something in front of it, or a tunnel came): done by hand.
        if let Some(cut) = segment::cut(packet) {
            let mut segment = Segment::EMPTY;
            return (0..cut.count()).fold(true, |all, number| {
                let written = cut.write(packet.frame(), number, &mut segment)
                    && self.write(&PLAIN, segment.parts(packet.frame()));
                all && written
            });
        }
        if segment::finish(packet) {
            return self.write(&PLAIN, [packet.frame(), &[]]);
        }
        self.counters.tx_errors += 1;
        false
    }
}

impl Port for Tap {
    fn name(&self) -> &str {
        &self.name
    }

    fn mac(&self) -> Mac {
        self.mac
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn rx_burst(&mut self, packets: &mut [Frame]) -> Result<usize, Gone> {
        let mut filled = 0;
        while let Some(packet) = packets.get_mut(filled) {
            let mut header = PLAIN;
            let area = packet.receive_area();
            let area_len = area.len();
            let vector = &mut [IoSliceMut::new(&mut header), IoSliceMut::new(area)];
            match self.file.read_vectored(vector) {
                // The driver cuts a frame that does not fit and does not tell: a full buffer is taken for a cut frame.
                Ok(length) if length == area_len + VNET_HEADER_LEN => {
                    self.counters.rx_unusable += 1;
                }
                Ok(length) => {
                    let length = length.saturating_sub(VNET_HEADER_LEN);
                    packet.set_received(length);
                    if !segment::accept(&header, packet) {
                        self.counters.rx_unusable += 1;
                        continue;
                    }
                    self.counters.rx_super +=
                        u64::from(packet.pending.is_some_and(segment::Pending::is_super));
                    self.counters.received(length);
                    filled += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Err(Gone),
                Err(_) => break,
            }
        }
        Ok(filled)
    }

    fn tx_burst(&mut self, packets: &mut [&mut Frame]) -> usize {
        packets
            .iter_mut()
            .map(|packet| usize::from(self.send(packet)))
            .sum()
    }

    fn counters(&mut self) -> Counters {
        self.counters
    }
}
