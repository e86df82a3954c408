//! The simulator itself, and fleets in it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod dials;
mod fleet;
mod measure;
mod network;
mod sockets;
mod traffic;
mod users;
mod users_leaving;
