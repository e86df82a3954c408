//! Tunnels to other clusters: for each tunnel resource a pool of connections, the very one of agents,
//! with the identity of this proxy. There it is one of the instances of the agent that is called like
//! this cluster.
//!
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_proto::name::Cluster;
use mesh_proto::tunnel::Tunnel;
use prometheus::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::keep::{self, Kept};
use super::{TunnelRunner, TunnelState};
use crate::agent::metrics::AgentMetrics;
use crate::agent::tunnel::TunnelParts;
use crate::hooks::Hooks;
use crate::metrics::MetricsError;
use crate::proxy::{Phase, Shared};
use crate::quic::keys::EndpointKeys;
use crate::tasks::Tasks;

/// Tunnels that one proxy keeps; of more, those with the last names are not.
const TUNNELS_MAX: usize = 16_384;

/// What a tunnel resource asks of the pool; the rest of it is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) addresses: Vec<String>,
    pub(super) connections: u32,
}

impl Wish {
    fn of(tunnel: &Tunnel) -> Self {
        Self {
            addresses: tunnel.addresses().iter().map(ToString::to_string).collect(),
            connections: tunnel.connections(),
        }
    }
}

/// The tunnels of a proxy.
#[derive(Debug)]
pub struct Tunnels {
    wanted: watch::Sender<BTreeMap<Cluster, Wish>>,
    kept: Mutex<BTreeMap<Cluster, Arc<Kept>>>,
    parts: TunnelParts,
}

impl Tunnels {
    pub(in crate::proxy) fn new(
        shared: &Shared,
        keys: EndpointKeys,
        shards: Vec<Handle>,
    ) -> Result<Arc<Self>, MetricsError> {
        Ok(Arc::new(Self {
            wanted: watch::Sender::new(BTreeMap::new()),
            kept: Mutex::default(),
            parts: TunnelParts {
                network: shared.network.clone(),
                random: shared.random.clone(),
                clock: shared.clock.clone(),
                hooks: Hooks {
                    on_frame: shared.hooks.on_frame.clone(),
                    ..Hooks::default()
                },
                instance: shared.random.bytes(),
                keys,
                node_metrics: shared.node_metrics.clone(),
                metrics: AgentMetrics::new(&Registry::new())?,
                budget: shared.budget.clone(),
                shards,
            },
        }))
    }

    /// From now on these tunnels are kept, and no others: new ones are started, those that are gone are
    /// left in order, and those with other addresses or another count are moved. What is left, by either,
    /// gives its streams `drain_deadline` to end, and no longer. Returns at once. Of several to one
    /// cluster the last one counts.
    pub fn apply(&self, tunnels: Vec<Tunnel>) {
        let mut wanted: BTreeMap<Cluster, Wish> = tunnels
            .into_iter()
            .map(|tunnel| (tunnel.cluster().clone(), Wish::of(&tunnel)))
            .collect();
        let surplus = wanted.len().saturating_sub(TUNNELS_MAX);
        for _ in 0..surplus {
            wanted.pop_last();
        }
        if surplus > 0 {
            tracing::error!(
                surplus,
                "there are more tunnel resources than the {TUNNELS_MAX} that a proxy keeps; those with the last names are not kept"
            );
        }
        self.wanted.send_if_modified(|now| {
            let changed = *now != wanted;
            *now = wanted;
            changed
        });
    }

    /// The tunnels that are kept, in the order of their clusters, and how each of them is.
    #[must_use]
    pub fn states(&self) -> Vec<(Cluster, TunnelState)> {
        self.lock()
            .iter()
            .map(|(cluster, kept)| (cluster.clone(), kept.state()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Cluster, Arc<Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the tunnels until the proxy drains, and then leaves all of them.
    pub(in crate::proxy) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let mut wanted = self.wanted.subscribe();
        let mut phase = shared.phase.subscribe();
        let mut tasks = Tasks::new("tunnel");
        let mut keepers: BTreeMap<Cluster, watch::Sender<Option<Wish>>> = BTreeMap::new();
        loop {
            let now = *phase.borrow_and_update();
            let drains = now == Phase::Draining;
            let wishes = match now {
                Phase::Serving | Phase::Notice => wanted.borrow_and_update().clone(),
                // Who joins does not know where agents are, and would refuse the other cluster's dials,
                // which another proxy could serve.
                Phase::Joining | Phase::Draining => BTreeMap::new(),
            };
            keepers.retain(|cluster, keeper| {
                let stays = wishes.contains_key(cluster);
                if !stays {
                    tracing::info!(%cluster, "leaving a tunnel");
                    keeper.send_replace(None);
                    self.lock().remove(cluster);
                }
                stays
            });
            for (cluster, wish) in wishes {
                if let Some(keeper) = keepers.get(&cluster) {
                    keeper.send_if_modified(|now| {
                        let changed = now.as_ref() != Some(&wish);
                        *now = Some(wish);
                        changed
                    });
                    continue;
                }
                tracing::info!(%cluster, addresses = wish.addresses.join(","), connections = wish.connections, "keeping a tunnel");
                let (keeper, wishes) = watch::channel(Some(wish));
                let kept = Arc::new(Kept::new());
                self.lock().insert(cluster.clone(), kept.clone());
                tasks.spawn(keep::run(
                    shared.clone(),
                    self.parts.clone(),
                    cluster.clone(),
                    wishes,
                    kept,
                ));
                keepers.insert(cluster, keeper);
            }
            if drains {
                break;
            }
            tokio::select! {
                biased;
                () = shared.cut.cancelled() => break,
                _ = phase.changed() => {}
                _ = wanted.changed() => {}
                () = tasks.reap() => {}
            }
        }
        // Those that were left, now or before, may have streams that run.
        tasks.join_all().await;
    }
}

impl TunnelRunner for Tunnels {
    fn apply(&self, wanted: Vec<Tunnel>) {
        Self::apply(self, wanted);
    }

    fn states(&self) -> Vec<(Cluster, TunnelState)> {
        Self::states(self)
    }
}
