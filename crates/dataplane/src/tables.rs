//! The snapshot a worker reads: ports, underlay addresses, routes. Written only by [`crate::Engine`].

use crate::capture::Capture;
use crate::config::{Dhcp, Interface, MssClamp, PortKind};
use crate::history::History;
use crate::lpm::Lpm;
use crate::objects::{FirewallMode, VirtualServiceSpec};
use crate::services::{PortServices, Services};
use crate::underlay::{HostPart, UnderlayTable};
use crate::verdict::{DropReason, PortId};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use net::ethernet::{HEADER_LEN as ETHERNET_LEN, TYPE_IPV4, TYPE_IPV6};
use net::{Mac, Prefix, Vni};
use std::sync::Arc;

/// Number of uplinks.
pub(crate) const UPLINKS: usize = 2;

/// Everything the packet side needs to know, immutable while a worker holds it, except what machines teach us about their own
/// hardware address ([`Learned`]).
#[derive(Clone, Debug)]
pub struct Tables {
    /// Changes with every edit; a flow decided under another epoch is looked at again.
    pub(crate) epoch: u32,
    /// The latest edits.
    pub(crate) history: History,
    pub(crate) settings: Arc<Settings>,
    pub(crate) ports: Arc<Vec<Port>>,
    /// Uplinks in order of preference.
    pub(crate) uplinks: [Option<Uplink>; UPLINKS],
    pub(crate) underlay: UnderlayTable,
    /// Routes by VNI slot.
    pub(crate) vnis: Arc<Vec<Option<Arc<VniRoutes>>>>,
    /// Address translation and load balancing by VNI.
    pub(crate) services: Services,
    /// The capture in force.
    pub(crate) capture: Option<Arc<Capture>>,
}

/// What never changes.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub host: Ipv6Addr,
    pub dhcp: Dhcp,
    pub ipv6_overlay: bool,
    /// Uplink 0's share of ten hash slots.
    pub wcmp_slots: u8,
    pub flow_timeout_s: u32,
    pub firewall: FirewallMode,
    pub mss_clamp: MssClamp,
    pub decrement_hops: bool,
    pub virtual_services: Vec<VirtualServiceSpec>,
    /// These tables are a copy, to find out what would become of a packet: whatever counts is left alone.
    pub is_rehearsal: bool,
}

impl Settings {
    /// Whether some packets have to be looked at that the loop over cached answers would send on.
    #[inline]
    pub(crate) fn looks_closer(&self) -> bool {
        self.decrement_hops || self.mss_clamp != MssClamp::Off
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub kind: PortKind,
    pub mac: Mac,
    pub learned: Arc<Learned>,
    pub interface: Option<Attached>,
}

impl Port {
    /// The Ethernet header of a packet for the machine. Put together from words: byte by byte it takes longer than the flow lookup.
    #[inline(always)]
    pub(crate) fn delivery_header(&self, is_v6: bool) -> [u8; ETHERNET_LEN] {
        let [a, b, c, d, e, f] = self.mac.0;
        let front = self.learned.wire_mac() | u64::from(u16::from_le_bytes([a, b])) << 48;
        let back = u64::from(u32::from_le_bytes([c, d, e, f]));
        let ethertype = if is_v6 { TYPE_IPV6 } else { TYPE_IPV4 };
        let back = back | u64::from(ethertype.swap_bytes()) << 32;
        let bytes = u128::from(front) | u128::from(back) << 64;
        let [header @ .., _, _] = bytes.to_le_bytes();
        header
    }
}

/// What the packet path needs of an interface.
#[derive(Clone, Debug)]
pub(crate) struct Attached {
    pub interface: Arc<Interface>,
    pub vni_slot: u16,
    /// Number of this attachment since the start; tells a re-created interface from its predecessor.
    pub generation: u32,
    pub services: Arc<PortServices>,
}

/// What a machine tells about itself. Written on the packet path, hence atomic; kept over delete and create on the same port.
#[derive(Debug)]
pub(crate) struct Learned {
    /// In wire order, first octet lowest.
    mac: AtomicU64,
    confirmed: AtomicBool,
    /// The address changed after it was confirmed: only hearing the same one twice in a row settles it.
    disputed: AtomicBool,
}

impl Learned {
    /// Until told otherwise, a machine is assumed to use the port's own address.
    pub(crate) fn new(guess: Mac) -> Learned {
        Learned {
            mac: AtomicU64::new(wire(guess)),
            confirmed: AtomicBool::new(false),
            disputed: AtomicBool::new(false),
        }
    }

    pub(crate) fn mac(&self) -> Mac {
        let [octets @ .., _, _] = self.wire_mac().to_le_bytes();
        Mac(octets)
    }

    /// The address as a little-endian word of its octets.
    #[inline(always)]
    fn wire_mac(&self) -> u64 {
        self.mac.load(Ordering::Relaxed)
    }

    /// Takes the address from a packet. One that differs from a confirmed one puts it in doubt, so that the machine is asked: a
    /// process on the machine may have forged it, and the kernel there would not speak up by itself for a minute.
    pub(crate) fn learn(&self, mac: Mac) {
        if self.mac() == mac {
            return;
        }
        self.mac.store(wire(mac), Ordering::Relaxed);
        if self.is_confirmed() {
            self.confirmed.store(false, Ordering::Relaxed);
            self.disputed.store(true, Ordering::Relaxed);
        }
    }

