//! The suite that every driver passes. Test support: it knows a driver only through [`Port`] and the wire only through [`Peer`].
//!
//! Call [`check`] with a function that makes a fresh, linked pair whose wire is silent: no kernel may speak on it.

use crate::{BATCH_MAX, ETHERNET_LEN, Poller, Port};
use dataplane::{HEADROOM_MIN, Packet};
use std::fmt;
use std::time::{Duration, Instant};

/// How long a frame may take from one end to the other before the suite calls it lost.
const DELIVERY_MAX: Duration = Duration::from_secs(5);
/// How long nothing must happen for the suite to believe that nothing will.
const SILENCE: Duration = Duration::from_millis(50);

/// Bursts of the longest rule: more frames than a driver has buffers.
const LONG_RUN: usize = 200;

/// The other end of a port's wire.
pub trait Peer {
    /// Puts a frame on the wire towards the port.
    fn send(&mut self, frame: &[u8]);
    /// Takes a frame that the port has sent, if one has arrived.
    fn receive(&mut self) -> Option<Vec<u8>>;
}

/// A port and the other end of its wire.
pub struct Pair<P> {
    /// The driver under test.
    pub port: Box<dyn Port<P>>,
    /// Its wire.
    pub peer: Box<dyn Peer>,
    /// Makes an empty packet to be sent.
    pub blank: Box<dyn FnMut() -> P>,
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
pub fn check<P: Packet + Default>(make: &mut dyn FnMut() -> Pair<P>) -> Outcome {
    let rules: [fn(Pair<P>) -> Outcome; 8] = [
        silent_port_is_idle,
        frames_arrive_unchanged_and_in_order,
        received_frames_have_headroom,
        a_burst_larger_than_the_buffers_is_kept,
        sent_frames_arrive_unchanged_and_in_order,
        own_frames_do_not_come_back,
        oversize_frames_are_refused,
        a_long_run_loses_no_buffer,
    ];
    rules.into_iter().try_for_each(|rule| rule(make()))
}

/// A frame of an ethertype for experiments (IEEE 802, 0x88b5), distinguishable by `number`.
fn frame(number: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5];
    bytes.extend((0..length.saturating_sub(ETHERNET_LEN)).map(|i| (i as u8) ^ number));
    bytes
}

fn places<P: Default>(count: usize) -> Vec<P> {
    (0..count).map(|_| P::default()).collect()
}

impl<P: Packet> Pair<P> {
    /// A packet with this frame. An empty one (which no rule expects) if the driver has no buffer for it.
    fn packet(&mut self, frame: &[u8]) -> P {
        let mut packet = (self.blank)();
        packet.clear();
        if packet.resize(frame.len()) {
            packet.frame_mut().copy_from_slice(frame);
        }
        packet
    }

    fn send(&mut self, frames: &[Vec<u8>]) -> usize {
        let mut packets: Vec<P> = frames.iter().map(|frame| self.packet(frame)).collect();
        let mut references: Vec<&mut P> = packets.iter_mut().collect();
        self.port.tx_burst(&mut references)
    }
}

/// Waits for readiness; a driver without is asked to be polled.
struct Watch(Option<Poller>);

impl Watch {
    fn new<P>(port: &dyn Port<P>) -> Result<Watch, Violation> {
        let Some(fd) = port.readiness() else {
            return Ok(Watch(None));
        };
        let poller = Poller::new().and_then(|poller| {
            poller.add(fd, 7)?;
            Ok(poller)
        });
        match poller {
            Ok(poller) => Ok(Watch(Some(poller))),
            Err(error) => Err(Violation {
                rule: "readiness can be polled",
                detail: error.to_string(),
            }),
        }
    }

    /// What the port says, or `polled` if it says nothing.
    fn is_ready<P>(&self, port: &mut dyn Port<P>, timeout: Duration, polled: bool) -> bool {
        port.arm();
        self.is_roused(timeout, polled)
    }

    /// The same for a port that was armed before.
    fn is_roused(&self, timeout: Duration, polled: bool) -> bool {
        match &self.0 {
            Some(poller) => poller
                .wait(timeout)
                .is_ok_and(|ready| ready.tokens() == [7]),
            None => polled,
        }
    }
}

/// Receives until `count` frames have come, waiting only on readiness.
fn receive<P: Packet + Default>(
    port: &mut dyn Port<P>,
    count: usize,
    rule: &'static str,
) -> Result<Vec<Vec<u8>>, Violation> {
    let watch = Watch::new(port)?;
    let deadline = Instant::now() + DELIVERY_MAX;
    let mut received = Vec::new();
    let mut packets = places::<P>(5);
    while received.len() < count {
        require(rule, Instant::now() < deadline, || {
            format!("only {} of {count} frames came", received.len())
        })?;
        let is_level = port.is_level();
        // What was there before arming may not show: then the wait must be short, and a look follows in any case.
        let wait = Duration::from_millis(if is_level { 100 } else { 1 });
        if !watch.is_ready(port, wait, true) && is_level {
            continue;
        }
        let filled = port.rx_burst(&mut packets).map_err(|gone| Violation {
            rule,
            detail: gone.to_string(),
        })?;
        let filled = packets.iter().take(filled);
        received.extend(filled.map(|packet| packet.frame().to_vec()));
    }
    Ok(received)
}

