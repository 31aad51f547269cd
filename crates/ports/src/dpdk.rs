//! A port of DPDK, whichever driver it has: buffers come from DPDK's pool, are edited in place and leave by another port uncopied.

use crate::{Counters, ETHERNET_LEN, Gone, OpenError, Port};
use ::dpdk::{Device, Mbuf, Queue};
use net::Mac;
use std::io;
use std::os::fd::BorrowedFd;

/// One pair of queues of a started port.
#[derive(Debug)]
pub struct DpdkPort {
    name: String,
    mac: Mac,
    mtu: usize,
    queue: Queue,
    counters: Counters,
}

impl DpdkPort {
    /// A port per pair of queues of a started device.
    ///
    /// # Errors
    /// If the device does not describe itself.
    pub fn of(device: Device) -> Result<Vec<DpdkPort>, OpenError> {
        let info = device
            .info()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
            .map_err(OpenError::new("DPDK port", "read its properties"))?;
        let port = |queue| DpdkPort {
            name: info.name.clone(),
            mac: Mac(info.mac),
            mtu: usize::from(info.mtu),
            queue,
            counters: Counters::default(),
        };
        Ok(device.into_queues().into_iter().map(port).collect())
    }

    /// Whether the link is up, if the driver can tell.
    #[must_use]
    pub fn link(&self) -> Option<bool> {
        self.queue.link()
    }
}

impl Port<Mbuf> for DpdkPort {
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
        self.queue.readiness()
    }

    fn arm(&mut self) {
        self.queue.arm();
    }

    fn rx_burst(&mut self, packets: &mut [Mbuf]) -> Result<usize, Gone> {
        let received = self.queue.receive(packets);
        let mut filled = 0;
        for slot in 0..received {
            let Some(packet) = packets.get(slot) else {
                break;
            };
            if packet.is_contiguous() {
                self.counters.received(packet.len());
                packets.swap(filled, slot);
                filled += 1;
            } else {
                self.counters.rx_unusable += 1;
            }
        }
        Ok(filled)
    }

    fn tx_burst(&mut self, packets: &mut [&mut Mbuf]) -> usize {
        let mut wanted = 0;
        let mut bytes = 0;
        for packet in packets.iter_mut() {
            if packet.len() > self.mtu + ETHERNET_LEN {
                self.counters.tx_oversize += 1;
                **packet = Mbuf::default();
            } else if !packet.is_vacant() {
                wanted += 1;
                bytes += packet.len();
            }
        }
        let sent = self.queue.send(packets);
        self.counters.tx_packets += sent as u64;
        // What the driver did not take is the end of the burst: counted as average frames, which is right when all left.
        self.counters.tx_bytes += (bytes * sent / wanted.max(1)) as u64;
        self.counters.tx_full += (wanted - sent) as u64;
        sent
    }

    fn counters(&mut self) -> Counters {
        let stats = self.queue.stats();
        Counters {
            rx_full: stats.rx_missed + stats.rx_no_buffer,
            tx_errors: stats.tx_errors,
            ..self.counters
        }
    }
}
