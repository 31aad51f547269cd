//! The packet side: one worker owns its flows and counters and runs bursts to completion.

use crate::counters::Counters;
use crate::packet::PacketBuf;
use crate::tables::Tables;
use crate::time::Instant;
use crate::verdict::{DropReason, PortId, Verdict};

/// Packets handled together; longer slices are cut into such bursts.
pub const BURST_MAX: usize = 64;

/// Flows and counters of one packet-processing thread.
#[derive(Debug)]
pub struct Worker {
    counters: Counters,
}

impl Worker {
    pub(crate) fn new(ports: usize) -> Worker {
        Worker {
            counters: Counters::new(ports),
        }
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Decides one packet that came in on `port` and edits it.
    pub fn process(
        &mut self,
        _tables: &Tables,
        _port: PortId,
        _packet: &mut PacketBuf,
        _now: Instant,
    ) -> Verdict {
        self.counters.count_drop(DropReason::Bug);
        Verdict::Drop(DropReason::Bug)
    }

    /// Decides the packets that came in on `port`; `verdicts[i]` is the answer for `packets[i]`.
    ///
    /// Handles as many packets as both slices have.
    pub fn process_burst(
        &mut self,
        tables: &Tables,
        port: PortId,
        packets: &mut [PacketBuf],
        verdicts: &mut [Verdict],
        now: Instant,
    ) {
        for (packet, verdict) in packets.iter_mut().zip(verdicts) {
            *verdict = self.process(tables, port, packet, now);
        }
    }

    /// Forgets idle flows. Call it every second or so; the work per call is bounded.
    pub fn tick(&mut self, _now: Instant) {}
}
