//! Packets that the gateway sends without being asked: gratuitous ARP, router and neighbour advertisements.

use crate::packet::Packet;
use crate::tables::{Port, Tables};
use crate::time::Instant;
use crate::verdict::PortId;
use crate::{GATEWAY_IPV4, arp, ipv6_nd};
use net::{Mac, ipv6};

/// Seconds between rounds at first.
const PERIOD_S: u64 = 5;
/// Rounds at that pace after the service was initialized.
const FAST_ROUNDS: u8 = 5;
/// Seconds between rounds afterwards.
const SLOW_PERIOD_S: u64 = 30;

/// What a round sends to each machine.
#[derive(Clone, Copy, Debug)]
enum Step {
    Arp,
    RouterAdvertisement,
    NeighbourAdvertisement,
}

/// Position in the current round, and when the next one is due.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Periodic {
    due: Option<Instant>,
    /// Rounds at the fast pace that are left; `None` before the service is initialized.
    fast_rounds: Option<u8>,
    round: Option<(u16, Step)>,
}

impl Periodic {
    pub(crate) fn slow_down_soon(&mut self) {
        self.fast_rounds = Some(FAST_ROUNDS);
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes the next packet of the round, if one is due.
    pub(crate) fn next(
        &mut self,
        tables: &Tables,
        now: Instant,
        packet: &mut dyn Packet,
    ) -> Option<PortId> {
        if self.round.is_none() {
            if now < *self.due.get_or_insert(now.plus_secs(PERIOD_S)) {
                return None;
            }
            self.begin_round(now);
        }
        while let Some((index, step)) = self.round {
            let port_id = PortId(index);
            let port = tables.port(port_id);
            self.round = port.map(|_| match step {
                Step::Arp => (index, Step::RouterAdvertisement),
                Step::RouterAdvertisement => (index, Step::NeighbourAdvertisement),
                Step::NeighbourAdvertisement => (index.saturating_add(1), Step::Arp),
            });
            if port.is_some_and(|port| write(tables, port, step, packet)) {
                return Some(port_id);
            }
        }
        None
    }

    fn begin_round(&mut self, now: Instant) {
        let period = match &mut self.fast_rounds {
            Some(0) => SLOW_PERIOD_S,
            Some(left) => {
                *left -= 1;
                PERIOD_S
            }
            None => PERIOD_S,
        };
        self.due = Some(now.plus_secs(period));
        self.round = Some((0, Step::Arp));
    }
}

/// Whether this port gets such a packet; if so it has been written.
fn write(tables: &Tables, port: &Port, step: Step, packet: &mut dyn Packet) -> bool {
    let Some(attached) = &port.interface else {
        return false;
    };
    let spec = &attached.interface.spec;
    let has_ipv6 = tables.settings.ipv6_overlay && spec.ipv6.is_some();
    packet.clear();
    let written = match (step, spec.ipv4) {
        (Step::Arp, Some(own)) => {
            // Until the machine has told its hardware address, ask for it.
            let target = if port.learned.is_confirmed() {
                GATEWAY_IPV4
            } else {
                own
            };
            arp::gratuitous(packet, port.mac, target)
        }
        (Step::RouterAdvertisement, _) if has_ipv6 => {
            ipv6_nd::router_advertisement(packet, port.mac, Mac::IPV6_ALL_NODES, ipv6::ALL_NODES)
        }
        (Step::NeighbourAdvertisement, _) if has_ipv6 => {
            ipv6_nd::unsolicited_advertisement(packet, port.mac)
        }
        (Step::Arp | Step::RouterAdvertisement | Step::NeighbourAdvertisement, _) => return false,
    };
    written.is_ok()
}
