//! Keeps a connection to each peer: to those of the config, and to all that gossip tells of.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::name::NodeName;
use mesh_proto::wire::MemberState;
use quinn::{Connection, Endpoint};
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::super::Shared;
use super::hello::{self, Control, PeerError};
use super::{close, converse};
use crate::quic::endpoint::{self, EndpointParts, peer_client_config};
use crate::quic::identity;
use crate::quic::keys::EndpointKeys;
use crate::tasks::Tasks;

/// The bound of the first wait after a peer could not be reached.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);

/// The bound that those waits grow to: a network that is back is noticed within it.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How often the addresses of the config are looked at again while their proxies are connected:
/// they may lead to others by now.
const SEED_INTERVAL: Duration = Duration::from_secs(30);

/// The same at first, and when they have led to somebody new. It doubles.
const SEED_INTERVAL_FIRST: Duration = Duration::from_secs(1);

/// How long the proxy with the higher name leaves the dial to the other one.
const DEFERENCE: Duration = Duration::from_secs(1);

/// Addresses of the config's names whose proxies are remembered.
const KNOWN_MAX: usize = 256;

/// From where peers are dialled.
struct Source {
    /// The proxy's own, on which it also listens.
    endpoint: Endpoint,
    /// For endpoints that dial and do not listen.
    keys: EndpointKeys,
}

impl Source {
    /// The proxy's own endpoint; or one of its own with a `fresh` port, or for an address of a family
    /// that the proxy does not listen on.
    fn endpoint(
        &self,
        shared: &Shared,
        remote: SocketAddr,
        fresh: bool,
    ) -> Result<Endpoint, PeerError> {
        let reaches = self
            .endpoint
            .local_addr()
            .is_ok_and(|local| local.is_ipv6() || remote.is_ipv4());
        if reaches && !fresh {
            return Ok(self.endpoint.clone());
        }
        let common = &shared.config.common;
        let parts = EndpointParts {
            network: &*shared.network,
            random: &shared.random,
            credentials: &common.credentials,
            config: &common.quic,
            keys: &self.keys,
            clock: &shared.clock,
        };
        Ok(endpoint::dialling(&parts, remote)?.endpoint)
    }
}

/// Keeps the connections until the proxy ends.
pub(in crate::proxy) async fn run(shared: Arc<Shared>, endpoint: Endpoint) {
    let source = Arc::new(Source {
        endpoint,
        keys: EndpointKeys::random(&mut shared.random.generator()),
    });
    let mut tasks = Tasks::new("connection to a peer");
    for address in &shared.config.peers {
        tasks.spawn(keep_seed(shared.clone(), source.clone(), address.clone()));
    }
    let mut changes = shared.mesh.changes();
    // A member has a task for as long as it is known.
    let mut kept = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        let members = shared.mesh.members();
        kept.retain(|name, _: &mut ()| members.iter().any(|known| known.profile.name == *name));
        for known in members {
            let name = known.profile.name.clone();
            if !kept.contains_key(&name) {
                kept.insert(name.clone(), ());
                tasks.spawn(keep_member(shared.clone(), source.clone(), name));
            }
        }
        tokio::select! {
            biased;
            () = shared.cut.cancelled() => break,
            () = changes.changed() => {}
            () = tasks.reap() => {}
        }
    }
    tasks.join_all().await;
}

/// Waits with exponential backoff and full jitter, and says each new failure once.
struct Attempts<'a> {
    shared: &'a Shared,
    /// The peer's name, or the address of the config.
    whom: String,
    rng: StdRng,
    failures: u32,
    said: String,
}

impl<'a> Attempts<'a> {
    fn new(shared: &'a Shared, whom: String) -> Self {
        Self {
            shared,
            whom,
            rng: shared.random.generator(),
            failures: 0,
            said: String::new(),
        }
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.said.clear();
        self.shared.links.succeeded(&self.whom);
    }

    fn failed(&mut self, address: &str, error: &PeerError) {
        let (shared, whom) = (self.shared, &self.whom);
        let what = error.to_string();
        if error.is_end() || shared.cut.is_cancelled() {
            tracing::debug!(
                peer = whom,
                address,
                "the connection to a peer has ended: {what}"
            );
            return;
        }
        if what != self.said {
            tracing::warn!(
                peer = whom,
                address,
                "no connection to a peer, and will go on trying: {what}"
            );
            self.said.clone_from(&what);
        }
        shared.links.failed(whom, what);
    }

