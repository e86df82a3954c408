//! One way after the other, until one leads to the agent or the time is up.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::name::{AgentName, NodeName};
use mesh_proto::refusal::Reason;
use tokio::time::Instant;

use super::super::Shared;
use super::super::metrics::Path;
use super::super::stream::Stream;
use super::ask::EarlyBytes;
use super::way::Way;
use super::{DialRequest, Reach, Refusal};

/// The search of one dial.
pub(super) struct Search<'a, 'e> {
    shared: &'a Arc<Shared>,
    request: &'a DialRequest,
    reach: Reach,
    pub(super) until: Instant,
    early: Option<EarlyBytes<'e>>,
    /// Peers that were tried; none is twice.
    pub(super) tried: BTreeSet<NodeName>,
    /// What was said on the ways that did not lead there.
    refusals: Vec<(Path, Refusal)>,
    /// The time was up before all ways were tried.
    too_late: bool,
    /// What the search has come to.
    end: Option<(Path, Result<Stream, Refusal>)>,
}

impl<'a, 'e> Search<'a, 'e> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        request: &'a DialRequest,
        reach: Reach,
        early: Option<EarlyBytes<'e>>,
    ) -> Self {
        Self {
            shared,
            request,
            reach,
            until: Instant::now() + request.deadline,
            early,
            tried: BTreeSet::new(),
            refusals: Vec::new(),
            too_late: false,
            end: None,
        }
    }

    /// Whether nobody was found who has a session of the agent, and it may be looked for elsewhere.
    pub(super) fn is_missing(&self) -> bool {
        self.end.is_none()
            && self.may_go_on()
            && self.refusals.iter().all(|(path, refusal)| {
                *path == Path::Peer && matches!(refusal.reason, Reason::NoAgent | Reason::Lost)
            })
    }

    fn may_go_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// Tries ways in their order.
    pub(super) async fn all(&mut self, ways: Vec<Way>) {
        let count = ways.len();
        for (index, way) in ways.into_iter().enumerate() {
            if self.end.is_some() {
                return;
            }
            if !self.may_go_on() {
                self.too_late = true;
                return;
            }
            if let Way::Peer(link) = &way
                && !self.tried.insert(link.name.clone())
            {
                continue;
            }
            let patience = self.patience(&way, count - index - 1);
            let result = way
                .open(
                    self.shared,
                    self.request,
                    self.until,
                    patience,
                    self.early.as_mut(),
                )
                .await;
            let path = way.path();
            match result {
                Ok(stream) => self.end = Some((path, Ok(stream))),
                Err(refusal) if self.is_final(path, &refusal) => {
                    self.end = Some((path, Err(refusal)));
                }
                Err(refusal) => self.refusals.push((path, refusal)),
            }
        }
    }

    /// How long a way may show no sign of life: not long when there are others. Behind the last peer
    /// the others are asked, and a dial that a peer has passed on may have others there.
    fn patience(&self, way: &Way, others: usize) -> Option<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        match (others, self.reach, way) {
            (0, Reach::Mesh, Way::Session(_)) => None,
            (0, Reach::Mesh, Way::Peer(_)) | (0, Reach::Here, _) => Some(left / 2),
            _ => Some(Duration::ZERO),
        }
    }

    /// Whether the answer would be the same elsewhere, or another attempt could do harm.
    fn is_final(&self, path: Path, refusal: &Refusal) -> bool {
        let reason = refusal.reason;
        match reason {
            // A target may have seen the bytes behind `Open`, so that they go out once only.
            Reason::Lost => self
                .early
                .as_ref()
                .is_some_and(|early| !early.is_resendable()),
            // A route that is no more.
            Reason::NoAgent => path != Path::Peer || refusal.by_other_cluster,
            Reason::BadTarget
            | Reason::NotAllowed
            | Reason::Refused
            | Reason::Unreachable
            | Reason::ResolveFailed
            | Reason::Unsupported
            | Reason::Draining
            | Reason::Overloaded
            | Reason::Timeout
            | Reason::Internal => !reason.may_try_elsewhere(),
        }
    }

    /// What the dial comes to.
    pub(super) fn end(self, agent: &AgentName) -> (Path, Result<Stream, Refusal>) {
        if let Some(end) = self.end {
            return end;
        }
        let refusals = self.refusals;
        let mut found = refusals
            .iter()
            .filter(|(_, refusal)| refusal.reason != Reason::NoAgent);
        // The last word of those that hold the agent; what the others said is told behind it.
        let Some((path, last)) = found.next_back() else {
            if self.too_late {
                let message = format!(
                    "the deadline of {:?} passed before {agent} could be asked",
                    self.request.deadline
                );
                return (Path::None, Err(Refusal::new(Reason::Timeout, message)));
            }
            return (
                Path::None,
                Err(self::missing(self.shared, agent, self.reach)),
            );
        };
        let mut message = last.message.clone();
        let mut said = BTreeSet::from([last.message.as_str()]);
        for (_, refusal) in &refusals {
            if refusal.reason != Reason::NoAgent && said.insert(&refusal.message) {
                let _ = write!(message, "; before, {}: {}", refusal.reason, refusal.message);
            }
        }
        let refusal = Refusal {
            by_other_cluster: last.by_other_cluster,
            ..Refusal::new(last.reason, message)
        };
        (*path, Err(refusal))
    }
}

fn missing(shared: &Shared, agent: &AgentName, reach: Reach) -> Refusal {
    let what = if agent.is_cluster() {
        "cluster"
    } else {
        "agent"
    };
    if shared.sessions.is_leaving(agent) {
        let message = format!("the {what} {agent} is about to leave");
        return Refusal::new(Reason::Draining, message);
    }
    let own = &shared.config.common.name;
    let peers = shared.links.all().len();
    let place = match (reach, peers) {
        (Reach::Here, _) | (Reach::Mesh, 0) => format!("the proxy {own}"),
        (Reach::Mesh, 1) => format!("the proxy {own} or its one peer"),
        (Reach::Mesh, peers) => format!("the proxy {own} or one of its {peers} peers"),
    };
    if agent.is_cluster() {
        let message = format!(
            "no proxy of the cluster {agent} is connected to {place}; see that a tunnel to this cluster stands there (`node tunnel ls`), and read the log of its proxies"
        );
        return Refusal::new(Reason::NoAgent, message);
    }
    let message = format!(
        "no agent `{agent}` is connected to {place}; see that it runs, that it is spelled so, and read its log"
    );
    Refusal::new(Reason::NoAgent, message)
}
