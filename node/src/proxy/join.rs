//! Joining: a fresh proxy is not ready before it knows which agents the mesh has, for it would tell
//! its users that there is no such agent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::mesh::is_active;
use super::{Phase, Shared};

/// How long all peers' agents must be known, and no further peer turn up, before this proxy takes
/// them for all: the first peer answers with those that it knows, and those dial this one when they
/// hear of it.
const SETTLE: Duration = Duration::from_secs(1);

/// Waits until the agents of all peers are known, or for `proxy.join_deadline`; then the proxy is
/// ready, unless it drains already.
pub(super) async fn run(shared: Arc<Shared>) {
    let deadline = shared.config.join_deadline;
    let joined = tokio::time::timeout(deadline, all_known(&shared));
    let Some(joined) = shared.cut.run_until_cancelled(joined).await else {
        return;
    };
    let missing = missing(&shared);
    let was_joining = shared.phase.send_if_modified(|phase| {
        shared.joined.store(true, Ordering::Relaxed);
        match phase {
            Phase::Joining => {
                *phase = Phase::Serving;
                true
            }
            Phase::Serving | Phase::Notice | Phase::Draining => false,
        }
    });
    if was_joining && joined.is_err() {
        match missing {
            None => tracing::warn!(
                ?deadline,
                "no peer of proxy.peers has been reached within proxy.join_deadline: this proxy serves, but knows its own agents alone"
            ),
            // A mesh that changes all the time, and is known.
            Some(peers) if peers.is_empty() => {}
            Some(peers) => tracing::warn!(
                ?deadline,
                peers = peers.join(", "),
                "the agents of these peers have not been learnt within proxy.join_deadline: this proxy serves without them; see their addresses in `node peers`"
            ),
        }
    }
}

/// Completes when every live peer's agents have been known for a while.
async fn all_known(shared: &Shared) {
    let mut members = shared.mesh.changes();
    let mut copies = shared.routing.copies();
    loop {
        members.mark_unchanged();
        copies.mark_unchanged();
        if missing(shared).is_some_and(|peers| peers.is_empty()) {
            tokio::select! {
                biased;
                () = members.changed() => {}
                () = tokio::time::sleep(SETTLE) => return,
            }
        } else {
            tokio::select! {
                biased;
                () = members.changed() => {}
                () = copies.changed() => {}
            }
        }
    }
}

/// The live peers whose agents are not known; `None` when no peer is known at all.
fn missing(shared: &Shared) -> Option<Vec<String>> {
    let mut known = false;
    let mut missing = Vec::new();
    for member in shared.mesh.members() {
        let name = &member.profile.name;
        if shared.routing.have(name).is_some() {
            known = true;
        } else if is_active(member.state) {
            known = true;
            missing.push(name.to_string());
        }
    }
    known.then_some(missing)
}
