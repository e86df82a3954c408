//! What an agent costs that has nothing to do: a count of packets, which a polling loop would raise.

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{Action, Transport, run};

use crate::support::SECOND;

/// Each side of a connection sends a keepalive every 5 s that the other acknowledges, and a proxy
/// tells of its view every minute: 48 packets a minute, and a few more.
const PACKETS_PER_MINUTE_MAX: u64 = 60;

#[test]
fn an_idle_connection_costs_its_keepalives() -> Result {
    run(
        "an_idle_connection_costs_its_keepalives",
        1,
        async |world| {
            let proxies = world.start_proxies(1).await?;
            let agents = world.start_agents(1).await?;
            world
                .until("the agent is connected", |w| w.sessions(proxies[0]) == 1)
                .await?;
            world.run_for(60 * SECOND).await;
            let before = world.net().count(Transport::Udp, Action::Sent);
            world.run_for(600 * SECOND).await;
            let packets = world.net().count(Transport::Udp, Action::Sent) - before;
            ensure!(world.all_hold(&agents, 1));
            ensure!(packets > 100, "keepalives are sent");
            ensure!(
                packets <= 10 * PACKETS_PER_MINUTE_MAX,
                "{packets} packets in ten minutes"
            );
            Ok(())
        },
    )
}
