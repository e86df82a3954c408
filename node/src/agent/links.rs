//! The agent's standing connections, as ways to dial through.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_proto::name::NodeName;
use quinn::Connection;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Links(Mutex<Vec<Arc<Link>>>);

/// One connection to a proxy.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) proxy: NodeName,
    pub(super) connection: Connection,
    /// The runtime of the shard that owns the connection.
    pub(super) runtime: Handle,
    use_: watch::Sender<Use>,
    /// The proxy has said that it is about to leave.
    draining: AtomicBool,
    /// A dial through it was not answered in time.
    silent: AtomicBool,
}

/// What the connection is used for by dials of this agent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Use {
    /// Streams, from the attempt to the end.
    pub(super) streams: usize,
    /// The agent leaves the proxy: no more of them.
    leaving: bool,
}

/// Holds a connection in [`Links`].
#[derive(Debug)]
pub(super) struct Registered {
    links: Arc<Links>,
    pub(super) link: Arc<Link>,
}

/// Keeps a connection from being left in order for as long as it lives.
#[derive(Debug)]
pub(super) struct InUse(Arc<Link>);

impl Links {
    /// Adds a connection; it is there until the guard drops.
    pub(super) fn register(
        self: &Arc<Self>,
        proxy: NodeName,
        connection: Connection,
    ) -> Registered {
        let link = Arc::new(Link {
            proxy,
            connection,
            runtime: Handle::current(),
            use_: watch::Sender::default(),
            draining: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        });
        self.lock().push(link.clone());
        Registered {
            links: self.clone(),
            link,
        }
    }

    /// The live ones, in the order in which they are to be tried: proxies that drain and those that
    /// have fallen silent last, else the nearest first.
    pub(super) fn in_order(&self) -> Vec<Arc<Link>> {
        let mut live: Vec<_> = self
            .lock()
            .iter()
            .filter(|link| link.connection.close_reason().is_none())
            .map(|link| {
                let draining = link.draining.load(Ordering::Relaxed);
                let silent = link.silent.load(Ordering::Relaxed);
                ((draining, silent, link.connection.rtt()), link.clone())
            })
            .collect();
        live.sort_by(|(a, one), (b, other)| a.cmp(b).then_with(|| one.proxy.cmp(&other.proxy)));
        live.into_iter().map(|(_, link)| link).collect()
    }

    /// All of them.
    pub(super) fn connections(&self) -> Vec<Connection> {
        let links = self.lock();
        links.iter().map(|link| link.connection.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Takes the connection into use, unless the agent is leaving it.
    pub(super) fn take(self: &Arc<Self>) -> Option<InUse> {
        self.use_
            .send_if_modified(|now| {
                now.streams += usize::from(!now.leaving);
                !now.leaving
            })
            .then(|| InUse(self.clone()))
    }

    /// Whether the last dial through it was answered.
    pub(super) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    /// The proxy is about to leave.
    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The agent leaves this proxy: what runs may end, and nothing new begins.
    pub(super) fn set_leaving(&self) {
        self.use_.send_modify(|now| now.leaving = true);
    }

    /// What it is used for, and the changes.
    pub(super) fn watch(&self) -> watch::Receiver<Use> {
        self.use_.subscribe()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.links
            .lock()
            .retain(|link| !Arc::ptr_eq(link, &self.link));
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.use_.send_modify(|now| now.streams -= 1);
    }
}
