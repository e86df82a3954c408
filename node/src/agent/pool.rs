//! Drives the pool of connections: carries out what [`mesh_proto::pool`] decides, and tells it what
//! has happened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::name::{Cluster, NodeName};
use mesh_proto::pool::{
    Action, Counts, Draw, Ignored, LetGo, Limits, Member, MemberState, Pool, Reached, Verdict, Whom,
};
use mesh_proto::time::Time;
use mesh_proto::tracker::LeaseId;
use mesh_proto::wire::{self, ProxyHello};
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::connect::{self, ConnectError};
use super::ending::Ending;
use super::failures::{Failures, Telling, What};
use super::metrics::ConnectResult;
use super::{Shared, session};
use crate::changes::{Changes, Watcher};
use crate::hooks::Connected;
use crate::tasks::Tasks;

/// From which view of one connection on, being stale is said: for a moment, any proxy's may be.
const STALE_VIEWS: u32 = 3;

/// How many times `quic.handshake_timeout` one attempt may take, however many addresses it has: a
/// proxy that advertises many that swallow packets must not keep others from being dialled.
const ATTEMPT_TIMEOUTS: u32 = 4;

/// The pool, shared by its driver and the tasks of its connections. The lock is held for one step
/// of the state machine, never across an await.
#[derive(Debug)]
pub(crate) struct PoolState {
    pool: Mutex<Inner>,
    changed: Notify,
    /// For whoever looks at the counts: they may be others.
    steps: Changes,
    start: Instant,
}

#[derive(Debug)]
struct Inner {
    pool: Pool,
    rng: Jitter,
    /// How each connection is asked to go.
    let_go: BTreeMap<LeaseId, watch::Sender<Option<LetGo>>>,
    failures: Failures,
    /// The last attempt that failed, or connection that was lost, in full.
    last_failure: Option<String>,
}

#[derive(Debug)]
struct Jitter(StdRng);

impl Draw for Jitter {
    fn up_to(&mut self, bound: Duration) -> Duration {
        self.0.random_range(Duration::ZERO..=bound)
    }
}

impl PoolState {
    pub(super) fn new(pool: Pool, rng: StdRng) -> Self {
        let inner = Inner {
            pool,
            rng: Jitter(rng),
            let_go: BTreeMap::new(),
            failures: Failures::default(),
            last_failure: None,
        };
        Self {
            pool: Mutex::new(inner),
            changed: Notify::new(),
            steps: Changes::default(),
            start: Instant::now(),
        }
    }

    fn now(&self) -> Time {
        Time::since_start(self.start.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step of the state machine; the driver then looks at what has changed.
    fn step<T>(&self, step: impl FnOnce(&mut Pool, Time, &mut dyn Draw) -> T) -> T {
        let mut inner = self.lock();
        let Inner { pool, rng, .. } = &mut *inner;
        let result = step(pool, self.now(), rng);
        drop(inner);
        self.changed.notify_one();
        result
    }

    /// The counts of the pool, and why the last dial that failed did.
    pub(super) fn report(&self) -> (Counts, Option<String>) {
        let inner = self.lock();
        (inner.pool.counts(self.now()), inner.failures.example())
    }

    /// Hears of every step of the pool.
    pub(super) fn steps(&self) -> Watcher {
        self.steps.watch()
    }

    /// Whether a failure is to be logged as a warning.
    pub(super) fn is_news(&self, place: &str, what: What, gist: String) -> bool {
        let now = self.now();
        let telling = self.lock().failures.failed(now, place, what, gist);
        match telling {
            Telling::News => true,
            Telling::Repeated => false,
            Telling::TooMany => {
                tracing::warn!(
                    "too many proxies and addresses fail for the log to name them all; further ones are at level debug"
                );
                false
            }
        }
    }

    /// What failed last, in full.
    pub(super) fn last_failure(&self) -> Option<String> {
        self.lock().last_failure.clone()
    }

    fn log_failure(&self, cluster: &Cluster, place: &str, error: &ConnectError) {
        self.lock().last_failure = Some(format!("{place}: {error}"));
        if self.is_news(place, What::Connect, error.gist()) {
            tracing::warn!(
                %cluster, address = place,
                "cannot connect to a proxy, and will go on trying: {error}"
            );
        } else {
            tracing::debug!(%cluster, address = place, "cannot connect to a proxy: {error}");
        }
    }

    /// A connection to `proxy` that was dialled as `place` has stood for a while.
    pub(super) fn stands(&self, place: &str, proxy: &NodeName) {
        let mut inner = self.lock();
        inner.failures.worked(place);
        inner.failures.worked(proxy.as_str());
    }
}

/// A lease that gives itself back: on every path out of an attempt or a connection, a panic and a
/// cancelled task among them.
#[derive(Debug)]
pub(super) struct Lease {
    id: LeaseId,
    state: Arc<PoolState>,
    connected: bool,
    stale_views: u32,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (id, connected) = (self.id, self.connected);
        self.state.step(|pool, now, draw| {
            if connected {
                pool.closed(now, id, draw);
            } else {
                pool.failed(now, id, draw);
            }
        });
        self.state.lock().let_go.remove(&id);
    }
}

impl Lease {
    /// A proxy has said hello: is the connection kept?
    fn connected(&mut self, hello: &ProxyHello) -> Verdict {
        let reached = Reached {
            proxy: hello.name.clone(),
            epoch: hello.epoch,
            group: hello.group.clone(),
            generation: hello.generation,
        };
        let id = self.id;
        let verdict = self.state.step(|pool, now, draw| {
            let verdict = pool.connected(now, id, reached, draw);
            // Its word about itself comes with its hello; until its view arrives, this is the view.
            if verdict == Verdict::Keep {
                pool.members(now, Some(id), vec![itself(hello)]);
            }
            verdict
        });
        self.connected = verdict == Verdict::Keep;
        verdict
    }

