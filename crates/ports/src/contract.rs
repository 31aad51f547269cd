//! The suite that every driver passes. Test support: it knows a driver only through [`Port`] and the wire only through [`Peer`].
//!
//! Call [`check`] with a function that makes a fresh, linked pair whose wire is silent: no kernel may speak on it.

use crate::{ETHERNET_LEN, Poller, Port};
use dataplane::{HEADROOM_MIN, PacketBuf};
use std::fmt;
use std::time::{Duration, Instant};

/// How long a frame may take from one end to the other before the suite calls it lost.
const DELIVERY_MAX: Duration = Duration::from_secs(5);
/// How long nothing must happen for the suite to believe that nothing will.
const SILENCE: Duration = Duration::from_millis(50);

/// The other end of a port's wire.
pub trait Peer {
    /// Puts a frame on the wire towards the port.
    fn send(&mut self, frame: &[u8]);
    /// Takes a frame that the port has sent, if one has arrived.
    fn receive(&mut self) -> Option<Vec<u8>>;
}

/// A port and the other end of its wire.
pub struct Pair {
    /// The driver under test.
    pub port: Box<dyn Port>,
    /// Its wire.
    pub peer: Box<dyn Peer>,
}

/// A rule that the driver broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    rule: &'static str,
    detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.detail)
    }
}

impl std::error::Error for Violation {}

type Outcome = Result<(), Violation>;

fn require(rule: &'static str, holds: bool, detail: impl FnOnce() -> String) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(Violation {
            rule,
            detail: detail(),
        })
    }
}

/// Runs every rule, each on a fresh pair.
///
/// # Errors
/// The first broken rule.
pub fn check(make: &mut dyn FnMut() -> Pair) -> Outcome {
    let rules: [fn(Pair) -> Outcome; 7] = [
        silent_port_is_idle,
        frames_arrive_unchanged_and_in_order,
        received_frames_have_headroom,
        a_burst_larger_than_the_buffers_is_kept,
        sent_frames_arrive_unchanged_and_in_order,
        own_frames_do_not_come_back,
        oversize_frames_are_refused,
    ];
    rules.into_iter().try_for_each(|rule| rule(make()))
}

/// A frame of an ethertype for experiments (IEEE 802, 0x88b5), distinguishable by `number`.
fn frame(number: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5];
    bytes.extend((0..length.saturating_sub(ETHERNET_LEN)).map(|i| (i as u8) ^ number));
    bytes
}

fn buffers(count: usize) -> Vec<PacketBuf> {
    (0..count).map(|_| PacketBuf::new()).collect()
}

fn buffer(frame: &[u8]) -> PacketBuf {
    let mut packet = PacketBuf::new();
    let _ = packet.fill(frame);
    packet
}

fn poller(port: &dyn Port) -> Result<Poller, Violation> {
    let poller = Poller::new().and_then(|poller| {
        poller.add(port.readiness(), 7)?;
        Ok(poller)
    });
    poller.map_err(|error| Violation {
        rule: "readiness can be polled",
        detail: error.to_string(),
    })
}

fn is_ready(poller: &Poller, timeout: Duration) -> bool {
    poller
        .wait(timeout)
        .is_ok_and(|ready| ready.tokens() == [7])
}

/// Receives until `count` frames have come, waiting only on readiness.
fn receive(
    port: &mut dyn Port,
    count: usize,
    rule: &'static str,
) -> Result<Vec<PacketBuf>, Violation> {
    let poller = poller(port)?;
    let deadline = Instant::now() + DELIVERY_MAX;
    let mut received = Vec::new();
    let mut packets = buffers(5);
    while received.len() < count {
        require(rule, Instant::now() < deadline, || {
            format!("only {} of {count} frames came", received.len())
        })?;
        if !port.backlog() && !is_ready(&poller, Duration::from_millis(100)) {
            continue;
        }
        let filled = port.rx_burst(&mut packets).map_err(|gone| Violation {
            rule,
            detail: gone.to_string(),
        })?;
        received.extend(packets.iter().take(filled).cloned());
    }
    Ok(received)
}

fn silent_port_is_idle(mut pair: Pair) -> Outcome {
    const RULE: &str = "a silent port is not readable and receives nothing";
    let poller = poller(&*pair.port)?;
    let _ = pair.port.rx_burst(&mut buffers(4));
    require(RULE, !is_ready(&poller, SILENCE), || "readable".to_owned())?;
    let filled = pair.port.rx_burst(&mut buffers(4));
    require(RULE, filled == Ok(0), || format!("received {filled:?}"))?;
    pair.peer.send(&frame(1, 60));
    require(RULE, is_ready(&poller, DELIVERY_MAX), || {
        "not readable after a frame".to_owned()
    })?;
    let filled = pair.port.rx_burst(&mut buffers(4));
    require(RULE, filled == Ok(1), || format!("received {filled:?}"))?;
    require(RULE, !is_ready(&poller, SILENCE), || {
        "readable after the last frame".to_owned()
    })
}

