//! The state machine of one connection: handshake, timers, and what resets it.

use std::time::Duration;

use metalbond::codec::{Capabilities, DecodeError, Hello, Message};
use metalbond::peer::{
    CONTROL_BYTES_MAX, Event, HELLO_TIMEOUT, Peer, ResetReason, Role, Settings, State,
};

use crate::support::{add, encoded, hex, hop, messages, route};

const START: Duration = Duration::from_secs(1000);

fn plain(keepalive_s: u32) -> Settings {
    Settings {
        keepalive_s,
        capabilities: Capabilities::default(),
        node: String::new(),
    }
}

fn control(peer: &mut Peer) -> Vec<u8> {
    let mut bytes = Vec::new();
    peer.take_control(&mut bytes);
    bytes
}

fn feed(peer: &mut Peer, bytes: &[u8], now: Duration) -> Result<Vec<Event>, ResetReason> {
    let mut events = Vec::new();
    peer.recv(bytes, now, &mut events).map(|()| events)
}

fn seconds(seconds: f64) -> Duration {
    START + Duration::from_secs_f64(seconds)
}

/// An accepted peer in ESTABLISHED with an interval of 2 s.
fn established() -> Peer {
    let mut peer = Peer::new(Role::Server, plain(5), START);
    feed(&mut peer, &hex("01 0002 01 0802 01 0000 02"), START).unwrap();
    control(&mut peer);
    assert_eq!(peer.state(), State::Established);
    peer
}

#[test]
fn server_side_handshake_is_byte_exact() {
    let mut peer = Peer::new(Role::Server, Settings::default(), START);
    assert!(control(&mut peer).is_empty());
    assert_eq!(
        feed(&mut peer, &hex("01 0002 01 0803"), START),
        Ok(vec![Event::Greeted])
    );
    assert_eq!(peer.state(), State::HelloSent);
    // Although this side has capabilities: whoever offers none sees none.
    assert_eq!(control(&mut peer), hex("01 0004 01 08031001"));
    assert_eq!(
        feed(&mut peer, &hex("01 0000 02"), START),
        Ok(vec![Event::Established])
    );
    assert_eq!(control(&mut peer), hex("01 0000 02"));
    assert!(!peer.is_stream());
    // It never sends KEEPALIVE unasked.
    peer.poll(seconds(7.4)).unwrap();
    assert!(control(&mut peer).is_empty());
}

#[test]
fn client_side_handshake_is_byte_exact() {
    let mut peer = Peer::new(Role::Client, plain(5), START);
    assert_eq!(control(&mut peer), hex("01 0002 01 0805"));
    assert_eq!(
        feed(&mut peer, &hex("01 0004 01 08031001"), START),
        Ok(vec![])
    );
    assert_eq!(peer.state(), State::HelloReceived);
    assert_eq!(control(&mut peer), hex("01 0000 02"));
    assert_eq!(
        feed(&mut peer, &hex("01 0000 02"), START),
        Ok(vec![Event::Established])
    );
    assert_eq!(peer.interval(), Duration::from_secs(3));
    // Now one KEEPALIVE per interval, and silence is fatal after two and a half.
    assert_eq!(peer.next_deadline(), Some(seconds(3.0)));
    peer.poll(seconds(3.0)).unwrap();
    assert_eq!(control(&mut peer), hex("01 0000 02"));
    peer.poll(seconds(6.0)).unwrap();
    assert_eq!(peer.next_deadline(), Some(seconds(7.5)));
    assert_eq!(peer.poll(seconds(7.5)), Err(ResetReason::Deadline));
    assert_eq!(peer.state(), State::Closed);
    assert_eq!(peer.next_deadline(), None);
}

#[test]
fn our_own_peers_recognise_each_other() {
    let named = Settings {
        node: "host-7".to_owned(),
        ..Settings::default()
    };
    let mut client = Peer::new(Role::Client, named, START);
    let mut server = Peer::new(Role::Server, Settings::default(), START);
    feed(&mut server, &control(&mut client), START).unwrap();
    feed(&mut client, &control(&mut server), START).unwrap();
    assert!(server.is_stream() && client.is_stream());
    assert_eq!(server.hello().node, "host-7");
    assert!(client.hello().is_server);
}