    /// The proxy tells of proxies.
    pub(super) fn members(
        &mut self,
        shared: &Shared,
        proxy: &NodeName,
        members: wire::Members,
        rtt: Duration,
    ) {
        let spread = Duration::from_millis(members.reconnect_spread_ms);
        let count = members.agent_connection_count;
        let view = members.members.into_iter().map(member).collect();
        let ignored = self.state.step(|pool, now, _| {
            pool.announced(Some(self.id), count, spread);
            pool.rtt(self.id, rtt);
            pool.members(now, Some(self.id), view)
        });
        shared.metrics.ignored(&ignored);
        for (why, count) in ignored.iter() {
            if why == Ignored::Stale {
                self.stale_views = self.stale_views.saturating_add(1);
                if self.stale_views < STALE_VIEWS {
                    continue;
                }
            }
            let what = What::Tell(why);
            if self.state.is_news(proxy.as_str(), what, String::new()) {
                tracing::warn!(
                    %proxy, reason = why.as_str(), count,
                    "ignoring part of what a proxy tells of proxies: {}", explain(why)
                );
            }
        }
    }

    /// The connection to `proxy` was lost: is that to be said?
    pub(super) fn is_lost_news(&self, proxy: &NodeName, ending: Ending, why: &str) -> bool {
        self.state.lock().last_failure = Some(format!("{proxy}: {why}"));
        let gist = ending.as_str().to_owned();
        self.state.is_news(proxy.as_str(), What::Stay, gist)
    }

    /// The connection to `proxy`, dialled as `place`, has stood for a while.
    pub(super) fn stands(&self, place: &str, proxy: &NodeName) {
        self.state.stands(place, proxy);
    }

    /// The proxy has said that it is about to leave.
    pub(super) fn draining(&self, within: Duration) {
        self.state
            .step(|pool, now, draw| pool.draining(now, self.id, within, draw));
    }
}

/// What is wrong, and where to look.
fn explain(why: Ignored) -> &'static str {
    match why {
        Ignored::OverLimit => {
            "there are more of them than any mesh has; is that proxy what it should be?"
        }
        Ignored::Duplicate => {
            "it tells of one several times, and the last word counts; what version is it?"
        }
        Ignored::Stale => {
            "it goes on telling of an earlier start or generation; has a proxy lost its state_dir, or does that one hear nothing of its peers?"
        }
        Ignored::Address => {
            "an advertised address is none that can be dialled; check quic.advertise of the proxies"
        }
        Ignored::Ttl => {
            "a time to live is out of bounds, and another one counts; what version is it?"
        }
    }
}

fn itself(hello: &ProxyHello) -> Member {
    Member {
        name: hello.name.clone(),
        group: hello.group.clone(),
        generation: hello.generation,
        epoch: hello.epoch,
        addresses: Vec::new(),
        state: MemberState::Alive,
        ttl: None,
    }
}

fn member(member: wire::Member) -> Member {
    Member {
        name: member.name,
        group: member.group,
        generation: member.generation,
        epoch: member.epoch,
        addresses: member.addresses,
        state: match member.state {
            // A suspicion is mostly refuted; what a later version means is no reason to leave.
            wire::MemberState::Alive | wire::MemberState::Suspect | wire::MemberState::Other(_) => {
                MemberState::Alive
            }
            wire::MemberState::Draining => MemberState::Draining,
            wire::MemberState::Left | wire::MemberState::Down => MemberState::Gone,
        },
        ttl: Some(Duration::from_millis(member.ttl_ms)),
    }
}

/// The pool of an agent's config, towards the proxies of `cluster`.
pub(super) fn of_config(config: &crate::config::AgentConfig, cluster: &Cluster) -> Pool {
    Pool::new(
        config.common.name.clone(),
        cluster.as_str(),
        config.proxies.clone(),
        config.connection_count,
        Limits::default(),
    )
}

