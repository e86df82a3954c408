//! Proxies in virtual time, on one store.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_proto::tunnel::Tunnel;
use mesh_tests::Result;
use mesh_tests::sim::{NodeId, World, run};
use mesh_tests::store::{Memory, Outages, virtual_clock};
use node::proxy::tunnels::TunnelState;
use node::store::{Revision, Store};

use crate::support::{Runner, runner, tunnel};

const SECOND: Duration = Duration::from_secs(1);

/// Proxies with one store, and what each is told.
struct Fleet {
    store: Arc<dyn Store>,
    cut: Arc<Outages>,
    runners: Vec<Arc<Runner>>,
    proxies: Vec<NodeId>,
}

/// Starts proxies whose store may be cut off from them all.
async fn fleet(world: &mut World, count: usize, is_down: bool) -> Result<Fleet> {
    let store: Arc<dyn Store> = Arc::new(Memory::new(virtual_clock()));
    let cut = Outages::new(store.clone());
    cut.set_down(is_down);
    let mut runners = Vec::new();
    let proxies = world
        .start_proxies_with(count, |_, plan| {
            let (mine, its) = runner();
            runners.push(mine);
            plan.hooks.store = Some(cut.clone());
            plan.hooks.tunnels = Some(its);
            Ok(())
        })
        .await?;
    Ok(Fleet {
        store,
        cut,
        runners,
        proxies,
    })
}

impl Fleet {
    /// Waits until every runner is told exactly this; it takes less than a second.
    async fn told(&self, world: &World, wanted: &[&str]) -> Result {
        let all = |_: &World| {
            let told = |runner: &Arc<Runner>| runner.wanted();
            self.runners
                .iter()
                .all(|runner| told(runner).is_some_and(|told| told == wanted))
        };
        let told = world.within(SECOND, "all are told", all).await;
        told.map(drop).with_context(|| {
            let told: Vec<_> = self.runners.iter().map(|runner| runner.wanted()).collect();
            format!("told {told:?}, not {wanted:?}")
        })
    }

    fn times(&self) -> Vec<usize> {
        self.runners.iter().map(|runner| runner.times()).collect()
    }

    async fn put(&self, tunnel: &Tunnel, ttl: Option<Duration>) -> Result<Revision> {
        let key = Tunnel::key(tunnel.cluster());
        let there = self.store.get(&key).await?;
        let there = there.map_or(Revision::NONE, |entry| entry.modified);
        Ok(self
            .store
            .put(&key, tunnel.encode().into(), there, ttl)
            .await?)
    }
}

#[test]
fn tunnel_upsert_is_watched() -> Result {
    run("tunnel_upsert_is_watched", 1, async |world| {
        let fleet = fleet(world, 3, false).await?;
        fleet.told(world, &[]).await?;
        let b = tunnel("b.example.com", &["10.0.0.4:2023", "lb.b.example.com"])?;
        fleet.put(&b, None).await?;
        let told_b = "b.example.com 10.0.0.4:2023,lb.b.example.com:7443 0";
        fleet.told(world, &[told_b]).await?;

        // What is renewed, or only labelled with another time, is no news for the connections.
        let times = fleet.times();
        for minute in 1..=3 {
            fleet
                .put(&b.clone().created_at(minute), Some(60 * SECOND))
                .await?;
            world.run_for(30 * SECOND).await;
        }
        ensure!(fleet.times() == times, "{:?}, not {times:?}", fleet.times());

        // Another one, a change, and the end of a life: each within a second, everywhere.
        fleet
            .put(&tunnel("c.example.com", &["10.1.0.1"])?, None)
            .await?;
        let told_c = "c.example.com 10.1.0.1:7443 0";
        fleet.told(world, &[told_b, told_c]).await?;
        let changed = tunnel("c.example.com", &["10.1.0.2"])?;
        fleet.put(&changed, None).await?;
        let told_c = "c.example.com 10.1.0.2:7443 0";
        fleet.told(world, &[told_b, told_c]).await?;
        world.run_for(29 * SECOND).await;
        fleet.told(world, &[told_b, told_c]).await?;
        world.run_for(SECOND).await;
        fleet.told(world, &[told_c]).await?;

        // What is stored by hand and is no tunnel is shown, and ends nothing.
        let key = Tunnel::key(changed.cluster());
        let there = fleet.store.get(&key).await?.context("it is there")?;
        let times = fleet.times();
        let broken = fleet
            .store
            .put(&key, "{}".into(), there.modified, None)
            .await?;
        fleet
            .store
            .put(
                "tunnels/sim.example.com",
                b"x".as_slice().into(),
                Revision::NONE,
                None,
            )
            .await?;
        world.run_for(SECOND).await;
        ensure!(fleet.times() == times);
        for proxy in &fleet.proxies {
            let metrics = world.metrics(*proxy)?;
            // The one that goes on as it was is counted once.
            for (state, count) in [("invalid", 2_f64), ("connecting", 0.), ("connected", 0.)] {
                let counted =
                    metrics.get(&format!("mesh_tunnel_resources{{state=\"{state}\"}}"))?;
                ensure!(counted.to_bits() == count.to_bits(), "{counted} {state}");
            }
            let status = world.proxy(*proxy)?.status();
            let said = |what: &str| {
                status
                    .problems
                    .iter()
                    .any(|problem| problem.what.contains(what))
            };
            ensure!(
                said("stored as the tunnel to c.example.com is none"),
                "{status:?}"
            );
            let report = world
                .proxy(*proxy)?
                .tunnel_resources()
                .context("there is a store")?;
            ensure!(report.tunnels.len() == 2, "{report:?}");
            ensure!(
                report.tunnels[0].state == "invalid"
                    && report.tunnels[0].addresses == ["10.1.0.2:7443"]
            );
        }
        // Mended, it is as before; removed, it is gone.
        fleet
            .store
            .put(&key, changed.encode().into(), broken, None)
            .await?;
        world.run_for(SECOND).await;
        ensure!(fleet.times() == times);
        fleet.store.delete(&key, None).await?;
        fleet.told(world, &[]).await
    })
}

