//! Ports: found by name, configured and started; their queues move bursts of packets.
#![allow(unsafe_code, reason = "calls into DPDK")]

use crate::eal::{Eal, Error};
use crate::mbuf::{Mbuf, Pool};
use crate::sys;
use std::ffi::{CStr, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Weak};

/// Packets that one call moves at most.
pub const BURST_MAX: usize = 64;

/// Length of names in the shim (`OKM_NAME_LEN`).
const NAME_LEN: usize = 64;

/// What a port says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its number.
    pub port: u16,
    /// DPDK's name, such as `net_tap0` or a PCI address.
    pub name: String,
    /// Its driver.
    pub driver: String,
    /// Index of the kernel's network device, if there is one.
    pub if_index: Option<u32>,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Largest layer-3 packet, in bytes.
    pub mtu: u16,
    /// Pairs of receive and transmit queues that it can have.
    pub queues_max: u16,
    /// Offloads when sending (`RTE_ETH_TX_OFFLOAD_*`).
    pub tx_offloads: u64,
    /// Offloads when receiving (`RTE_ETH_RX_OFFLOAD_*`).
    pub rx_offloads: u64,
}

pub(crate) fn info(port: u16) -> Option<Info> {
    // SAFETY: all-zero bytes are a valid value of this plain structure.
    let mut info: sys::okm_info = unsafe { std::mem::zeroed() };
    // SAFETY: a live structure that is filled in; an invalid port number is an error.
    Error::check(unsafe { sys::okm_info(port, &mut info) }).ok()?;
    Some(Info {
        port,
        name: text(&info.name),
        driver: text(&info.driver),
        if_index: (info.if_index != 0).then_some(info.if_index),
        mac: info.mac,
        mtu: info.mtu,
        queues_max: info.queues_max,
        tx_offloads: info.tx_offloads,
        rx_offloads: info.rx_offloads,
    })
}

fn text(bytes: &[c_char]) -> String {
    bytes
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| char::from(*byte as u8))
        .collect()
}

/// How a port is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Pairs of queues, at most what the port has.
    pub queues: u16,
    /// Descriptors per queue, brought into the driver's limits.
    pub descriptors: u16,
    /// Ask for receive interrupts, so that a thread can sleep until packets come.
    pub interrupts: bool,
    /// Offloads when sending; those that the port lacks are left out.
    pub tx_offloads: u64,
    /// The same when receiving.
    pub rx_offloads: u64,
    /// Receive only what rules name and leave the rest to the kernel, if the driver can share the device so.
    pub isolated: bool,
}

/// Packets as the port counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Received.
    pub rx_packets: u64,
    /// Bytes of those.
    pub rx_bytes: u64,
    /// Lost because the receive queue was full.
    pub rx_missed: u64,
    /// Received damaged.
    pub rx_errors: u64,
    /// Lost because the pool was empty.
    pub rx_no_buffer: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Bytes of those.
    pub tx_bytes: u64,
    /// Not sent.
    pub tx_errors: u64,
}

/// A started port. It stops when the device and all its queues are gone.
#[derive(Debug)]
pub struct Device(Arc<Started>);

#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) eal: &'static Eal,
    pub(crate) port: u16,
    /// Receive queues point into it.
    pool: Pool,
    queues: u16,
    interrupts: bool,
    isolated: bool,
}

impl Drop for Started {
    fn drop(&mut self) {
        let _control = self.eal.control();
        // SAFETY: accepts any port. Rules do not survive a stop: whoever holds one finds the port gone.
        unsafe { sys::okm_rule_flush(self.port) };
        // SAFETY: no queue of the port is in use: each holds a reference to this value.
        unsafe { sys::rte_eth_dev_stop(self.port) };
    }
}