/// Keeps the connections, spread over the shards, until the agent has left.
pub(super) async fn run(shared: Arc<Shared>, shards: Vec<Handle>) {
    let state = shared.pool.clone();
    let mut tasks = Tasks::new("connection to a proxy");
    let mut leaving = shared.leaving.subscribe();
    let mut next_shard = 0;
    loop {
        let is_leaving = leaving.borrow_and_update().is_some();
        if is_leaving || shared.cut.is_cancelled() {
            break;
        }
        let (actions, wake) = decide(&shared);
        for action in actions {
            match action {
                Action::Dial { lease, whom } => {
                    let lease = Lease {
                        id: lease,
                        state: state.clone(),
                        connected: false,
                        stale_views: 0,
                    };
                    let (sender, let_go) = watch::channel(None);
                    state.lock().let_go.insert(lease.id, sender);
                    let shard = shards.get(next_shard % shards.len().max(1)).cloned();
                    next_shard += 1;
                    let task = link(shared.clone(), lease, whom, let_go);
                    match shard {
                        Some(shard) => tasks.spawn_on(task, &shard),
                        None => tasks.spawn(task),
                    }
                }
                Action::LetGo { lease, why } => {
                    if let Some(sender) = state.lock().let_go.get(&lease) {
                        sender.send_replace(Some(why));
                    }
                }
            }
        }
        let asleep = async {
            match wake {
                Some(wake) => tokio::time::sleep_until(state.start + wake.elapsed()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shared.cut.cancelled() => break,
            _ = leaving.changed() => {}
            () = state.changed.notified() => {}
            () = tasks.reap() => {}
            () = asleep => {}
        }
    }
    // The connections hear of the leave, or of the cut, by themselves.
    tasks.join_all().await;
    let inner = state.lock();
    let now = state.now();
    let (counts, backoff) = (
        inner.pool.counts(now),
        inner.pool.backoff_until().since(now),
    );
    drop(inner);
    shared.metrics.pool(&counts, backoff);
}

fn decide(shared: &Shared) -> (Vec<Action>, Option<Time>) {
    let state = &shared.pool;
    let mut inner = state.lock();
    let now = state.now();
    let actions: Vec<Action> = std::iter::from_fn(|| inner.pool.poll(now)).collect();
    let counts = inner.pool.counts(now);
    let backoff = inner.pool.backoff_until().since(now);
    let wake = inner.pool.next_wake(now);
    drop(inner);
    // Every step, and the time alone, leads here.
    state.steps.notify();
    shared.metrics.pool(&counts, backoff);
    (actions, wake)
}

/// One dial, and the connection that comes of it.
async fn link(
    shared: Arc<Shared>,
    mut lease: Lease,
    whom: Whom,
    let_go: watch::Receiver<Option<LetGo>>,
) {
    let (place, proxy, addresses) = match whom {
        Whom::Configured { address } => (address.clone(), None, vec![address]),
        Whom::Directed { proxy, addresses } => (proxy.to_string(), Some(proxy), addresses),
    };
    let mut leaving = shared.leaving.subscribe();
    let attempt = tokio::select! {
        biased;
        // An agent that leaves wants no new connection.
        _ = leaving.wait_for(Option::is_some) => return,
        () = shared.cut.cancelled() => return,
        attempt = attempt(&shared, &addresses, proxy.as_ref()) => attempt,
    };
    match attempt {
        Ok(connected) => match lease.connected(&connected.hello) {
            Verdict::Keep => {
                announce(&shared, &connected);
                session::run(&shared, connected, &mut lease, &place, let_go).await;
            }
            Verdict::Duplicate => {
                shared.metrics.connect(ConnectResult::Duplicate);
                tracing::debug!(address = place, proxy = %connected.hello.name, "reached a proxy that is connected already");
                connected.close_duplicate().await;
            }
        },
        Err(error) => {
            shared.metrics.connect(error.result());
            lease.state.log_failure(shared.cluster(), &place, &error);
        }
    }
}

/// A connection counts as made: it is told and counted.
fn announce(shared: &Shared, connected: &connect::ProxyConnection) {
    let hello = &connected.hello;
    let remote = connected.connection.remote_address();
    shared.metrics.connect(ConnectResult::Ok);
    tracing::info!(
        cluster = %hello.cluster, proxy = %hello.name, group = %hello.group, generation = %hello.generation,
        epoch = hello.epoch, %remote, version = hello.version, "connected to a proxy"
    );
    shared.hooks.connected(&Connected {
        agent: shared.config.common.name.clone(),
        proxy: hello.name.clone(),
        remote,
    });
}

/// Tries addresses in their order; each has its share of the time that one attempt may take.
async fn attempt(
    shared: &Arc<Shared>,
    addresses: &[String],
    proxy: Option<&NodeName>,
) -> Result<connect::ProxyConnection, ConnectError> {
    let timeout = shared.config.common.quic.handshake_timeout;
    let end = Instant::now() + timeout * ATTEMPT_TIMEOUTS;
    let mut last = None;
    for (index, address) in addresses.iter().enumerate() {
        let until = connect::share(end, addresses.len() - index);
        match connect::connect(shared, address, proxy, until).await {
            Ok(connected) => return Ok(connected),
            Err(error) => last = Some(error),
        }
        if Instant::now() >= end {
            break;
        }
    }
    Err(last.unwrap_or(ConnectError::NoAddress))
}