#[test]
fn the_smaller_interval_wins() {
    for (offered, configured, agreed) in [(9, 5, 5), (2, 5, 2), (u32::MAX, 5, 5), (4, 0, 4)] {
        let mut peer = Peer::new(Role::Server, plain(configured), START);
        let hello = Hello {
            keepalive_s: offered,
            ..Hello::default()
        };
        feed(&mut peer, &encoded(&Message::Hello(hello)), START).unwrap();
        let Message::Hello(answer) = messages(&control(&mut peer)).remove(0) else {
            panic!()
        };
        assert_eq!(answer.keepalive_s, agreed);
    }
}

#[test]
fn any_whole_message_proves_life() {
    let mut peer = established();
    let update = encoded(&add(route(1, "10.0.0.0/24", hop(1))));
    feed(&mut peer, &update[..20], seconds(4.9)).unwrap();
    assert_eq!(peer.open_deadline(), seconds(5.0));
    feed(&mut peer, &update[20..], seconds(4.9)).unwrap();
    assert_eq!(peer.open_deadline(), seconds(9.9));
}

trait Deadline {
    fn open_deadline(&self) -> Duration;
}

impl Deadline for Peer {
    fn open_deadline(&self) -> Duration {
        self.next_deadline().expect("open")
    }
}

#[test]
fn a_silent_connection_ends() {
    for role in [Role::Server, Role::Client] {
        let mut peer = Peer::new(role, plain(5), START);
        peer.poll(START + HELLO_TIMEOUT - Duration::from_millis(1))
            .unwrap();
        assert_eq!(
            peer.poll(START + HELLO_TIMEOUT),
            Err(ResetReason::HelloTimeout)
        );
    }
}

#[test]
fn a_second_hello_starts_over() {
    let mut peer = established();
    let events = feed(&mut peer, &hex("01 0002 01 0801"), START).unwrap();
    assert_eq!(events, [Event::Restarted, Event::Greeted]);
    assert_eq!(control(&mut peer), hex("01 0004 01 08011001"));
    assert_eq!(peer.state(), State::HelloSent);
    assert_eq!(
        feed(&mut peer, &hex("01 0000 02"), START),
        Ok(vec![Event::Established])
    );
}

fn resets(role: Role, bytes: &[u8]) -> ResetReason {
    let mut peer = Peer::new(role, plain(5), START);
    let reason = feed(&mut peer, bytes, START).expect_err("must reset");
    assert_eq!(peer.state(), State::Closed);
    // Closed is final and quiet.
    assert_eq!(feed(&mut peer, &hex("01 0002 01 0805"), START), Ok(vec![]));
    assert_eq!(peer.poll(START + Duration::from_secs(3600)), Ok(()));
    reason
}

#[test]
fn bad_messages_reset() {
    use Role::{Client, Server};
    assert_eq!(
        resets(Server, &hex("01 0000 01")),
        ResetReason::IntervalZero
    );
    assert_eq!(
        resets(Client, &hex("01 0002 01 1001")),
        ResetReason::IntervalZero
    );
    let malformed = |error| ResetReason::Malformed(error);
    assert_eq!(
        resets(Server, &hex("47455420")),
        malformed(DecodeError::Version(0x47))
    );
    let greeted = |rest: &str| hex(&format!("01 0002 01 0805 {rest}"));
    assert_eq!(
        resets(Server, &greeted("01 0000 09")),
        malformed(DecodeError::Type(9))
    );
    let no_hop = "01 000c 05 1001 1a08 1204 0a000000 1818";
    assert_eq!(
        resets(Server, &greeted(no_hop)),
        malformed(DecodeError::NoNextHop)
    );
    for message in ["01 0000 02", "01 0000 03", "01 0000 04"] {
        let reason = resets(Server, &hex(message));
        assert!(matches!(
            reason,
            ResetReason::Unexpected {
                state: "CONNECTING",
                ..
            }
        ));
        let reason = resets(Client, &hex(message));
        assert!(matches!(
            reason,
            ResetReason::Unexpected {
                state: "HELLO_SENT",
                ..
            }
        ));
    }
    let second = resets(Client, &hex("01 0002 01 0805 01 0002 01 0805"));
    assert!(matches!(
        second,
        ResetReason::Unexpected {
            message: "HELLO",
            ..
        }
    ));
}

#[test]
fn answers_to_a_flood_are_bounded() {
    let mut peer = established();
    for _ in 0..10_000 {
        feed(&mut peer, &hex("01 0000 02"), START).unwrap();
    }
    assert!(control(&mut peer).len() <= CONTROL_BYTES_MAX);
    assert!(peer.control_suppressed() > 9000);
    feed(&mut peer, &hex("01 0000 02"), START).unwrap();
    assert_eq!(control(&mut peer), hex("01 0000 02"));
}