impl Device {
    pub(crate) fn open(
        eal: &'static Eal,
        port: u16,
        pool: &Pool,
        config: Config,
    ) -> Result<Device, Error> {
        let _control = eal.control();
        let Config {
            queues,
            descriptors,
            interrupts,
            tx_offloads,
            rx_offloads,
            isolated,
        } = config;
        // SAFETY: accepts any port; to be called before it is configured.
        let isolated = isolated && unsafe { sys::okm_isolate(port) } == 0;
        let mut config = sys::okm_config {
            queues,
            rx_descriptors: descriptors,
            tx_descriptors: descriptors,
            tx_offloads,
            rx_offloads,
            interrupts: u8::from(interrupts),
            pool: pool.as_ptr(),
        };
        // SAFETY: a live structure; the pool outlives the port (kept below); a started port answers with an error.
        Error::check(unsafe { sys::okm_configure(port, &mut config) })?;
        // SAFETY: the port was configured above. Fails for an invalid number.
        Error::check(unsafe { sys::okm_start(port) })?;
        if !isolated {
            // SAFETY: as above. A driver that cannot is promiscuous anyway (or a wire without addresses).
            let _ = unsafe { sys::rte_eth_promiscuous_enable(port) };
        }
        Ok(Device(Arc::new(Started {
            eal,
            port,
            pool: pool.clone(),
            queues,
            interrupts: config.interrupts != 0,
            isolated,
        })))
    }

    /// One handle per pair of queues.
    #[must_use]
    pub fn into_queues(self) -> Vec<Queue> {
        let number_max = self.0.queues;
        (0..number_max)
            .map(|number| Queue {
                interrupt: self.interrupt(number),
                device: Arc::clone(&self.0),
                number,
            })
            .collect()
    }

    /// An epoll instance that a queue's receive interrupt makes readable, if the driver has interrupts and was asked for them. It is DPDK's
    /// own way to wait, and the only one by which it knows what to read from the driver's descriptor.
    fn interrupt(&self, queue: u16) -> Option<OwnedFd> {
        if !self.0.interrupts {
            return None;
        }
        // SAFETY: makes a new descriptor.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor is new and nobody else's.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a started port, one of its queues, and a live epoll instance.
        let watched = unsafe { sys::okm_rx_interrupt_watch(self.0.port, queue, fd, 1) };
        (watched == 0).then_some(epoll)
    }

    /// The started port, to install rules on while it lasts.
    #[must_use]
    pub fn rule_port(&self) -> RulePort {
        RulePort(Arc::downgrade(&self.0))
    }

    /// Whether only packets that rules name are received.
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        self.0.isolated
    }

    /// What the port says about itself now.
    #[must_use]
    pub fn info(&self) -> Option<Info> {
        let _control = self.0.eal.control();
        info(self.0.port)
    }
}

/// What a guest has agreed to take unfinished (virtio 1.2 §5.1.3: GUEST_CSUM, GUEST_TSO4, GUEST_TSO6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// TCP without checksum.
    pub checksum: bool,
    /// TCP super-frames over IPv4.
    pub segments_v4: bool,
    /// TCP super-frames over IPv6.
    pub segments_v6: bool,
}

/// A started port as rules need it: it does not keep the port from being stopped.
#[derive(Clone, Debug)]
pub struct RulePort(pub(crate) Weak<Started>);

/// A receive and a transmit queue of a started port, for one thread.
#[derive(Debug)]
pub struct Queue {
    device: Arc<Started>,
    number: u16,
    interrupt: Option<OwnedFd>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(epoll) = &self.interrupt {
            let _control = self.device.eal.control();
            // SAFETY: the port is started as long as `device` is held, and the epoll instance lives.
            let _ = unsafe {
                sys::okm_rx_interrupt_watch(self.device.port, self.number, epoll.as_raw_fd(), 0)
            };
        }
    }
}

impl Queue {
    /// Receives into the first places and tells how many; what was in those places is freed. Never blocks.
    #[inline]
    pub fn receive(&mut self, packets: &mut [Mbuf]) -> usize {
        let mut raw = [std::ptr::null_mut(); BURST_MAX];
        let wanted = packets.len().min(BURST_MAX) as u16;
        // SAFETY: room for `wanted` pointers; the queue was set up and is used by this thread only (`&mut self`, one handle each).
        let count =
            unsafe { sys::okm_rx_burst(self.device.port, self.number, raw.as_mut_ptr(), wanted) };
        for (packet, raw) in packets.iter_mut().zip(raw.iter().take(usize::from(count))) {
            // SAFETY: DPDK handed out the first `count` buffers; they are ours now.
            *packet = unsafe { Mbuf::from_raw(*raw) };
        }
        usize::from(count)
    }

