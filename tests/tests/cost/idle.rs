//! Allocations of idle fleets per minute, in virtual time on one thread: what proxies, agents and the
//! simulated network between them allocate together. The same seed gives the same packets.

use std::time::Duration;

use mesh_tests::Result;
use mesh_tests::sim::World;

use crate::baseline::Measured;

/// From when everybody is connected until nobody has anything left to do.
const SETTLE: Duration = Duration::from_secs(120);

/// Whole periods of everything that comes back: keepalives, probes, views.
const MINUTES: u32 = 10;

pub(crate) fn measure(measured: &mut Measured) -> Result {
    for (proxies, agents) in [(3, 1), (1, 100)] {
        let fleet = match agents {
            1 => format!("an agent and its {proxies} proxies"),
            _ => format!("a proxy and its {agents} agents"),
        };
        // A thread of its own: buffers that another simulation has left would be used.
        let info = std::thread::scope(|scope| {
            scope
                .spawn(|| idle(proxies, agents))
                .join()
                .expect("the simulation has panicked")
        })?;
        for (what, total) in [
            ("allocations", info.count_total),
            ("bytes", info.bytes_total),
        ] {
            measured.add(
                format!("{fleet}, {what} per minute"),
                total as f64 / f64::from(MINUTES),
                "",
            );
        }
    }
    Ok(())
}

fn idle(proxies: usize, agents: usize) -> Result<allocation_counter::AllocationInfo> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let world = runtime.block_on(async {
        let mut world = World::new(1)?;
        world.start_proxies(proxies).await?;
        let agents = world.start_agents(agents).await?;
        world
            .until("every agent holds every proxy", |world| {
                world.all_hold(&agents, proxies)
            })
            .await?;
        world.run_for(SETTLE).await;
        Result::Ok(world)
    })?;
    let info = allocation_counter::measure(|| {
        runtime.block_on(world.run_for(Duration::from_secs(60) * MINUTES));
    });
    // Its nodes end as when the power fails: nobody looks any more.
    let _context = runtime.enter();
    drop(world);
    Ok(info)
}
