//! Tenants with the same addresses, and packets that try everything: the program `benches/isolation` in small.

#[path = "../../benches/isolation/frames.rs"]
mod frames;
#[path = "../../benches/isolation/judge.rs"]
mod judge;
#[path = "../../benches/isolation/region.rs"]
mod region;

use dataplane::PortId;
use region::{Machine, Region};

#[test]
fn nothing_is_delivered_outside_policy() {
    for seed in 1..=4 {
        let mut region = Region::new(seed).unwrap();
        let report = region.run(400_000).unwrap();
        assert!(report.violations.is_empty(), "seed {seed}: {report}");
        assert!(
            report.to_machines > 10_000 && report.to_uplinks > 10_000,
            "{report}"
        );
        assert!(report.replies > 0 && report.exchanges > 0, "{report}");
        assert_eq!(report.drops.get("bug"), None);
    }
}

/// The judge is told that a port belongs to another tenant, or that a machine is guarded that is not.
#[test]
fn the_judge_notices() {
    let mut region = Region::new(7).unwrap();
    let machine = |tenant, is_second| Machine { tenant, is_second };
    let swapped = [
        (PortId(2), machine(1, false)),
        (PortId(4), machine(0, false)),
    ];
    region.policy.owners.extend(swapped);
    let report = region.run(100_000).unwrap();
    assert!(report.violated > 0, "{report}");
    let mut region = Region::new(7).unwrap();
    region.policy.owners.insert(PortId(3), machine(1, true));
    let report = region.run(100_000).unwrap();
    assert!(report.violated > 0, "{report}");
}
