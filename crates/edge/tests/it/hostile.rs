//! Whatever comes, each packet gets one verdict, nothing panics, and what leaves is well-formed.

use edge::{DropReason, Verdict};
use proptest::prelude::*;

use crate::bed::{Bed, Out, ethernet_frame, hv, ip, message, tunnelled, udp};

fn seeds() -> Vec<Vec<u8>> {
    let sent = udp("198.51.100.9", 1500, "203.0.113.5", 53);
    let error = ip(
        "203.0.113.5",
        "198.51.100.9",
        1,
        &message(3, 4, 1400, &sent),
    );
    vec![
        ethernet_frame(&udp("203.0.113.5", 1, "198.51.100.1", 2)),
        ethernet_frame(&udp("2001:db8:9::1", 1, "2001:db8:100::1", 2)),
        ethernet_frame(&error),
        tunnelled(hv(1), &sent),
        tunnelled(hv(1), &udp("198.51.100.1", 1, "198.51.100.2", 2)),
        tunnelled(hv(1), &udp("2001:db8:100::1", 1, "2001:db8:9::1", 2)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn damaged_packets(
        seed in 0_usize..6,
        damage in prop::collection::vec((0_usize..150, any::<u8>()), 0..6),
        length in 0_usize..200,
    ) {
        let mut bed = Bed::new();
        let mut frame = seeds().swap_remove(seed);
        for (at, byte) in damage {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        frame.truncate(length.max(1));
        match bed.put(&frame) {
            Verdict::Send(_) | Verdict::Answer(_) => match bed.out() {
                Out::Tunnel(_, inner) => prop_assert!(edge::flow::parse(&inner).is_ok()),
                Out::Plain(packet) => prop_assert!(edge::flow::parse(&packet).is_ok()),
            },
            Verdict::Drop(reason) => prop_assert_ne!(reason, DropReason::Bug),
        }
        prop_assert_eq!(bed.counters.figures().total(), 1);
    }
}
