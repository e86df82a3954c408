//! What forwarding costs, counted and not timed: allocations and system calls per MiB, per dial and
//! per idle minute, against `tests/cost.toml`. A change that makes the tunnel more expensive fails
//! here on any machine, however busy it is.
//!
//! ```sh
//! cargo test -p mesh-tests --test cost -- --nocapture    # every number
//! tests/cost --accept                                    # the numbers of now are the baseline
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`baseline`] | the file, and what is more than it says |
//! | [`load`] | what is done to a tunnel |
//! | [`allocations`] | a proxy and an agent in this process, a thread each |
//! | [`idle`] | idle fleets in virtual time |
//! | [`syscalls`] | the real binary, under strace |
//! | [`traced`] | a program under strace |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![expect(clippy::print_stdout, reason = "numbers are for people to read")]

mod allocations;
mod baseline;
mod idle;
mod load;
mod syscalls;
mod traced;

use std::sync::{Mutex, PoisonError};

use mesh_tests::Result;

use crate::baseline::{Baseline, Measured};

const MIB: u64 = 1 << 20;

/// What is moved in each direction while it is counted.
const BULK_BYTES: u64 = 64 * MIB;

/// What is moved before, until congestion windows have grown.
const WARM_UP_BYTES: u64 = 16 * MIB;

/// Connections that are made while it is counted, one after the other.
const DIALS: u32 = 200;

/// Connections that are made before.
const WARM_UP_DIALS: u32 = 20;

/// Packets of one size from the first on, as on most of the internet.
const MTU: u16 = 1452;

/// One at a time: two loads at once would share what a wake-up finds.
static ALONE: Mutex<()> = Mutex::new(());

fn check(group: &str, measure: impl FnOnce(&mut Measured) -> Result) -> Result {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut measured = Measured::default();
    measure(&mut measured)?;
    Baseline::committed()?.judge(group, &measured)
}

#[test]
fn allocations_are_as_few_as_before() -> Result {
    check("allocations", allocations::measure)
}

#[test]
fn idle_allocations_are_as_few_as_before() -> Result {
    check("idle_allocations", idle::measure)
}

#[test]
fn system_calls_are_as_few_as_before() -> Result {
    check("system_calls", syscalls::measure)
}
