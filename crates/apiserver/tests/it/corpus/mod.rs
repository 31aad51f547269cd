//! Replays the committed corpora of the API server's fuzz targets.

mod bodies;

use std::path::Path;

/// Mutations of each corpus entry in the ordinary test; `OPENKCM_FUZZ_ROUNDS` asks for more.
const ROUNDS: u64 = 40;

fn replay(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let entries =
        std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    let seeds: Vec<Vec<u8>> = paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    for (path, data) in paths.iter().zip(&seeds) {
        let outcome = std::panic::catch_unwind(|| body(data));
        assert!(outcome.is_ok(), "{} fails", path.display());
    }
    let rounds = std::env::var("OPENKCM_FUZZ_ROUNDS").ok();
    let rounds = rounds
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(ROUNDS);
    for round in 0..rounds * seeds.len() as u64 {
        let data = mutant(&seeds, round);
        let outcome = std::panic::catch_unwind(|| body(&data));
        assert!(
            outcome.is_ok(),
            "{target}, round {round}: {:?} fails",
            String::from_utf8_lossy(&data)
        );
    }
}

/// A seeded mutation: bytes changed, removed or doubled, and pieces of another entry pasted in.
fn mutant(seeds: &[Vec<u8>], round: u64) -> Vec<u8> {
    let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |bound: usize| {
        // xorshift64; the bias of the remainder does not matter here.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 8) as usize % bound.max(1)
    };
    let mut data = seeds[round as usize % seeds.len()].clone();
    for _ in 0..1 + below(4) {
        let at = below(data.len());
        match below(5) {
            0 if !data.is_empty() => data[at] ^= 1 << below(8),
            1 if !data.is_empty() => drop(data.remove(at)),
            2 => data.insert(at.min(data.len()), below(256) as u8),
            3 => {
                let end = (at + 1 + below(12)).min(data.len());
                let piece = data[at.min(end)..end].to_vec();
                data.splice(at..at, piece);
            }
            _ => {
                let other = &seeds[below(seeds.len())];
                let from = below(other.len());
                let piece = other[from..(from + 1 + below(24)).min(other.len())].to_vec();
                let end = (at + below(8)).min(data.len());
                data.splice(at.min(end)..end, piece);
            }
        }
    }
    data
}

#[test]
fn json_patch() {
    replay("apiserver_json_patch", bodies::json_patch_body);
}

#[test]
fn apply() {
    replay("apiserver_apply", bodies::apply_body);
}

#[test]
fn selector() {
    replay("apiserver_selector", bodies::selector_body);
}

#[test]
fn protobuf() {
    replay("apiserver_protobuf", bodies::protobuf_body);
}