#[test]
fn store_outage_changes_nothing() -> Result {
    run("store_outage_changes_nothing", 1, async |world| {
        let mut fleet = fleet(world, 2, true).await?;
        // A proxy that starts while its store is away serves, and ends nothing that it does not know.
        fleet
            .put(&tunnel("b.example.com", &["10.0.0.4"])?, None)
            .await?;
        world.run_for(600 * SECOND).await;
        ensure!(fleet.times() == [0, 0], "nothing is known yet");
        for proxy in &fleet.proxies {
            ensure!(world.proxy(*proxy)?.status().state == "serving");
        }
        fleet.cut.set_down(false);
        world.run_for(15 * SECOND).await;
        let told = ["b.example.com 10.0.0.4:7443 0"];
        fleet.told(world, &told).await?;

        for runner in &fleet.runners {
            let state = TunnelState::Connected {
                connections: 2,
                wanted: 3,
            };
            runner.set_state("b.example.com", state)?;
        }
        fleet
            .put(
                &tunnel("ends.example.com", &["10.0.0.9"])?,
                Some(60 * SECOND),
            )
            .await?;
        world.run_for(SECOND).await;
        let told = [told[0], "ends.example.com 10.0.0.9:7443 0"];
        fleet.told(world, &told).await?;
        let times = fleet.times();

        fleet.cut.set_down(true);
        // Meanwhile others delete, change and add in the store, and a life ends in it.
        fleet.store.delete("tunnels/b.example.com", None).await?;
        fleet
            .put(&tunnel("c.example.com", &["10.0.0.5"])?, None)
            .await?;
        world.run_for(2 * 3600 * SECOND).await;
        ensure!(
            fleet.times() == times,
            "nobody is told anything in an outage"
        );
        fleet.told(world, &told).await?;
        for proxy in &fleet.proxies {
            let metrics = world.metrics(*proxy)?;
            ensure!(metrics.get("mesh_store_connected")?.to_bits() == 0f64.to_bits());
            let errors = metrics.get("mesh_store_errors_total{operation=\"watch\"}")?;
            // Tried again all the time, but not in a spin: every five seconds on average.
            ensure!((500.0..4000.0).contains(&errors), "{errors}");
            ensure!(
                metrics
                    .get("mesh_tunnel_resources{state=\"connected\"}")?
                    .to_bits()
                    == 1f64.to_bits()
            );
            ensure!(
                metrics
                    .get("mesh_tunnel_resources{state=\"connecting\"}")?
                    .to_bits()
                    == 1f64.to_bits()
            );
            let status = world.proxy(*proxy)?.status();
            let outage = status.problems.first().context("a problem")?;
            ensure!(
                outage.what.contains("cannot be read for 2h")
                    && outage.what.contains("it is cut off"),
                "{outage:?}"
            );
            ensure!(status.state == "serving");
            let report = world
                .proxy(*proxy)?
                .tunnel_resources()
                .context("there is a store")?;
            ensure!(
                !report.store.up_to_date && report.tunnels.len() == 2,
                "{report:?}"
            );
            let b = &report.tunnels[0];
            ensure!((b.state.as_str(), b.connected, b.wanted) == ("connected", Some(2), Some(3)));
        }

        // All that has changed is told at once.
        fleet.cut.set_down(false);
        world.run_for(15 * SECOND).await;
        fleet
            .told(world, &["c.example.com 10.0.0.5:7443 0"])
            .await?;
        let once: Vec<usize> = times.iter().map(|times| times + 1).collect();
        ensure!(fleet.times() == once, "{:?}, not {once:?}", fleet.times());
        for proxy in &fleet.proxies {
            let metrics = world.metrics(*proxy)?;
            ensure!(metrics.get("mesh_store_connected")?.to_bits() == 1f64.to_bits());
            let status = world.proxy(*proxy)?.status();
            ensure!(status.problems.is_empty(), "{status:?}");
        }
        // They leave the application's store open.
        for proxy in fleet.proxies.drain(..) {
            world.stop(proxy).await?;
        }
        fleet.store.get("tunnels/c.example.com").await?;
        Ok(())
    })
}
