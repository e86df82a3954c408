//! Many tunnels that change at random in a store which fails, in virtual time: the store, the watch and
//! the pools as one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use certs::Kind;
use mesh_proto::tunnel::{KEY_PREFIX, Tunnel};
use mesh_tests::Result;
use mesh_tests::pki::Pki;
use mesh_tests::sim::{self, NodeId, World};
use mesh_tests::store::{Memory, Outages, virtual_clock};
use node::config::TrustConfig;
use node::proxy::Phase;
use node::store::{Revision, Store};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::fleet::{LIVE, TUNNELS, cluster, trust_of, trusts};
use crate::support::tunnel;

/// Proxies that keep the tunnels.
const KEEPERS: usize = 2;

/// Rounds of changes.
const ROUNDS: usize = 20;

/// Within so long of a change, the running pools are the stored ones.
const BOUND: Duration = Duration::from_secs(1);

/// Within so long of the end of what kept the store from being read: the longest wait between two
/// tries, and the bound.
const BOUND_AFTER_FAILURE: Duration = Duration::from_secs(11);

/// Two of each cluster that answers, which do not know each other: where a tunnel leads is seen.
const DOORS: usize = 2;

/// Leads nowhere.
const NOWHERE: &str = "10.99.0.1:7443";

/// The fleet, and what it goes by.
struct Fleet {
    memory: Memory,
    /// The store, as each keeper reaches it.
    ways: Vec<Arc<Outages>>,
    keepers: Vec<NodeId>,
    /// The doors of each cluster that answers.
    live: Vec<Vec<NodeId>>,
}

/// What runs or should: clusters, with addresses and counts.
type Forms = BTreeMap<String, (Vec<String>, u32)>;

#[test]
fn pools_follow_the_store() -> Result {
    sim::run("pools_follow_the_store", 1, scenario)
}

async fn scenario(world: &mut World) -> Result {
    let fleet = start(world).await?;
    let mut rng = StdRng::seed_from_u64(world.seed());
    // As it was when it was cut off, of each keeper that is.
    let mut before: Vec<Option<Forms>> = vec![None; KEEPERS];
    let mut lives = 0;
    for round in 0..ROUNDS {
        for _ in 0..rng.random_range(1..4) {
            lives += change(world, &fleet, &mut rng, round).await?;
        }
        let mut bound = BOUND;
        if rng.random_ratio(1, 10) {
            // Before anybody has heard of it: whoever watches has failed, and reads all of it anew.
            fleet.memory.compact();
            bound = BOUND_AFTER_FAILURE;
        }
        for (keeper, was) in before.iter_mut().enumerate() {
            if was.is_none() && rng.random_ratio(1, 4) {
                settled(world, &fleet, keeper, bound).await?;
                fleet.ways[keeper].set_down(true);
                *was = Some(running(world, fleet.keepers[keeper])?);
            } else if was.is_some() && rng.random_ratio(1, 2) {
                fleet.ways[keeper].set_down(false);
                *was = None;
                bound = BOUND_AFTER_FAILURE;
            }
        }
        for (keeper, was) in before.iter().enumerate() {
            if was.is_none() {
                settled(world, &fleet, keeper, bound).await?;
            }
        }
        // Some changes come while all of that is under way.
        let pause = Duration::from_millis(rng.random_range(50..2000));
        world.run_for(pause).await;
        for (keeper, was) in before.iter().enumerate() {
            let Some(was) = was else { continue };
            ensure!(
                running(world, fleet.keepers[keeper])? == *was,
                "an outage has changed what runs, in round {round}"
            );
            let metrics = world.metrics(fleet.keepers[keeper])?;
            ensure!(
                metrics.get("mesh_store_connected")? == 0.0,
                "the outage is not told of, in round {round}"
            );
        }
    }
    ensure!(lives > 20, "only {lives} tunnels had a time to live");
    rest(world, &fleet).await
}

