//! What routes take, counted: in memory, and on the wire.
//! `cargo test -p mesh-proto --test routes_size -- --nocapture` shows the numbers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

use mesh_proto::NodeName;
use mesh_proto::name::AgentName;
use mesh_proto::routes::{Cursor, Limits, OwnRoutes, PeerRoutes};
use mesh_proto::wire::{FRAME_HEADER_BYTES, Frame, FrameHeader, RoutesFrame};

const OWNERS: usize = 10;

fn agent(number: usize) -> AgentName {
    format!("agent-{number:06}").parse().unwrap()
}

fn owner(number: usize) -> NodeName {
    format!("proxy-{number}").parse().unwrap()
}

fn instance(number: usize) -> [u8; 16] {
    (number as u128).to_be_bytes()
}

fn own(agents: usize) -> OwnRoutes {
    let mut own = OwnRoutes::new(1, &Limits::default());
    for number in 0..agents {
        own.add(agent(number), instance(number));
    }
    own
}

fn told(own: &OwnRoutes, cursor: &mut Cursor) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| own.next_for(cursor))
        .map(|frame| {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes).unwrap();
            bytes
        })
        .collect()
}

fn bytes(frames: &[Vec<u8>]) -> usize {
    frames.iter().map(Vec::len).sum()
}

fn apply(copies: &mut PeerRoutes, owner: &NodeName, frames: &[Vec<u8>]) {
    for bytes in frames {
        let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
        let header = FrameHeader::decode(*header, RoutesFrame::BODY_BYTES_MAX).unwrap();
        let frame = RoutesFrame::decode(header, body).unwrap().unwrap();
        copies.apply(owner, frame).unwrap();
    }
}

/// What of the things that `make` returns is held as long as they are, and at most meanwhile.
fn held<T>(make: impl FnOnce() -> T) -> (T, u64, u64) {
    let mut made = None;
    let count = allocation_counter::measure(|| made = Some(make()));
    let current = u64::try_from(count.bytes_current).unwrap();
    (made.unwrap(), current, count.bytes_max)
}

#[test]
fn rows_are_small_in_memory_and_on_the_wire() {
    for agents in [10, 1_000, 100_000] {
        let rows = agents as u64;
        let (own, own_bytes, _) = held(|| own(agents));
        let frames = told(&own, &mut own.cursor(None));
        let snapshot_bytes = bytes(&frames) as u64;

        // A proxy in a mesh of ten: every agent is at all of them.
        let (mut copies, copies_bytes, _) = held(|| {
            let mut copies = PeerRoutes::new(Limits::default());
            for number in 0..OWNERS {
                apply(&mut copies, &owner(number), &frames);
            }
            copies
        });
        assert_eq!(copies.len(), agents * OWNERS);
        let copies_rows = copies.len() as u64;

        // The same read again: nothing is held twice meanwhile, but for a frame.
        let again = allocation_counter::measure(|| apply(&mut copies, &owner(3), &frames));
        assert_eq!(again.bytes_current, 0, "what is the same takes no more");

        // One owner alone: what a row costs that is the only one of its agent.
        let (_alone, alone_bytes, _) = held(|| {
            let mut copies = PeerRoutes::new(Limits::default());
            apply(&mut copies, &owner(0), &frames);
            copies
        });
        println!(
            "{agents} agents at {OWNERS} owners: {:.1} bytes a row in copies ({copies_bytes} in all), \
             {:.1} with one owner; {:.1} bytes an own row, its log with it; a snapshot of {} frames and {snapshot_bytes} \
             bytes, {:.1} a row; read again: {} bytes at most meanwhile",
            copies_bytes as f64 / copies_rows as f64,
            alone_bytes as f64 / rows as f64,
            own_bytes as f64 / rows as f64,
            frames.len(),
            snapshot_bytes as f64 / rows as f64,
            again.bytes_max,
        );
        // Names of twelve bytes. Few rows carry the room that a tree's first node has.
        if agents >= 1_000 {
            assert!(
                copies_bytes <= 20 * copies_rows,
                "{copies_bytes} bytes of copies"
            );
            assert!(alone_bytes <= 160 * rows, "{alone_bytes} bytes of one copy");
            assert!(own_bytes <= 250 * rows, "{own_bytes} bytes of own rows");
        }
        assert!(
            snapshot_bytes <= 30 * rows + 64,
            "{snapshot_bytes} bytes on the wire"
        );
        let frame_memory_max = 8 * Limits::default().frame_bytes_max as u64;
        assert!(
            again.bytes_max <= frame_memory_max,
            "{} bytes held",
            again.bytes_max
        );
    }
}

#[test]
fn a_delta_of_one_is_small_whatever_there_is() {
    for agents in [10, 1_000, 100_000] {
        let mut own = own(agents);
        let mut cursor = own.cursor(None);
        told(&own, &mut cursor);
        own.add("newcomer-001".parse().unwrap(), [1; 16]);
        let frames = told(&own, &mut cursor);
        println!(
            "{agents} agents: a delta of one is {} bytes",
            bytes(&frames)
        );
        assert_eq!(frames.len(), 1);
        assert!(bytes(&frames) <= 64, "{} bytes", bytes(&frames));
    }
}

#[test]
fn forgetting_gives_everything_back() {
    let own = own(1_000);
    let frames = told(&own, &mut own.cursor(None));
    let count = allocation_counter::measure(|| {
        let mut copies = PeerRoutes::new(Limits::default());
        for number in 0..OWNERS {
            apply(&mut copies, &owner(number), &frames);
        }
        for number in 0..OWNERS {
            copies.forget(&owner(number));
        }
        assert!(copies.is_empty());
        assert_eq!(copies.agents_len(), 0);
    });
    assert_eq!(count.bytes_current, 0);
}
