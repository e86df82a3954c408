//! Routes: tells peers which agents are here, and knows which agents are at peers. Drives
//! [`mesh_proto::routes`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use mesh_proto::name::{AgentName, NodeName};
use mesh_proto::routes::{Cursor, Head, Limits, OwnRoutes, PeerRoutes};
use mesh_proto::wire::{
    Answer, Open, OpenRoutes, RoutesFrame, RoutesHead, RoutesReaderFrame, WireError,
};
use quinn::{ConnectionError, RecvStream, SendStream};
use tokio::time::Instant;

use super::Shared;
use super::peers::links::Link;
use crate::changes::{Changes, Watcher};
use crate::quic::frames::{FrameError, FrameReader};

/// How long changes of the own routes are gathered before gossip tells of them: peers hear of each
/// at once on their streams, and gossip only lets them notice that they have missed one.
const HEAD_INTERVAL: Duration = Duration::from_secs(1);

/// How long a peer's copy may be behind what gossip tells of it before it is read anew.
const BEHIND_FOR: Duration = Duration::from_secs(3);

/// How long a stream of routes that broke waits before the next one.
const RETRY: Duration = Duration::from_millis(500);

/// How long the next snapshot of a peer's routes waits behind one: each costs a look at all routes,
/// however few bytes it has, and a peer in order needs another one hardly ever.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(500);

/// How long an agent's registration waits until the peers know of it.
const SHARE_DEADLINE: Duration = Duration::from_millis(500);

