//! Something that stands where a proxy should, with a good certificate, and says what a scenario wants.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use certs::Kind;
use mesh_proto::name::Generation;
use mesh_proto::wire::{
    ALPN_AGENT, AgentFrame, Answer, Frame, Member, MemberState, Members, Open, Opened, ProxyFrame,
    ProxyHello, Released,
};
use node::clock::WallClock;
use node::config::QuicConfig;
use node::quic::endpoint::{self, EndpointParts};
use node::quic::keys::EndpointKeys;
use node::random::Random;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::task::JoinSet;

use super::world::{CLUSTER, MTU, World};
use crate::{Result, quic};

const PORT: u16 = 7443;

/// See the module. Dropping it ends it without a word.
pub struct Liar {
    /// The name in its certificate.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    met: Arc<AtomicUsize>,
    endpoint: Endpoint,
    _tasks: JoinSet<()>,
}

impl Liar {
    /// Handshakes that have succeeded so far.
    #[must_use]
    pub fn met(&self) -> usize {
        self.met.load(Ordering::Relaxed)
    }

    /// What others say of it who believe it to be a proxy.
    ///
    /// # Errors
    /// When its name is none.
    pub fn member(&self) -> Result<Member> {
        member(&self.name, &[self.address.to_string()])
    }

    /// From now on it takes no connection.
    pub fn stop(&self) {
        self.endpoint.close(0_u32.into(), b"");
    }
}

/// A member that lives, for five minutes.
///
/// # Errors
/// When the name is none.
pub fn member(name: &str, addresses: &[String]) -> Result<Member> {
    Ok(Member {
        name: name.parse()?,
        group: "default".parse()?,
        generation: Generation(0),
        epoch: 1,
        addresses: addresses.to_vec(),
        state: MemberState::Alive,
        ttl_ms: 300_000,
        ext: Vec::new(),
    })
}

/// A proxy's hello.
///
/// # Errors
/// When the name is none.
pub fn hello(name: &str, cluster: &str) -> Result<ProxyFrame> {
    Ok(ProxyFrame::Hello(ProxyHello {
        name: name.parse()?,
        cluster: cluster.parse()?,
        epoch: 1,
        group: "default".parse()?,
        generation: Generation(0),
        agent_connection_count: None,
        version: "test".into(),
        ext: Vec::new(),
    }))
}

/// A frame with a view.
///
/// # Errors
/// When it breaks a bound of the wire.
pub fn view(members: Vec<Member>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ProxyFrame::Members(Members {
        members,
        agent_connection_count: None,
        reconnect_spread_ms: 0,
        ext: Vec::new(),
    })
    .encode(&mut bytes)?;
    Ok(bytes)
}

/// Hears an agent's hello; nothing is answered yet.
///
/// # Errors
/// When it says something else, or goes.
pub async fn hear(connection: &Connection) -> Result<(SendStream, RecvStream)> {
    let (send, mut recv) = connection.accept_bi().await?;
    let open: Open = quic::read(&mut recv).await?;
    ensure!(matches!(open, Open::Control(_)), "{open:?}");
    let hello: AgentFrame = quic::read(&mut recv).await?;
    ensure!(matches!(hello, AgentFrame::Hello(_)), "{hello:?}");
    Ok((send, recv))
}

/// Hears an agent's hello, and answers it as a proxy of this name does.
///
/// # Errors
/// When it says something else, or goes.
pub async fn greet(connection: &Connection, name: &str) -> Result<(SendStream, RecvStream)> {
    let (mut send, recv) = hear(connection).await?;
    quic::write(&mut send, &Answer::Opened(Opened::default())).await?;
    quic::write(&mut send, &hello(name, CLUSTER)?).await?;
    Ok((send, recv))
}

impl World {
    /// Starts a liar on a host of its own: `script` runs for each connection, with the liar's name.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn lie<F, Fut>(&self, name: &str, script: F) -> Result<Liar>
    where
        F: Fn(Connection) -> Fut + Send + 'static,
        Fut: Future<Output = Result> + Send + 'static,
    {
        let host = self.net().add_host(name);
        let random = Random::seeded(self.seed() ^ 0x11a5);
        let config = QuicConfig {
            mtu_max: MTU,
            ..QuicConfig::default()
        };
        let parts = EndpointParts {
            network: &*self.net().network(host),
            random: &random,
            credentials: &*self.pki().issue(Kind::Proxy, name)?,
            config: &config,
            keys: &EndpointKeys::random(&mut random.generator()),
            clock: &WallClock::system(),
        };
        let listen = (Ipv4Addr::UNSPECIFIED, PORT).into();
        let endpoint = endpoint::listen(&parts, listen, &[ALPN_AGENT], false)?.endpoint;
        let met = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let (accepting, counter) = (endpoint.clone(), met.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(incoming) = accepting.accept().await {
                if let Ok(connection) = incoming.await {
                    counter.fetch_add(1, Ordering::Relaxed);
                    // What it comes to is for the scenario to see at the agent.
                    let told = script(connection);
                    connections.spawn(async move { drop(told.await) });
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Liar {
            name: name.to_owned(),
            address: SocketAddr::new(self.net().ip(host), PORT),
            met,
            endpoint,
            _tasks: tasks,
        })
    }

    /// As [`World::lie`]: greets as a proxy does, and tells these members again and again.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn tell(&self, name: &str, members: Vec<Member>) -> Result<Liar> {
        let own = name.to_owned();
        self.lie(name, move |connection| {
            let (own, members) = (own.clone(), members.clone());
            async move {
                let (mut send, mut recv) = greet(&connection, &own).await?;
                loop {
                    for some in members.chunks(1000) {
                        send.write_all(&view(some.to_vec())?).await?;
                    }
                    let heard = quic::read::<AgentFrame>(&mut recv);
                    if let Ok(heard) = tokio::time::timeout(Duration::from_secs(60), heard).await {
                        heard?;
                        // It leaves.
                        let released = ProxyFrame::Released(Released::default());
                        quic::write(&mut send, &released).await?;
                        connection.closed().await;
                        return Ok(());
                    }
                }
            }
        })
    }
}
