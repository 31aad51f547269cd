//! Random and mutated frames: no panic, exactly one verdict, and the fast and the slow parser agree.

use dataplane::fuzzing;

/// xorshift64*: a seed gives the same frames everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

fn mutate(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let mut frame = seed.to_vec();
    for _ in 0..1 + random.below(4) {
        match random.below(6) {
            0 if !frame.is_empty() => frame.truncate(random.below(frame.len() + 1)),
            1 => frame.extend(
                (0..random.below(40))
                    .map(|_| random.next() as u8)
                    .collect::<Vec<_>>(),
            ),
            _ if !frame.is_empty() => {
                let at = random.below(frame.len().min(120));
                frame[at] = match random.below(3) {
                    0 => random.next() as u8,
                    1 => frame[at] ^ (1 << random.below(8)),
                    _ => [0, 1, 4, 6, 17, 41, 44, 58, 60, 0x7f, 0x80, 0xff][random.below(12)],
                };
            }
            _ => {}
        }
    }
    frame
}

fn run(seed: u64, rounds: usize, seeds: &[Vec<u8>], mut check: impl FnMut(&[u8])) {
    let mut random = Random(seed);
    for _ in 0..rounds {
        let frame = if random.below(8) == 0 {
            let length = random.below(200);
            (0..length).map(|_| random.next() as u8).collect()
        } else {
            let seed = &seeds[random.below(seeds.len())];
            mutate(&mut random, seed)
        };
        check(&frame);
    }
}

#[test]
fn machine_port() {
    let mut host = fuzzing::Host::new();
    run(1, 1_000_000, &fuzzing::machine_seeds(), |frame| {
        host.check_machine(frame)
    });
}

#[test]
fn uplink() {
    let mut host = fuzzing::Host::new();
    run(2, 1_000_000, &fuzzing::uplink_seeds(), |frame| {
        host.check_uplink(frame)
    });
}

#[test]
fn dhcp_messages() {
    let mut host = fuzzing::Host::new();
    run(3, 200_000, &fuzzing::dhcp4_seeds(), |message| {
        host.check_dhcp4(message)
    });
    run(4, 200_000, &fuzzing::dhcp6_seeds(), |message| {
        host.check_dhcp6(message)
    });
}

/// Replays what the fuzzers found worth keeping.
#[test]
fn corpora() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let mut host = fuzzing::Host::new();
    for target in ["packet_machine", "packet_uplink", "dhcp4", "dhcp6"] {
        let mut replayed = 0;
        for entry in std::fs::read_dir(root.join(target)).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            match target {
                "packet_machine" => host.check_machine(&bytes),
                "packet_uplink" => host.check_uplink(&bytes),
                "dhcp4" => host.check_dhcp4(&bytes),
                _ => host.check_dhcp6(&bytes),
            }
            replayed += 1;
        }
        assert!(replayed > 0, "no corpus for {target}");
    }
}
