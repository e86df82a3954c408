//! What the store holds, as far as it is known, and what is told of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mesh_proto::name::Cluster;
use mesh_proto::tunnel::{KEY_PREFIX, Tunnel};
use prometheus::Registry;
use tokio::time::Instant;

use super::gauges::{Errors, Gauges, Operation};
use super::{INVALID, TunnelRunner, TunnelState};
use crate::changes::Changes;
use crate::clock::WallClock;
use crate::metrics::MetricsError;
use crate::report::{Problem, StoreReport, TunnelReport, Tunnels};
use crate::store::{Change, Freshness, Revision, Store, StoreError, Update};

/// How many things that are wrong with single tunnels are listed among the problems of a proxy.
const PROBLEMS_MAX: usize = 20;

/// The state of a tunnel of which the runner says nothing: it has just been told.
const UNSAID: TunnelState = TunnelState::Connecting;

/// The tunnel resources of a proxy.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(super) store: Arc<dyn Store>,
    /// How the store is named, without secrets; `None`: it is the application's.
    place: Option<String>,
    /// This cluster, to which there is no tunnel.
    pub(super) own: Cluster,
    pub(super) clock: WallClock,
    /// Whoever keeps the connections, from the start of the proxy on.
    runner: OnceLock<Arc<dyn TunnelRunner>>,
    view: Mutex<View>,
    /// The view has changed.
    pub(super) changes: Changes,
    pub(super) errors: Errors,
}

/// What is known of the store.
#[derive(Debug)]
struct View {
    /// What is kept: what the store holds, as far as it is valid.
    tunnels: BTreeMap<Cluster, Tunnel>,
    /// What is stored and is no tunnel, by its key, and why it is none.
    invalid: BTreeMap<String, String>,
    /// The last change of each key that is stored.
    revisions: BTreeMap<String, Revision>,
    freshness: Freshness,
    /// The store has answered once.
    is_known: bool,
}

impl Resources {
    /// Nothing is known yet.
    ///
    /// # Errors
    /// When the registry has such metrics already.
    pub(in crate::proxy) fn new(
        store: Arc<dyn Store>,
        place: Option<String>,
        own: Cluster,
        clock: WallClock,
        registry: &Registry,
    ) -> Result<Arc<Self>, MetricsError> {
        let resources = Arc::new(Self {
            store,
            place,
            own,
            clock,
            runner: OnceLock::new(),
            view: Mutex::new(View {
                tunnels: BTreeMap::new(),
                invalid: BTreeMap::new(),
                revisions: BTreeMap::new(),
                freshness: Freshness::Stale {
                    since: Instant::now(),
                    error: None,
                },
                is_known: false,
            }),
            changes: Changes::default(),
            errors: Errors::new(registry)?,
        });
        Gauges::register(registry, &resources)?;
        Ok(resources)
    }

