//! When to dial a server again. Pure: the draw that spreads a fleet comes in as an argument.

use std::time::Duration;

/// Longest pause after the first lost connection or failed attempt.
pub const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause at all.
pub const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Pauses between attempts to reach one server: they double, and each is drawn from its upper half, so that the clients of a
/// server that restarts do not come back in one moment.
#[derive(Clone, Copy, Debug)]
pub struct Redial {
    longest: Duration,
}

impl Default for Redial {
    fn default() -> Self {
        Self { longest: PAUSE_MIN }
    }
}

impl Redial {
    /// The next pause; `draw` is uniform in 0..1.
    pub fn pause(&mut self, draw: f64) -> Duration {
        let pause = self.longest.mul_f64(0.5 + draw / 2.0);
        self.longest = (self.longest * 2).min(PAUSE_MAX);
        pause
    }
}