async fn start(world: &mut World) -> Result<Fleet> {
    let pkis: Vec<Pki> = (0..LIVE)
        .map(|number| Pki::new(&cluster(number)))
        .collect::<Result<_>>()?;
    let trusts: Vec<TrustConfig> = trusts(&pkis)?;
    let memory = Memory::new(virtual_clock());
    let mut ways = Vec::new();
    let keepers = world
        .start_proxies_with(KEEPERS, |_, plan| {
            let way = Outages::new(Arc::new(memory.clone()));
            ways.push(way.clone());
            plan.hooks.store = Some(way);
            plan.config.trust = trusts.clone();
            Ok(())
        })
        .await?;
    let own = trust_of(world.pki())?;
    let doors = world
        .start_proxies_with(LIVE * DOORS, |index, plan| {
            let config = &mut plan.config;
            let credentials = pkis[index / DOORS].issue(Kind::Proxy, &format!("door-{index}"))?;
            config.common.name = credentials.identity().name.clone();
            config.common.cluster = credentials.identity().cluster.clone();
            config.common.credentials = credentials;
            config.peers = Vec::new();
            config.trust = vec![own.clone()];
            Ok(())
        })
        .await?;
    // Before, they keep no tunnels: they do not know yet where agents are.
    let serves = |world: &World, keeper: &NodeId| {
        let proxy = world.proxy(*keeper);
        proxy.is_ok_and(|proxy| *proxy.readiness().borrow() == Phase::Serving)
    };
    world
        .until("the keepers have joined", |world| {
            keepers.iter().all(|keeper| serves(world, keeper))
        })
        .await?;
    Ok(Fleet {
        memory,
        ways,
        keepers,
        live: doors.chunks(DOORS).map(<[NodeId]>::to_vec).collect(),
    })
}

/// One change in the store, of one or many tunnels; how many of them have a time to live.
async fn change(world: &World, fleet: &Fleet, rng: &mut StdRng, round: usize) -> Result<usize> {
    let mut lives = 0;
    let puts = match rng.random_range(0..4) {
        // All of them at once, in the beginning.
        _ if round == 0 => TUNNELS,
        0 => rng.random_range(1..100),
        _ => rng.random_range(1..10),
    };
    for put in 0..puts {
        let number = if round == 0 { put } else { pick(rng) };
        let place = match fleet.live.get(number) {
            Some(doors) => world.quic_addr(*doors.choose(rng).context("a door")?),
            None => NOWHERE.parse()?,
        };
        let stored = tunnel(&cluster(number), &[place], rng.random_range(0..3))?;
        let ttl = rng
            .random_ratio(1, 4)
            .then(|| Duration::from_millis(rng.random_range(2000..60_000)));
        lives += usize::from(ttl.is_some());
        let key = Tunnel::key(stored.cluster());
        let there = fleet.memory.get(&key).await?;
        let there = there.map_or(Revision::NONE, |entry| entry.modified);
        fleet
            .memory
            .put(&key, stored.encode().into(), there, ttl)
            .await?;
    }
    for _ in 0..rng.random_range(0..puts.min(20)) {
        let key = format!("{KEY_PREFIX}{}", cluster(pick(rng)));
        fleet.memory.delete(&key, None).await?;
    }
    Ok(lives)
}

/// A tunnel: of one that answers, in one case of five.
fn pick(rng: &mut StdRng) -> usize {
    if rng.random_ratio(1, 5) {
        rng.random_range(0..LIVE)
    } else {
        rng.random_range(0..TUNNELS)
    }
}

/// What the store holds.
async fn stored(fleet: &Fleet) -> Result<Forms> {
    let listing = fleet.memory.list(KEY_PREFIX).await?;
    let forms = listing.entries.iter().map(|entry| {
        let tunnel = Tunnel::decode(&entry.key, &entry.value, entry.modified.0)?;
        let addresses = tunnel.addresses().iter().map(ToString::to_string).collect();
        Ok((
            tunnel.cluster().to_string(),
            (addresses, tunnel.connections()),
        ))
    });
    forms.collect()
}