fn frames_arrive_unchanged_and_in_order(mut pair: Pair) -> Outcome {
    const RULE: &str = "frames arrive unchanged and in order";
    let sizes = [
        60,
        61,
        64,
        590,
        1500,
        ETHERNET_LEN + pair.port.mtu().min(1500),
    ];
    let sent: Vec<Vec<u8>> = (0_u8..)
        .zip(sizes)
        .map(|(n, size)| frame(n, size))
        .collect();
    for bytes in &sent {
        pair.peer.send(bytes);
    }
    let received = receive(&mut *pair.port, sent.len(), RULE)?;
    for (packet, bytes) in received.iter().zip(&sent) {
        require(RULE, packet.frame() == bytes, || {
            format!("{} bytes became {} or changed", bytes.len(), packet.len())
        })?;
    }
    let counters = pair.port.counters();
    let bytes: usize = sizes.iter().sum();
    require(
        "received frames and bytes are counted",
        (counters.rx_packets, counters.rx_bytes) == (sent.len() as u64, bytes as u64),
        || format!("{counters:?}"),
    )
}

fn received_frames_have_headroom(mut pair: Pair) -> Outcome {
    const RULE: &str = "received frames have headroom";
    pair.peer.send(&frame(0, 100));
    let received = receive(&mut *pair.port, 1, RULE)?;
    require(
        RULE,
        received
            .iter()
            .all(|packet| packet.headroom() >= HEADROOM_MIN),
        String::new,
    )
}

fn a_burst_larger_than_the_buffers_is_kept(mut pair: Pair) -> Outcome {
    const RULE: &str = "a burst larger than the buffers is kept";
    let count = 100;
    for number in 0..count {
        pair.peer.send(&frame(number, 200));
    }
    let received = receive(&mut *pair.port, usize::from(count), RULE)?;
    for (packet, number) in received.iter().zip(0..) {
        require(RULE, packet.frame() == frame(number, 200), || {
            format!("frame {number} differs")
        })?;
    }
    Ok(())
}

fn arrive(peer: &mut dyn Peer, rule: &'static str) -> Result<Vec<u8>, Violation> {
    let deadline = Instant::now() + DELIVERY_MAX;
    loop {
        if let Some(bytes) = peer.receive() {
            return Ok(bytes);
        }
        require(rule, Instant::now() < deadline, || {
            "a frame did not arrive".to_owned()
        })?;
        std::thread::yield_now();
    }
}

fn sent_frames_arrive_unchanged_and_in_order(mut pair: Pair) -> Outcome {
    const RULE: &str = "sent frames arrive unchanged and in order";
    let frames: Vec<Vec<u8>> = (0_u8..90)
        .map(|n| frame(n, 60 + usize::from(n) * 16))
        .collect();
    let packets: Vec<PacketBuf> = frames.iter().map(|bytes| buffer(bytes)).collect();
    let references: Vec<&PacketBuf> = packets.iter().collect();
    let sent = pair.port.tx_burst(&references);
    require(RULE, sent == frames.len(), || {
        format!("{sent} of {} were sent", frames.len())
    })?;
    for bytes in &frames {
        let arrived = arrive(&mut *pair.peer, RULE)?;
        require(RULE, arrived == *bytes, || {
            format!("{} bytes differ", bytes.len())
        })?;
    }
    let counters = pair.port.counters();
    let bytes: usize = frames.iter().map(Vec::len).sum();
    require(
        "sent frames and bytes are counted",
        (counters.tx_packets, counters.tx_bytes) == (frames.len() as u64, bytes as u64),
        || format!("{counters:?}"),
    )
}

fn own_frames_do_not_come_back(mut pair: Pair) -> Outcome {
    const RULE: &str = "own frames do not come back";
    let packet = buffer(&frame(3, 80));
    pair.port.tx_burst(&[&packet]);
    arrive(&mut *pair.peer, RULE)?;
    let poller = poller(&*pair.port)?;
    let ready = is_ready(&poller, SILENCE);
    let filled = pair.port.rx_burst(&mut buffers(2));
    require(RULE, !ready && filled == Ok(0), || {
        format!("received {filled:?}")
    })
}

fn oversize_frames_are_refused(mut pair: Pair) -> Outcome {
    const RULE: &str = "a frame beyond the MTU is refused and counted, its neighbours are sent";
    let mut large = PacketBuf::with_frame_max(ETHERNET_LEN + pair.port.mtu() + 1);
    let _ = large.fill(&frame(0, ETHERNET_LEN + pair.port.mtu() + 1));
    let small = [buffer(&frame(1, 60)), buffer(&frame(2, 60))];
    let [first, last] = &small;
    let sent = pair.port.tx_burst(&[first, &large, last]);
    require(RULE, sent == 2, || format!("{sent} were sent"))?;
    for packet in &small {
        let arrived = arrive(&mut *pair.peer, RULE)?;
        require(RULE, arrived == packet.frame(), || {
            "another frame arrived".to_owned()
        })?;
    }
    let counters = pair.port.counters();
    require(RULE, counters.tx_oversize == 1, || format!("{counters:?}"))
}
