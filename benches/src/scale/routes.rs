//! Rows of routes: every agent is at every one of ten proxies.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use mesh_proto::NodeName;
use mesh_proto::name::AgentName;
use mesh_proto::routes::{Limits, OwnRoutes, PeerRoutes};
use mesh_proto::wire::{FRAME_HEADER_BYTES, Frame, FrameHeader, RoutesFrame};

use super::Grown;
use crate::process::resident_bytes;

/// A proxy takes two million rows.
const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 200_000];
const OWNERS: usize = 10;
const LOOKUPS: usize = 100_000;

fn agent(number: usize) -> anyhow::Result<AgentName> {
    Ok(format!("agent-{number:06}").parse()?)
}

/// A process of an agent; the same at every proxy.
fn instance(number: usize) -> [u8; 16] {
    let spread = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (u128::from(spread) << 64 | u128::from(spread.rotate_left(29))).to_be_bytes()
}

fn apply(copies: &mut PeerRoutes, owner: &NodeName, frames: &[Vec<u8>]) -> anyhow::Result<()> {
    for bytes in frames {
        let (header, body) = bytes
            .split_first_chunk::<FRAME_HEADER_BYTES>()
            .context("a frame has a header")?;
        let header = FrameHeader::decode(*header, RoutesFrame::BODY_BYTES_MAX)?;
        let frame = RoutesFrame::decode(header, body)?.context("a frame that is known")?;
        copies.apply(owner, frame)?;
    }
    Ok(())
}

pub(super) fn measure() -> anyhow::Result<Grown> {
    let mut grown = Grown::new(
        "Routes: agents, each at all of ten proxies",
        &[
            "agents",
            "memory of a copied row, bytes",
            "on the wire, bytes a row",
            "to write a row, ns",
            "to read a row, ns",
            "to look an agent up, ns",
        ],
    );
    // The allocator keeps what was freed: the largest would hide what the others take.
    for agents in SIZES {
        eprintln!("{agents} routes");
        let mut own = OwnRoutes::new(1, &Limits::default());
        for number in 0..agents {
            own.add(agent(number)?, instance(number));
        }
        let began = Instant::now();
        let mut cursor = own.cursor(None);
        let mut frames = Vec::new();
        while let Some(frame) = own.next_for(&mut cursor) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes)?;
            frames.push(bytes);
        }
        let written = began.elapsed();
        let bytes: usize = frames.iter().map(Vec::len).sum();

        let before = resident_bytes(std::process::id())?;
        let began = Instant::now();
        let mut copies = PeerRoutes::new(Limits::default());
        for number in 0..OWNERS {
            apply(&mut copies, &format!("proxy-{number}").parse()?, &frames)?;
        }
        let read = began.elapsed();
        let rows = agents * OWNERS;
        ensure!(copies.len() == rows, "{} rows of {rows}", copies.len());
        let memory = resident_bytes(std::process::id())?.saturating_sub(before);

        let names = (0..agents).map(agent).collect::<anyhow::Result<Vec<_>>>()?;
        let mut number = 0;
        let began = Instant::now();
        for _ in 0..LOOKUPS {
            // Coprime to all sizes: no two lookups near each other.
            number = (number + 7_919) % agents;
            ensure!(copies.holders(black_box(&names[number])).count() == OWNERS);
        }
        let lookups = began.elapsed();
        grown.rows.push(vec![
            agents as f64,
            memory as f64 / rows as f64,
            bytes as f64 / agents as f64,
            written.as_nanos() as f64 / agents as f64,
            read.as_nanos() as f64 / rows as f64,
            lookups.as_nanos() as f64 / LOOKUPS as f64,
        ]);
    }
    Ok(grown)
}
