//! No packet allocates memory: not from the cache, not on the slow walk, not when answered or refused.

use crate::bed::*;
use crate::build;
use dataplane::{PacketBuf, Verdict};
use net::Mac;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Allocations of this thread, and their bytes; tests of other threads do not count.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[expect(
    unsafe_code,
    reason = "an allocator cannot be written without it; tests only"
)]
// SAFETY: every call is passed on unchanged to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        BYTES.with(|bytes| bytes.set(bytes.get() + layout.size() as u64));
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn packets_allocate_nothing() {
    let mut bed = Bed::new();
    let vm1 = bed.underlay("vm1");
    let udp = |port: u16| from_guest(&build::udp(("10.100.1.1", port), ("10.100.2.1", 9), b""));
    let body = build::arp(
        1,
        (GUEST_MAC, v4("10.100.1.1")),
        (Mac::ZERO, v4("169.254.0.1")),
    );
    let cases = [
        ("encap, miss", VM1, udp(1)),
        ("encap, hit", VM1, udp(1)),
        (
            "encap IPv6, miss",
            VM1,
            from_guest(&build::echo("2000:100:1::1", "2000:100:2::1", true, 1)),
        ),
        (
            "decap, miss",
            PF0,
            from_fabric(vm1, &build::udp(("10.100.2.1", 9), ("10.100.1.1", 1), b"")),
        ),
        (
            "decap, hit",
            PF0,
            from_fabric(vm1, &build::udp(("10.100.2.1", 9), ("10.100.1.1", 1), b"")),
        ),
        (
            "local, miss",
            VM1,
            from_guest(&build::tcp(("10.100.1.1", 1), ("10.100.1.2", 2), 2)),
        ),
        (
            "local, hit",
            VM1,
            from_guest(&build::tcp(("10.100.1.1", 1), ("10.100.1.2", 2), 2)),
        ),
        (
            "ARP reply",
            VM1,
            build::ethernet(Mac::BROADCAST, GUEST_MAC, 0x0806, &body),
        ),
        (
            "router advertisement",
            VM1,
            from_guest(&build::icmp("fe80::2", "ff02::2", 133, 0, [0; 4], &[])),
        ),
        (
            "related ICMP error",
            PF0,
            from_fabric(
                vm1,
                &build::icmp("10.100.2.5", "10.100.1.1", 3, 3, [0; 4], &udp(1)[14..]),
            ),
        ),
        (
            "spoofed",
            VM1,
            from_guest(&build::udp(("10.1.1.1", 1), ("10.100.2.1", 9), b"")),
        ),
        (
            "no route",
            VM1,
            from_guest(&build::udp(("10.100.1.1", 1), ("8.8.8.8", 9), b"")),
        ),
    ];
    let mut packet = PacketBuf::new();
    for (name, port, frame) in cases {
        assert!(packet.fill(&frame));
        let before = ALLOCATIONS.with(Cell::get);
        let verdict = bed
            .engine
            .process(&mut bed.worker, port, &mut packet, bed.now);
        let allocated = ALLOCATIONS.with(Cell::get) - before;
        assert_eq!(allocated, 0, "{name}: {verdict:?}");
        let is_refusal = matches!(verdict, Verdict::Drop(_));
        assert_eq!(
            is_refusal,
            name == "spoofed" || name == "no route",
            "{name}: {verdict:?}"
        );
    }
    // Neither does ageing.
    let before = ALLOCATIONS.with(Cell::get);
    bed.worker.tick(bed.now.plus_secs(100));
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    assert_eq!(bed.worker.flow_saturation().0, 0);
}

#[test]
fn a_flow_costs_at_most_160_bytes() {
    let reserved = |flows_max: u32| {
        let mut config = config();
        config.limits.flows_max = flows_max;
        let engine = dataplane::Engine::new(config);
        let before = BYTES.with(Cell::get);
        let worker = engine.worker();
        let bytes = BYTES.with(Cell::get) - before;
        assert_eq!(worker.flow_saturation(), (0, flows_max as usize));
        bytes
    };
    let per_flow = (reserved(1_000_000) - reserved(1_000)) as f64 / 999_000.0;
    assert!(per_flow <= 160.0, "{per_flow} bytes");
}
