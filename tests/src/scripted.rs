//! A network whose names and failures a test decides; everything else is the system's.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use node::net::{BoxFuture, Listener, Network, Socket, SystemNetwork, UdpBinding};

/// What happens to whoever connects to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The host answers that it cannot be reached.
    Unreachable,
    /// Nothing ever answers.
    Silence,
}

/// The system's network, with a resolver and failures of its own. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct ScriptedNetwork(Arc<Mutex<Script>>);

#[derive(Debug, Default)]
struct Script {
    answers: BTreeMap<String, VecDeque<Vec<IpAddr>>>,
    fates: BTreeMap<SocketAddr, Fate>,
    resolved: Vec<String>,
    dialled: Vec<SocketAddr>,
}

impl ScriptedNetwork {
    /// From now on `host` resolves to `answers`, one after the other, and then always to the last.
    ///
    /// # Panics
    /// When an answer is no list of IP addresses.
    #[expect(clippy::expect_used, reason = "a test writes them down")]
    pub fn name(&self, host: &str, answers: &[&[&str]]) {
        let parse = |ip: &&str| ip.parse().expect("an IP address");
        let answers = answers
            .iter()
            .map(|answer| answer.iter().map(parse).collect())
            .collect();
        self.script().answers.insert(host.to_owned(), answers);
    }

    /// From now on this is what comes of connecting to `address`.
    pub fn fate(&self, address: SocketAddr, fate: Fate) {
        self.script().fates.insert(address, fate);
    }

    /// The names looked up so far.
    #[must_use]
    pub fn resolved(&self) -> Vec<String> {
        self.script().resolved.clone()
    }

    /// The addresses that were connected to, successfully or not, so far.
    #[must_use]
    pub fn dialled(&self) -> Vec<SocketAddr> {
        self.script().dialled.clone()
    }

    /// Forgets what was looked up and connected to.
    pub fn forget(&self) {
        let mut script = self.script();
        script.resolved.clear();
        script.dialled.clear();
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network for ScriptedNetwork {
    fn bind_udp(&self, address: SocketAddr, shared: bool) -> io::Result<UdpBinding> {
        SystemNetwork.bind_udp(address, shared)
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        SystemNetwork.quic_runtime()
    }

    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        SystemNetwork.listen(address)
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Socket>>> {
        let fate = {
            let mut script = self.script();
            script.dialled.push(address);
            script.fates.get(&address).copied()
        };
        match fate {
            None => SystemNetwork.connect(address),
            Some(Fate::Unreachable) => {
                Box::pin(async { Err(io::ErrorKind::HostUnreachable.into()) })
            }
            Some(Fate::Silence) => Box::pin(std::future::pending()),
        }
    }

    fn connect_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Socket>>> {
        SystemNetwork.connect_unix(path)
    }

    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        let answer = {
            let mut script = self.script();
            script.resolved.push(host.to_owned());
            script
                .answers
                .get_mut(host)
                .and_then(|answers| match answers.len() {
                    0 | 1 => answers.front().cloned(),
                    _ => answers.pop_front(),
                })
        };
        Box::pin(async move {
            let ips = answer.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            Ok(ips
                .into_iter()
                .map(|ip| SocketAddr::new(ip, port))
                .collect())
        })
    }
}
