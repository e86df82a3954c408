//! From a dial request to a connected stream: whom to ask, in which order, for how long.
//!
//! First the agent's sessions here, the newest live one first; then the peers that claim to hold it,
//! each once; and when nobody does, all peers are asked once whether they do. A dial that a peer has
//! passed on goes to a session here or nowhere: one hop at most, so that no dial can go in circles.
//! What is for another cluster goes to a session of that cluster in the same way, and there it may take
//! one hop more; from there it goes to no third cluster.
//!
//! | file | what |
//! |---|---|
//! | `whose.rs` | what a name stands for, and whether the dial may go there |
//! | `here.rs` | a target that this proxy reaches itself |
//! | `search.rs` | one way after the other, and what is said when none leads there |
//! | `way.rs` | one way: a session, or a peer |
//! | `ask.rs` | one stream, from `Open` to the answer |
//! | `find.rs` | asks all peers |

mod ask;
mod find;
mod here;
mod search;
mod way;
mod whose;

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
pub(super) use self::whose::{Place, place};
use super::metrics::Path;
use super::stream::Stream;
use super::{Phase, Shared};
use crate::metrics::StreamTotals;

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
    /// Of a dial that another cluster asks for: on whose behalf there, as it says. For the log alone.
    pub claimed: Option<Principal>,
}

impl DialRequest {
    /// A dial of `agent`, whose own deadline and trace are to be added.
    #[must_use]
    pub fn new(agent: AgentRef, target: Target, principal: Principal, deadline: Duration) -> Self {
        Self {
            agent,
            target,
            principal,
            deadline,
            trace: None,
            claimed: None,
        }
    }
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
    /// Whether the other cluster for whom the dial was has said so.
    pub by_other_cluster: bool,
}

/// Why one session did not connect the stream.
#[derive(Debug)]
struct Refusal {
    reason: Reason,
    message: String,
    /// The other cluster for whom the dial was has said so: there is nobody else to ask.
    by_other_cluster: bool,
}

impl Refusal {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            by_other_cluster: false,
        }
    }
}

/// Connects a stream to the target of `request`, and counts and logs the dial.
pub(super) async fn dial(
    shared: &Arc<Shared>,
    request: &DialRequest,
    reach: Reach,
    early: Option<EarlyBytes<'_>>,
) -> Result<Stream, DialError> {
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
    result.map_err(|refusal| {
        let Refusal {
            reason,
            message,
            by_other_cluster,
        } = refusal;
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
            by_other_cluster,
        }
    })
}

async fn route(
    shared: &Arc<Shared>,
    request: &DialRequest,
    reach: Reach,
    early: Option<EarlyBytes<'_>>,
) -> (Path, Result<Stream, Refusal>) {
    // An agent that has only this proxy yet is still reached through the others, which pass dials on.
    if reach == Reach::Mesh && *shared.phase.borrow() == Phase::Draining {
        let message = "this proxy is about to leave: try again, the balancer will choose another";
        return (Path::None, Err(Refusal::new(Reason::Draining, message)));
    }
    let place = match whose::admitted(shared, request) {
        Ok(place) => place,
        Err(refusal) => return (Path::None, Err(refusal)),
    };
    if let Err(why) = shared.hooks.authorize(&whose::info(request)).await {
        return (Path::None, Err(Refusal::new(Reason::NotAllowed, why)));
    }
    let Some(name) = place.name() else {
        let connected = here::connect(shared, request).await;
        return (Path::Local, connected);
    };
    let sessions = shared.sessions.live(&name).into_iter().map(Way::Session);
    let mut search = Search::new(shared, request, reach, early);
    match reach {
        Reach::Here => search.all(sessions.collect()).await,
        Reach::Mesh => {
            let peers = claimants(shared, &name).into_iter().map(Way::Peer);
            search.all(sessions.chain(peers).collect()).await;
            // Those who claim it were wrong, or nobody does: the others may know of it already.
            if search.is_missing() {
                let found = find::ask_all(shared, &name, &search.tried, search.until).await;
                search.all(found.into_iter().map(Way::Peer).collect()).await;
            }
        }
    }
    search.end(&name)
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
        claimed = request.claimed.as_ref().map(ToString::to_string),
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
