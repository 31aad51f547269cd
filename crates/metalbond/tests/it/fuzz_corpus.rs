//! Replays the fuzz corpora, and mutations of them.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::fuzz_bodies;

fn replay(name: &str, body: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(name);
    let mut inputs: Vec<Vec<u8>> = std::fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 5, "the corpus must not be empty");
    for (index, input) in inputs.iter().enumerate() {
        body(input);
        for seed in 0..300 {
            let mut rng = StdRng::seed_from_u64(seed * 1000 + index as u64);
            body(&mutated(input, &inputs, &mut rng));
        }
    }
}

fn mutated(input: &[u8], inputs: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..4) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.random()),
            2 => {
                let other = &inputs[rng.random_range(0..inputs.len())];
                bytes.splice(at..at, other.iter().copied());
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = rng.random();
                }
            }
        }
    }
    bytes
}

#[test]
fn codec_corpus() {
    replay("metalbond_codec", fuzz_bodies::codec);
}

#[test]
fn peer_corpus() {
    replay("metalbond_peer", fuzz_bodies::peer);
}
