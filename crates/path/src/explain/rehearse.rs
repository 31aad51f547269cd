//! What a data plane itself says it would do with the packet: the last word on its hypervisor, and the choice of a load balancer's target.
//!
//! A walk asks as it goes; what nobody has answered yet becomes a question, and the walk is repeated with the answers.

use std::net::Ipv6Addr;

use controller::object;

use super::ends::{Nic, short};
use super::{Walk, broken, note, warning};
use crate::model::{Outcome, Packet, Source, Stage};
use crate::snapshot::{Action, Entrance, Question, Rehearsal};

/// What the walk expects a data plane to do.
pub(super) enum Expect {
    /// Give it to the machine of this interface (its id in dpservice).
    Deliver(String),
    /// Tunnel it to one of these; empty if they are not known.
    Tunnel(Vec<Ipv6Addr>),
    /// Anything but dropping it.
    Pass,
}

impl Expect {
    /// Delivery to an interface.
    pub fn at(nic: &Nic<'_>) -> Self {
        nic.metal.map_or(Self::Pass, |metal| {
            Self::Deliver(object::uid(metal).to_owned())
        })
    }
}

impl<'a> Walk<'a> {
    /// Asks the data plane of an interface about a packet that its machine sends.
    pub(super) fn rehearse_sent(&mut self, nic: &Nic<'a>, packet: &Packet, expect: &Expect) {
        let (Some(node), Some(_), Some(metal)) = (nic.node, self.live(nic), nic.metal) else {
            return;
        };
        let entrance = Entrance::Interface(object::uid(metal).to_owned());
        self.rehearse(node, entrance, packet, expect);
    }

    /// Asks a data plane about a packet that comes through a tunnel.
    pub(super) fn rehearse_tunnelled(
        &mut self,
        node: Option<&str>,
        underlay: Option<Ipv6Addr>,
        packet: &Packet,
        expect: &Expect,
    ) -> Option<Rehearsal> {
        let entrance = Entrance::Underlay(underlay?);
        self.rehearse(node?, entrance, packet, expect)
    }

    /// Asks, and holds what the walk says about this hypervisor to the answer. Findings go to the hop that was pushed last.
    fn rehearse(
        &mut self,
        node: &str,
        entrance: Entrance,
        packet: &Packet,
        expect: &Expect,
    ) -> Option<Rehearsal> {
        let dataplane = self.snapshot.dataplane(node)?;
        dataplane.inventory.as_ref().ok()?;
        let question = Question {
            node: dataplane.node.clone(),
            entrance,
            packet: *packet,
        };
        let known = dataplane
            .rehearsals
            .iter()
            .find(|(asked, _)| *asked == question);
        let Some((_, answer)) = known else {
            self.questions.push(question);
            return None;
        };
        let host = short(node).to_owned();
        let ended = self.ended_at(&host);
        let last = self.hops.last_mut()?;
        let who = Source::Dpservice;
        match answer {
            Err(why) => {
                let text = format!("dpservice of {host} could not rehearse the packet: {why}");
                last.find(note("NotRehearsed", who, text));
                None
            }
            Ok(rehearsal) => {
                let fault = fault(rehearsal, expect, &host);
                let is_drop = matches!(rehearsal.action, Action::Drop(_));
                match (fault, ended) {
                    (None, false) => {
                        let text = format!("dpservice rehearsed: {}", rehearsal.text());
                        last.find(note("Rehearsed", who, text));
                    }
                    (Some(text), false) => {
                        let next = format!(
                            "dpservice-cli on {host} shows its tables; look at the log of metalnet there"
                        );
                        last.find(broken("DataplaneDisagrees", who, text).next(next));
                    }
                    // It does wrong what was found to be wrong.
                    (fault, true) if is_drop || fault.is_some() => {
                        let text = format!("dpservice rehearsed: {}", rehearsal.text());
                        last.find(note("Rehearsed", who, text));
                    }
                    (_, true) => {
                        let text = format!(
                            "dpservice of {host} would pass it nonetheless: {}",
                            rehearsal.text()
                        );
                        last.find(warning("DataplaneDisagrees", who, text));
                    }
                }
                Some(rehearsal.clone())
            }
        }
    }

    /// Whether the walk has ended at a hypervisor since the packet came to it.
    fn ended_at(&self, host: &str) -> bool {
        let arrived = self
            .hops
            .iter()
            .rposition(|hop| matches!(hop.stage, Stage::Tunnel | Stage::Edge));
        let here = self.hops.iter().skip(arrived.map_or(0, |index| index + 1));
        let mut here = here.filter(|hop| hop.place == host);
        here.any(|hop| hop.outcome == Outcome::Ends)
    }
}

/// Why an answer is not what was expected.
fn fault(rehearsal: &Rehearsal, expect: &Expect, host: &str) -> Option<String> {
    let wrong = match (&rehearsal.action, expect) {
        (Action::Drop(_), _) => true,
        (Action::Deliver(to), Expect::Deliver(wanted)) => to != wanted,
        (Action::Tunnel(to), Expect::Tunnel(wanted)) => !wanted.is_empty() && !wanted.contains(to),
        (Action::Other(_), _) | (_, Expect::Pass) => false,
        (Action::Deliver(_), Expect::Tunnel(_)) | (Action::Tunnel(_), Expect::Deliver(_)) => true,
    };
    wrong.then(|| {
        format!(
            "dpservice of {host} would do otherwise: {}",
            rehearsal.text()
        )
    })
}
