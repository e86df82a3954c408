//! Keeps one connection: takes another when it is lost, when its proxy drains, and when it has
//! fallen silent.

use std::collections::{BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mesh_proto::close::CloseCode;
use quinn::ConnectionError;
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::candidates::Candidates;
use super::connect::ConnectErrorKind;
use super::event::{Event, Failure, Why};
use super::held::{Control, Held};
use super::{CLOSE_GRACE, GaveUp, Shared, State, race};
use crate::tasks::Tasks;

/// The bound of the first wait after a failure; it doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);

/// Where it stops to double. Below the time that a local connection waits for a proxy.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A connection that held this long was a success, however it ended.
const SETTLED: Duration = Duration::from_secs(30);

/// Failures that have not changed are told again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Connections that are left and still carry streams; beyond, the oldest is closed.
const RETIRING_MAX: usize = 8;

/// Runs until the client ends, or has given up.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut keeper = Keeper {
        candidates: Candidates::default(),
        backoff: Backoff::new(shared.random.generator()),
        next_id: 0,
        was_connected: false,
        told: None,
        current: None,
        retiring: VecDeque::new(),
        tasks: Tasks::new("connection that is left"),
        shared,
    };
    let cut = keeper.shared.cut.clone();
    let outcome = cut.run_until_cancelled(keeper.keep()).await;
    if let Some(gave_up) = outcome {
        keeper.shared.state.send_replace(State::Failed(gave_up));
        cut.cancelled().await;
    }
    keeper.end().await;
}

struct Keeper {
    shared: Arc<Shared>,
    candidates: Candidates,
    backoff: Backoff,
    next_id: u64,
    was_connected: bool,
    /// The failures that were told of last, and when.
    told: Option<(BTreeSet<(String, ConnectErrorKind)>, Instant)>,
    current: Current,
    retiring: VecDeque<Weak<Held>>,
    tasks: Tasks,
}

impl Keeper {
    async fn keep(&mut self) -> GaveUp {
        loop {
            let held = match self.connect().await {
                Ok(held) => Arc::new(held),
                Err(gave_up) => return gave_up,
            };
            self.adopt(&held);
            let since = Instant::now();
            let mut control = held.take_control();
            let left = loop {
                tokio::select! {
                    biased;
                    error = held.connection.closed() => break Err(error),
                    why = held.asked_to_leave() => break Ok(why),
                    () = draining(control.as_mut()) => held.leave(Why::Draining),
                    () = self.tasks.reap() => {}
                }
            };
            self.candidates.left(held.remote);
            if since.elapsed() >= SETTLED {
                self.backoff.reset();
            }
            match left {
                // It stays in use until there is another one: make before break.
                Ok(why) => self.current = Some((held, Some(why))),
                Err(error) => {
                    self.current = None;
                    lost(&self.shared, &held, &error);
                }
            }
            // The first time at once; a connection that does not hold is waited for.
            if let Some(wait) = self.backoff.moved() {
                self.sleep(wait).await;
            }
        }
    }

    /// Tries until there is a connection.
    async fn connect(&mut self) -> Result<Held, GaveUp> {
        loop {
            if let Err(error) = self.check_time() {
                return Err(GaveUp::Expired(error));
            }
            let round = race::round(&self.shared, &mut self.candidates, &mut self.next_id);
            let outcome = watching(&self.shared, &mut self.current, round).await;
            let failures = match outcome {
                Ok(held) => return Ok(held),
                Err(failures) => failures,
            };
            let hopeless = |failure: &Failure| failure.kind == ConnectErrorKind::Untrusted;
            if !self.was_connected && !failures.is_empty() && failures.iter().all(hopeless) {
                return Err(GaveUp::Untrusted(list(&failures)));
            }
            let retry_in = self.backoff.failed();
            self.tell_unreachable(failures, retry_in);
            self.sleep(retry_in).await;
        }
    }

    async fn sleep(&mut self, wait: Duration) {
        watching(&self.shared, &mut self.current, tokio::time::sleep(wait)).await;
    }

    /// A connection for everything that is new.
    fn adopt(&mut self, held: &Arc<Held>) {
        let former = self.current.replace((held.clone(), None));
        let (proxy, remote) = (held.proxy.clone(), held.remote);
        let event = match &former {
            Some((former, why)) if former.is_open() => Event::Moved {
                from: former.proxy.clone(),
                proxy,
                remote,
                why: why.unwrap_or(Why::Silent),
            },
            Some(_) | None => Event::Connected { proxy, remote },
        };
        self.was_connected = true;
        self.told = None;
        self.shared.tell(&event);
        self.shared
            .state
            .send_replace(State::Connected(held.clone()));
        if let Some((former, _)) = former {
            self.retire(former);
        }
    }

