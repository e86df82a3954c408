//! An agent, a proxy in order, and a proxy that tells of a third one.

use std::time::Duration;

use anyhow::ensure;
use mesh_proto::wire::{self, FRAME_HEADER_BYTES};
use mesh_tests::Result;
use mesh_tests::logs::Logs;
use mesh_tests::sim::liar::Liar;
use mesh_tests::sim::{NodeId, World};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// What a proxy in order tells of itself.
pub(crate) fn member_of(world: &World, proxy: NodeId) -> Result<wire::Member> {
    let own = world.proxy(proxy)?.status();
    let known = own.proxy.as_ref();
    Ok(wire::Member {
        name: own.name.parse()?,
        group: known.map_or("default", |proxy| &proxy.group).parse()?,
        generation: mesh_proto::name::Generation(known.map_or(0, |proxy| proxy.generation)),
        epoch: known.map_or(0, |proxy| proxy.epoch),
        addresses: vec![world.quic_addr(proxy).to_string()],
        state: wire::MemberState::Alive,
        ttl_ms: 300_000,
        ext: Vec::new(),
    })
}

/// A proxy in order and an agent, which comes by way of `teller`, who tells of the proxy and of
/// `others`.
pub(crate) struct Stage {
    pub(crate) proxy: NodeId,
    pub(crate) agent: NodeId,
    pub(crate) teller: Liar,
}

impl Stage {
    pub(crate) async fn new(
        world: &mut World,
        teller: &str,
        others: Vec<wire::Member>,
    ) -> Result<Self> {
        let proxy = world.start_proxies(1).await?[0];
        let mut members = vec![member_of(world, proxy)?];
        members.extend(others);
        let teller = world.tell(teller, members)?;
        let address = teller.address.to_string();
        let agent = world
            .start_agents_with(1, |_, plan| {
                plan.config.proxies = vec![address.clone()];
                Ok(())
            })
            .await?[0];
        world
            .within(120 * SECOND, "the agent holds the proxy in order", |w| {
                w.sessions(proxy) == 1
            })
            .await?;
        Ok(Self {
            proxy,
            agent,
            teller,
        })
    }

    /// Lets an hour pass, in which the agent keeps the proxy in order and never dials more than a few
    /// at a time; how many dials it has made in that hour.
    pub(crate) async fn hour(&self, world: &World) -> Result<usize> {
        let before = attempts(world, self.agent)?;
        let started = world.elapsed();
        while world.elapsed() - started < HOUR {
            world.run_for(5 * SECOND).await;
            ensure!(world.sessions(self.proxy) == 1, "the proxy was lost");
            let leases = gauge(world, self.agent, "mesh_agent_inflight_leases")?;
            ensure!(leases <= 4, "{leases} dials at once");
        }
        Ok(attempts(world, self.agent)? - before)
    }
}

pub(crate) fn attempts(world: &World, agent: NodeId) -> Result<usize> {
    Ok(whole(
        world.metrics(agent)?.sum("mesh_agent_connects_total"),
    ))
}

pub(crate) fn gauge(world: &World, agent: NodeId, series: &str) -> Result<usize> {
    Ok(whole(world.metrics(agent)?.get(series)?))
}

/// How often an agent has counted this reason of `mesh_agent_members_ignored_total`.
pub(crate) fn ignored(world: &World, agent: NodeId, reason: &str) -> Result<usize> {
    gauge(
        world,
        agent,
        &format!("mesh_agent_members_ignored_total{{reason=\"{reason}\"}}"),
    )
}

/// How many dials ended so.
pub(crate) fn connects(world: &World, agent: NodeId, result: &str) -> Result<usize> {
    gauge(
        world,
        agent,
        &format!("mesh_agent_connects_total{{result=\"{result}\"}}"),
    )
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of a test are small and not negative"
)]
fn whole(value: f64) -> usize {
    value as usize
}

/// The warnings that name `who`, which must be as unique as the test's process.
pub(crate) fn warnings(logs: &Logs, who: &str) -> Vec<String> {
    logs.lines_with(&["\"WARN\"", who])
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The frame with another name in it: the same but for the name and the lengths.
pub(crate) fn renamed(frame: &[u8], from: &str, to: &[u8]) -> Vec<u8> {
    let mut needle = vec![u8::try_from(from.len()).unwrap_or(u8::MAX)];
    needle.extend_from_slice(from.as_bytes());
    let at = frame
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap_or(frame.len());
    let mut changed = frame[..at].to_vec();
    if at < frame.len() {
        // Lengths below 251 are one byte.
        changed.push(u8::try_from(to.len()).unwrap_or(250));
        changed.extend_from_slice(to);
        changed.extend_from_slice(&frame[at + needle.len()..]);
    }
    let body = u32::try_from(changed.len() - FRAME_HEADER_BYTES).unwrap_or(u32::MAX);
    changed[..4].copy_from_slice(&body.to_be_bytes());
    changed
}
