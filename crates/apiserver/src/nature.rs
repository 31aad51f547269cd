//! Time, identities and free choices: from the machine, or from a seed and a clock that somebody else moves, so that a simulated
//! region can be played again. Deliberately not for secrets.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where a server takes what is not in its requests.
#[derive(Debug)]
pub struct Nature(Option<Mutex<Seeded>>);

#[derive(Debug)]
struct Seeded {
    now_ms: u64,
    random: StdRng,
}

impl Nature {
    /// The machine's clock and random source.
    pub fn real() -> Nature {
        Nature(None)
    }

    /// Everything follows from `seed` and what [`Nature::set_now`] says.
    pub fn seeded(seed: u64, now_ms: u64) -> Nature {
        let random = StdRng::seed_from_u64(seed);
        Nature(Some(Mutex::new(Seeded { now_ms, random })))
    }

    fn seed(&self) -> Option<MutexGuard<'_, Seeded>> {
        let seeded = self.0.as_ref()?;
        Some(seeded.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Moves the clock, in milliseconds since the Unix epoch. The machine's cannot be moved.
    pub fn set_now(&self, now_ms: u64) {
        if let Some(mut seeded) = self.seed() {
            seeded.now_ms = now_ms;
        }
    }

    /// Now, as metadata times are written: RFC 3339, UTC, whole seconds.
    pub fn now_text(&self) -> String {
        let now = match self.seed() {
            Some(seeded) => {
                let ms = i64::try_from(seeded.now_ms).unwrap_or(i64::MAX);
                jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX)
            }
            None => jiff::Timestamp::now(),
        };
        now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// A new object's uid: a random UUID.
    pub fn uid(&self) -> String {
        match self.seed() {
            Some(mut seeded) => uuid::Builder::from_random_bytes(seeded.random.random())
                .into_uuid()
                .to_string(),
            None => uuid::Uuid::new_v4().to_string(),
        }
    }

    /// A number below `span`, which counts as 1 when it is 0.
    pub fn below(&self, span: u128) -> u128 {
        let range = 0..span.max(1);
        match self.seed() {
            Some(mut seeded) => seeded.random.random_range(range),
            None => rand::rng().random_range(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself() {
        let draw = |nature: &Nature| (nature.uid(), nature.below(1 << 90), nature.now_text());
        let (one, two) = (Nature::seeded(7, 0), Nature::seeded(7, 0));
        assert_eq!(draw(&one), draw(&two));
        assert_ne!(one.uid(), one.uid());
        one.set_now(1_700_000_000_999);
        assert_eq!(one.now_text(), "2023-11-14T22:13:20Z");
        assert_ne!(Nature::real().uid(), Nature::real().uid());
    }
}
