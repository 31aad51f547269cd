//! Rate limits: a token bucket kept as one number, so that several workers can share it without a lock.
//!
//! The number is the time at which the bucket will be full again (the virtual-scheduling form of the generic cell rate algorithm,
//! ITU-T I.371 annex A): a packet adds the time its bits take at the limit, and conforms if the result is no more than the burst ahead
//! of now. Rates are exact for any number of Mbit/s; time is counted in 1/64 ns, which lasts for nine years of uptime.

use crate::time::Instant;
use core::sync::atomic::{AtomicU64, Ordering};

/// Fractions of a nanosecond.
const FRACTIONS: u64 = 64;
/// Every bucket holds at least this much, so that one full packet always fits.
const BURST_BYTES_MIN: u64 = 4096;
/// Further burst per Mbit/s of rate, up to [`BURST_RATE_MAX`]: an eighth of a second of traffic.
const BURST_BYTES_PER_MBIT: u64 = 131_072;
/// Rate from which the burst grows no further.
const BURST_RATE_MAX: u64 = 100;

/// A limit in Mbit/s (10⁶ bits per second) and the state of its bucket.
#[derive(Debug)]
pub struct TokenBucket {
    rate_mbit: u64,
    burst: u64,
    full_at: AtomicU64,
}

impl TokenBucket {
    /// A full bucket; `None` for rate 0, which means "unlimited".
    #[must_use]
    pub fn new(rate_mbit: u64) -> Option<TokenBucket> {
        if rate_mbit == 0 {
            return None;
        }
        let bytes = BURST_BYTES_MIN + BURST_BYTES_PER_MBIT * rate_mbit.min(BURST_RATE_MAX);
        Some(TokenBucket {
            rate_mbit,
            burst: cost(bytes, rate_mbit),
            full_at: AtomicU64::new(0),
        })
    }

    /// The limit in Mbit/s.
    #[must_use]
    pub fn rate_mbit(&self) -> u64 {
        self.rate_mbit
    }

    /// Bytes that may pass at once after a pause.
    #[must_use]
    pub fn burst_bytes(&self) -> u64 {
        BURST_BYTES_MIN + BURST_BYTES_PER_MBIT * self.rate_mbit.min(BURST_RATE_MAX)
    }

    /// Whether a packet of `bytes` may pass at `now`. One that may not leaves the bucket as it was.
    #[inline]
    pub fn admit(&self, bytes: u64, now: Instant) -> bool {
        let now = now.0.saturating_mul(FRACTIONS);
        let cost = cost(bytes, self.rate_mbit);
        let admitted = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let next = full_at.max(now).saturating_add(cost);
                (next - now <= self.burst).then_some(next)
            });
        admitted.is_ok()
    }
}

/// Time that `bytes` take at a rate: 1 Mbit/s is one bit per microsecond.
#[inline]
fn cost(bytes: u64, rate_mbit: u64) -> u64 {
    bytes.saturating_mul(8 * 1_000 * FRACTIONS) / rate_mbit
}
