//! A mesh with rogues in it, and what its agent counts and logs.

use std::time::Duration;

use anyhow::ensure;
use mesh_proto::wire::Member;
use mesh_tests::Result;
use mesh_tests::logs::{self, Logs};
use mesh_tests::rogue::{Friend, Rogue, Serve, member};
use mesh_tests::sim::{Action, Link, NodeId, Transport, World, run};
use serde_json::Value;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// Dials that the pool of an agent has under way at most.
pub(crate) const PARALLEL_DIALS_MAX: usize = 4;

/// Proxies that are in order.
const GOOD: usize = 2;

/// Runs a scenario with the log captured.
pub(crate) fn scenario<F>(name: &'static str, scenario: F) -> Result
where
    F: AsyncFnOnce(&mut World, Log) -> Result + Send,
{
    let log = Log {
        logs: logs::capture(),
        scenario: logs::of_scenario(name),
    };
    run(name, 1, async |world| {
        world.net().set_default_link(Link::latency(10 * MS));
        scenario(world, log).await
    })
}

/// What the agents of one scenario log.
#[derive(Clone)]
pub(crate) struct Log {
    logs: Logs,
    scenario: String,
}

impl Log {
    /// The warnings of agents that have all of `parts`.
    pub(crate) fn warnings(&self, parts: &[&str]) -> Vec<Value> {
        let mut all = vec![
            self.scenario.as_str(),
            "\"level\":\"WARN\"",
            "\"target\":\"node::agent",
        ];
        all.extend(parts);
        self.logs.lines_with(&all)
    }

    /// There is one warning that has all of `parts`, and its text says `why`.
    pub(crate) fn says_once(&self, parts: &[&str], why: &str) -> Result {
        let lines = self.warnings(parts);
        ensure!(lines.len() == 1, "{parts:?}: {lines:#?}");
        ensure!(lines[0].to_string().contains(why), "{why}: {}", lines[0]);
        Ok(())
    }
}

/// Two proxies in order, a friend that tells an agent of them and of rogues, and that agent.
pub(crate) struct Mesh {
    pub(crate) good: Vec<NodeId>,
    pub(crate) friend: Friend,
    pub(crate) rogues: Vec<Rogue>,
    pub(crate) agent: NodeId,
}

impl Mesh {
    /// Starts it; the agent holds the proxies that are in order.
    pub(crate) async fn start(world: &mut World, rogues: Vec<Rogue>) -> Result<Self> {
        let good = world.start_proxies(GOOD).await?;
        world.run_for(5 * SECOND).await;
        let friend = Friend::start(world, "friend")?;
        let address = friend.rogue.address.to_string();
        let mut mesh = Self {
            agent: good[0],
            good,
            friend,
            rogues,
        };
        mesh.friend.tell(mesh.good_view(world)?);
        let agents = world
            .start_agents_with(1, |_, plan| {
                plan.config.proxies = vec![address.clone()];
                Ok(())
            })
            .await?;
        mesh.agent = agents[0];
        let held = GOOD + 1;
        world
            .until("the good ones are held", |w| {
                w.connections(agents[0]) == held
            })
            .await?;
        Ok(mesh)
    }

    /// A mesh whose friend tells of these rogues.
    pub(crate) async fn with(world: &mut World, rogues: Vec<(&str, Serve)>) -> Result<Self> {
        let rogues = rogues
            .into_iter()
            .map(|(name, serve)| Rogue::start(world, name, &serve))
            .collect::<Result<Vec<_>>>()?;
        let mesh = Self::start(world, rogues).await?;
        mesh.tell_of_rogues(world)?;
        Ok(mesh)
    }

    /// The friend tells of the rogues from now on.
    pub(crate) fn tell_of_rogues(&self, world: &World) -> Result {
        let mut view = self.good_view(world)?;
        for rogue in &self.rogues {
            view.push(rogue.member()?);
        }
        self.friend.tell(view);
        Ok(())
    }

    /// The proxies that are in order, the friend itself among them.
    pub(crate) fn good_view(&self, world: &World) -> Result<Vec<Member>> {
        let mut view = vec![self.friend.rogue.member()?];
        for proxy in &self.good {
            let address = world.quic_addr(*proxy).to_string();
            view.push(member(world.name(*proxy), &[&address])?);
        }
        Ok(view)
    }

    /// Lets time pass; all the while, dials are bounded and the good proxies held by the connections
    /// that were made first.
    pub(crate) async fn live(&self, world: &World, time: Duration) -> Result {
        let end = world.elapsed() + time;
        while world.elapsed() < end {
            world.run_for(SECOND).await;
            let inflight = self.gauge(world, "mesh_agent_inflight_leases")?;
            ensure!(inflight <= PARALLEL_DIALS_MAX, "{inflight} dials at once");
            for proxy in &self.good {
                ensure!(world.sessions(*proxy) == 1, "{}", world.name(*proxy));
                let lost = world
                    .metrics(*proxy)?
                    .sum("mesh_proxy_agent_disconnects_total");
                ensure!(whole(lost) == 0, "{} was lost", world.name(*proxy));
            }
        }
        let accepted = self.friend.rogue.accepted();
        let duplicates = self.connects(world, "duplicate")?;
        ensure!(
            accepted <= 1 + duplicates,
            "{accepted} connections to the friend, {duplicates} duplicates"
        );
        Ok(())
    }

    /// How many dials of the agent have ended with this result.
    pub(crate) fn connects(&self, world: &World, result: &str) -> Result<usize> {
        let series = format!("mesh_agent_connects_total{{result=\"{result}\"}}");
        self.gauge(world, &series)
    }

    /// How many dials of the agent have ended.
    pub(crate) fn attempts(&self, world: &World) -> Result<usize> {
        Ok(whole(
            world.metrics(self.agent)?.sum("mesh_agent_connects_total"),
        ))
    }

    /// How many connections of the agent have ended for this reason.
    pub(crate) fn disconnects(&self, world: &World, reason: &str) -> Result<usize> {
        let series = format!("mesh_agent_disconnects_total{{reason=\"{reason}\"}}");
        self.gauge(world, &series)
    }

    /// How much the agent has ignored for this reason.
    pub(crate) fn ignored(&self, world: &World, reason: &str) -> Result<usize> {
        let series = format!("mesh_agent_members_ignored_total{{reason=\"{reason}\"}}");
        self.gauge(world, &series)
    }

    /// A series of the agent.
    pub(crate) fn gauge(&self, world: &World, series: &str) -> Result<usize> {
        gauge(world, self.agent, series)
    }
}

/// A series of a node.
pub(crate) fn gauge(world: &World, node: NodeId, series: &str) -> Result<usize> {
    Ok(whole(world.metrics(node)?.get(series)?))
}

/// Datagrams that were sent to an address of nobody.
pub(crate) fn lost_to_nobody(world: &World) -> u64 {
    world.net().count(Transport::Udp, Action::NoRoute)
}

/// A count, out of the metrics' floating point.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of a test are small and not negative"
)]
pub(crate) fn whole(value: f64) -> usize {
    value as usize
}
