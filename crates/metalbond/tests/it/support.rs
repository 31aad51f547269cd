//! Builders shared by the tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use metalbond::codec::{self, Action, Message, Update};
use metalbond::{Destination, HopType, NextHop, Route};
use rand::Rng;
use rand::rngs::StdRng;

pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

pub fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode(message, &mut bytes);
    bytes
}

pub fn add(route: Route) -> Message {
    Message::Update(Update {
        action: Action::Add,
        route,
    })
}

pub fn remove(route: Route) -> Message {
    Message::Update(Update {
        action: Action::Remove,
        route,
    })
}

pub fn route(vni: u32, prefix: &str, next_hop: NextHop) -> Route {
    Route {
        vni,
        destination: prefix.parse().unwrap(),
        next_hop,
    }
}

pub fn hop(last: u16) -> NextHop {
    NextHop::standard(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last))
}

/// The `index`-th of many distinct host routes in a VNI.
pub fn numbered(vni: u32, index: u32) -> Route {
    let destination = Destination::host(Ipv4Addr::from(0x0a00_0000 + index).into());
    Route {
        vni,
        destination,
        next_hop: hop((index % 4000) as u16),
    }
}

/// Any route that the wire can carry.
pub fn arbitrary_route(rng: &mut StdRng) -> Route {
    let addr = |rng: &mut StdRng| -> IpAddr {
        if rng.random() {
            Ipv4Addr::from(rng.random::<u32>()).into()
        } else {
            Ipv6Addr::from(rng.random::<u128>()).into()
        }
    };
    let version = if rng.random() {
        metalbond::IpVersion::V4
    } else {
        metalbond::IpVersion::V6
    };
    let length = if rng.random_bool(0.1) {
        rng.random()
    } else {
        rng.random_range(0..=33)
    };
    let number = if rng.random_bool(0.1) {
        rng.random()
    } else {
        rng.random_range(0..4)
    };
    let target_vni = if rng.random() { 0 } else { rng.random() };
    Route {
        vni: if rng.random() {
            rng.random_range(0..300)
        } else {
            rng.random()
        },
        destination: Destination::from_wire(version, addr(rng), length),
        next_hop: NextHop {
            addr: addr(rng),
            target_vni,
            hop_type: HopType::from_wire(number, rng.random(), rng.random()),
        },
    }
}

/// Decodes a stream that must consist of whole messages.
pub fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let (message, len) = codec::decode(bytes).unwrap().expect("whole messages only");
        messages.push(message);
        bytes = &bytes[len..];
    }
    messages
}
