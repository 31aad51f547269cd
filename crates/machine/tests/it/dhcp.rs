//! The DHCPv6 client as a state machine.

use std::net::Ipv6Addr;

use dhcproto::v6::{DhcpOption, IAAddr, IANA, Message, MessageType, OptionCode};
use dhcproto::{Decodable as _, Decoder, Encodable as _, Encoder};
use machine::provider::dhcp6::{Action, Client};

const XID: [u8; 3] = [1, 2, 3];

fn client() -> Client {
    Client::new(uuid::Uuid::from_u128(7), 2, XID)
}

/// An answer to `question` with this address.
fn answer(question: &[u8], kind: MessageType, address: Option<Ipv6Addr>, iaid: u32) -> Vec<u8> {
    let question = Message::decode(&mut Decoder::new(question)).unwrap();
    let mut message = Message::new_with_id(kind, question.xid());
    let client = question.opts().get(OptionCode::ClientId).unwrap().clone();
    message.opts_mut().insert(client);
    message.opts_mut().insert(DhcpOption::ServerId(vec![
        0, 3, 0xab, 0xcd, 2, 0, 0, 0, 0, 1,
    ]));
    if let Some(addr) = address {
        let mut association = IANA {
            id: iaid,
            t1: u32::MAX,
            t2: u32::MAX,
            opts: Default::default(),
        };
        let lease = IAAddr {
            addr,
            preferred_life: u32::MAX,
            valid_life: u32::MAX,
            opts: Default::default(),
        };
        association.opts.insert(DhcpOption::IAAddr(lease));
        message.opts_mut().insert(DhcpOption::IANA(association));
    }
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

#[test]
fn four_messages_give_an_address() {
    let address: Ipv6Addr = "fd00::5".parse().unwrap();
    let mut client = client();
    let solicit = client.message();
    assert_eq!(
        Message::decode(&mut Decoder::new(&solicit))
            .unwrap()
            .msg_type(),
        MessageType::Solicit
    );
    let Action::Send(request) =
        client.receive(&answer(&solicit, MessageType::Advertise, Some(address), 2))
    else {
        panic!("no request");
    };
    let parsed = Message::decode(&mut Decoder::new(&request)).unwrap();
    assert_eq!(parsed.msg_type(), MessageType::Request);
    assert!(parsed.opts().get(OptionCode::ServerId).is_some());
    assert_eq!(client.message(), request, "a repetition says the same");
    let reply = answer(&request, MessageType::Reply, Some(address), 2);
    assert_eq!(client.receive(&reply), Action::Bound(address));
}

#[test]
fn answers_to_others_are_ignored_and_refusals_are_told() {
    let address: Ipv6Addr = "fd00::5".parse().unwrap();
    let solicit = client().message();
    let good = answer(&solicit, MessageType::Advertise, Some(address), 2);
    let mut other_xid = good.clone();
    other_xid[3] ^= 1;
    let mut other_client = good.clone();
    let last = other_client.iter().position(|b| *b == 7).unwrap();
    other_client[last] = 8;
    for bytes in [
        vec![],
        vec![7],
        good[..10].to_vec(),
        other_xid,
        other_client,
    ] {
        assert_eq!(client().receive(&bytes), Action::Ignore, "{bytes:?}");
    }
    let refused = answer(&solicit, MessageType::Reply, None, 2);
    assert_eq!(client().receive(&refused), Action::Refused);
    let other_interface = answer(&solicit, MessageType::Advertise, Some(address), 3);
    assert_eq!(client().receive(&other_interface), Action::Refused);
}

#[test]
fn no_bytes_can_crash_the_client() {
    let solicit = client().message();
    let good = answer(
        &solicit,
        MessageType::Advertise,
        Some("fd00::5".parse().unwrap()),
        2,
    );
    for cut in 0..good.len() {
        client().receive(&good[..cut]);
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = good.clone();
            changed[cut] = value;
            client().receive(&changed);
        }
    }
}
