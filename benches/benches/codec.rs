//! Frames, encoded and decoded.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench that cannot go on should say so at once; criterion's macros document nothing"
)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mesh_proto::Principal;
use mesh_proto::wire::{
    AgentFrame, AgentHello, Dial, FRAME_HEADER_BYTES, Frame, FrameHeader, Open, Protocol, Service,
};

fn round_trip<F: Frame>(bytes: &[u8]) -> F {
    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
    F::decode(
        FrameHeader::decode(*header, F::BODY_BYTES_MAX).unwrap(),
        body,
    )
    .unwrap()
    .unwrap()
}

fn encoded<F: Frame>(frame: &F) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes).unwrap();
    bytes
}

/// What every stream costs before its first byte.
fn dial(criterion: &mut Criterion) {
    let open = Open::Dial(Dial {
        target: "db.internal.example.com:5432".parse().unwrap(),
        agent: "a1".parse().unwrap(),
        principal: Principal::User("alice".parse().unwrap()),
        hops_left: 1,
        deadline_ms: 10_000,
        trace: None,
        ext: Vec::new(),
    });
    let bytes = encoded(&open);
    let mut group = criterion.benchmark_group("open_dial");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| encoded(black_box(&open)));
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| round_trip::<Open>(black_box(&bytes)));
    });
    group.finish();
}

/// An agent's hello, by the number of services: how the cost grows.
fn hello(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("agent_hello");
    for services in [0, 10, 100, 1000] {
        let hello = AgentFrame::Hello(AgentHello {
            instance: [7; 16],
            version: "0.1.0".into(),
            services: (0..services)
                .map(|index| Service {
                    name: format!("service-{index}").parse().unwrap(),
                    protocol: Protocol::Http,
                    ext: Vec::new(),
                })
                .collect(),
            ext: Vec::new(),
        });
        let bytes = encoded(&hello);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_with_input(
            BenchmarkId::new("encode", services),
            &hello,
            |bencher, hello| {
                bencher.iter(|| encoded(black_box(hello)));
            },
        );
        group.bench_with_input(
            BenchmarkId::new("decode", services),
            &bytes,
            |bencher, bytes| {
                bencher.iter(|| round_trip::<AgentFrame>(black_box(bytes)));
            },
        );
    }
    group.finish();
}

criterion_group!(benches, dial, hello);
criterion_main!(benches);
