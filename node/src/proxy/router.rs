//! From a dial request to a connected stream: whom to ask, in which order, for how long.
//!
//! First the agent's sessions here, the newest live one first; then the peers that claim to hold it,
//! each once; and when nobody does, all peers are asked once whether they do. A dial that a peer has
//! passed on goes to a session here or nowhere: one hop at most, so that no dial can go in circles.
//!
//! | file | what |
//! |---|---|
//! | `search.rs` | one way after the other, and what is said when none leads there |
//! | `way.rs` | one way: a session, or a peer |
//! | `ask.rs` | one stream, from `Open` to the answer |
//! | `find.rs` | asks all peers |

mod ask;
mod find;
mod search;
mod way;

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::name::AgentRef;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::target::Target;
use mesh_proto::wire::TraceContext;
use tokio::time::Instant;

pub(super) use self::ask::EarlyBytes;
pub(super) use self::find::{Misses, claimants};
use self::search::Search;
use self::way::Way;
use super::metrics::Path;
use super::{Phase, Shared, grants};
use crate::hooks::DialInfo;
use crate::metrics::StreamTotals;
use crate::quic::TunnelStream;

/// How far a dial may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// To a session here, or through a peer.
    Mesh,
    /// To a session here: a peer has passed it on.
    Here,
}

/// A dial that somebody asks of this proxy.
#[derive(Debug, Clone)]
pub struct DialRequest {
    /// Whose target.
    pub agent: AgentRef,
    /// What is to be reached.
    pub target: Target,
    /// On whose behalf.
    pub principal: Principal,
    /// The time that it may take altogether.
    pub deadline: Duration,
    /// The trace to which it belongs.
    pub trace: Option<TraceContext>,
}

/// A dial that did not succeed; nothing was changed by it, unless the reason is `lost`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot reach {target} through agent {agent}: {reason}: {message}")]
pub struct DialError {
    /// Whose target.
    pub agent: AgentRef,
    /// What was to be reached.
    pub target: Target,
    /// Why not.
    pub reason: Reason,
    /// The same for people, with what to do.
    pub message: String,
}

/// Why one session did not connect the stream.
#[derive(Debug)]
struct Refusal {
    reason: Reason,
    message: String,
}

impl Refusal {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// Connects a stream to the target of `request`, and counts and logs the dial.
pub(super) async fn dial(
    shared: &Arc<Shared>,
    request: &DialRequest,
    reach: Reach,
    early: Option<EarlyBytes<'_>>,
) -> Result<TunnelStream, DialError> {
    let started = Instant::now();
    let (path, result) = route(shared, request, reach, early).await;
    shared
        .metrics
        .dial_duration
        .observe(started.elapsed().as_secs_f64());
    shared.metrics.dialled(
        path,
        result
            .as_ref()
            .map(|_| ())
            .map_err(|refusal| refusal.reason),
    );
    result.map_err(|Refusal { reason, message }| {
        log_dial(
            request,
            path,
            Some(reason),
            started,
            &StreamTotals::default(),
        );
        DialError {
            agent: request.agent.clone(),
            target: request.target.clone(),
            reason,
            message,
        }
    })
}

async fn route(
    shared: &Arc<Shared>,
    request: &DialRequest,
    reach: Reach,
    early: Option<EarlyBytes<'_>>,
) -> (Path, Result<TunnelStream, Refusal>) {
    // An agent that has only this proxy yet is still reached through the others, which pass dials on.
    if reach == Reach::Mesh && *shared.phase.borrow() == Phase::Draining {
        let message = "this proxy is about to leave: try again, the balancer will choose another";
        return (Path::None, Err(Refusal::new(Reason::Draining, message)));
    }
    let info = DialInfo {
        agent: request.agent.clone(),
        target: request.target.clone(),
        principal: request.principal.clone(),
    };
    if let Err(why) = grants::check(&shared.policy, &info) {
        return (Path::None, Err(Refusal::new(Reason::NotAllowed, why)));
    }
    if let Err(why) = shared.hooks.authorize(&info).await {
        return (Path::None, Err(Refusal::new(Reason::NotAllowed, why)));
    }
    let cluster = &shared.config.common.cluster;
    let Some(agent) = request.agent.local_name(cluster) else {
        let message = format!(
            "`{}` is neither an agent of the cluster {cluster} nor of one that is connected to it",
            request.agent
        );
        return (Path::None, Err(Refusal::new(Reason::NoAgent, message)));
    };
    let sessions = shared.sessions.live(&agent).into_iter().map(Way::Session);
    let mut search = Search::new(shared, request, reach, early);
    match reach {
        Reach::Here => search.all(sessions.collect()).await,
        Reach::Mesh => {
            let peers = claimants(shared, &agent).into_iter().map(Way::Peer);
            search.all(sessions.chain(peers).collect()).await;
            // Those who claim it were wrong, or nobody does: the others may know of it already.
            if search.is_missing() {
                let found = find::ask_all(shared, &agent, &search.tried, search.until).await;
                search.all(found.into_iter().map(Way::Peer).collect()).await;
            }
        }
    }
    search.end(&agent)
}

fn log_dial(
    request: &DialRequest,
    path: Path,
    refused: Option<Reason>,
    started: Instant,
    totals: &StreamTotals,
) {
    tracing::info!(
        target: "access",
        kind = "dial",
        agent = %request.agent,
        target = %request.target,
        principal = %request.principal,
        path = path.as_str(),
        result = refused.map_or("ok", Reason::as_str),
        duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        sent_bytes = totals.sent_bytes,
        received_bytes = totals.received_bytes,
        cut = totals.cut,
        trace = request.trace.map(|trace| trace.to_string()),
        "dial"
    );
}
