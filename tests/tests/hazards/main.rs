//! What QUIC does to those who do not look out, each seen once in a real measurement: a window so large
//! that gaps close the connection, packets that no socket takes, limits that cost memory before they
//! are used. Nothing here is timed: counts, sizes and virtual time alone.
//!
//! | module | what |
//! |---|---|
//! | [`gaps`] | a burst of losses makes holes in a stream, and closes nothing |
//! | [`packets`] | the largest packets, in the largest batches, fit into what a socket sends; its buffer is as told |
//! | [`limits`] | few streams are allowed where few are needed; windows hold all stalled streams |
//! | [`sharing`] | a small request waits for a bounded number of bytes of a large stream |
//! | [`congestion`] | both controllers get through loss, reordering and tiny queues |
//!
//! Stalled streams are in `streams/pressure.rs`, what an idle stream holds is in `cost`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod congestion;
mod gaps;
mod limits;
mod packets;
mod sharing;
