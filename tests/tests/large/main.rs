//! One story for a mesh of any size: partitions, losses and wrong clocks, with dials all along.
//! `tests/explore --large` tells it of 50 proxies and 2,000 agents; a run of the tests, of a few.

mod fleet;
mod load;
mod story;

use mesh_tests::Result;
use mesh_tests::sim::{World, run_seeded};

use crate::fleet::{Fleet, Size};

/// The story of one fleet; returns the hash of all its packets.
async fn story(world: &mut World, size: Size) -> Result<u64> {
    let mut fleet = Fleet::grow(world, size).await?;
    let told = fleet.live(world).await;
    fleet.tell_of_dials(world);
    if let Err(error) = told {
        let again = format!(
            "to run it again: tests/explore --large --proxies {} --agents {} --from {}",
            size.proxies,
            size.agents,
            world.seed()
        );
        return Err(error.context(again));
    }
    Ok(world.net().trace_hash())
}

fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(default),
    }
}

/// `MESH_LARGE_PROXIES` and `MESH_LARGE_AGENTS` say how large, `MESH_SIM_SEED` which seed.
#[test]
fn a_mesh_lives_through_partitions_losses_and_wrong_clocks() -> Result {
    let size = Size {
        proxies: usize::try_from(number("MESH_LARGE_PROXIES", 9)?)?,
        agents: usize::try_from(number("MESH_LARGE_AGENTS", 60)?)?,
    };
    run_seeded(
        "a_mesh_lives_through_partitions_losses_and_wrong_clocks",
        number("MESH_SIM_SEED", 1)?,
        async |world| story(world, size).await,
    )?;
    Ok(())
}

#[test]
fn the_story_repeats() -> Result {
    let size = Size {
        proxies: 4,
        agents: 9,
    };
    let tell = || {
        run_seeded("the_story_repeats", 7, async |world| {
            story(world, size).await
        })
    };
    let first = tell()?;
    assert_eq!(first, tell()?);
    Ok(())
}
