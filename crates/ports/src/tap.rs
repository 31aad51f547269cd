//! A kernel TAP device: the machine's network card is the kernel end, we are the wire.
//!
//! No offloads are offered to the kernel, so it hands out finished checksums and frames within the device's MTU. The device lives as
//! long as the port: it may be moved to another network namespace and renamed, the port keeps working. It is created *down* and has to
//! be brought up by whoever configures the machine: brought up in the hypervisor's own namespace it would be autoconfigured
//! as an uplink of the hypervisor by our router advertisements.

use crate::{Counters, ETHERNET_LEN, Gone, OpenError, Port, sys};
use dataplane::PacketBuf;
use net::Mac;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Frames that the kernel queues towards us before it drops (its default of 500 is short for a burst of TCP).
const TX_QUEUE_LEN: u32 = 1024;

/// An open TAP device.
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
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(OpenError::new(name, "open /dev/net/tun"))?;
        sys::tap_create(file.as_fd(), name).map_err(OpenError::new(name, "create TAP"))?;
        let control = sys::control_socket().map_err(OpenError::new(name, "open control socket"))?;
        sys::set_mac(control.as_fd(), name, mac)
            .map_err(OpenError::new(name, "set hardware address"))?;
        sys::set_mtu(control.as_fd(), name, mtu).map_err(OpenError::new(name, "set MTU"))?;
        sys::set_tx_queue_len(control.as_fd(), name, TX_QUEUE_LEN)
            .map_err(OpenError::new(name, "set queue length"))?;
        Ok(Tap {
            name: name.to_owned(),
            mac,
            mtu,
            file,
            counters: Counters::default(),
        })
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

    fn readiness(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn rx_burst(&mut self, packets: &mut [PacketBuf]) -> Result<usize, Gone> {
        let mut filled = 0;
        while let Some(packet) = packets.get_mut(filled) {
            let area = packet.receive_area();
            let area_len = area.len();
            match self.file.read(area) {
                // The driver cuts a frame that does not fit and does not tell: a full buffer is taken for a cut frame.
                Ok(length) if length == area_len => self.counters.rx_unusable += 1,
                Ok(length) => {
                    packet.set_received(length);
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

    fn tx_burst(&mut self, packets: &[&PacketBuf]) -> usize {
        let mut sent = 0;
        for packet in packets {
            if packet.len() > self.mtu + ETHERNET_LEN {
                self.counters.tx_oversize += 1;
                continue;
            }
            match self.file.write(packet.frame()) {
                Ok(length) if length == packet.len() => {
                    self.counters.sent(length);
                    sent += 1;
                }
                // The driver takes a frame whole or not at all.
                Ok(_) => self.counters.tx_errors += 1,
                Err(error) => self.counters.not_sent(&error),
            }
        }
        sent
    }

    fn counters(&mut self) -> Counters {
        self.counters
    }
}
