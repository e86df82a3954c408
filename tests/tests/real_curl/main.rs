//! curl, as users have it, through the real binary.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod requests;
mod transfers;

const MIB: u64 = 1 << 20;