    fn wait(&mut self) -> Duration {
        let bound = BACKOFF_FIRST
            .saturating_mul(2u32.saturating_pow(self.failures))
            .min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.rng.random_range(Duration::ZERO..=bound)
    }
}

/// Whether this proxy is to have connections at all.
fn takes_part(shared: &Shared) -> bool {
    !shared.cut.is_cancelled() && shared.mesh.superseded().borrow().is_none()
}

/// Keeps connected to a member, wherever it is by now, for as long as it is known.
async fn keep_member(shared: Arc<Shared>, source: Arc<Source>, name: NodeName) {
    let mut attempts = Attempts::new(&shared, name.to_string());
    let (mut links, mut members) = (shared.links.changes(), shared.mesh.changes());
    let defers = shared.config.common.name > name;
    // Kept over what else changes, so that a lively mesh does not put it off for ever.
    let mut due: Option<Instant> = None;
    while takes_part(&shared) {
        links.mark_unchanged();
        members.mark_unchanged();
        let is_connected = shared.links.best(&name).is_some();
        if is_connected {
            attempts.succeeded();
        }
        let known = shared
            .mesh
            .members()
            .into_iter()
            .find(|known| known.profile.name == name);
        let Some(known) = known else {
            return;
        };
        let addresses = if known.profile.peer_addresses.is_empty() {
            known.profile.addresses.clone()
        } else {
            known.profile.peer_addresses.clone()
        };
        // One that has left comes back by itself, if it does.
        let asleep = is_connected || known.state == MemberState::Left || addresses.is_empty();
        if asleep {
            due = None;
        } else if due.is_none() {
            let wait = match attempts.failures {
                0 if defers => DEFERENCE,
                _ => attempts.wait(),
            };
            due = Some(Instant::now() + wait);
        }
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shared.cut.cancelled() => return,
            () = links.changed() => continue,
            () = members.changed(), if asleep => continue,
            () = wait => {}
        }
        due = None;
        attempts.failures = attempts.failures.max(1);
        for address in &addresses {
            match dial(&shared, &source, address, &name).await {
                Ok((connection, control, peer)) => {
                    attempts.succeeded();
                    let error = converse::converse(&shared, &connection, control, peer, true).await;
                    close(&shared, &connection, &error);
                    attempts.failed(address, &error);
                    break;
                }
                Err(error) => attempts.failed(address, &error),
            }
        }
    }
}

/// Dials an address of the config until whoever is there is connected, and looks again from time
/// to time: the name may have further addresses, and other proxies behind them by now; behind a
/// balancer's address, each dial from a port of its own may meet another one.
async fn keep_seed(shared: Arc<Shared>, source: Arc<Source>, address: String) {
    let mut attempts = Attempts::new(&shared, address.clone());
    let mut tasks = Tasks::new("connection to a peer");
    let mut known: BTreeMap<SocketAddr, NodeName> = BTreeMap::new();
    let mut interval = SEED_INTERVAL_FIRST;
    let mut again = false;
    while takes_part(&shared) {
        let visit = visit(&shared, &source, &address, &mut known, &mut tasks, again);
        again = true;
        let wait = match visit.await {
            Ok(found) => {
                attempts.succeeded();
                if found == Found::New {
                    interval = SEED_INTERVAL_FIRST;
                }
                let wait = interval.mul_f64(attempts.rng.random_range(0.8..1.2));
                interval = (interval * 2).min(SEED_INTERVAL);
                wait
            }
            Err(error) => {
                attempts.failed(&address, &error);
                attempts.wait()
            }
        };
        let asleep = tokio::time::sleep(wait);
        tokio::pin!(asleep);
        let mut links = shared.links.changes();
        loop {
            links.mark_unchanged();
            // Members are kept by name. Without any, this address is the way back.
            if shared.links.all().is_empty() && wait > BACKOFF_MAX {
                let soon = attempts.wait();
                shared
                    .cut
                    .run_until_cancelled(tokio::time::sleep(soon))
                    .await;
                break;
            }
            tokio::select! {
                biased;
                () = shared.cut.cancelled() => break,
                () = &mut asleep => break,
                () = links.changed() => {}
                () = tasks.reap() => {}
            }
        }
    }
    tasks.join_all().await;
}

/// What a visit of an address has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// A proxy that was not connected.
    New,
    /// None but such as are connected, and this one.
    Known,
}

