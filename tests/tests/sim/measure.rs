//! How fast the simulator is. The numbers stand in tests/README.md.

use std::time::{Duration, Instant};

use mesh_tests::Result;
use mesh_tests::sim::{Action, Link, Transport, run};

/// A small fleet by default; `MESH_SIM_AGENTS=200,1000` measures what the README tells.
#[test]
fn measure_fleets() -> Result {
    let counts = std::env::var("MESH_SIM_AGENTS").unwrap_or_else(|_| "50".into());
    for agents in counts.split(',') {
        measure(agents.parse()?)?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "wall time is what is measured")]
fn wall() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "a measurement is read, not checked")]
fn measure(count: usize) -> Result {
    run("measure_fleets", 1, async |world| {
        world
            .net()
            .set_default_link(Link::latency(Duration::from_millis(20)).lossy(0.02));
        let started = wall();
        world.start_proxies(3).await?;
        let agents = world.start_agents(count).await?;
        let issued = started.elapsed();
        world
            .until("every agent holds every proxy", |w| w.all_hold(&agents, 3))
            .await?;
        let connected = (started.elapsed() - issued, world.elapsed());
        let handshakes = world.net().count(Transport::Udp, Action::Sent);
        let (idle, minutes) = (wall(), 5);
        world.run_for(Duration::from_secs(60 * minutes)).await;
        let idle = idle.elapsed();
        let packets = world.net().count(Transport::Udp, Action::Sent) - handshakes;
        println!(
            "{count} agents x 3 proxies: started in {issued:?}; connected in {:?} of wall time, \
             {:?} of virtual time, {handshakes} packets; {minutes} virtual minutes idle: \
             {packets} packets in {idle:?}, {:?} per virtual minute",
            connected.0,
            connected.1,
            idle / u32::try_from(minutes)?
        );
        Ok(())
    })
}
