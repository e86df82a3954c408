//! Leases: each attempt gives its own back, however it ends.

use std::time::Duration;

use anyhow::ensure;
use certs::Kind;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Answer, Member, MemberState, Opened, Refused};
use mesh_tests::Result;
use mesh_tests::pki::Pki;
use mesh_tests::probe::Metrics;
use mesh_tests::quic;
use mesh_tests::rogue::{Friend, Rogue, greeted, hello, member, serve, tells, welcome};
use mesh_tests::sim::{Answer as Resolved, Link, NodeId, World, run};

use super::support::{MS, SECOND, attempts, connects, gauge, whole};

/// Dials that a pool has under way at most.
const PARALLEL_DIALS_MAX: usize = 4;

/// Members of one table entry that fail alike: as many as are dialled at one time.
const MEMBERS: usize = 4;

/// Where an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    DnsEmpty,
    DnsFailure,
    DnsSilence,
    UdpUnreachable,
    HandshakeTimeout,
    BadCertificate,
    RefusedHello,
    NoHello,
    LateHello,
    LostAfterRegistration,
}

const STAGES: [(Stage, &str); 10] = [
    (Stage::DnsEmpty, "resolve_failed"),
    (Stage::DnsFailure, "resolve_failed"),
    (Stage::DnsSilence, "resolve_failed"),
    (Stage::UdpUnreachable, "timeout"),
    (Stage::HandshakeTimeout, "timeout"),
    (Stage::BadCertificate, "untrusted"),
    (Stage::RefusedHello, "refused"),
    (Stage::NoHello, "timeout"),
    (Stage::LateHello, "timeout"),
    (Stage::LostAfterRegistration, "ok"),
];

/// Those that last, so that an agent may leave in the midst of one.
const LASTING: [Stage; 5] = [
    Stage::DnsSilence,
    Stage::UdpUnreachable,
    Stage::HandshakeTimeout,
    Stage::NoHello,
    Stage::LateHello,
];

/// A fleet of two proxies, a friend that tells of them, and an agent that knows the friend alone.
struct Fleet {
    proxies: Vec<NodeId>,
    friend: Friend,
    agent: NodeId,
}

impl Fleet {
    async fn start(world: &mut World) -> Result<Self> {
        world.net().set_default_link(Link::latency(10 * MS));
        let proxies = world.start_proxies(2).await?;
        world.run_for(5 * SECOND).await;
        let friend = Friend::start(world, "friend")?;
        let address = friend.rogue.address.to_string();
        let agents = world
            .start_agents_with(1, |_, plan| {
                plan.config.proxies = vec![address.clone()];
                plan.config.common.drain_deadline = 5 * SECOND;
                Ok(())
            })
            .await?;
        let fleet = Self {
            proxies,
            friend,
            agent: agents[0],
        };
        fleet.friend.tell(fleet.good(world)?);
        fleet.is_whole(world).await?;
        Ok(fleet)
    }

    fn good(&self, world: &World) -> Result<Vec<Member>> {
        let mut view = vec![self.friend.rogue.member()?];
        for proxy in &self.proxies {
            let address = world.quic_addr(*proxy).to_string();
            view.push(member(world.name(*proxy), &[&address])?);
        }
        Ok(view)
    }

    /// Every good proxy is held and nothing is under way; and so it stays.
    async fn is_whole(&self, world: &World) -> Result {
        let is_whole = |w: &World| -> Result<bool> {
            Ok(self.inflight(w)? == 0
                && w.connections(self.agent) == 3
                && gauge(w, self.agent, "mesh_agent_connected_proxies")? == 3
                && gauge(w, self.agent, "mesh_agent_desired_proxies")? == 3)
        };
        world
            .within(120 * SECOND, "the agent is whole", |w| is_whole(w).unwrap())
            .await?;
        let before = attempts(world, self.agent)?;
        for _ in 0..60 {
            world.run_for(SECOND).await;
            ensure!(is_whole(world)?, "it does not last");
        }
        ensure!(attempts(world, self.agent)? == before, "it dials on");
        Ok(())
    }

    fn inflight(&self, world: &World) -> Result<usize> {
        gauge(world, self.agent, "mesh_agent_inflight_leases")
    }

    /// Members at which every attempt ends at this stage, and what must live as long as they do.
    fn bad(&self, world: &World, stage: Stage) -> Result<(Vec<Member>, Vec<Rogue>)> {
        let mut members = Vec::new();
        let mut rogues = Vec::new();
        for index in 0..MEMBERS {
            let name = format!("bad-{index}");
            let resolved = match stage {
                Stage::DnsEmpty => Some(Resolved::Empty),
                Stage::DnsFailure => Some(Resolved::Failure),
                Stage::DnsSilence => Some(Resolved::Silence),
                Stage::UdpUnreachable
                | Stage::HandshakeTimeout
                | Stage::BadCertificate
                | Stage::RefusedHello
                | Stage::NoHello
                | Stage::LateHello
                | Stage::LostAfterRegistration => None,
            };
            if let Some(resolved) = resolved {
                let host = format!("{name}.example.com");
                world.net().set_name(&host, resolved);
                members.push(member(&name, &[&format!("{host}:7443")])?);
                continue;
            }
            if stage == Stage::UdpUnreachable {
                members.push(member(&name, &[&format!("10.99.0.{index}:7443")])?);
                continue;
            }
            let rogue = rogue(world, &name, stage)?;
            members.push(rogue.member()?);
            rogues.push(rogue);
        }
        Ok((members, rogues))
    }
}

