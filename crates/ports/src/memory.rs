//! A port whose other end is a value in the same process: tests, simulation, benchmarks.
//!
//! Both directions are bounded queues of frames. The other end, [`MemoryPeer`], may be cloned and used from any thread.

use crate::{Counters, ETHERNET_LEN, Frame, Gone, OpenError, Port};
use net::Mac;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Frames that wait in one direction; further ones are dropped and counted, as a NIC does.
pub const QUEUE_MAX: usize = 4096;

#[derive(Debug, Default)]
struct Queues {
    to_port: VecDeque<Vec<u8>>,
    from_port: VecDeque<Vec<u8>>,
    to_port_full: u64,
    unplugged: bool,
}

#[derive(Debug)]
struct Wire {
    queues: Mutex<Queues>,
    readable: EventFd,
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        // A panic of the other end leaves whole frames behind: the queues stay usable.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's end.
#[derive(Debug)]
pub struct MemoryPort {
    name: String,
    mac: Mac,
    mtu: usize,
    wire: Arc<Wire>,
    counters: Counters,
}

/// The other end: what a machine or the fabric would be.
#[derive(Clone, Debug)]
pub struct MemoryPeer {
    wire: Arc<Wire>,
}

/// Makes both ends.
///
/// # Errors
/// If the process has no file descriptor left.
pub fn pair(name: &str, mac: Mac, mtu: usize) -> Result<(MemoryPort, MemoryPeer), OpenError> {
    let readable = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(|errno| OpenError::new(name, "create event descriptor")(errno.into()))?;
    let wire = Arc::new(Wire {
        queues: Mutex::default(),
        readable,
    });
    let peer = MemoryPeer {
        wire: Arc::clone(&wire),
    };
    let port = MemoryPort {
        name: name.to_owned(),
        mac,
        mtu,
        wire,
        counters: Counters::default(),
    };
    Ok((port, peer))
}

impl MemoryPeer {
    /// Puts a frame into the port's receive queue; false if it is full.
    pub fn send(&self, frame: &[u8]) -> bool {
        let mut queues = self.wire.lock();
        if queues.to_port.len() >= QUEUE_MAX {
            queues.to_port_full += 1;
            return false;
        }
        queues.to_port.push_back(frame.to_vec());
        if queues.to_port.len() == 1 {
            // Cannot fail: the counter is at most 1 here.
            let _ = self.wire.readable.write(1);
        }
        true
    }

    /// Takes the oldest frame that the port has sent.
    #[must_use]
    pub fn receive(&self) -> Option<Vec<u8>> {
        self.wire.lock().from_port.pop_front()
    }

    /// Removes the device: the port reports [`Gone`] from now on.
    pub fn unplug(&self) {
        let mut queues = self.wire.lock();
        queues.unplugged = true;
        let _ = self.wire.readable.write(1);
    }
}

impl Port for MemoryPort {
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
        Some(self.wire.readable.as_fd())
    }

    fn rx_burst(&mut self, packets: &mut [Frame]) -> Result<usize, Gone> {
        let mut queues = self.wire.lock();
        if queues.unplugged {
            return Err(Gone);
        }
        let mut filled = 0;
        while let Some(packet) = packets.get_mut(filled) {
            let Some(frame) = queues.to_port.pop_front() else {
                break;
            };
            if packet.fill(&frame) {
                self.counters.received(frame.len());
                filled += 1;
            } else {
                self.counters.rx_unusable += 1;
            }
        }
        if queues.to_port.is_empty() {
            // Under the lock, so that no frame can come in between. An error means that it was not readable.
            let _ = self.wire.readable.read();
        }
        Ok(filled)
    }

    fn tx_burst(&mut self, packets: &mut [&mut Frame]) -> usize {
        let mut queues = self.wire.lock();
        let mut sent = 0;
        for packet in packets.iter() {
            if packet.len() > self.mtu + ETHERNET_LEN {
                self.counters.tx_oversize += 1;
            } else if queues.unplugged {
                self.counters.tx_down += 1;
            } else if queues.from_port.len() >= QUEUE_MAX {
                self.counters.tx_full += 1;
            } else {
                queues.from_port.push_back(packet.frame().to_vec());
                self.counters.sent(packet.len());
                sent += 1;
            }
        }
        sent
    }

    fn counters(&mut self) -> Counters {
        Counters {
            rx_full: self.wire.lock().to_port_full,
            ..self.counters
        }
    }
}