/// Whether a proxy, this one or another, calls this address its own: then nobody else is there.
fn is_home(shared: &Shared, address: &str, remote: SocketAddr) -> bool {
    let remote = remote.to_string();
    let members = shared.mesh.members();
    let own = shared.mesh.own();
    let profiles = members.iter().map(|known| &*known.profile);
    profiles.chain([&own]).any(|profile| {
        let addresses = profile.addresses.iter().chain(&profile.peer_addresses);
        addresses
            .into_iter()
            .any(|it| *it == remote || it == address)
    })
}

/// Connects to all proxies behind one address of the config that are not connected yet. Fails when
/// there is none.
async fn visit(
    shared: &Arc<Shared>,
    source: &Source,
    address: &str,
    known: &mut BTreeMap<SocketAddr, NodeName>,
    tasks: &mut Tasks,
    fresh: bool,
) -> Result<Found, PeerError> {
    let resolved = crate::net::resolve_address(&*shared.network, address)
        .await
        .map_err(|error| PeerError::Resolve(address.to_owned(), error))?;
    let mut result = Err(PeerError::NoAddress(address.to_owned()));
    for remote in resolved {
        let own = &shared.config.common.name;
        if let Some(name) = known.get(&remote)
            && (name == own || shared.links.best(name).is_some())
        {
            result = result.or(Ok(Found::Known));
            if is_home(shared, address, remote) {
                continue;
            }
        }
        let timeout = shared.config.common.quic.handshake_timeout;
        let dialled = tokio::time::timeout(timeout, connect(shared, source, remote, None, fresh))
            .await
            .unwrap_or(Err(PeerError::Timeout(timeout)));
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        match dialled {
            Ok((connection, control, peer)) => {
                known.insert(remote, peer.name.clone());
                result = Ok(Found::New);
                let shared = shared.clone();
                tasks.spawn(async move {
                    let error = converse::converse(&shared, &connection, control, peer, true).await;
                    close(&shared, &connection, &error);
                });
            }
            Err(PeerError::Itself) => {
                tracing::debug!(address, %remote, "this address of proxy.peers is this proxy itself");
                known.insert(remote, own.clone());
                result = result.or(Ok(Found::Known));
            }
            Err(PeerError::Superfluous) => result = result.or(Ok(Found::Known)),
            Err(error) if result.is_err() => result = Err(error),
            Err(error) => tracing::debug!(address, %remote, %error, "a peer cannot be reached"),
        }
    }
    result
}

type Greeted = (Connection, Control, mesh_proto::wire::Profile);

/// Dials a peer by what it advertises.
async fn dial(
    shared: &Arc<Shared>,
    source: &Source,
    address: &str,
    name: &NodeName,
) -> Result<Greeted, PeerError> {
    let timeout = shared.config.common.quic.handshake_timeout;
    let attempt = async {
        let resolved = crate::net::resolve_address(&*shared.network, address)
            .await
            .map_err(|error| PeerError::Resolve(address.to_owned(), error))?;
        let mut last = PeerError::NoAddress(address.to_owned());
        for remote in resolved {
            match connect(shared, source, remote, Some(name), false).await {
                Ok(greeted) => return Ok(greeted),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    tokio::time::timeout(timeout, attempt)
        .await
        .unwrap_or(Err(PeerError::Timeout(timeout)))
}

/// Connects to one address and says hello. With `name`, only that proxy will do; `fresh`: from a port
/// that was not used before.
async fn connect(
    shared: &Arc<Shared>,
    source: &Source,
    remote: SocketAddr,
    name: Option<&NodeName>,
    fresh: bool,
) -> Result<Greeted, PeerError> {
    let common = &shared.config.common;
    let client = peer_client_config(
        &common.credentials,
        &common.quic,
        name,
        &shared.random,
        &shared.clock,
    )?;
    let server_name = common.cluster.proxy_dns_name();
    let endpoint = source.endpoint(shared, remote, fresh)?;
    let connection = endpoint.connect_with(client, remote, &server_name)?.await?;
    let proven = identity::identity(&connection)?.name;
    // Before the peer hears of this connection.
    if shared.links.best(&proven).is_some() {
        close(shared, &connection, &PeerError::Superfluous);
        return Err(PeerError::Superfluous);
    }
    match hello::greet(shared, &connection).await {
        Ok((control, peer)) => Ok((connection, control, peer)),
        Err(error) => {
            let error = error.or_end_of(&connection);
            close(shared, &connection, &error);
            // The other end of the connection is this very process, and was quicker.
            if proven == common.name && error.is_superseded() {
                return Err(PeerError::Itself);
            }
            Err(error)
        }
    }
}
