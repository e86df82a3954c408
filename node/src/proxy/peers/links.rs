//! The connections to peers: one per pair, and how a second one goes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mesh_proto::name::NodeName;
use quinn::{Connection, SendDatagramError};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::super::silence::Silence;
use crate::changes::{Changes, Watcher};
use crate::report::Failure;

/// Peers and addresses whose last failure is remembered.
const FAILURES_MAX: usize = 256;

/// A connection to a peer whose hello has come.
#[derive(Debug)]
pub(crate) struct Link {
    /// The peer, as its certificate names it.
    pub(crate) name: NodeName,
    /// The start of the peer that it leads to.
    pub(crate) epoch: u64,
    pub(crate) connection: Connection,
    /// The runtime of the shard that owns the connection.
    pub(crate) runtime: Handle,
    pub(crate) since: Instant,
    /// Of two connections between the same two starts, the one that the proxy with the lower name
    /// has dialled is kept: both sides agree on that without a word.
    by_lower_name: bool,
    /// Orders connections of one kind: the newer one is kept.
    number: u64,
    /// Streams in either direction.
    in_use: AtomicUsize,
    silence: Silence,
}

impl Link {
    fn rank(&self) -> (u64, bool, u64) {
        (self.epoch, self.by_lower_name, self.number)
    }

    /// Counts a stream for as long as the guard lives.
    pub(crate) fn hold(self: &Arc<Self>) -> InUse {
        self.in_use.fetch_add(1, Ordering::AcqRel);
        InUse(self.clone())
    }

    /// Somebody has waited in vain for a sign of life.
    pub(crate) fn set_silent(&self) {
        self.silence.note(&self.connection);
    }

    /// Whether there has been none since.
    pub(crate) fn is_silent(&self) -> bool {
        self.silence.lasts(&self.connection)
    }

    /// Streams in either direction.
    pub(crate) fn streams(&self) -> usize {
        self.in_use.load(Ordering::Acquire)
    }
}

/// A stream of a link.
#[derive(Debug)]
pub(crate) struct InUse(Arc<Link>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, Ordering::AcqRel);
    }
}

/// All connections to peers.
#[derive(Debug)]
pub(crate) struct Links {
    own: NodeName,
    by_name: Mutex<BTreeMap<NodeName, Vec<Arc<Link>>>>,
    next_number: AtomicU64,
    /// Why a peer could not be reached last, by its name or by the address of the config.
    failures: Mutex<BTreeMap<String, (String, Instant)>>,
    /// Joins and ends.
    version: Changes,
}

impl Links {
    pub(crate) fn new(own: NodeName) -> Self {
        Self {
            own,
            by_name: Mutex::default(),
            next_number: AtomicU64::new(1),
            failures: Mutex::default(),
            version: Changes::default(),
        }
    }

    /// Hears of every join and every end.
    pub(crate) fn changes(&self) -> Watcher {
        self.version.watch()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Vec<Arc<Link>>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection; it is there until the guard drops. `dialled`: by this proxy.
    pub(super) fn join<'a>(
        &'a self,
        name: NodeName,
        epoch: u64,
        connection: Connection,
        dialled: bool,
    ) -> Joined<'a> {
        let link = Arc::new(Link {
            by_lower_name: dialled == (self.own < name),
            name,
            epoch,
            connection,
            runtime: Handle::current(),
            since: Instant::now(),
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            in_use: AtomicUsize::new(0),
            silence: Silence::new(),
        });
        self.lock()
            .entry(link.name.clone())
            .or_default()
            .push(link.clone());
        self.changed();
        Joined { links: self, link }
    }

    /// A peer, by its name or by the address of the config, could not be reached.
    pub(super) fn failed(&self, whom: &str, why: String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= FAILURES_MAX && !failures.contains_key(whom) {
            failures.pop_first();
        }
        failures.insert(whom.to_owned(), (why, Instant::now()));
    }

    /// It has been reached.
    pub(super) fn succeeded(&self, whom: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.remove(whom);
    }

    /// Why a peer could not be reached last.
    pub(crate) fn failure(&self, whom: &str) -> Option<Failure> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(whom).map(failure)
    }

    /// All of that.
    pub(crate) fn failures(&self) -> Vec<(String, Failure)> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures
            .iter()
            .map(|(whom, last)| (whom.clone(), failure(last)))
            .collect()
    }

    fn changed(&self) {
        self.version.notify();
    }

    /// The connection to use for a peer.
    pub(crate) fn best(&self, name: &NodeName) -> Option<Arc<Link>> {
        best(self.lock().get(name)?)
    }

    /// The connection to use for each peer, in the order of their names.
    pub(crate) fn all(&self) -> Vec<Arc<Link>> {
        self.lock()
            .values()
            .filter_map(|links| best(links))
            .collect()
    }

    /// Whether another connection takes the place of this one.
    pub(super) fn is_superfluous(&self, link: &Link) -> bool {
        self.best(&link.name)
            .is_some_and(|best| best.number != link.number)
    }

    /// Whether this proxy, of the two, closes a superfluous connection between one and the same
    /// two starts.
    pub(super) fn closes(&self, link: &Link) -> bool {
        self.own < link.name
    }

    /// Sends a packet of gossip. It is lost when there is no connection, as gossip may be.
    pub(crate) fn send_datagram(&self, to: &NodeName, datagram: Vec<u8>) {
        let Some(link) = self.best(to) else {
            return;
        };
        match link.connection.send_datagram(Bytes::from(datagram)) {
            Ok(()) => {}
            // The connection has ended, which others notice.
            Err(SendDatagramError::ConnectionLost(_)) => {}
            Err(
                error @ (SendDatagramError::TooLarge
                | SendDatagramError::UnsupportedByPeer
                | SendDatagramError::Disabled),
            ) => tracing::debug!(peer = %to, %error, "a packet of gossip could not be sent"),
        }
    }
}

fn failure((what, at): &(String, Instant)) -> Failure {
    Failure {
        what: what.clone(),
        ago_seconds: at.elapsed().as_secs_f64(),
    }
}

fn best(links: &[Arc<Link>]) -> Option<Arc<Link>> {
    links
        .iter()
        .filter(|link| link.connection.close_reason().is_none())
        .max_by_key(|link| link.rank())
        .cloned()
}

/// Holds a connection in [`Links`].
#[derive(Debug)]
pub(super) struct Joined<'a> {
    links: &'a Links,
    pub(super) link: Arc<Link>,
}

impl Joined<'_> {
    /// Takes the connection out; `true` when it was the last one to the peer.
    pub(super) fn part(self) -> bool {
        let links = self.links;
        let name = self.link.name.clone();
        drop(self);
        !links.lock().contains_key(&name)
    }
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let mut by_name = self.links.lock();
        if let Some(links) = by_name.get_mut(&self.link.name) {
            links.retain(|link| link.number != self.link.number);
            if links.is_empty() {
                by_name.remove(&self.link.name);
            }
        }
        drop(by_name);
        self.links.changed();
    }
}