/// A stream of routes could not begin, or broke.
#[derive(Debug, thiserror::Error)]
enum RoutesError {
    #[error("it refused: {0}")]
    Refused(String),
    #[error("its routes do not fit what is known: {0}")]
    Misfit(#[from] mesh_proto::routes::RoutesError),
    #[error("gossip tells of routes that it has not told")]
    Behind,
    #[error("it tells of {0}, which has no place among these routes")]
    Stranger(AgentName),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Write(#[from] quinn::WriteError),
    #[error(transparent)]
    Encode(#[from] WireError),
}

/// Who is routed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// Agents of this cluster.
    Agents,
    /// Other clusters. They have streams of their own, since not every proxy of a mesh takes their
    /// names; gossip does not tell how far their routes are, which are few.
    Clusters,
}

impl Of {
    /// All of them.
    pub(super) const ALL: [Self; 2] = [Self::Agents, Self::Clusters];

    fn open(self, open: OpenRoutes) -> Open {
        match self {
            Self::Agents => Open::Routes(open),
            Self::Clusters => Open::ClusterRoutes(open),
        }
    }

    fn fits(self, agent: &AgentName) -> bool {
        agent.is_cluster() == (self == Self::Clusters)
    }

    /// The first row that does not belong there.
    fn stranger(self, frame: &RoutesFrame) -> Option<AgentName> {
        let rows = match frame {
            RoutesFrame::Snapshot(_) => return None,
            RoutesFrame::Rows(rows) => &rows.rows,
            RoutesFrame::Delta(delta) => &delta.added,
        };
        let stranger = rows.iter().find(|row| !self.fits(&row.agent))?;
        Some(stranger.agent.clone())
    }
}

/// Own routes, copies of the peers', and who has heard what.
#[derive(Debug)]
pub(super) struct Routing {
    of: Of,
    own: Mutex<OwnRoutes>,
    /// The own routes have changed.
    changes: Changes,
    copies: RwLock<PeerRoutes>,
    /// Which of the own changes each reader of them has confirmed.
    confirmed: Mutex<BTreeMap<u64, u64>>,
    confirmations: Changes,
    next_reader: AtomicU64,
    /// Gossip has told of a peer's routes.
    heard: Changes,
    /// A whole copy of a peer's routes has come.
    copied: Changes,
}

impl Routing {
    pub(super) fn new(epoch: u64, of: Of) -> Self {
        Self {
            of,
            own: Mutex::new(OwnRoutes::new(epoch, &Limits::default())),
            changes: Changes::default(),
            copies: RwLock::new(PeerRoutes::new(Limits::default())),
            confirmed: Mutex::default(),
            confirmations: Changes::default(),
            next_reader: AtomicU64::new(0),
            heard: Changes::default(),
            copied: Changes::default(),
        }
    }

    fn own(&self) -> MutexGuard<'_, OwnRoutes> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirmed(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_confirmed(&self, sequence: u64) -> bool {
        self.confirmed().values().all(|known| *known >= sequence)
    }

    /// An agent is here, until the guard drops.
    pub(super) fn hold(self: &Arc<Self>, agent: AgentName, instance: [u8; 16]) -> Row {
        let sequence = self.own().add(agent.clone(), instance);
        self.changes.notify();
        Row {
            routing: self.clone(),
            agent,
            instance,
            sequence,
        }
    }

    /// The proxies that claim to hold an agent.
    pub(super) fn holders(&self, agent: &AgentName) -> Vec<NodeName> {
        let copies = self.copies.read().unwrap_or_else(PoisonError::into_inner);
        copies.holders(agent).cloned().collect()
    }

    /// Where an agent's processes are, by what peers tell.
    pub(super) fn instances(&self, agent: &AgentName) -> Vec<(NodeName, [u8; 16])> {
        let copies = self.copies.read().unwrap_or_else(PoisonError::into_inner);
        copies
            .instances(agent)
            .map(|(owner, instance)| (owner.clone(), *instance))
            .collect()
    }

    /// How many rows a peer has told, when its copy is whole.
    pub(super) fn have(&self, owner: &NodeName) -> Option<Head> {
        let copies = self.copies.read().unwrap_or_else(PoisonError::into_inner);
        copies.have(owner)
    }

    /// A member is gone, and its rows with it.
    pub(super) fn forget(&self, owner: &NodeName) {
        let mut copies = self.copies.write().unwrap_or_else(PoisonError::into_inner);
        copies.forget(owner);
    }

    /// Gossip has told how far a peer's routes are.
    pub(super) fn heard_of(&self, _owner: &NodeName) {
        self.heard.notify();
    }

    /// Hears of every copy of a peer's routes that has become whole.
    pub(super) fn copies(&self) -> Watcher {
        self.copied.watch()
    }

    fn is_behind(&self, owner: &NodeName, head: RoutesHead) -> bool {
        let copies = self.copies.read().unwrap_or_else(PoisonError::into_inner);
        let head = Head {
            epoch: head.epoch,
            sequence: head.sequence,
            count: u64::from(head.count),
        };
        copies.is_behind(owner, head)
    }
}

/// A row of the own routes.
#[derive(Debug)]
pub(super) struct Row {
    routing: Arc<Routing>,
    agent: AgentName,
    instance: [u8; 16],
    sequence: u64,
}

impl Row {
    /// Completes when every peer that reads this proxy's routes knows of the row, or a short
    /// deadline has passed: from then on the agent can be dialled through any proxy.
    pub(super) async fn shared(&self) {
        let mut confirmations = self.routing.confirmations.watch();
        let known = async {
            while !self.routing.is_confirmed(self.sequence) {
                confirmations.changed().await;
            }
        };
        if tokio::time::timeout(SHARE_DEADLINE, known).await.is_err() {
            tracing::debug!(agent = %self.agent, "a peer has not confirmed the agent's route in time");
        }
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        self.routing.own().remove(&self.agent, &self.instance);
        self.routing.changes.notify();
    }
}

/// Lets gossip tell how far the own routes are, until the proxy ends.
pub(super) async fn announce(shared: Arc<Shared>) {
    let mut changes = shared.routing.changes.watch();
    loop {
        changes.mark_unchanged();
        let head = shared.routing.own().head();
        shared.mesh.set_head(RoutesHead {
            epoch: head.epoch,
            sequence: head.sequence,
            count: u32::try_from(head.count).unwrap_or(u32::MAX),
        });
        let next = async {
            tokio::time::sleep(HEAD_INTERVAL).await;
            changes.changed().await;
        };
        if shared.cut.run_until_cancelled(next).await.is_none() {
            break;
        }
    }
}

/// Reads a peer's routes for as long as its connection stands.
pub(super) async fn follow(shared: Arc<Shared>, link: Arc<Link>, of: Of) {
    let routing = shared.routes(of).clone();
    if of == Of::Clusters {
        // Most proxies know no other cluster, and need no stream for that.
        let mut trust = shared.trust.changes();
        while !shared.trust.knows_any() {
            tokio::select! {
                biased;
                _ = link.connection.closed() => return,
                () = trust.changed() => {}
            }
        }
    }
    let mut links = shared.links.changes();
    loop {
        links.mark_unchanged();
        if link.connection.close_reason().is_some() {
            return;
        }
        // Over the connection that is kept alone.
        let is_best = shared
            .links
            .best(&link.name)
            .is_some_and(|best| Arc::ptr_eq(&best, &link));
        if !is_best {
            tokio::select! {
                biased;
                _ = link.connection.closed() => return,
                () = links.changed() => continue,
            }
        }
        let error = tokio::select! {
            biased;
            _ = link.connection.closed() => return,
            error = read(&shared, &routing, &link) => error,
        };
        if of == Of::Clusters && matches!(error, RoutesError::Refused(_)) {
            // An older proxy, which lets no other clusters in: its connection has nothing to tell.
            link.connection.closed().await;
            return;
        }
        tracing::debug!(peer = %link.name, %error, "reading a peer's routes anew");
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads until something breaks.
async fn read(shared: &Shared, routing: &Routing, link: &Link) -> RoutesError {
    match try_read(shared, routing, link).await {
        Ok(never) => match never {},
        Err(error) => {
            if matches!(
                error,
                RoutesError::Misfit(_) | RoutesError::Behind | RoutesError::Stranger(_)
            ) {
                // From scratch.
                routing.forget(&link.name);
            }
            error
        }
    }
}

async fn try_read(
    shared: &Shared,
    routing: &Routing,
    link: &Link,
) -> Result<std::convert::Infallible, RoutesError> {
    let (mut send, mut recv) = link.connection.open_bi().await?;
    let have = routing
        .have(&link.name)
        .filter(|head| head.epoch == link.epoch)
        .map(Head::position);
    let open = routing.of.open(OpenRoutes {
        have,
        ext: Vec::new(),
    });
    send.write_all(&shared.hooks.encode(&open)?).await?;
    let mut reader = FrameReader::default();
    match reader.next::<Answer>(&mut recv).await? {
        Answer::Opened(_) => {}
        Answer::Refused(refused) => return Err(RoutesError::Refused(refused.message)),
    }
    reader.converse();
    let mut heard = routing.heard.watch();
    let mut behind_since: Option<Instant> = None;
    let mut snapshots = Snapshots::default();
    loop {
        let give_up = behind_since.map(|since| since + BEHIND_FOR);
        let frame = tokio::select! {
            biased;
            frame = reader.next::<RoutesFrame>(&mut recv) => frame?,
            () = heard.changed(), if behind_since.is_none() && routing.of == Of::Agents => {
                let head = shared.mesh.head(&link.name);
                if head.is_some_and(|head| routing.is_behind(&link.name, head)) {
                    behind_since = Some(Instant::now());
                }
                continue;
            }
            () = sleep_until(give_up) => {
                behind_since = None;
                match shared.mesh.head(&link.name) {
                    Some(head) if routing.is_behind(&link.name, head) => {
                        return Err(RoutesError::Behind);
                    }
                    Some(_) | None => continue,
                }
            }
        };
        if let RoutesFrame::Snapshot(_) = &frame {
            snapshots.next().await;
        }
        if let Some(stranger) = routing.of.stranger(&frame) {
            return Err(RoutesError::Stranger(stranger));
        }
        let gone = match &frame {
            RoutesFrame::Delta(delta) => {
                delta.removed.iter().map(|row| row.agent.clone()).collect()
            }
            RoutesFrame::Snapshot(_) | RoutesFrame::Rows(_) => Vec::new(),
        };
        let applied = {
            let mut copies = routing
                .copies
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            copies.apply(&link.name, frame)?
        };
        // Idle streams to an agent that leaves must not hold it up.
        for agent in gone {
            shared.session_ended(&agent);
        }
        if let Some(applied) = applied {
            routing.copied.notify();
            let frame = RoutesReaderFrame::Applied(applied);
            send.write_all(&shared.hooks.encode(&frame)?).await?;
        }
    }
}

/// Holds back a peer that begins its snapshot anew again and again: nothing is read meanwhile.
#[derive(Debug, Default)]
struct Snapshots {
    next: Option<Instant>,
}

impl Snapshots {
    /// Completes when the next one may begin.
    async fn next(&mut self) {
        if let Some(next) = self.next {
            tokio::time::sleep_until(next).await;
        }
        self.next = Some(Instant::now() + SNAPSHOT_INTERVAL);
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Tells a peer the own routes for as long as its stream stands.
pub(super) async fn tell(
    shared: &Arc<Shared>,
    link: &Link,
    of: Of,
    open: OpenRoutes,
    (send, recv): (SendStream, RecvStream),
) {
    let routing = shared.routes(of);
    let cursor = routing.own().cursor(open.have);
    let reader = Reader::of(routing, cursor);
    let told = async {
        tokio::select! {
            biased;
            error = hear(&reader, recv) => error,
            error = write(shared, &reader, send) => error,
        }
    };
    let error = told.await;
    tracing::debug!(peer = %link.name, %error, "a peer reads the routes of this proxy no more");
}

/// Somebody who reads the own routes; registrations wait for him.
struct Reader<'a> {
    routing: &'a Routing,
    id: u64,
    cursor: Mutex<Cursor>,
}

impl<'a> Reader<'a> {
    fn of(routing: &'a Routing, cursor: Cursor) -> Self {
        let id = routing.next_reader.fetch_add(1, Ordering::Relaxed);
        routing.confirmed().insert(id, 0);
        Self {
            routing,
            id,
            cursor: Mutex::new(cursor),
        }
    }

    fn cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirm(&self, sequence: u64) {
        if let Some(before) = self.routing.confirmed().get_mut(&self.id) {
            *before = sequence.max(*before);
        }
        self.routing.confirmations.notify();
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.routing.confirmed().remove(&self.id);
        self.routing.confirmations.notify();
    }
}

async fn hear(reader: &Reader<'_>, mut recv: RecvStream) -> RoutesError {
    let mut frames = FrameReader::default();
    frames.converse();
    loop {
        match frames.next::<RoutesReaderFrame>(&mut recv).await {
            Ok(RoutesReaderFrame::Applied(applied)) => {
                if let Err(error) = reader.cursor().applied(&applied) {
                    return error.into();
                }
                reader.confirm(applied.sequence);
            }
            Err(error) => return error.into(),
        }
    }
}

async fn write(shared: &Shared, reader: &Reader<'_>, mut send: SendStream) -> RoutesError {
    let routing = reader.routing;
    let mut changes = routing.changes.watch();
    loop {
        changes.mark_unchanged();
        loop {
            // Not in the condition, where the lock would be held across the await.
            let frame = routing.own().next_for(&mut reader.cursor());
            let Some(frame) = frame else {
                break;
            };
            let written = match shared.hooks.encode(&frame) {
                Ok(bytes) => send.write_all(&bytes).await.map_err(RoutesError::from),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = written {
                return error;
            }
        }
        changes.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn repeated_snapshots_are_held_back() {
        let start = Instant::now();
        let mut snapshots = Snapshots::default();
        snapshots.next().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        for number in 1..=20 {
            snapshots.next().await;
            assert_eq!(start.elapsed(), SNAPSHOT_INTERVAL * number);
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let quiet = Instant::now();
        snapshots.next().await;
        assert_eq!(quiet.elapsed(), Duration::ZERO);
    }
}
