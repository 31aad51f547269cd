//! The protocol's byte vectors, both ways, and what must be refused.

use metalbond::codec::{self, Capabilities, DecodeError, Hello, Message};
use metalbond::{NextHop, Route};

use crate::support::{add, encoded, hex, remove, route};

fn hello(keepalive_s: u32, is_server: bool) -> Message {
    Message::Hello(Hello {
        keepalive_s,
        is_server,
        ..Hello::default()
    })
}

fn check(message: Message, text: &str) {
    let bytes = hex(text);
    assert_eq!(encoded(&message), bytes, "encoding of {message:?}");
    let decoded = codec::decode(&bytes).expect("decodes");
    assert_eq!(decoded, Some((message, bytes.len())));
    for len in 0..bytes.len() {
        assert_eq!(codec::decode(&bytes[..len]), Ok(None), "first {len} bytes");
    }
}

#[test]
fn handshake_and_subscriptions() {
    check(hello(5, false), "01 0002 01 0805");
    check(hello(3, true), "01 0004 01 08031001");
    check(Message::Keepalive, "01 0000 02");
    check(Message::Subscribe(200), "01 0003 03 08c801");
    check(Message::Subscribe(0), "01 0000 03");
    check(Message::Unsubscribe(100), "01 0002 04 0864");
}

#[test]
fn updates() {
    let addr = |text: &str| text.parse().unwrap();
    check(
        add(route(
            200,
            "10.0.23.0/24",
            NextHop::standard(addr("2001:db8::1")),
        )),
        "01 0021 05 10c801 1a08 1204 0a001700 1818 2212 0a10 20010db8000000000000000000000001",
    );
    let target = NextHop::load_balancer_target(addr("2001:db8::2"));
    check(
        add(route(23, "2001:db8:2::/48", target)),
        "01 0030 05 1017 1a16 0801 1210 20010db8000200000000000000000000 1830 2214 0a10 \
         20010db8000000000000000000000002 1802",
    );
    check(
        add(route(
            100,
            "45.86.6.6/32",
            NextHop::nat(addr("2001:db8::1"), 1024, 2048),
        )),
        "01 0028 05 1064 1a08 1204 2d560606 1820 221a 0a10 20010db8000000000000000000000001 \
         1801 208008 288010",
    );
    check(
        remove(route(1, "10.0.0.0/24", NextHop::standard(addr("fd00::1")))),
        "01 0022 05 0801 1001 1a08 1204 0a000000 1818 2212 0a10 fd000000000000000000000000000001",
    );
    check(
        add(route(1, "0.0.0.0/0", NextHop::standard(addr("fd00::1")))),
        "01 001e 05 1001 1a06 1204 00000000 2212 0a10 fd000000000000000000000000000001",
    );
}

#[test]
fn our_hello_fields_are_unknown_fields_to_others() {
    let ours = Hello {
        keepalive_s: 5,
        is_server: false,
        capabilities: Capabilities::STREAM,
        node: "host-1".to_owned(),
    };
    check(
        Message::Hello(ours),
        "01 000e 01 0805 c03e01 ca3e06 686f73742d31",
    );
}

/// Header and payload of an update from its parts.
fn update(payload: &str) -> Vec<u8> {
    let payload = hex(payload);
    let mut bytes = vec![1, 0, payload.len() as u8, 5];
    bytes.extend(payload);
    bytes
}

const HOP: &str = "2212 0a10 fd000000000000000000000000000001";

fn decode_route(payload: &str) -> Route {
    match codec::decode(&update(payload))
        .expect("decodes")
        .expect("complete")
        .0
    {
        Message::Update(update) => update.route,
        other => panic!("{other:?} instead of an update"),
    }
}

#[test]
fn odd_values_keep_their_meaning() {
    // An unknown action is an announcement.
    let decoded = codec::decode(&update(&format!("0807 1001 1a06 1204 00000000 {HOP}")));
    let plain = add(route(
        1,
        "0.0.0.0/0",
        NextHop::standard("fd00::1".parse().unwrap()),
    ));
    assert_eq!(decoded.unwrap().unwrap().0, plain);
    // A length above the width is one invalid length, whatever it was, and reflected as such.
    let long = decode_route(&format!("1a08 1204 0a000000 1821 {HOP}"));
    let longer = decode_route(&format!("1a09 1204 0a000000 188008 {HOP}"));
    assert_eq!(long, longer);
    assert_eq!(long.destination.length(), None);
    assert_eq!(
        encoded(&add(long)),
        hex(&format!("01 0022 05 1a0c 1204 0a000000 18ffffffff0f {HOP}"))
    );
    // Host bits count.
    let with = decode_route(&format!("1a08 1204 0a000001 1818 {HOP}"));
    let without = decode_route(&format!("1a08 1204 0a000000 1818 {HOP}"));
    assert_ne!(with, without);
    // An unknown version is 6, and is part of the key.
    let version_2 = decode_route(&format!("1a0a 0802 1204 0a000000 1818 {HOP}"));
    let version_6 = decode_route(&format!("1a0a 0801 1204 0a000000 1818 {HOP}"));
    assert_eq!(version_2, version_6);
    assert_ne!(version_6, without);
    // An unknown hop type is kept.
    let hop = "2214 0a10 fd000000000000000000000000000001 1809";
    let typed = decode_route(&format!("1a08 1204 0a000000 1818 {hop}"));
    assert_eq!(typed.next_hop.hop_type, metalbond::HopType::Other(9));
    assert!(encoded(&add(typed)).ends_with(&[0x18, 9]));
    // Ports above 65535 lose their high bits.
    let hop = "221c 0a10 fd000000000000000000000000000001 1801 20818004 28828008";
    let nat = decode_route(&format!("1a08 1204 0a000000 1818 {hop}"));
    assert_eq!(nat.next_hop.hop_type.ports(), (1, 2));
    // Unknown fields of every wire type are skipped, a repeated sub-message merges.
    let unknown = "50 05 59 0102030405060708 62 01ff 65 01020304 6b 5005 6c";
    let merged = decode_route(&format!("{unknown} 1a06 1204 0a000000 1a02 1818 {HOP}"));
    assert_eq!(merged, without);
}

fn refused(bytes: &[u8], error: DecodeError) {
    assert_eq!(codec::decode(bytes), Err(error), "{bytes:02x?}");
}

#[test]
fn malformed_messages_are_refused() {
    refused(&[2], DecodeError::Version(2));
    refused(&hex("01 0000 06"), DecodeError::Type(6));
    refused(&hex("01 0000 00"), DecodeError::Type(0));
    refused(&hex("01 04a5"), DecodeError::TooLong(1189));
    refused(&hex("01 ffff 05"), DecodeError::TooLong(65535));
    refused(&update(HOP), DecodeError::NoDestination);
    refused(&update("1a08 1204 0a000000 1818"), DecodeError::NoNextHop);
    refused(
        &update(&format!("1a07 1203 0a0000 1818 {HOP}")),
        DecodeError::AddressLength(3),
    );
    refused(
        &update(&format!("1a00 {HOP}")),
        DecodeError::AddressLength(0),
    );
    refused(
        &update("1a08 1204 0a000000 1818 2200"),
        DecodeError::AddressLength(0),
    );
    // Length beyond the payload, endless varint, field number 0, unmatched group end, open group.
    for payload in [
        "1a7f 00",
        "10ffffffffffffffffffff01",
        "0001",
        "0c",
        "0b",
        "0b 14",
    ] {
        refused(&update(payload), DecodeError::Protobuf);
    }
    let nested = "0b".repeat(64);
    refused(&update(&nested), DecodeError::Protobuf);
}
