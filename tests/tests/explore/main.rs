//! Random faults over random fleets, and what must hold whatever happens. `tests/explore` runs many
//! seeds; a run of the tests, a few.

mod faults;
mod fleet;
mod invariants;

use mesh_tests::Result;
use mesh_tests::sim::{World, run_seeded};

use crate::fleet::Fleet;

/// Seeds of an ordinary run.
const SEEDS: u64 = 8;

/// One life of one fleet: it grows, suffers, is left alone, and must be whole again.
async fn life(world: &mut World) -> Result<u64> {
    let mut fleet = Fleet::grow(world).await?;
    let outcome = async {
        fleet.suffer(world).await?;
        fleet.recover(world).await
    };
    if let Err(error) = outcome.await {
        return Err(error.context(fleet.story()));
    }
    Ok(world.net().trace_hash())
}

fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(default),
    }
}

/// `MESH_EXPLORE_SEEDS` says how many, `MESH_EXPLORE_FROM` the first; `MESH_SIM_SEED` is one alone.
#[test]
fn fleets_recover_from_whatever_happens() -> Result {
    let name = "fleets_recover_from_whatever_happens";
    let (from, count) = match std::env::var("MESH_SIM_SEED") {
        Ok(seed) => (seed.parse()?, 1),
        Err(_) => (
            number("MESH_EXPLORE_FROM", 1)?,
            number("MESH_EXPLORE_SEEDS", SEEDS)?,
        ),
    };
    let mut failed = Vec::new();
    for seed in from..from + count {
        if let Err(error) = run_seeded(name, seed, life) {
            println!("seed {seed}: {error:#}");
            failed.push(seed);
        } else if count > SEEDS {
            println!("seed {seed}: ok");
        }
    }
    anyhow::ensure!(
        failed.is_empty(),
        "of {count} seeds these failed: {failed:?}"
    );
    Ok(())
}

#[test]
fn a_life_repeats() -> Result {
    for seed in [3, 5] {
        let first = run_seeded("a_life_repeats", seed, life)?;
        assert_eq!(
            first,
            run_seeded("a_life_repeats", seed, life)?,
            "seed {seed}"
        );
    }
    Ok(())
}
