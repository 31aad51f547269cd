//! Machine ports: their names, their hardware addresses, and how a driver for one is opened.

use dataplane::Packet;
use net::Mac;
use ports::{Frame, OpenError, Port, Tap};
use std::net::Ipv6Addr;

/// Machine devices are numbered after the two uplinks.
const FIRST_MACHINE_DEVICE: u16 = 2;

/// First byte of a machine's own address: locally administered, unicast.
const MACHINE_MAC: u8 = 0x02;
/// First byte of the gateway's address on a machine port.
const GATEWAY_MAC: u8 = 0x06;

/// Smallest MTU with which Linux keeps IPv6 on a device (RFC 8200 §5).
const IPV6_MTU_MIN: usize = 1280;

/// The opened driver of a device: one port per queue, the first for the first packet thread and so on.
pub enum Driver {
    /// Native drivers.
    Native(Vec<Box<dyn Port<Frame>>>),
    /// DPDK.
    #[cfg(feature = "dpdk")]
    Dpdk(Vec<Box<dyn Port<::dpdk::Mbuf>>>),
}

impl Driver {
    /// A native device with these queues.
    #[must_use]
    pub fn native<T: Port<Frame> + 'static>(queues: Vec<T>) -> Driver {
        let queues = queues.into_iter();
        Driver::Native(queues.map(|queue| Box::new(queue) as _).collect())
    }
}

/// A kind of packets, which all drivers of a process share.
pub trait Kind: Packet + Default + Send + 'static {
    /// The queues of a driver of this kind; `None` for another kind.
    fn queues_of(driver: Driver) -> Option<Vec<Box<dyn Port<Self>>>>;

    /// A packet with this frame; `None` if there is no buffer.
    fn holding(frame: &[u8]) -> Option<Self>;

    /// To be called at the start of packet thread `number`.
    fn enter_thread(_number: usize) {}
}

impl Kind for Frame {
    fn queues_of(driver: Driver) -> Option<Vec<Box<dyn Port<Frame>>>> {
        match driver {
            Driver::Native(queues) => Some(queues),
            #[cfg(feature = "dpdk")]
            Driver::Dpdk(_) => None,
        }
    }

    fn holding(frame: &[u8]) -> Option<Frame> {
        let mut packet = Frame::new();
        packet.fill(frame).then_some(packet)
    }
}

/// Opens drivers for machine ports. Called outside of the packet threads: opening and closing a kernel device takes milliseconds.
pub trait Devices: Send + Sync {
    /// Kernel name of the network device behind machine port `index`, as it is reported to clients.
    fn netdev(&self, index: u16) -> String;

    /// Opens the driver of machine port `index`. Closing it removes the device, or stops it.
    ///
    /// # Errors
    /// If the device cannot be created.
    fn open(&self, index: u16) -> Result<Driver, OpenError>;
}

/// Device name by which clients select an uplink.
#[must_use]
pub fn uplink_device(number: u8) -> String {
    format!("net_tap{number}")
}

/// Device name by which clients select machine port `index`.
#[must_use]
pub fn machine_device(index: u16) -> String {
    format!("net_tap{}", index + FIRST_MACHINE_DEVICE)
}

/// The gateway's address on machine port `index`.
///
/// Derived from the host's prefix and the port, so that machines keep a valid neighbour entry over a restart of this process, and
/// different from the machine's own one, so that no stack takes the gateway for itself.
#[must_use]
pub fn gateway_mac(host: Ipv6Addr, index: u16) -> Mac {
    derived_mac(GATEWAY_MAC, host, index)
}

/// The address that a TAP device is created with: the same after each restart, distinct within the region.
#[must_use]
pub fn machine_mac(host: Ipv6Addr, index: u16) -> Mac {
    derived_mac(MACHINE_MAC, host, index)
}

fn derived_mac(first: u8, host: Ipv6Addr, index: u16) -> Mac {
    // FNV-1a over the host's prefix: no secret, only spread.
    let prefix = (host.to_bits() >> 64) as u64;
    let hash = prefix
        .to_be_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
    let [a, b, c, d] = hash.to_be_bytes();
    let [high, low] = index.to_be_bytes();
    Mac([first, a ^ d, b, c, high, low])
}

/// Kernel TAP devices in the namespace of this process.
#[derive(Clone, Debug)]
pub struct Taps {
    /// Beginning of the device names.
    pub prefix: String,
    /// This host's underlay address.
    pub host: Ipv6Addr,
    /// MTU of the machines.
    pub mtu: u16,
    /// Queues per device, one for each packet thread.
    pub queues: usize,
}

impl Devices for Taps {
    fn netdev(&self, index: u16) -> String {
        format!("{}{index}", self.prefix)
    }

    fn open(&self, index: u16) -> Result<Driver, OpenError> {
        let mac = machine_mac(self.host, index);
        let mtu = usize::from(self.mtu).max(IPV6_MTU_MIN);
        let queues = Tap::create_queues(&self.netdev(index), mac, mtu, self.queues)?;
        Ok(Driver::native(queues))
    }
}
