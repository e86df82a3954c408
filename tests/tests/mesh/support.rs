//! What the scenarios share.

use std::time::Duration;

use anyhow::Context as _;
use mesh_proto::name::AgentName;
use mesh_tests::Result;
use mesh_tests::services::pattern;
use mesh_tests::sim::{NodeId, Running, Service, World, echoes};
use node::report::{Peer, Route};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// An agent that stays with one proxy, and an echo service beside it.
pub(crate) async fn agent_at(world: &mut World, proxy: NodeId) -> Result<(NodeId, Running)> {
    let address = world.quic_addr(proxy).to_string();
    let agents = world
        .start_agents_with(1, |_, plan| {
            plan.config.proxies = vec![address.clone()];
            plan.config.connection_count = Some(1);
            plan.allow(&["10.0.0.0/8:7".into()])
        })
        .await?;
    let echo = world.serve(agents[0], 7, Service::Echo)?;
    Ok((agents[0], echo))
}

/// As [`agent_at`], and connected.
pub(crate) async fn connected_agent_at(
    world: &mut World,
    proxy: NodeId,
) -> Result<(NodeId, Running)> {
    let (agent, echo) = agent_at(world, proxy).await?;
    world
        .until("the agent is connected", |w| w.connections(agent) == 1)
        .await?;
    Ok((agent, echo))
}

/// Dials an agent's echo service through a proxy, and has bytes come back.
pub(crate) async fn reaches(world: &World, proxy: NodeId, agent: NodeId, echo: &Running) -> Result {
    let tunnel = world
        .dial(proxy, agent, &echo.rule())
        .await
        .with_context(|| format!("through {} to {}", world.name(proxy), world.name(agent)))?;
    echoes(tunnel, &pattern(0, 20_000)).await
}

/// What a proxy knows of the others.
pub(crate) fn peers(world: &World, proxy: NodeId) -> Result<Vec<Peer>> {
    Ok(world.proxy(proxy)?.peers())
}

/// Who a proxy believes to hold an agent.
pub(crate) fn route(world: &World, proxy: NodeId, agent: NodeId) -> Result<Route> {
    let name: AgentName = world.name(agent).parse()?;
    Ok(world.proxy(proxy)?.route(&name))
}

/// Whether these proxies are all connected to each other and take each other for alive.
pub(crate) fn is_meshed(world: &World, proxies: &[NodeId]) -> bool {
    proxies.iter().all(|proxy| {
        let Ok(peers) = peers(world, *proxy) else {
            return false;
        };
        let alive = peers
            .iter()
            .filter(|peer| peer.state == "alive" && peer.connection.is_some())
            .count();
        alive == proxies.len() - 1
    })
}

/// Starts proxies that know each other.
pub(crate) async fn mesh(world: &mut World, count: usize) -> Result<Vec<NodeId>> {
    let proxies = world.start_proxies(count).await?;
    world
        .until("the proxies are a mesh", |w| is_meshed(w, &proxies))
        .await?;
    Ok(proxies)
}