fn silent_port_is_idle<P: Packet + Default>(mut pair: Pair<P>) -> Outcome {
    const RULE: &str = "a silent port is not readable and receives nothing";
    let watch = Watch::new(&*pair.port)?;
    let _ = pair.port.rx_burst(&mut places(4));
    let ready = watch.is_ready(&mut *pair.port, SILENCE, false);
    require(RULE, !ready, || "readable".to_owned())?;
    let filled = pair.port.rx_burst(&mut places(4));
    require(RULE, filled == Ok(0), || format!("received {filled:?}"))?;
    pair.peer.send(&frame(1, 60));
    let ready = watch.is_roused(DELIVERY_MAX, true);
    require(RULE, ready, || "not readable after a frame".to_owned())?;
    let deadline = Instant::now() + DELIVERY_MAX;
    let mut filled = pair.port.rx_burst(&mut places(4));
    // A driver may learn of the frame a moment after its descriptor.
    while filled == Ok(0) && Instant::now() < deadline {
        filled = pair.port.rx_burst(&mut places(4));
    }
    require(RULE, filled == Ok(1), || format!("received {filled:?}"))?;
    let ready = watch.is_ready(&mut *pair.port, SILENCE, false);
    require(RULE, !ready, || "readable after the last frame".to_owned())
}

fn frames_arrive_unchanged_and_in_order<P: Packet + Default>(mut pair: Pair<P>) -> Outcome {
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
    for (arrived, bytes) in received.iter().zip(&sent) {
        require(RULE, arrived == bytes, || {
            format!("{} bytes became {} or changed", bytes.len(), arrived.len())
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

fn received_frames_have_headroom<P: Packet + Default>(mut pair: Pair<P>) -> Outcome {
    const RULE: &str = "received frames have headroom";
    pair.peer.send(&frame(0, 100));
    let deadline = Instant::now() + DELIVERY_MAX;
    let mut packets = places::<P>(1);
    while pair.port.rx_burst(&mut packets) != Ok(1) {
        require(RULE, Instant::now() < deadline, || {
            "no frame came".to_owned()
        })?;
        std::thread::yield_now();
    }
    require(
        RULE,
        packets
            .iter_mut()
            .all(|packet| packet.prepend(HEADROOM_MIN)),
        String::new,
    )
}

fn a_burst_larger_than_the_buffers_is_kept<P: Packet + Default>(mut pair: Pair<P>) -> Outcome {
    const RULE: &str = "a burst larger than the buffers is kept";
    let count = 100;
    for number in 0..count {
        pair.peer.send(&frame(number, 200));
    }
    let received = receive(&mut *pair.port, usize::from(count), RULE)?;
    for (arrived, number) in received.iter().zip(0..) {
        require(RULE, *arrived == frame(number, 200), || {
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

fn sent_frames_arrive_unchanged_and_in_order<P: Packet + Default>(mut pair: Pair<P>) -> Outcome {
    const RULE: &str = "sent frames arrive unchanged and in order";
    let frames: Vec<Vec<u8>> = (0_u8..90)
        .map(|n| frame(n, 60 + usize::from(n) * 16))
        .collect();
    let sent = pair.send(&frames);
    require(RULE, sent == frames.len(), || {
        format!(
            "{sent} of {} were sent: {:?}",
            frames.len(),
            pair.port.counters()
        )
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

fn own_frames_do_not_come_back<P: Packet + Default>(mut pair: Pair<P>) -> Outcome {
    const RULE: &str = "own frames do not come back";
    pair.send(&[frame(3, 80)]);
    arrive(&mut *pair.peer, RULE)?;
    let watch = Watch::new(&*pair.port)?;
    let ready = watch.is_ready(&mut *pair.port, SILENCE, false);
    let filled = pair.port.rx_burst(&mut places(2));
    require(RULE, !ready && filled == Ok(0), || {
        format!("received {filled:?}")
    })
}

fn oversize_frames_are_refused<P: Packet + Default>(mut pair: Pair<P>) -> Outcome {
    const RULE: &str = "a frame beyond the MTU is refused and counted, its neighbours are sent";
    let large = frame(0, ETHERNET_LEN + pair.port.mtu() + 1);
    let frames = [frame(1, 60), large, frame(2, 60)];
    let sent = pair.send(&frames);
    require(RULE, sent == 2, || format!("{sent} were sent"))?;
    let [first, _, last] = &frames;
    for bytes in [first, last] {
        let arrived = arrive(&mut *pair.peer, RULE)?;
        require(RULE, arrived == *bytes, || {
            "another frame arrived".to_owned()
        })?;
    }
    let counters = pair.port.counters();
    require(RULE, counters.tx_oversize == 1, || format!("{counters:?}"))
}

/// More frames than any pool or ring of a driver holds pass in both directions, so that a leaked buffer would stop it.
fn a_long_run_loses_no_buffer<P: Packet + Default>(mut pair: Pair<P>) -> Outcome {
    const RULE: &str = "a long run loses no buffer";
    for round in 0..LONG_RUN {
        let frames: Vec<Vec<u8>> = (0..BATCH_MAX)
            .map(|number| frame((round ^ number) as u8, 60 + number))
            .collect();
        let sent = pair.send(&frames);
        require(RULE, sent == frames.len(), || {
            format!(
                "round {round}: {sent} were sent: {:?}",
                pair.port.counters()
            )
        })?;
        for bytes in &frames {
            let arrived = arrive(&mut *pair.peer, RULE)?;
            require(RULE, arrived == *bytes, || {
                format!("round {round}: another frame arrived")
            })?;
            pair.peer.send(bytes);
        }
        let received = receive(&mut *pair.port, frames.len(), RULE)?;
        require(RULE, received == frames, || {
            format!("round {round}: other frames came")
        })?;
    }
    Ok(())
}