    /// Sends the packets in order and tells how many the driver took; the rest are freed. All places are vacant afterwards. Never blocks.
    #[inline]
    pub fn send(&mut self, packets: &mut [&mut Mbuf]) -> usize {
        let mut sent = 0;
        for chunk in packets.chunks_mut(BURST_MAX) {
            let mut raw = [std::ptr::null_mut(); BURST_MAX];
            let mut count = 0;
            for packet in chunk.iter_mut() {
                let packet = std::mem::take(&mut **packet).into_raw();
                if !packet.is_null()
                    && let Some(slot) = raw.get_mut(count)
                {
                    *slot = packet;
                    count += 1;
                }
            }
            // SAFETY: `count` valid buffers that we own; the driver owns those it took.
            let taken = unsafe {
                sys::okm_tx_burst(
                    self.device.port,
                    self.number,
                    raw.as_mut_ptr(),
                    count as u16,
                )
            };
            let taken = usize::from(taken);
            sent += taken;
            for left in raw.iter().take(count).skip(taken) {
                // SAFETY: the driver did not take it: it is still ours, and is freed here.
                drop(unsafe { Mbuf::from_raw(*left) });
            }
            if taken < count {
                // The queue is full: what follows would overtake or be refused as well.
                for packet in packets.iter_mut() {
                    **packet = Mbuf::default();
                }
                break;
            }
        }
        sent
    }

    /// Readable once a packet has come after [`Queue::arm`], if the driver has interrupts and was asked for them. Packets that were there
    /// before may not show: look after arming.
    #[must_use]
    pub fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.interrupt.as_ref().map(AsFd::as_fd)
    }

    /// Switches the next interrupt on; to be called before sleeping. A driver that needs no arming ignores it.
    pub fn arm(&mut self) {
        if let Some(epoll) = &self.interrupt {
            let (port, epoll) = (self.device.port, epoll.as_raw_fd());
            // SAFETY: a started port and one of its queues, and a live epoll instance.
            let _ = unsafe { sys::okm_rx_interrupt_arm(port, self.number, epoll) };
        }
    }

    /// What the port counted, over all its queues.
    #[must_use]
    pub fn stats(&self) -> Stats {
        // SAFETY: all-zero bytes are a valid value of this plain structure.
        let mut found: sys::okm_stats = unsafe { std::mem::zeroed() };
        // SAFETY: a live structure that is filled in. On an error it stays zero.
        let _ = unsafe { sys::okm_stats(self.device.port, &mut found) };
        let sys::okm_stats {
            rx_packets,
            rx_bytes,
            rx_missed,
            rx_errors,
            rx_no_buffer,
            tx_packets,
            tx_bytes,
            tx_errors,
        } = found;
        Stats {
            rx_packets,
            rx_bytes,
            rx_missed,
            rx_errors,
            rx_no_buffer,
            tx_packets,
            tx_bytes,
            tx_errors,
        }
    }

    /// An empty buffer of the pool that the port receives into; `None` if all are in use.
    #[must_use]
    pub fn alloc(&self) -> Option<Mbuf> {
        self.device.pool.alloc()
    }

    /// What the guest behind a vhost port takes as it is; nothing, for other ports.
    #[must_use]
    #[inline]
    pub fn guest(&self) -> Guest {
        // SAFETY: accepts any port number.
        let features = unsafe { sys::okm_guest_features(self.device.port) };
        let has = |bit: u32| features & (1 << bit) != 0;
        Guest {
            checksum: has(1),
            segments_v4: has(7),
            segments_v6: has(8),
        }
    }

    /// Whether the link is up; `None` if the driver cannot tell.
    #[must_use]
    pub fn link(&self) -> Option<bool> {
        // SAFETY: accepts any port number.
        Error::check(unsafe { sys::okm_link(self.device.port) })
            .ok()
            .map(|up| up != 0)
    }

    /// Every extended statistic of the driver with its name.
    #[must_use]
    pub fn extended_stats(&self) -> Vec<(String, u64)> {
        let port = self.device.port;
        // SAFETY: a null name asks for the number of statistics.
        let count = unsafe { sys::okm_xstat(port, 0, std::ptr::null_mut(), std::ptr::null_mut()) };
        let mut found = Vec::new();
        for index in 0..u32::try_from(count).unwrap_or(0) {
            let mut name: [c_char; NAME_LEN] = [0; NAME_LEN];
            let mut value = 0;
            // SAFETY: a buffer of the length that the shim expects, and a live number.
            if unsafe { sys::okm_xstat(port, index, name.as_mut_ptr(), &mut value) } == 0 {
                // SAFETY: the shim writes a NUL-terminated text.
                let name = unsafe { CStr::from_ptr(name.as_ptr()) };
                found.push((name.to_string_lossy().into_owned(), value));
            }
        }
        found
    }
}
