//! Many tunnels that change at random, in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use certs::{ForeignAuthority, Kind};
use mesh_proto::allow::AllowList;
use mesh_tests::Result;
use mesh_tests::pki::Pki;
use mesh_tests::sim::{self, NodeId, World};
use node::config::TrustConfig;
use node::proxy::tunnels::TunnelState;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::tunnel;

/// Tunnels that change.
pub(crate) const TUNNELS: usize = 1000;

/// Changes of them.
const CHANGES: usize = 60;

/// Clusters that answer; to the others, every packet is lost.
pub(crate) const LIVE: usize = 4;

/// An address that leads nowhere.
const NOWHERE: [&str; 2] = ["10.99.0.1:7443", "10.99.0.2:7443"];

/// Within so long of a change, the running pools are the wanted ones.
const BOUND: Duration = Duration::from_secs(1);

pub(crate) fn cluster(number: usize) -> String {
    format!("c{number:04}.example.com")
}

/// The real proxy and the real pools; what they dial is mostly nobody. Each change adds, removes and
/// moves some tunnels, and some of them several times in one moment.
#[test]
fn thousand_tunnels_change_at_random() -> Result {
    sim::run("thousand_tunnels_change_at_random", 1, async |world| {
        let pkis: Vec<Pki> = (0..LIVE)
            .map(|number| Pki::new(&cluster(number)))
            .collect::<Result<_>>()?;
        // One more authority stands for all clusters of which nobody is there.
        let trusts = trusts(&pkis)?;
        let keeper = world
            .start_proxies_with(1, |_, plan| {
                plan.config.trust = trusts.clone();
                Ok(())
            })
            .await?[0];
        let own = trust_of(world.pki())?;
        let live: Vec<NodeId> = world
            .start_proxies_with(LIVE, |index, plan| {
                let config = &mut plan.config;
                let credentials = pkis[index].issue(Kind::Proxy, &format!("live-{index}"))?;
                config.common.name = credentials.identity().name.clone();
                config.common.cluster = credentials.identity().cluster.clone();
                config.common.credentials = credentials;
                config.peers = Vec::new();
                config.trust = vec![own.clone()];
                Ok(())
            })
            .await?;
        let mut rng = StdRng::seed_from_u64(world.seed());
        let mut wanted: BTreeMap<usize, (usize, u64)> = BTreeMap::new();
        for change in 0..CHANGES {
            for _ in 0..rng.random_range(1..4) {
                mutate(&mut rng, &mut wanted, change);
                apply(world, keeper, &live, &wanted)?;
            }
            let names: BTreeSet<String> = wanted.keys().map(|number| cluster(*number)).collect();
            world
                .within(BOUND, "the running pools are the wanted ones", |w| {
                    running(w, keeper).is_ok_and(|running| running == names)
                })
                .await?;
            // Some changes come while all of that is under way.
            world
                .run_for(Duration::from_millis(rng.random_range(0..3000)))
                .await;
        }
        // At rest: those that answer are connected where they are wanted, and nowhere else.
        for number in 0..LIVE {
            wanted.insert(number, (0, 0));
        }
        wanted.remove(&0);
        apply(world, keeper, &live, &wanted)?;
        world
            .until("the tunnels to those who answer stand", |w| {
                (0..LIVE).all(|number| w.sessions(live[number]) == usize::from(number != 0))
            })
            .await?;
        let states = world.proxy(keeper)?.tunnels().states();
        let connected: Vec<_> = states
            .iter()
            .filter(|(_, state)| matches!(state, TunnelState::Connected { .. }))
            .map(|(cluster, _)| cluster.to_string())
            .collect();
        ensure!(
            connected == [cluster(1), cluster(2), cluster(3)],
            "{connected:?}"
        );
        // The rest is said to fail, once its dials have.
        world
            .until("the others fail", |w| {
                let states = w.proxy(keeper).map(|proxy| proxy.tunnels().states());
                states.is_ok_and(|states| {
                    let failing = |(_, state): &&(_, TunnelState)| {
                        matches!(state, TunnelState::Failing { .. })
                    };
                    states.iter().filter(failing).count() == states.len() - 3
                })
            })
            .await?;
        world.proxy(keeper)?.tunnels().apply(Vec::new());
        world
            .within(BOUND, "nothing runs any more", |w| {
                running(w, keeper).is_ok_and(|running| running.is_empty())
                    && live.iter().all(|proxy| w.sessions(*proxy) == 0)
            })
            .await?;
        Ok(())
    })
}

pub(crate) fn trust_of(pki: &Pki) -> Result<TrustConfig> {
    trust_as(pki.authority().cluster().as_str(), pki.authority().ca_pem())
}

fn trust_as(cluster: &str, pem: &str) -> Result<TrustConfig> {
    let cluster = cluster.parse()?;
    Ok(TrustConfig {
        authority: ForeignAuthority::from_pem(&cluster, Path::new("ca.pem"), pem.as_bytes())?,
        cluster,
        allow: AllowList::default(),
    })
}

/// What the keeper trusts: all of them.
pub(crate) fn trusts(live: &[Pki]) -> Result<Vec<TrustConfig>> {
    let mut trusts: Vec<_> = live.iter().map(trust_of).collect::<Result<_>>()?;
    for number in LIVE..TUNNELS {
        trusts.push(trust_of(&Pki::new(&cluster(number))?)?);
    }
    Ok(trusts)
}

/// Adds, removes and moves tunnels; at first mostly adds.
fn mutate(rng: &mut StdRng, wanted: &mut BTreeMap<usize, (usize, u64)>, change: usize) {
    let adds = if change < 10 { 150 } else { 30 };
    for _ in 0..rng.random_range(0..adds) {
        wanted.insert(rng.random_range(0..TUNNELS), (0, rng.random_range(0..3)));
    }
    for _ in 0..rng.random_range(0..30) {
        wanted.remove(&rng.random_range(0..TUNNELS));
    }
    for (place, count) in wanted.values_mut() {
        if rng.random_range(0..50) == 0 {
            *place = 1 - *place;
            *count = rng.random_range(0..3);
        }
    }
}

fn apply(
    world: &World,
    keeper: NodeId,
    live: &[NodeId],
    wanted: &BTreeMap<usize, (usize, u64)>,
) -> Result {
    let tunnels = wanted
        .iter()
        .map(|(number, (place, count))| {
            let address: SocketAddr = match live.get(*number) {
                Some(proxy) => world.quic_addr(*proxy),
                None => NOWHERE[*place].parse()?,
            };
            tunnel(&cluster(*number), &[address], *count)
        })
        .collect::<Result<Vec<_>>>()?;
    world.proxy(keeper)?.tunnels().apply(tunnels);
    Ok(())
}

fn running(world: &World, keeper: NodeId) -> Result<BTreeSet<String>> {
    let states = world.proxy(keeper)?.tunnels().states();
    Ok(states
        .into_iter()
        .map(|(cluster, _)| cluster.to_string())
        .collect())
}
