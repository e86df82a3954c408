//! Which peers hold an agent: those that claim it, and when none does, those that say so when asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use mesh_proto::name::{AgentName, NodeName};
use mesh_proto::wire::{Answer, MemberState, Open, OpenFind};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::super::Shared;
use super::super::peers::links::Link;
use crate::quic::frames::FrameReader;

/// How long all peers together may take to say whether they hold an agent.
const FIND_DEADLINE: Duration = Duration::from_secs(1);

/// How long the answer that nobody holds an agent is believed: a user who asks for a name that does
/// not exist must not make every proxy look each time.
const MISS_FOR: Duration = Duration::from_secs(1);

/// Misses that are remembered.
const MISSES_MAX: usize = 1024;

/// Searches under way at one time.
const FINDS_MAX: usize = 64;

/// Round-trip times within one such step count as the same distance, so that peers in one place
/// share the work.
const DISTANCE_STEP: Duration = Duration::from_millis(10);

/// Which agents nobody was found to hold, a moment ago.
#[derive(Debug)]
pub(in crate::proxy) struct Misses {
    since: Mutex<BTreeMap<AgentName, Instant>>,
    running: Semaphore,
    turn: std::sync::atomic::AtomicUsize,
}

impl Misses {
    pub(in crate::proxy) fn new() -> Self {
        Self {
            since: Mutex::default(),
            running: Semaphore::new(FINDS_MAX),
            turn: std::sync::atomic::AtomicUsize::new(0),
        }
    }

    fn is_known(&self, agent: &AgentName) -> bool {
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get(agent).is_some_and(|at| at.elapsed() < MISS_FOR)
    }

    fn note(&self, agent: &AgentName) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.len() >= MISSES_MAX {
            since.retain(|_, at| at.elapsed() < MISS_FOR);
        }
        if since.len() < MISSES_MAX {
            since.insert(agent.clone(), Instant::now());
        }
    }
}

/// The connected peers that claim an agent: those that stay before those that leave or are silent,
/// the near before the far, and in turn among equals.
pub(in crate::proxy) fn claimants(shared: &Shared, agent: &AgentName) -> Vec<Arc<Link>> {
    let holders = shared.routes_of(agent).holders(agent);
    let turn = shared
        .misses
        .turn
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut claimants: Vec<_> = holders
        .iter()
        .enumerate()
        .filter_map(|(index, name)| {
            let link = shared.links.best(name)?;
            let distance = link.connection.rtt().as_nanos() / DISTANCE_STEP.as_nanos();
            let leaves = shared.mesh.state(name) == Some(MemberState::Draining);
            let in_turn = (index + turn) % holders.len().max(1);
            Some(((link.is_silent(), leaves, distance, in_turn), link))
        })
        .collect();
    claimants.sort_by_key(|(key, _)| *key);
    claimants.into_iter().map(|(_, link)| link).collect()
}

/// Asks all other peers at once, each once. The peer that says yes first, or nobody.
pub(super) async fn ask_all(
    shared: &Arc<Shared>,
    agent: &AgentName,
    tried: &BTreeSet<NodeName>,
    until: Instant,
) -> Option<Arc<Link>> {
    if shared.misses.is_known(agent) {
        return None;
    }
    let until = until.min(Instant::now() + FIND_DEADLINE);
    // Whoever could not ask has learnt nothing: a flood of searches must not hide an agent.
    let running = tokio::time::timeout_at(until, shared.misses.running.acquire());
    let Ok(Ok(_running)) = running.await else {
        return None;
    };
    let asked = async {
        let mut answers: FuturesUnordered<_> = shared
            .links
            .all()
            .into_iter()
            .filter(|link| !tried.contains(&link.name))
            .map(|link| async move {
                let holds = holds(shared, &link, agent).await;
                holds.then_some(link)
            })
            .collect();
        while let Some(answer) = answers.next().await {
            if answer.is_some() {
                return answer;
            }
        }
        None
    };
    let found = tokio::time::timeout_at(until, asked).await.ok().flatten();
    if found.is_none() {
        shared.misses.note(agent);
    }
    found
}

/// Whether a peer says that it holds an agent. A peer that fails does not.
async fn holds(shared: &Shared, link: &Link, agent: &AgentName) -> bool {
    let question = async {
        let (mut send, mut recv) = link.connection.open_bi().await.ok()?;
        let open = shared.hooks.encode(&Open::Find(OpenFind {
            agent: agent.clone(),
            ext: Vec::new(),
        }));
        send.write_all(&open.ok()?).await.ok()?;
        let _ = send.finish();
        FrameReader::default().next::<Answer>(&mut recv).await.ok()
    };
    matches!(question.await, Some(Answer::Opened(_)))
}
