//! `cargo +nightly fuzz run gossip`, from `mesh-proto/`. What it does is in `mesh_proto::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzzing::gossip(data));
