//! A port of DPDK, whichever driver it has: buffers come from DPDK's pool, are edited in place and leave by another port uncopied. A TCP
//! super-frame of a guest behind vhost is passed on whole to another guest that takes it, and cut for every other port (`finish`).

mod finish;

use self::finish::Leaving;
use crate::offload::{Hits, Refusal, RuleDevice, RuleHandle};
use crate::segment::{Cut, Segment};
use crate::{Counters, ETHERNET_LEN, Gone, OpenError, Port};
use ::dpdk::{BURST_MAX, Device, InstalledRule, Mbuf, Queue, RuleError, RulePort};
use dataplane::PortId;
use dataplane::offload::{Nic, Rule};
use net::Mac;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

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

/// Which started ports of DPDK the engine's ports are. Written as ports come and go, read when rules are installed.
#[derive(Debug, Default)]
pub struct RulePorts {
    /// By number of the engine's port: DPDK's number and the port as it was started last.
    ports: Mutex<Vec<Option<(u16, RulePort)>>>,
}

impl RulePorts {
    /// Notes that a port was started.
    pub fn started(&self, port: PortId, number: u16, device: &Device) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if ports.len() <= port.index() {
            ports.resize(port.index() + 1, None);
        }
        if let Some(place) = ports.get_mut(port.index()) {
            *place = Some((number, device.rule_port()));
        }
    }

    fn get(&self, port: PortId) -> Option<(u16, RulePort)> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.get(port.index())?.clone()
    }
}

/// Rules by DPDK's rte_flow, on whichever ports can.
#[derive(Debug)]
pub struct DpdkRules {
    nic: Nic,
    ports: Arc<RulePorts>,
    installed: BTreeMap<RuleHandle, Vec<InstalledRule>>,
    next: u64,
}

impl DpdkRules {
    /// Rules on `ports`, whose largest packets are those of `nic`.
    #[must_use]
    pub fn new(nic: Nic, ports: Arc<RulePorts>) -> DpdkRules {
        DpdkRules {
            nic,
            ports,
            installed: BTreeMap::new(),
            next: 0,
        }
    }
}

impl RuleDevice for DpdkRules {
    fn nic(&self) -> Nic {
        self.nic.clone()
    }

    fn install(&mut self, rules: &[Rule]) -> Result<RuleHandle, Refusal> {
        let mut installed = Vec::with_capacity(rules.len());
        for rule in rules {
            let port = self.ports.get(rule.port);
            let created = port.ok_or(RuleError::Stopped).and_then(|(_, port)| {
                let number = |port| self.ports.get(port).map(|(number, _)| number);
                InstalledRule::install(&port, rule, number)
            });
            // The rules before are removed as they are dropped.
            installed.push(created.map_err(|error| Refusal {
                reason: error.to_string(),
            })?);
        }
        let handle = RuleHandle(self.next);
        self.next += 1;
        self.installed.insert(handle, installed);
        Ok(handle)
    }

    fn hits(&mut self, rules: RuleHandle) -> Option<Hits> {
        let counts = self.installed.get(&rules)?.iter();
        // Exceptions, which lead to software, do not count.
        let (packets, bytes) = counts
            .filter_map(InstalledRule::hits)
            .reduce(|(a, b), (c, d)| (a + c, b + d))?;
        Some(Hits { packets, bytes })
    }

    fn remove(&mut self, rules: RuleHandle) {
        self.installed.remove(&rules);
    }
}

fn is_super(packet: &Mbuf) -> bool {
    packet.is_unfinished()
        && packet
            .unfinished()
            .is_some_and(|note| note.segment_len != 0)
}