    /// Says who is told what is wanted, once it is known.
    pub(in crate::proxy) fn keep_with(&self, runner: Arc<dyn TunnelRunner>) {
        // A second one would leave the first with what it was told.
        let _ = self.runner.set(runner);
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the store, if it was opened for this proxy.
    pub(in crate::proxy) async fn close(&self) {
        if self.place.is_some() {
            self.store.close().await;
        }
    }

    fn place(&self) -> &str {
        self.place.as_deref().unwrap_or("of the application")
    }

    /// Takes over what has happened in the store, and tells the runner.
    pub(super) fn take(&self, update: &Update) {
        let wanted = {
            let mut view = self.view();
            let first = !view.is_known && update.freshness == Freshness::UpToDate;
            view.is_known |= first;
            self.tell_of_outage(&view.freshness, &update.freshness);
            view.freshness = update.freshness.clone();
            let mut changed = first;
            for change in &update.changes {
                changed |= self.take_change(&mut view, change);
            }
            changed.then(|| view.tunnels.values().cloned().collect())
        };
        if let (Some(wanted), Some(runner)) = (wanted, self.runner.get()) {
            runner.apply(wanted);
        }
        self.changes.notify();
    }

    /// Whether it changes what is wanted.
    fn take_change(&self, view: &mut View, change: &Change) -> bool {
        let key = &change.key;
        let Some(entry) = &change.after else {
            view.revisions.remove(key);
            view.invalid.remove(key);
            let gone = key
                .strip_prefix(KEY_PREFIX)
                .and_then(|name| name.parse::<Cluster>().ok());
            return gone.is_some_and(|gone| view.tunnels.remove(&gone).is_some());
        };
        view.revisions.insert(key.clone(), entry.modified);
        match self.read(key, &entry.value, entry.modified) {
            Ok(tunnel) => {
                view.invalid.remove(key);
                let before = view
                    .tunnels
                    .insert(tunnel.cluster().clone(), tunnel.clone());
                // A renewal changes nothing for the connections.
                before.is_none_or(|before| !before.wishes_the_same(&tunnel))
            }
            Err(why) => {
                tracing::warn!(
                    key, %why,
                    "what is stored there is no tunnel; if there was one before, it goes on as it was"
                );
                view.invalid.insert(key.clone(), why);
                false
            }
        }
    }

    /// What is stored under a key, if it is a tunnel of this cluster's.
    pub(super) fn read(
        &self,
        key: &str,
        value: &[u8],
        revision: Revision,
    ) -> Result<Tunnel, String> {
        let tunnel = Tunnel::decode(key, value, revision.0).map_err(|error| error.to_string())?;
        if *tunnel.cluster() == self.own {
            return Err("it leads to this cluster itself".to_owned());
        }
        Ok(tunnel)
    }

    fn tell_of_outage(&self, before: &Freshness, now: &Freshness) {
        let place = self.place();
        match (before, now) {
            (_, Freshness::Stale { error: None, .. })
            | (Freshness::UpToDate, Freshness::UpToDate) => {}
            (
                Freshness::Stale {
                    error: Some(_),
                    since,
                },
                Freshness::UpToDate,
            ) => {
                tracing::info!(store = place, outage = ?since.elapsed(), "the store of tunnels is reached again");
            }
            (Freshness::Stale { error: None, .. }, Freshness::UpToDate) => {
                tracing::debug!(store = place, "the store of tunnels is read");
            }
            (
                Freshness::Stale { error: Some(_), .. },
                Freshness::Stale {
                    error: Some(error), ..
                },
            ) => {
                tracing::debug!(store = place, %error, "the store of tunnels fails in another way");
            }
            (
                _,
                Freshness::Stale {
                    error: Some(error), ..
                },
            ) => {
                tracing::warn!(
                    store = place, %error,
                    "the store of tunnels cannot be read: tunnels stay as they are, and it is tried again"
                );
            }
        }
    }

    /// Whether the view has come as far as this change of a key, or beyond.
    pub(super) fn has_seen(&self, key: &str, put: Option<Revision>, before: Revision) -> bool {
        let known = self.view().revisions.get(key).copied();
        match put {
            Some(put) => known.is_some_and(|known| known >= put),
            None => known.is_none_or(|known| known > before),
        }
    }

    /// A store did not answer, or not as it should.
    pub(super) fn failed(&self, operation: Operation, error: &StoreError) {
        if !matches!(error, StoreError::Conflict { .. }) {
            self.errors.count(operation);
        }
    }

    /// Whether the store was reached the last time.
    pub(super) fn is_up_to_date(&self) -> bool {
        self.view().freshness == Freshness::UpToDate
    }

    fn states(&self) -> BTreeMap<Cluster, TunnelState> {
        let runner = self.runner.get();
        runner.map_or_else(BTreeMap::new, |runner| {
            runner.states().into_iter().collect()
        })
    }

    /// How many are in which state, in the order of [`TunnelState::NAMES`].
    pub(super) fn count_states(&self) -> [usize; 4] {
        let states = self.states();
        let view = self.view();
        let mut counts = [0; 4];
        let mut count = |name: &str| {
            if let Some(at) = TunnelState::NAMES.iter().position(|known| *known == name) {
                counts[at] += 1;
            }
        };
        let kept = view.tunnels.keys();
        // One that goes on as it was, though what is stored now is invalid, is invalid alone.
        for cluster in kept.filter(|cluster| !view.invalid.contains_key(&Tunnel::key(cluster))) {
            count(states.get(cluster).unwrap_or(&UNSAID).as_str());
        }
        for _ in view.invalid.keys() {
            count(INVALID);
        }
        counts
    }

    /// Their number, by state.
    pub(crate) fn by_state(&self) -> BTreeMap<String, usize> {
        let names = TunnelState::NAMES.iter().map(|name| (*name).to_owned());
        names.zip(self.count_states()).collect()
    }

    /// How the store is.
    pub(crate) fn store_report(&self) -> StoreReport {
        let view = self.view();
        let (stale_seconds, error) = match &view.freshness {
            Freshness::UpToDate => (None, None),
            Freshness::Stale { since, error } => (
                Some(since.elapsed().as_secs_f64()),
                error.as_ref().map(ToString::to_string),
            ),
        };
        StoreReport {
            url: self.place().to_owned(),
            up_to_date: stale_seconds.is_none(),
            stale_seconds,
            error,
        }
    }

    /// All of it.
    pub(crate) fn report(&self) -> Tunnels {
        let states = self.states();
        let store = self.store_report();
        let now_ms = self.clock.unix_millis();
        let view = self.view();
        let mut tunnels: Vec<TunnelReport> = view
            .tunnels
            .values()
            .map(|tunnel| {
                let state = states.get(tunnel.cluster()).unwrap_or(&UNSAID);
                tunnel_report(tunnel, state, now_ms)
            })
            .collect();
        for (key, why) in &view.invalid {
            let cluster = key.strip_prefix(KEY_PREFIX).unwrap_or(key);
            match tunnels.iter_mut().find(|tunnel| tunnel.cluster == cluster) {
                // It is kept as it was.
                Some(kept) => {
                    kept.state = INVALID.to_owned();
                    kept.why = Some(why.clone());
                }
                None => tunnels.push(TunnelReport {
                    cluster: cluster.to_owned(),
                    state: INVALID.to_owned(),
                    why: Some(why.clone()),
                    revision: view.revisions.get(key).map_or(0, |revision| revision.0),
                    ..TunnelReport::default()
                }),
            }
        }
        tunnels.sort_by(|a, b| a.cluster.cmp(&b.cluster));
        Tunnels { store, tunnels }
    }

    /// What an operator should know of.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let Tunnels { store, tunnels } = self.report();
        let mut problems = Vec::new();
        if let Some(error) = &store.error {
            let since = Duration::from_secs(store.stale_seconds.unwrap_or_default() as u64);
            problems.push(Problem {
                what: format!(
                    "the store of tunnels {} cannot be read for {}: {error}",
                    store.url,
                    humantime::format_duration(since)
                ),
                remedy: "tunnels stay as they are meanwhile, and it is tried again; see that the store runs and can be reached from here".into(),
            });
        }
        let faulty = tunnels.iter().filter_map(|tunnel| {
            let (what, remedy) = match (tunnel.state.as_str(), &tunnel.why) {
                (INVALID, Some(why)) => (
                    format!("what is stored as the tunnel to {} is none: {}", tunnel.cluster, why.replace('\n', "; ")),
                    format!("store it anew with `node tunnel upsert {}`, or remove it with `node tunnel del`", tunnel.cluster),
                ),
                ("failing", Some(why)) => (
                    format!("the tunnel to {} fails: {why}", tunnel.cluster),
                    "`node tunnel ls` shows where it leads".to_owned(),
                ),
                _ => return None,
            };
            Some(Problem { what, remedy })
        });
        problems.extend(faulty.take(PROBLEMS_MAX));
        problems
    }
}

fn tunnel_report(tunnel: &Tunnel, state: &TunnelState, now_ms: u64) -> TunnelReport {
    let (connected, wanted, why, since) = match state {
        TunnelState::Connecting => (None, None, None, None),
        TunnelState::Connected {
            connections,
            wanted,
        } => (Some(*connections), Some(*wanted), None, None),
        TunnelState::Failing { why, since } => (None, None, Some(why.clone()), Some(*since)),
    };
    let age = Duration::from_millis(now_ms.saturating_sub(tunnel.created_ms()));
    TunnelReport {
        cluster: tunnel.cluster().to_string(),
        addresses: tunnel.addresses().iter().map(ToString::to_string).collect(),
        connections: tunnel.connections(),
        labels: tunnel.labels().clone(),
        state: state.as_str().to_owned(),
        connected,
        wanted,
        why,
        failing_seconds: since.map(|since| since.elapsed().as_secs_f64()),
        age_seconds: age.as_secs_f64(),
        left_seconds: tunnel.time_left(now_ms).map(|left| left.as_secs_f64()),
        revision: tunnel.revision(),
    }
}
