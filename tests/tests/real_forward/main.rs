//! `node forward` as a user runs it: the real binary, against real proxies and agents.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod endings;
mod failover;
mod programs;
mod refusals;
mod support;
mod traffic;
mod usage;
