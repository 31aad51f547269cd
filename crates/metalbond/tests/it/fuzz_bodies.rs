//! What the fuzz targets check, shared with the test that replays their corpora.

use std::time::Duration;

use metalbond::codec::{self, Action, DecodeError, Message, Reassembly};
use metalbond::hub::{Hub, Interest, Limits, PeerId};
use metalbond::peer::{CONTROL_BYTES_MAX, Event, Peer, Role, Settings, State};

/// Any bytes: whole and in pieces they mean the same, and what they mean survives encoding.
pub fn codec(data: &[u8]) {
    let mut whole = Vec::new();
    let outcome = feed(data, data.len().max(1), &mut whole);
    for piece in [1, 3, 7] {
        let mut pieces = Vec::new();
        assert_eq!(feed(data, piece, &mut pieces).is_err(), outcome.is_err());
        assert_eq!(pieces, whole);
    }
    for message in &whole {
        let mut bytes = Vec::new();
        codec::encode(message, &mut bytes);
        assert!(bytes.len() <= codec::MESSAGE_MAX);
        assert_eq!(
            codec::decode(&bytes),
            Ok(Some((message.clone(), bytes.len())))
        );
    }
}

fn feed(data: &[u8], piece: usize, messages: &mut Vec<Message>) -> Result<(), DecodeError> {
    let mut reassembly = Reassembly::default();
    for bytes in data.chunks(piece) {
        reassembly.feed(bytes, |message| {
            messages.push(message);
            Ok::<(), DecodeError>(())
        })?;
        assert!(reassembly.pending() < codec::HEADER_LEN + codec::PAYLOAD_MAX);
    }
    Ok(())
}

/// Two connections to one hub, driven by the data: the first byte of each step chooses connection, piece and time.
pub fn peer(data: &[u8]) {
    let mut now = Duration::from_secs(1);
    let mut hub = Hub::new(Limits {
        routes_max: 1000,
        ..Limits::default()
    });
    let mut connections: [(Peer, Option<PeerId>); 2] =
        std::array::from_fn(|_| (Peer::new(Role::Server, Settings::default(), now), None));
    let mut dialled = Peer::new(Role::Client, Settings::default(), now);
    let mut rest = data;
    while let Some((&control, tail)) = rest.split_first() {
        let (bytes, tail) = tail.split_at(tail.len().min(usize::from(control >> 2)));
        rest = tail;
        if control & 3 == 3 {
            now += Duration::from_millis(u64::from(control) * 10);
        }
        let _ = dialled.recv(bytes, now, &mut Vec::new());
        let _ = dialled.poll(now);
        let (connection, id) = &mut connections[usize::from(control & 1)];
        let mut events = Vec::new();
        let failed = connection.recv(bytes, now, &mut events).is_err();
        for event in events {
            apply(&mut hub, connection, id, event, now);
        }
        if failed || connection.poll(now).is_err() {
            assert_eq!(connection.state(), State::Closed);
            if let Some(id) = id.take() {
                hub.disconnect(id, now, Duration::from_secs(1));
            }
            *connection = Peer::new(Role::Server, Settings::default(), now);
        }
        let mut out = Vec::new();
        connection.take_control(&mut out);
        assert!(out.len() <= CONTROL_BYTES_MAX);
        if let Some(id) = *id {
            hub.fill(id, &mut out, 2000);
            assert!(out.len() <= CONTROL_BYTES_MAX + 2000);
        }
        let mut sent = Vec::new();
        assert!(
            feed(&out, out.len().max(1), &mut sent).is_ok(),
            "we send whole messages"
        );
        hub.sweep(now);
    }
}

fn apply(hub: &mut Hub, peer: &Peer, id: &mut Option<PeerId>, event: Event, now: Duration) {
    let hold = Duration::from_secs(1);
    match (event, *id) {
        (Event::Greeted, _) => {
            *id = Some(hub.connect(&peer.hello().node, Interest::Subscribed, now, hold));
        }
        (Event::Restarted, Some(id)) => hub.disconnect(id, now, Duration::ZERO),
        (Event::Subscribe(vni), Some(id)) => hub.subscribe(id, vni),
        (Event::Unsubscribe(vni), Some(id)) => hub.unsubscribe(id, vni),
        (Event::Update(update), Some(id)) => match update.action {
            Action::Add => hub.announce(id, &update.route),
            Action::Remove => hub.withdraw(id, &update.route),
        },
        (Event::Established | Event::Restarted, _) => {}
        (other, None) => panic!("{other:?} before a greeting"),
    }
}