/// The pools that run at a keeper, each with what is told of it. Nothing else is told of.
fn running(world: &World, keeper: NodeId) -> Result<Forms> {
    let proxy = world.proxy(keeper)?;
    let mut told: Forms = proxy
        .tunnel_resources()
        .context("there is a store")?
        .tunnels
        .into_iter()
        .map(|tunnel| (tunnel.cluster, (tunnel.addresses, tunnel.connections)))
        .collect();
    let mut pools = Forms::new();
    for (cluster, _) in proxy.tunnels().states() {
        let form = told.remove(cluster.as_str());
        pools.insert(cluster.to_string(), form.unwrap_or_default());
    }
    // One that is told of and does not run: as such it equals nothing that is stored.
    pools.extend(
        told.into_keys()
            .map(|cluster| (format!("no pool: {cluster}"), <_>::default())),
    );
    Ok(pools)
}

/// Waits until what runs at a keeper is what the store holds.
async fn settled(world: &World, fleet: &Fleet, keeper: usize, bound: Duration) -> Result {
    let started = world.elapsed();
    loop {
        // Lives end meanwhile, so that it is read each time.
        let (stored, runs) = (stored(fleet).await?, running(world, fleet.keepers[keeper])?);
        if stored == runs {
            return Ok(());
        }
        let waited = world.elapsed() - started;
        ensure!(
            waited < bound,
            "after {bound:?}, of {} stored tunnels and {} running ones at keeper {keeper} these differ: {:?}",
            stored.len(),
            runs.len(),
            differing(&stored, &runs)
        );
        world.run_for(Duration::from_millis(50)).await;
    }
}

fn differing<'a>(stored: &'a Forms, runs: &'a Forms) -> Vec<&'a String> {
    let differs = |name: &&String| stored.get(*name) != runs.get(*name);
    let names = stored.keys().chain(runs.keys());
    names.filter(differs).take(5).collect()
}

/// With the store back and nobody changing anything: sessions stand where the store says and nowhere
/// else, what is measured agrees, and when all is deleted nothing is left.
async fn rest(world: &World, fleet: &Fleet) -> Result {
    for way in &fleet.ways {
        way.set_down(false);
    }
    for number in 0..LIVE {
        let door = world.quic_addr(fleet.live[number][number % DOORS]);
        let stored = tunnel(&cluster(number), &[door], 0)?;
        let key = Tunnel::key(stored.cluster());
        let there = fleet.memory.get(&key).await?;
        let there = there.map_or(Revision::NONE, |entry| entry.modified);
        fleet
            .memory
            .put(&key, stored.encode().into(), there, None)
            .await?;
    }
    fleet
        .memory
        .delete(&format!("{KEY_PREFIX}{}", cluster(0)), None)
        .await?;
    world
        .until("the tunnels that answer stand where they should", |w| {
            fleet.live.iter().enumerate().all(|(number, doors)| {
                doors.iter().enumerate().all(|(door, proxy)| {
                    let wanted = number != 0 && door == number % DOORS;
                    w.sessions(*proxy) == if wanted { KEEPERS } else { 0 }
                })
            })
        })
        .await?;
    // Lives are over.
    world.run_for(Duration::from_secs(61)).await;
    for keeper in 0..KEEPERS {
        settled(world, fleet, keeper, BOUND_AFTER_FAILURE).await?;
        let metrics = world.metrics(fleet.keepers[keeper])?;
        let stored = stored(fleet).await?.len();
        ensure!(stored > LIVE, "{stored} are left");
        let connected = metrics.get("mesh_tunnel_resources{state=\"connected\"}")?;
        ensure!(connected == (LIVE - 1) as f64, "{connected} connected");
        let all = metrics.sum("mesh_tunnel_resources");
        ensure!(all == stored as f64, "{all} of {stored} are counted");
        ensure!(metrics.get("mesh_store_connected")? == 1.0);
    }
    for entry in fleet.memory.list(KEY_PREFIX).await?.entries {
        fleet.memory.delete(&entry.key, None).await?;
    }
    for keeper in 0..KEEPERS {
        settled(world, fleet, keeper, BOUND).await?;
    }
    world
        .within(BOUND, "nothing is connected any more", |w| {
            fleet
                .live
                .iter()
                .flatten()
                .all(|door| w.sessions(*door) == 0)
        })
        .await
        .map(drop)
}
