//! The explanation: follows a packet through the objects and holds what they promise to what the data planes do.
//!
//! Order of a walk: sender → interface → filter → route → translation → tunnel or edge → filter → receiver → way of the answer. A walk goes on
//! past what ends the packet as long as it is known where the packet would be next, so that one look shows all there is to repair.

mod balancer;
mod ends;
mod filter;
mod inbound;
mod interface;
mod outbound;
mod overlay;
mod rehearse;
mod table;

use std::net::IpAddr;

use api::meta::{Condition, IpFamily};
use net::Vni;

use crate::model::{
    Finding, Hop, Level, Outcome, Packet, Path, Protocol, Source, Stage, Verdict, worse,
};
use crate::query::{Query, SOURCE_PORT_DEFAULT};
use crate::snapshot::{Question, Snapshot};
use ends::{Ends, Nic, Place};

/// VNI of public addresses unless told otherwise.
const PUBLIC_VNI_DEFAULT: u32 = 100;

/// Why a packet would arrive or not.
pub fn explain(snapshot: &Snapshot, query: &Query) -> Path {
    explain_and_ask(snapshot, query).0
}

/// The same, and what data planes could still be asked to say more. With the answers in the snapshot there are fewer questions.
pub fn explain_and_ask(snapshot: &Snapshot, query: &Query) -> (Path, Vec<Question>) {
    let mut walk = Walk {
        snapshot,
        hops: Vec::new(),
        places: Vec::new(),
        questions: Vec::new(),
        sender: None,
    };
    let ends = match ends::resolve(snapshot, query) {
        Ok(ends) => ends,
        Err(problem) => {
            let ends::Problem { from, to, finding } = problem;
            let mut hop = Hop::new("objects", Stage::Sender, "the ends cannot be told");
            hop.find(finding);
            walk.hops.push(hop);
            return (walk.finish(from, to, None), Vec::new());
        }
    };
    let Ends {
        from,
        to,
        source,
        destination,
        balancer_port,
    } = ends;
    let packet = packet(query, source, destination, balancer_port);
    let (from_text, to_text) = (from.describe(), to.describe());
    match &from {
        Place::Nic(nic) => {
            walk.sender = Some(nic.as_ref().clone());
            walk.start_at_machine(nic, &to, packet);
        }
        Place::Outside | Place::Address(_) | Place::Balancer(..) | Place::VirtualIp(_) => {
            walk.start_outside(packet, None);
        }
    }
    let questions = std::mem::take(&mut walk.questions);
    (walk.finish(from_text, to_text, Some(packet)), questions)
}

/// The first packet of the connection that is asked about.
fn packet(
    query: &Query,
    source: IpAddr,
    destination: IpAddr,
    balancer_port: Option<(Protocol, u16)>,
) -> Packet {
    let default = match (query.port, balancer_port) {
        (Some(_), _) => Protocol::Tcp,
        (None, Some((protocol, _))) => protocol,
        (None, None) => Protocol::Icmp,
    };
    let protocol = match (query.protocol.unwrap_or(default), source.is_ipv6()) {
        (Protocol::Icmp | Protocol::Icmpv6, true) => Protocol::Icmpv6,
        (Protocol::Icmp | Protocol::Icmpv6, false) => Protocol::Icmp,
        (other, _) => other,
    };
    let ports = protocol.has_ports();
    let port = query.port.or(balancer_port.map(|(_, port)| port));
    Packet {
        protocol,
        source,
        destination,
        source_port: if ports {
            query.source_port.unwrap_or(SOURCE_PORT_DEFAULT)
        } else {
            0
        },
        destination_port: if ports { port.unwrap_or(80) } else { 0 },
    }
}

/// A walk under way.
struct Walk<'a> {
    snapshot: &'a Snapshot,
    hops: Vec<Hop>,
    /// Nodes that the path touches.
    places: Vec<String>,
    questions: Vec<Question>,
    /// The interface that sends, if it is one of the region.
    sender: Option<Nic<'a>>,
}

impl<'a> Walk<'a> {
    fn push(&mut self, hop: Hop) {
        self.hops.push(hop);
    }

    fn visit(&mut self, node: &str) {
        if !self.places.iter().any(|known| known == node) {
            self.places.push(node.to_owned());
        }
    }

    fn public_vni(&self) -> Option<Vni> {
        self.snapshot.public_vni.or(Vni::new(PUBLIC_VNI_DEFAULT))
    }

    fn finish(self, from: String, to: String, packet: Option<Packet>) -> Path {
        let Self {
            snapshot,
            mut hops,
            places,
            questions: _,
            sender: _,
        } = self;
        let (asked, not_asked) = coverage(snapshot, &places);
        close(&mut hops);
        let of = |answer: bool| {
            let hops = hops
                .iter()
                .filter(|hop| (hop.stage == Stage::Answer) == answer);
            hops.fold(Outcome::Passes, |outcome, hop| worse(outcome, hop.outcome))
        };
        let verdict = match (of(false), of(true)) {
            (Outcome::Ends, _) => Verdict::DoesNotArrive,
            (Outcome::Unknown, _) | (_, Outcome::Unknown) => Verdict::Unknown,
            (_, Outcome::Ends) => Verdict::AnswerIsLost,
            (Outcome::Passes | Outcome::NotReached, Outcome::Passes | Outcome::NotReached) => {
                Verdict::Arrives
            }
        };
        let (summary, next) = conclude(verdict, &hops, asked.is_empty());
        Path {
            from,
            to,
            packet,
            hops,
            verdict,
            summary,
            next,
            asked,
            not_asked,
        }
    }
}

