//! Drives the pool of connections: carries out what [`mesh_proto::pool`] decides, and tells it what
//! has happened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::name::NodeName;
use mesh_proto::pool::{
    Action, Counts, Draw, LetGo, Limits, Member, MemberState, Pool, Reached, Verdict, Whom,
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
use super::metrics::ConnectResult;
use super::{Shared, session};
use crate::hooks::Connected;
use crate::tasks::Tasks;

/// After how many like failures the log says again that a proxy cannot be reached.
const REPEAT_WARNING: u32 = 20;

/// Failing addresses that are remembered, so that the log does not repeat itself.
const FAILING_MAX: usize = 64;

/// The pool, shared by its driver and the tasks of its connections. The lock is held for one step
/// of the state machine, never across an await.
#[derive(Debug)]
pub(crate) struct PoolState {
    pool: Mutex<Inner>,
    changed: Notify,
    start: Instant,
}

#[derive(Debug)]
struct Inner {
    pool: Pool,
    rng: Jitter,
    /// How each connection is asked to go.
    let_go: BTreeMap<LeaseId, watch::Sender<Option<LetGo>>>,
    failing: BTreeMap<String, Failing>,
}

#[derive(Debug)]
struct Jitter(StdRng);

impl Draw for Jitter {
    fn up_to(&mut self, bound: Duration) -> Duration {
        self.0.random_range(Duration::ZERO..=bound)
    }
}

/// Keeps a proxy that cannot be reached from filling the log.
#[derive(Debug, Default)]
struct Failing {
    gist: String,
    times: u32,
}

impl PoolState {
    pub(super) fn new(pool: Pool, rng: StdRng) -> Self {
        let inner = Inner {
            pool,
            rng: Jitter(rng),
            let_go: BTreeMap::new(),
            failing: BTreeMap::new(),
        };
        Self {
            pool: Mutex::new(inner),
            changed: Notify::new(),
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
        let failing = inner
            .failing
            .iter()
            .next_back()
            .map(|(place, failing)| format!("{place}: {}", failing.gist));
        (inner.pool.counts(self.now()), failing)
    }

    fn log_failure(&self, place: &str, error: &ConnectError) {
        let gist = error.gist();
        let mut inner = self.lock();
        if inner.failing.len() >= FAILING_MAX && !inner.failing.contains_key(place) {
            inner.failing.pop_first();
        }
        let failing = inner.failing.entry(place.to_owned()).or_default();
        let repeat = failing.gist == gist && failing.times < REPEAT_WARNING;
        if repeat {
            failing.times += 1;
        } else {
            *failing = Failing { gist, times: 1 };
        }
        drop(inner);
        if repeat {
            tracing::debug!(address = place, "cannot connect to a proxy: {error}");
        } else {
            tracing::warn!(
                address = place,
                "cannot connect to a proxy, and will go on trying: {error}"
            );
        }
    }

    fn log_success(&self, place: &str) {
        self.lock().failing.remove(place);
    }
}

/// A lease that gives itself back: on every path out of an attempt or a connection, a panic and a
/// cancelled task among them.
#[derive(Debug)]
pub(super) struct Lease {
    id: LeaseId,
    state: Arc<PoolState>,
    connected: bool,
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
    pub(super) fn members(&self, members: wire::Members, rtt: Duration) {
        let spread = Duration::from_millis(members.reconnect_spread_ms);
        let count = members.agent_connection_count;
        let view = members.members.into_iter().map(member).collect();
        self.state.step(|pool, now, _| {
            pool.announced(Some(self.id), count, spread);
            pool.rtt(self.id, rtt);
            pool.members(now, Some(self.id), view);
        });
    }

    /// The proxy has said that it is about to leave.
    pub(super) fn draining(&self, within: Duration) {
        self.state
            .step(|pool, now, draw| pool.draining(now, self.id, within, draw));
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

/// The pool of an agent's config.
pub(super) fn of_config(config: &crate::config::AgentConfig) -> Pool {
    Pool::new(
        config.common.name.clone(),
        config.common.cluster.as_str(),
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
        Ok(connected) => {
            lease.state.log_success(&place);
            match lease.connected(&connected.hello) {
                Verdict::Keep => {
                    announce(&shared, &connected);
                    session::run(&shared, connected, &lease, let_go).await;
                }
                Verdict::Duplicate => {
                    shared.metrics.connect(ConnectResult::Duplicate);
                    tracing::debug!(address = place, proxy = %connected.hello.name, "reached a proxy that is connected already");
                    connected.close_duplicate().await;
                }
            }
        }
        Err(error) => {
            shared.metrics.connect(error.result());
            lease.state.log_failure(&place, &error);
        }
    }
}

/// A connection counts as made: it is told and counted.
fn announce(shared: &Shared, connected: &connect::ProxyConnection) {
    let hello = &connected.hello;
    let remote = connected.connection.remote_address();
    shared.metrics.connect(ConnectResult::Ok);
    tracing::info!(
        proxy = %hello.name, group = %hello.group, generation = %hello.generation,
        epoch = hello.epoch, %remote, version = hello.version, "connected to a proxy"
    );
    shared.hooks.connected(&Connected {
        agent: shared.config.common.name.clone(),
        proxy: hello.name.clone(),
        remote,
    });
}

/// Tries addresses in their order.
async fn attempt(
    shared: &Arc<Shared>,
    addresses: &[String],
    proxy: Option<&NodeName>,
) -> Result<connect::ProxyConnection, ConnectError> {
    let mut last = None;
    for address in addresses {
        match connect::connect(shared, address, proxy).await {
            Ok(connected) => return Ok(connected),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(ConnectError::NoAddress))
}
