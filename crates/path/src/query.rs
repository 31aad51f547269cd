//! What is asked: two ends and a packet. Reading it is the edge where spelling mistakes are found.

use std::net::IpAddr;

use api::meta::IpFamily;

use crate::model::Protocol;

/// First port of the range that connections are made from (RFC 6335 §6); what a packet shows unless told otherwise.
pub const SOURCE_PORT_DEFAULT: u16 = 49_152;

/// A name in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One end of the path, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Machine(Name),
    Nic(Name),
    Balancer(Name),
    VirtualIp(Name),
    Address(IpAddr),
    /// Anybody outside of the region.
    Internet,
}

/// Why an end cannot be read. The person has to write it differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    #[error(
        "an end is empty; write a machine's name, nic/NAME, lb/NAME, vip/NAME, an IP address or internet"
    )]
    Empty,
    #[error("{0:?}: {1} is no kind of end; use machine/, nic/, lb/ or vip/")]
    Kind(String, String),
}

impl End {
    /// Reads `NAME`, `NAMESPACE/NAME`, `KIND/NAME`, `KIND/NAMESPACE/NAME`, an address or `internet`.
    ///
    /// # Errors
    /// The text is none of them.
    pub fn parse(text: &str, namespace: &str) -> Result<Self, EndError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if text == "internet" {
            return Ok(Self::Internet);
        }
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(EndError::Empty);
        }
        let name = |namespace: &str, name: &str| Name {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        match parts.as_slice() {
            [machine] => Ok(Self::Machine(name(namespace, machine))),
            [first, second] => match Self::of_kind(first) {
                Some(end) => Ok(end(name(namespace, second))),
                None => Ok(Self::Machine(name(first, second))),
            },
            [kind, inside, called] => match Self::of_kind(kind) {
                Some(end) => Ok(end(name(inside, called))),
                None => Err(EndError::Kind(text.to_owned(), (*kind).to_owned())),
            },
            _ => Err(EndError::Empty),
        }
    }

    fn of_kind(word: &str) -> Option<fn(Name) -> Self> {
        Some(match word {
            "machine" | "machines" => Self::Machine,
            "nic" | "networkinterface" | "networkinterfaces" => Self::Nic,
            "lb" | "loadbalancer" | "loadbalancers" => Self::Balancer,
            "vip" | "virtualip" | "virtualips" => Self::VirtualIp,
            _ => return None,
        })
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub from: End,
    pub to: End,
    /// Absent: TCP if a port is given or a load balancer asked for, else an echo request.
    pub protocol: Option<Protocol>,
    pub port: Option<u16>,
    pub source_port: Option<u16>,
    /// Absent: what both ends have, IPv4 first.
    pub family: Option<IpFamily>,
}

impl Query {
    /// An echo request between two ends.
    pub fn new(from: End, to: End) -> Self {
        Self {
            from,
            to,
            protocol: None,
            port: None,
            source_port: None,
            family: None,
        }
    }

    /// The same question in the other direction, as a connection of its own.
    pub fn reversed(&self) -> Self {
        Self {
            from: self.to.clone(),
            to: self.from.clone(),
            ..self.clone()
        }
    }
}
