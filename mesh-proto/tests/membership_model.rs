//! Memberships in a small world in virtual time, over a network that delays, loses, doubles and
//! reorders: what a cluster of proxies sees of itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

#[path = "membership_model/changes.rs"]
mod changes;
#[path = "membership_model/cost.rs"]
mod cost;
#[path = "membership_model/failures.rs"]
mod failures;
#[path = "membership_model/faults.rs"]
mod faults;
#[path = "membership_model/joins.rs"]
mod joins;
#[path = "membership_model/names.rs"]
mod names;
#[path = "membership_model/random.rs"]
mod random;
#[path = "membership_model/splits.rs"]
mod splits;
#[path = "membership_model/truth.rs"]
mod truth;
#[path = "membership_model/world.rs"]
mod world;