fn rogue(world: &World, name: &str, stage: Stage) -> Result<Rogue> {
    let cluster = world.cluster();
    let own_name = name.to_owned();
    let behaviour = match stage {
        Stage::RefusedHello => serve(|connection| async move {
            let (mut send, _recv) = greeted(&connection).await?;
            let refused = Refused::new(Reason::Overloaded, "no more agents today");
            quic::write(&mut send, &Answer::Refused(refused)).await?;
            connection.closed().await;
            Ok(())
        }),
        Stage::NoHello => serve(|connection| async move {
            let _streams = greeted(&connection).await?;
            connection.closed().await;
            Ok(())
        }),
        Stage::LateHello => serve(move |connection| {
            let name = own_name.clone();
            async move {
                let (mut send, _recv) = greeted(&connection).await?;
                tokio::time::sleep(30 * SECOND).await;
                quic::write(&mut send, &Answer::Opened(Opened::default())).await?;
                quic::write(&mut send, &hello(cluster, &name)?).await?;
                connection.closed().await;
                Ok(())
            }
        }),
        Stage::LostAfterRegistration => serve(move |connection| {
            let name = own_name.clone();
            async move {
                let _streams = welcome(&connection, cluster, &name).await?;
                tokio::time::sleep(500 * MS).await;
                connection.close(77u32.into(), b"lost");
                Ok(())
            }
        }),
        Stage::DnsEmpty
        | Stage::DnsFailure
        | Stage::DnsSilence
        | Stage::UdpUnreachable
        | Stage::HandshakeTimeout
        | Stage::BadCertificate => tells(cluster, name, Vec::new()),
    };
    if stage == Stage::BadCertificate {
        // Of an authority that nobody trusts.
        let stranger = Pki::new(cluster)?.issue(Kind::Proxy, name)?;
        return Rogue::start_as(world, name, &stranger, &behaviour);
    }
    let rogue = Rogue::start(world, name, &behaviour)?;
    if stage == Stage::HandshakeTimeout {
        world.net().freeze(rogue.host);
    }
    Ok(rogue)
}

/// Looks on while attempts fail.
async fn fail_for(world: &World, fleet: &Fleet, time: Duration) -> Result<usize> {
    let end = world.elapsed() + time;
    let mut most = 0;
    while world.elapsed() < end {
        world.run_for(100 * MS).await;
        let inflight = fleet.inflight(world)?;
        ensure!(inflight <= PARALLEL_DIALS_MAX, "{inflight} dials at once");
        most = most.max(inflight);
        for proxy in &fleet.proxies {
            ensure!(
                world.sessions(*proxy) == 1,
                "{} was lost",
                world.name(*proxy)
            );
        }
    }
    Ok(most)
}

/// Attempts that fail at this stage for a while; then nobody tells of those any more.
async fn stage(world: &mut World, stage: Stage, result: &str) -> Result {
    let fleet = Fleet::start(world).await?;
    let (bad, rogues) = fleet.bad(world, stage)?;
    let before = connects(world, fleet.agent, result)?;
    let mut told = fleet.good(world)?;
    told.extend(bad.clone());
    fleet.friend.tell(told);
    let most = fail_for(world, &fleet, 60 * SECOND).await?;
    let failed = connects(world, fleet.agent, result)? - before;
    ensure!(failed >= 2 * MEMBERS, "{failed} have ended so");
    let lasts = LASTING.contains(&stage);
    ensure!(!lasts || most == PARALLEL_DIALS_MAX, "{most} at once");
    // The wait after a failure is no lease.
    let mut told = fleet.good(world)?;
    told.extend(bad.into_iter().map(|member| Member {
        state: MemberState::Left,
        ..member
    }));
    fleet.friend.tell(told);
    fleet.is_whole(world).await?;
    drop(rogues);
    // What is left of the leases is enough to come back from a loss.
    world.kill(fleet.proxies[0]);
    world
        .until("it is noticed", |w| w.connections(fleet.agent) == 2)
        .await?;
    world.restart(fleet.proxies[0]).await?;
    let mut told = fleet.good(world)?;
    told[1].epoch = 2;
    fleet.friend.tell(told);
    fleet.is_whole(world).await
}

/// An agent that leaves while attempts are under way, at each stage that lasts.
async fn shutdown(world: &mut World, stage: Stage) -> Result {
    let fleet = Fleet::start(world).await?;
    let (bad, _rogues) = fleet.bad(world, stage)?;
    let mut told = fleet.good(world)?;
    told.extend(bad);
    fleet.friend.tell(told);
    let registry = world.bound(fleet.agent)?.registry().clone();
    let inflight = || -> Result<usize> {
        let metrics = Metrics::gather(&registry)?;
        Ok(whole(metrics.get("mesh_agent_inflight_leases")?))
    };
    world
        .until("all are under way", |_| inflight().unwrap() == MEMBERS)
        .await?;
    let before = world.elapsed();
    world.stop(fleet.agent).await?;
    let took = world.elapsed() - before;
    ensure!(took < 5 * SECOND, "it took {took:?} to leave");
    assert_eq!(inflight()?, 0);
    for proxy in &fleet.proxies {
        assert_eq!(world.sessions(*proxy), 0);
    }
    Ok(())
}

#[test]
fn lease_is_never_leaked() -> Result {
    let name = "lease_is_never_leaked";
    for (at, result) in STAGES {
        run(name, 1, async |world| stage(world, at, result).await)
            .map_err(|error| error.context(format!("{at:?}")))?;
    }
    for at in LASTING {
        run(name, 1, async |world| shutdown(world, at).await)
            .map_err(|error| error.context(format!("leaving: {at:?}")))?;
    }
    Ok(())
}
