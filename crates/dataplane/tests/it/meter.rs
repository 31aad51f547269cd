//! Rate limits against a bucket that counts bits in rational numbers.

use dataplane::{Instant, TokenBucket};
use proptest::prelude::*;

#[test]
fn rates_and_bursts() {
    assert!(TokenBucket::new(0).is_none(), "0 is unlimited");
    // Any rate works, also those below 8 Mbit/s.
    for rate in [1_u64, 7, 8, 100, 1_000, 100_000] {
        let bucket = TokenBucket::new(rate).unwrap();
        assert_eq!(bucket.rate_mbit(), rate);
        let start = Instant::from_secs(5);
        let mut passed = 0_u64;
        while bucket.admit(1_000, start) {
            passed += 1_000;
        }
        let burst = bucket.burst_bytes();
        assert!(
            passed <= burst && passed + 1_000 >= burst - 10,
            "{rate}: {passed} of {burst}"
        );
        // One second later, the rate's worth of bytes may pass, but no more than the burst.
        let later = start.plus_secs(1);
        let mut again = 0_u64;
        while bucket.admit(1_000, later) {
            again += 1_000;
        }
        let expected = (rate * 1_000_000 / 8).min(burst);
        assert!(
            again.abs_diff(expected) <= 2_000,
            "{rate}: {again} instead of {expected}"
        );
    }
}

#[test]
fn a_refused_packet_costs_nothing() {
    let bucket = TokenBucket::new(1).unwrap();
    let now = Instant::from_secs(1);
    assert!(!bucket.admit(bucket.burst_bytes() + 1_000, now));
    assert!(bucket.admit(bucket.burst_bytes() - 100, now));
}

proptest! {
    /// Never more than burst plus rate times time, and a packet is refused only if that would be exceeded.
    #[test]
    fn as_the_naive_model(rate in 1_u64..1_000, packets in prop::collection::vec((0_u64..2_000_000, 40_u64..9_000), 1..300)) {
        let bucket = TokenBucket::new(rate).unwrap();
        let burst_bits = bucket.burst_bytes() as f64 * 8.0;
        let mut tokens = burst_bits;
        let mut now = 1_000_000_000_u64;
        for (wait, bytes) in packets {
            now += wait;
            tokens = (tokens + wait as f64 * rate as f64 / 1_000.0).min(burst_bits);
            let admitted = bucket.admit(bytes, Instant(now));
            let bits = bytes as f64 * 8.0;
            // Rounding of the time per packet: one part in thousands.
            let slack = burst_bits * 0.002 + 100.0;
            if admitted {
                prop_assert!(bits <= tokens + slack, "admitted {bits} with {tokens}");
                tokens -= bits;
            } else {
                prop_assert!(bits >= tokens - slack, "refused {bits} with {tokens}");
            }
        }
    }
}