/// What lies behind the end of the packet is not reached by it, and there is no answer to it.
fn close(hops: &mut Vec<Hop>) {
    let ends = |hop: &Hop| hop.stage != Stage::Answer && hop.outcome == Outcome::Ends;
    let Some(end) = hops.iter().position(ends) else {
        return;
    };
    hops.retain(|hop| hop.stage != Stage::Answer);
    let behind = hops.iter_mut().skip(end + 1);
    for hop in behind.filter(|hop| hop.outcome == Outcome::Passes) {
        hop.outcome = Outcome::NotReached;
    }
}

/// Which of the parts on the path were asked, and which were not.
fn coverage(snapshot: &Snapshot, nodes: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut asked, mut not) = (Vec::new(), Vec::new());
    for node in nodes {
        match snapshot.dataplane(node).map(|found| &found.inventory) {
            Some(Ok(_)) => asked.push(format!("dpservice of {node}")),
            Some(Err(why)) => not.push(format!("dpservice of {node}: {why}")),
            None => not.push(format!("dpservice of {node}: no endpoint is known")),
        }
    }
    for server in &snapshot.servers {
        match &server.routes {
            Ok(_) => asked.push(format!("metalbond {}", server.endpoint)),
            Err(why) => not.push(format!("metalbond {}: {why}", server.endpoint)),
        }
    }
    for edge in &snapshot.edges {
        match &edge.status {
            Ok(_) => asked.push(format!("edge {}", edge.endpoint)),
            Err(why) => not.push(format!("edge {}: {why}", edge.endpoint)),
        }
    }
    (asked, not)
}

fn conclude(verdict: Verdict, hops: &[Hop], by_objects: bool) -> (String, Option<String>) {
    let decisive = |level: Level| {
        let mut found = hops.iter().flat_map(|hop| {
            let findings = hop.findings.iter();
            findings.map(move |finding| (hop, finding))
        });
        found.find(|(_, finding)| finding.level == level)
    };
    let says = |level| {
        decisive(level).map_or((String::new(), None), |(hop, finding)| {
            let text = format!("{}: {}", hop.place, finding.message);
            (text, finding.next.clone())
        })
    };
    let basis = if by_objects {
        " (by the objects alone: no data plane was asked)"
    } else {
        ""
    };
    match verdict {
        Verdict::Arrives => {
            let ends = hops.iter().rfind(|hop| hop.stage == Stage::Receiver);
            let place = ends.map_or_else(|| "its destination".to_owned(), |hop| hop.place.clone());
            let balanced = hops.iter().any(|hop| hop.stage == Stage::LoadBalancer);
            let place = if balanced {
                format!("{place} or another target")
            } else {
                place
            };
            let (warning, next) = says(Level::Warning);
            let also = if warning.is_empty() {
                String::new()
            } else {
                format!("; look at {warning}")
            };
            (format!("arrives at {place}{basis}{also}"), next)
        }
        Verdict::DoesNotArrive => {
            let (text, next) = says(Level::Broken);
            (format!("does not arrive: {text}{basis}"), next)
        }
        Verdict::AnswerIsLost => {
            let (text, next) = says(Level::Broken);
            (
                format!("arrives, but the answer is lost: {text}{basis}"),
                next,
            )
        }
        Verdict::Unknown => {
            let (text, next) = says(Level::Unknown);
            (format!("unknown: {text}"), next)
        }
    }
}

// ---- findings --------------------------------------------------------------------------------------------------------------

fn finding(
    level: Level,
    reason: &'static str,
    source: Source,
    message: impl Into<String>,
) -> Finding {
    Finding {
        level,
        reason,
        source,
        message: message.into(),
        next: None,
    }
}

fn broken(reason: &'static str, source: Source, message: impl Into<String>) -> Finding {
    finding(Level::Broken, reason, source, message)
}

fn warning(reason: &'static str, source: Source, message: impl Into<String>) -> Finding {
    finding(Level::Warning, reason, source, message)
}

fn note(reason: &'static str, source: Source, message: impl Into<String>) -> Finding {
    finding(Level::Note, reason, source, message)
}

fn unknown(reason: &'static str, source: Source, message: impl Into<String>) -> Finding {
    finding(Level::Unknown, reason, source, message)
}

impl Finding {
    fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

/// The condition Ready, if it is not True: reason and message.
fn unready(conditions: &[Condition]) -> Option<String> {
    let mut ready = conditions.iter().filter(|c| c.type_ == "Ready");
    let Condition {
        status,
        reason,
        message,
        ..
    } = ready.find(|c| c.status != "True")?;
    let why = if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    };
    Some(format!("Ready is {status}, {reason}{why}"))
}

fn family(address: IpAddr) -> IpFamily {
    IpFamily::of(address)
}