impl DpdkPort {
    /// Sends packets that the driver can take as they are.
    fn send(&mut self, packets: &mut [&mut Mbuf]) -> usize {
        let mut wanted = 0;
        let mut bytes = 0;
        for packet in packets.iter_mut() {
            if packet.len() > self.mtu + ETHERNET_LEN && !self.is_cut_to_mtu(packet) {
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

    /// Whether a longer packet is a super-frame whose frames are not.
    #[cold]
    fn is_cut_to_mtu(&self, packet: &Mbuf) -> bool {
        let mtu = u16::try_from(self.mtu).unwrap_or(u16::MAX);
        dataplane::Packet::is_cut_to(packet, ETHERNET_LEN, mtu)
    }

    /// Sends packets of which some are to be finished, in order.
    #[cold]
    #[inline(never)]
    fn send_unfinished(&mut self, packets: &mut [&mut Mbuf]) -> usize {
        let guest = self.queue.guest();
        let mut sent = 0;
        let mut rest = packets;
        while let Some((at, leaving)) = rest.iter_mut().enumerate().find_map(|(at, packet)| {
            match finish::prepare(packet, guest) {
                Leaving::Whole => None,
                other => Some((at, other)),
            }
        }) {
            let (whole, behind) = rest.split_at_mut(at);
            sent += self.send(whole);
            let Some((packet, behind)) = behind.split_first_mut() else {
                return sent;
            };
            match leaving {
                Leaving::Cut(cut) if self.is_cut_to_mtu(packet) => {
                    sent += usize::from(self.send_cut(packet, &cut));
                }
                Leaving::Cut(_) => self.counters.tx_oversize += 1,
                Leaving::Whole | Leaving::Refused => self.counters.tx_errors += 1,
            }
            **packet = Mbuf::default();
            rest = behind;
        }
        sent + self.send(rest)
    }

    /// Sends the frames of a super-frame. True if all left.
    fn send_cut(&mut self, packet: &Mbuf, cut: &Cut) -> bool {
        let mut segment = Segment::EMPTY;
        let mut frames: [Mbuf; BURST_MAX] = std::array::from_fn(|_| Mbuf::default());
        let (mut number, mut sent, mut is_starved) = (0, 0, false);
        while number < cut.count() && !is_starved {
            let mut filled = 0;
            for (frame, number) in frames.iter_mut().zip(number..cut.count()) {
                if !cut.write(packet.frame(), number, &mut segment) {
                    self.counters.tx_errors += 1;
                    return false;
                }
                let made = self.queue.alloc();
                let Some(made) = made.and_then(|made| hold(made, &segment, packet)) else {
                    is_starved = true;
                    break;
                };
                *frame = made;
                filled += 1;
            }
            let mut burst = frames.each_mut();
            sent += self.send(burst.get_mut(..filled).unwrap_or_default());
            number += filled;
        }
        // No buffers are left.
        self.counters.tx_full += (cut.count() - number) as u64;
        sent == cut.count()
    }
}

/// Puts a frame of the super-frame `whole` into an empty buffer; `None` if it is too long for that.
fn hold(mut made: Mbuf, segment: &Segment, whole: &Mbuf) -> Option<Mbuf> {
    let [head, tail] = segment.parts(whole.frame());
    made.clear();
    if !made.place(made.headroom(), head.len() + tail.len()) {
        return None;
    }
    let (front, behind) = made.frame_mut().split_at_mut_checked(head.len())?;
    front.copy_from_slice(head);
    behind.copy_from_slice(tail);
    Some(made)
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

    fn is_level(&self) -> bool {
        false
    }

    fn arm(&mut self) {
        self.queue.arm();
    }

    fn rx_burst(&mut self, packets: &mut [Mbuf]) -> Result<usize, Gone> {
        let received = self.queue.receive(packets);
        let mut filled = 0;
        for slot in 0..received {
            let Some(packet) = packets.get_mut(slot) else {
                break;
            };
            if packet.is_contiguous() && (!packet.may_have_left() || finish::accept(packet)) {
                self.counters.received(packet.len());
                self.counters.rx_super += u64::from(is_super(packet));
                packets.swap(filled, slot);
                filled += 1;
            } else {
                self.counters.rx_unusable += 1;
            }
        }
        Ok(filled)
    }

    fn tx_burst(&mut self, packets: &mut [&mut Mbuf]) -> usize {
        if packets.iter().any(|packet| packet.is_unfinished()) {
            self.send_unfinished(packets)
        } else {
            self.send(packets)
        }
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
