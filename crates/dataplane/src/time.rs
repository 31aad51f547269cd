//! Monotonic time as an input. The engine never reads a clock.

use core::time::Duration;

/// Nanoseconds since an origin that the caller chose once (start of the process, start of a simulation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// From a duration since the origin; saturates after 584 years.
    #[must_use]
    pub fn from_duration(since_origin: Duration) -> Instant {
        Instant(u64::try_from(since_origin.as_nanos()).unwrap_or(u64::MAX))
    }

    /// `seconds` after the origin.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Instant {
        Instant(seconds.saturating_mul(1_000_000_000))
    }

    /// From the coarse time of flows.
    pub(crate) const fn from_coarse(now: crate::flow::Coarse) -> Instant {
        Instant((now.0 as u64) << 24)
    }

    /// This instant plus `seconds`.
    #[must_use]
    pub const fn plus_secs(self, seconds: u64) -> Instant {
        Instant(self.0.saturating_add(seconds.saturating_mul(1_000_000_000)))
    }
}
