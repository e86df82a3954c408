//! The agent's pool in a small world in virtual time: what a fleet does, counted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

#[path = "pool_model/faults.rs"]
mod faults;
#[path = "pool_model/fleet.rs"]
mod fleet;
#[path = "pool_model/leases.rs"]
mod leases;
#[path = "pool_model/mesh.rs"]
mod mesh;
#[path = "pool_model/rollout.rs"]
mod rollout;
#[path = "pool_model/world.rs"]
mod world;
