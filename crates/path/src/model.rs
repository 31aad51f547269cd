//! The answer as data: a path of hops with findings, and a verdict. Its serialised form is the documented JSON; fields are only ever added.

use std::net::IpAddr;

use serde::Serialize;

/// Transport of the packet that is explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    /// An echo request. Becomes ICMPv6 between IPv6 addresses.
    Icmp,
    /// An ICMPv6 echo request.
    Icmpv6,
}

impl Protocol {
    /// Whether its packets carry ports.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }

    /// Its number in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmp => 1,
            Self::Icmpv6 => 58,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmpv6",
        }
    }
}

/// What the first packet of a connection shows. Ports are 0 for ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Packet {
    pub protocol: Protocol,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
}

impl std::fmt::Display for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            protocol,
            source,
            destination,
            source_port,
            destination_port,
        } = self;
        if !protocol.has_ports() {
            return write!(f, "{} {source} -> {destination}", protocol.name());
        }
        let from = std::net::SocketAddr::new(*source, *source_port);
        let to = std::net::SocketAddr::new(*destination, *destination_port);
        write!(f, "{} {from} -> {to}", protocol.name())
    }
}

/// What a packet meets at a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// The machine that sends.
    Sender,
    /// An interface in the objects and in its data plane.
    Interface,
    /// The packet filter at the sender.
    Egress,
    /// The decision where to.
    Route,
    /// A change of addresses: virtual IP or NAT.
    Translation,
    /// A tunnel between hypervisors, or to an edge.
    Tunnel,
    /// The way between the region and the outside.
    Edge,
    /// The choice of a target.
    LoadBalancer,
    /// The packet filter at the receiver.
    Ingress,
    /// The machine, or whoever else gets the packet.
    Receiver,
    /// The way of the answer.
    Answer,
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Objects,
    Dpservice,
    Metalbond,
    Edge,
}

/// What a finding means for the packet. In order of weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Not as it should be, but this packet passes.
    Warning,
    /// What decides could not be found out.
    Unknown,
    /// The packet ends here.
    Broken,
}

/// One thing that was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub level: Level,
    /// One word for programs, in CamelCase.
    pub reason: &'static str,
    pub source: Source,
    /// A sentence for people.
    pub message: String,
    /// What to do or to look at next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What becomes of the packet at a hop, or on the whole path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Passes,
    /// What decides could not be found out.
    Unknown,
    /// The packet ends here.
    Ends,
    /// The packet would pass, but it ended before.
    NotReached,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// Where: a machine, a hypervisor, an edge, the underlay.
    pub place: String,
    pub stage: Stage,
    pub outcome: Outcome,
    /// What happens to the packet.
    pub happens: String,
    /// Why: the object or entry that decides.
    pub because: String,
    pub findings: Vec<Finding>,
}

impl Hop {
    /// A hop that the packet passes, until a finding says otherwise.
    pub fn new(place: impl Into<String>, stage: Stage, happens: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            stage,
            outcome: Outcome::Passes,
            happens: happens.into(),
            because: String::new(),
            findings: Vec::new(),
        }
    }

    /// Says why.
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.because = why.into();
        self
    }

    /// Adds a finding; the outcome follows.
    pub fn find(&mut self, finding: Finding) {
        let outcome = match finding.level {
            Level::Note | Level::Warning => Outcome::Passes,
            Level::Unknown => Outcome::Unknown,
            Level::Broken => Outcome::Ends,
        };
        self.outcome = worse(self.outcome, outcome);
        self.findings.push(finding);
    }

    /// The heaviest finding.
    pub fn worst(&self) -> Option<&Finding> {
        let ends = |level| self.findings.iter().find(|finding| finding.level == level);
        ends(Level::Broken).or_else(|| ends(Level::Unknown))
    }
}

/// The worse of two outcomes.
pub fn worse(a: Outcome, b: Outcome) -> Outcome {
    match (a, b) {
        (Outcome::Ends, _) | (_, Outcome::Ends) => Outcome::Ends,
        (Outcome::Unknown, _) | (_, Outcome::Unknown) => Outcome::Unknown,
        (Outcome::NotReached, _) | (_, Outcome::NotReached) => Outcome::NotReached,
        (Outcome::Passes, Outcome::Passes) => Outcome::Passes,
    }
}

/// The verdict about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// The packet arrives, and so does its answer.
    Arrives,
    /// The packet ends somewhere.
    DoesNotArrive,
    /// The packet arrives; its answer ends somewhere.
    AnswerIsLost,
    /// What decides could not be found out.
    Unknown,
}

/// Why a packet would arrive or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// Who sends, as found.
    pub from: String,
    /// Who is to receive, as found.
    pub to: String,
    /// The packet as it is sent; absent if no addresses could be found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<Packet>,
    pub hops: Vec<Hop>,
    pub verdict: Verdict,
    /// The verdict as a sentence.
    pub summary: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Data planes on the path that were asked and answered.
    pub asked: Vec<String>,
    /// Parts on the path that were not asked, and why not.
    pub not_asked: Vec<String>,
}
