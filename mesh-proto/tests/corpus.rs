//! Runs every fuzz target over its committed corpus, and over variants of each input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;

use mesh_proto::fuzzing;

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

#[test]
fn every_input_and_its_variants_keep_the_promises() {
    for (target, run) in fuzzing::TARGETS {
        let mut inputs = 0;
        for entry in
            fs::read_dir(corpus(target)).unwrap_or_else(|error| panic!("{target}: {error}"))
        {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            run(&input);
            variants(&input, *run);
            inputs += 1;
        }
        assert!(inputs >= 5, "{target} has a corpus of {inputs} inputs");
    }
}

#[test]
fn every_target_has_its_harness() {
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (target, _) in fuzzing::TARGETS {
        assert!(
            manifest.contains(&format!("name = \"{target}\"")),
            "{target} is not in fuzz/Cargo.toml"
        );
        let harness = fs::read_to_string(fuzz.join(format!("fuzz_targets/{target}.rs"))).unwrap();
        assert!(
            harness.contains(&format!("mesh_proto::fuzzing::{target}(")),
            "{target} runs another target"
        );
    }
}

/// Every cut, and at every byte the changes that break encodings: ends of ranges, single bits, a
/// byte too few or too many.
fn variants(input: &[u8], run: fuzzing::Run) {
    const POSITIONS_MAX: usize = 600;
    for at in 0..input.len().min(POSITIONS_MAX) {
        run(&input[..at]);
        let mut changed = input.to_vec();
        for byte in [
            0,
            1,
            0x7f,
            0x80,
            250,
            251,
            252,
            253,
            254,
            255,
            input[at] ^ 1,
            input[at] ^ 0x80,
        ] {
            changed[at] = byte;
            run(&changed);
        }
        changed.remove(at);
        run(&changed);
        changed.insert(at, input[at]);
        changed.insert(at, input[at]);
        run(&changed);
    }
}