    /// Lets the streams of a connection end, and closes it.
    fn retire(&mut self, held: Arc<Held>) {
        self.retiring.retain(|held| held.strong_count() > 0);
        if self.retiring.len() >= RETIRING_MAX
            && let Some(oldest) = self.retiring.pop_front().and_then(|held| held.upgrade())
        {
            oldest.connection.close(
                CloseCode::Done.code().into(),
                b"too many connections are left",
            );
        }
        self.retiring.push_back(Arc::downgrade(&held));
        let cut = self.shared.cut.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                _ = held.connection.closed() => {}
                () = held.unused() => {}
                () = cut.cancelled() => {}
            }
            held.close().await;
        });
    }

    async fn end(&mut self) {
        if let Some((held, _)) = self.current.take() {
            held.close().await;
        }
        self.tasks.shutdown(CLOSE_GRACE * 2).await;
    }

    fn tell_unreachable(&mut self, failures: Vec<Failure>, retry_in: Duration) {
        let gist: BTreeSet<_> = failures
            .iter()
            .map(|failure| (failure.at.clone(), failure.kind))
            .collect();
        if let Some((told, at)) = &self.told
            && *told == gist
            && at.elapsed() < TELL_AGAIN
        {
            return;
        }
        self.told = Some((gist, Instant::now()));
        self.shared.tell(&Event::Unreachable { failures, retry_in });
    }

    /// Says when the own certificate cannot be used any more: it is read once, so no attempt helps.
    fn check_time(&self) -> Result<(), String> {
        match self.shared.clock.provider().current_time() {
            Some(now) => self
                .shared
                .config
                .credentials
                .check_time(now)
                .map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

/// The connection in use, with the reason to leave it if there is one.
type Current = Option<(Arc<Held>, Option<Why>)>;

/// Waits for what leads to another connection; notices meanwhile when the one in use ends.
async fn watching<T>(shared: &Shared, current: &mut Current, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    if let Some((held, _)) = current {
        tokio::select! {
            biased;
            done = &mut work => return done,
            error = held.connection.closed() => lost(shared, held, &error),
        }
        *current = None;
    }
    work.await
}

/// There is no connection in use any more.
fn lost(shared: &Shared, held: &Held, error: &ConnectionError) {
    shared.state.send_replace(State::Connecting);
    shared.tell(&Event::Lost {
        proxy: held.proxy.clone(),
        why: error.to_string(),
    });
}

async fn draining(control: Option<&mut Control>) {
    match control {
        Some(control) => control.draining().await,
        None => std::future::pending().await,
    }
}

/// Failures as one text.
fn list(failures: &[Failure]) -> String {
    let lines: Vec<String> = failures
        .iter()
        .map(|failure| format!("{}: {}", failure.at, failure.message))
        .collect();
    lines.join("\n")
}

/// Waits that grow exponentially, drawn with full jitter.
struct Backoff {
    failures: u32,
    random: StdRng,
}

impl Backoff {
    fn new(random: StdRng) -> Self {
        Self {
            failures: 0,
            random,
        }
    }

    fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after a failure.
    fn failed(&mut self) -> Duration {
        let bound = BACKOFF_FIRST
            .saturating_mul(2u32.saturating_pow(self.failures))
            .min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.random.random_range(Duration::ZERO..=bound)
    }

    /// The wait before a connection is replaced: none the first time.
    fn moved(&mut self) -> Option<Duration> {
        if self.failures == 0 {
            self.failures = 1;
            return None;
        }
        Some(self.failed())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn waits_are_drawn_below_a_bound_that_doubles() {
        let mut backoff = Backoff::new(StdRng::seed_from_u64(1));
        assert_eq!(backoff.moved(), None);
        backoff.reset();
        let mut longest = [Duration::ZERO; 12];
        for _ in 0..500 {
            backoff.reset();
            for longest in &mut longest {
                *longest = backoff.failed().max(*longest);
            }
        }
        for (failures, longest) in longest.iter().enumerate() {
            let bound =
                (BACKOFF_FIRST * 2u32.pow(u32::try_from(failures).unwrap())).min(BACKOFF_MAX);
            assert!(
                *longest <= bound && *longest > bound * 9 / 10,
                "{failures}: {longest:?}"
            );
        }
        assert!(backoff.moved().is_some(), "a move after failures waits");
    }
}