    /// The same from an ARP packet of the machine, which settles the question unless it is in dispute.
    pub(crate) fn learn_from_arp(&self, mac: Mac) {
        let same = self.mac() == mac;
        let settles = same || !(self.is_confirmed() || self.disputed.load(Ordering::Relaxed));
        self.learn(mac);
        if settles {
            self.disputed.store(false, Ordering::Relaxed);
            self.confirmed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether an ARP packet of the machine has told its address since its interface was created.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Another one that knows the same.
    pub(crate) fn copied(&self) -> Learned {
        let copied = |flag: &AtomicBool| AtomicBool::new(flag.load(Ordering::Relaxed));
        Learned {
            mac: AtomicU64::new(self.wire_mac()),
            confirmed: copied(&self.confirmed),
            disputed: copied(&self.disputed),
        }
    }

    /// For a new interface on the same port: the address stays as a guess.
    pub(crate) fn forget_confirmation(&self) {
        self.confirmed.store(false, Ordering::Relaxed);
        self.disputed.store(false, Ordering::Relaxed);
    }
}

fn wire(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// An uplink; usable if it has a link and a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub port: PortId,
    pub mac: Mac,
    pub link: bool,
    pub next_hop: Option<Mac>,
    /// Largest packet with its outer IPv6 header, in bytes.
    pub mtu: u16,
}

impl Uplink {
    /// Whether packets can leave by it.
    pub(crate) fn is_usable(&self) -> bool {
        self.link && self.next_hop.is_some()
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// An interface's own address.
    Own(PortId),
    /// A further prefix of an interface.
    Alias(PortId),
    /// Another host.
    Remote { underlay: Ipv6Addr, vni: u32 },
}

#[derive(Clone, Debug)]
pub(crate) struct VniRoutes {
    pub vni: Vni,
    pub v4: Lpm<Target>,
    pub v6: Lpm<Target>,
}

/// An IPv4 address as a left-aligned trie key.
pub(crate) fn key_v4(address: Ipv4Addr) -> u128 {
    u128::from(address.to_bits()) << 96
}

impl VniRoutes {
    pub(crate) fn new(vni: Vni) -> VniRoutes {
        VniRoutes {
            vni,
            v4: Lpm::default(),
            v6: Lpm::default(),
        }
    }

    pub(crate) fn lookup(&self, address: IpAddr) -> Option<(u8, Target)> {
        match address {
            IpAddr::V4(a) => self.v4.lookup(key_v4(a)),
            IpAddr::V6(a) => self.v6.lookup(a.to_bits()),
        }
    }

    pub(crate) fn get(&self, prefix: Prefix) -> Option<Target> {
        match prefix.address() {
            IpAddr::V4(a) => self.v4.get(key_v4(a), prefix.len()),
            IpAddr::V6(a) => self.v6.get(a.to_bits(), prefix.len()),
        }
    }

    pub(crate) fn insert(&mut self, prefix: Prefix, target: Target) {
        match prefix.address() {
            IpAddr::V4(a) => self.v4.insert(key_v4(a), prefix.len(), target),
            IpAddr::V6(a) => self.v6.insert(a.to_bits(), prefix.len(), target),
        };
    }

    pub(crate) fn remove(&mut self, prefix: Prefix) {
        match prefix.address() {
            IpAddr::V4(a) => self.v4.remove(key_v4(a), prefix.len()),
            IpAddr::V6(a) => self.v6.remove(a.to_bits(), prefix.len()),
        };
    }

    pub(crate) fn family_len(&self, prefix: Prefix) -> usize {
        match prefix.address() {
            IpAddr::V4(_) => self.v4.len(),
            IpAddr::V6(_) => self.v6.len(),
        }
    }

    /// Every prefix with its target, IPv4 first, ascending.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(Prefix, Target)) {
        self.v4.for_each(|slot| {
            let address = Ipv4Addr::from_bits((slot.bits >> 96) as u32);
            if let Some(prefix) = Prefix::new(IpAddr::V4(address), slot.length) {
                visit(prefix, slot.value);
            }
        });
        self.v6.for_each(|slot| {
            let address = Ipv6Addr::from_bits(slot.bits);
            if let Some(prefix) = Prefix::new(IpAddr::V6(address), slot.length) {
                visit(prefix, slot.value);
            }
        });
    }
}

impl Tables {
    /// A number that changes with every configuration change.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    #[inline]
    pub(crate) fn port(&self, port: PortId) -> Option<&Port> {
        self.ports.get(port.index())
    }

    /// An uplink by its number.
    pub(crate) fn uplink(&self, number: u8) -> Result<&Uplink, DropReason> {
        let uplink = self.uplinks.get(usize::from(number));
        uplink.and_then(Option::as_ref).ok_or(DropReason::NoUplink)
    }

    pub(crate) fn routes(&self, slot: u16) -> Option<&VniRoutes> {
        self.vnis.get(usize::from(slot))?.as_deref()
    }

    /// Whether `address` is one of ours on the underlay.
    pub(crate) fn is_host_prefix(&self, address: Ipv6Addr) -> bool {
        (address.to_bits() ^ self.settings.host.to_bits()) >> 64 == 0
    }

    pub(crate) fn underlay_in_use(&self, address: Ipv6Addr) -> bool {
        self.underlay.contains(HostPart::of(address))
    }
}
