//! `cargo +nightly fuzz run membership`, from `mesh-proto/`. What it does is in `mesh_proto::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzzing::membership(data));
