//! Proxies of a simulated world that speak the wire by hand: they say what a test wants, and are
//! what it wants.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, ensure};
use certs::{Credentials, Kind};
use futures_util::future::BoxFuture;
use mesh_proto::name::Generation;
use mesh_proto::wire::{
    ALPN_AGENT, AgentFrame, Answer, Frame, Member, MemberState, Members, Open, Opened, ProxyFrame,
    ProxyHello,
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::watch;

use crate::Result;
use crate::hostile::Server;
use crate::quic;
use crate::sim::{HostId, World};

/// How often a [`Friend`] repeats its view.
const REFRESH: Duration = Duration::from_secs(20);

/// What a rogue does with each connection whose handshake has succeeded.
pub type Serve = Arc<dyn Fn(Connection) -> BoxFuture<'static, Result> + Send + Sync>;

/// A [`Serve`] out of a closure.
pub fn serve<F, Fut>(each: F) -> Serve
where
    F: Fn(Connection) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result> + Send + 'static,
{
    Arc::new(move |connection| Box::pin(each(connection)))
}

/// A proxy that is none; dropping it ends it.
pub struct Rogue {
    /// As its certificate says.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its host.
    pub host: HostId,
    server: Server,
}

impl Rogue {
    /// Starts one on a host of its own, with a good certificate.
    ///
    /// # Errors
    /// When the name is none.
    pub fn start(world: &World, name: &str, serve: &Serve) -> Result<Self> {
        let credentials = world.pki().issue(Kind::Proxy, name)?;
        Self::start_as(world, name, &credentials, serve)
    }

    /// Starts one with any identity.
    ///
    /// # Errors
    /// When the identity cannot serve.
    pub fn start_as(
        world: &World,
        name: &str,
        credentials: &Credentials,
        serve: &Serve,
    ) -> Result<Self> {
        let tls = certs::proxy_server_config(credentials, &[ALPN_AGENT], certs::system_time())?;
        let host = world.net().add_host(name);
        let network = world.net().network(host);
        let listen = (Ipv4Addr::UNSPECIFIED, 7443).into();
        let serve = serve.clone();
        let server = Server::start_on(&*network, listen, tls, move |connection| serve(connection))?;
        Ok(Self {
            name: name.to_owned(),
            address: SocketAddr::new(world.net().ip(host), 7443),
            host,
            server,
        })
    }

    /// Handshakes that succeeded so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.server.accepted()
    }

    /// It, as a member that serves.
    ///
    /// # Errors
    /// When its name is none.
    pub fn member(&self) -> Result<Member> {
        member(&self.name, &[&self.address.to_string()])
    }
}

/// A member of the simulated fleet that serves, as its proxies tell of each other.
///
/// # Errors
/// When the name is none.
pub fn member(name: &str, addresses: &[&str]) -> Result<Member> {
    Ok(Member {
        name: name.parse()?,
        group: "sim".parse()?,
        generation: Generation(0),
        epoch: 1,
        addresses: addresses.iter().map(|address| (*address).into()).collect(),
        state: MemberState::Alive,
        ttl_ms: 180_000,
        ext: Vec::new(),
    })
}

/// A view of these members.
#[must_use]
pub fn view(members: Vec<Member>) -> ProxyFrame {
    ProxyFrame::Members(Members {
        members,
        agent_connection_count: None,
        reconnect_spread_ms: 0,
        ext: Vec::new(),
    })
}

/// The bytes of a frame.
///
/// # Errors
/// When it is over its limit.
pub fn encoded(frame: &impl Frame) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes)?;
    Ok(bytes)
}

/// The hello of a proxy of the simulated fleet.
///
/// # Errors
/// When the name is none.
pub fn hello(world_cluster: &str, name: &str) -> Result<ProxyFrame> {
    Ok(ProxyFrame::Hello(ProxyHello {
        name: name.parse()?,
        cluster: world_cluster.parse()?,
        epoch: 1,
        group: "sim".parse()?,
        generation: Generation(0),
        agent_connection_count: None,
        version: "test".into(),
        ext: Vec::new(),
    }))
}

/// Reads an agent's opening and hello, and answers nothing.
///
/// # Errors
/// When it says something else.
pub async fn greeted(connection: &Connection) -> Result<(SendStream, RecvStream)> {
    let (send, mut recv) = connection.accept_bi().await?;
    let open: Open = quic::read(&mut recv).await?;
    ensure!(matches!(open, Open::Control(_)), "{open:?}");
    let hello: AgentFrame = quic::read(&mut recv).await?;
    ensure!(matches!(hello, AgentFrame::Hello(_)), "{hello:?}");
    Ok((send, recv))
}

/// Greets an agent as the proxy `name` of `cluster`.
///
/// # Errors
/// When it does not greet as an agent does.
pub async fn welcome(
    connection: &Connection,
    cluster: &str,
    name: &str,
) -> Result<(SendStream, RecvStream)> {
    let (mut send, recv) = greeted(connection).await?;
    quic::write(&mut send, &Answer::Opened(Opened::default())).await?;
    quic::write(&mut send, &hello(cluster, name)?).await?;
    Ok((send, recv))
}

/// Greets an agent, writes these bytes, and keeps the connection until the agent ends it.
#[must_use]
pub fn tells(cluster: &str, name: &str, bytes: Vec<u8>) -> Serve {
    let (cluster, name) = (cluster.to_owned(), name.to_owned());
    let bytes = Arc::new(bytes);
    serve(move |connection| {
        let (cluster, name, bytes) = (cluster.clone(), name.clone(), bytes.clone());
        async move {
            let (mut send, _recv) = welcome(&connection, &cluster, &name).await?;
            send.write_all(&bytes).await?;
            connection.closed().await;
            Ok(())
        }
    })
}

/// A proxy that behaves, and tells its agents whatever view the test wants.
pub struct Friend {
    /// Its server.
    pub rogue: Rogue,
    view: watch::Sender<Vec<Member>>,
}

impl Friend {
    /// Starts one, which tells of nobody yet.
    ///
    /// # Errors
    /// When the name is none.
    pub fn start(world: &World, name: &str) -> Result<Self> {
        let view = watch::Sender::new(Vec::new());
        let told = view.clone();
        let cluster = world.cluster().to_owned();
        let own_name = name.to_owned();
        let serve = serve(move |connection| {
            let (name, cluster) = (own_name.clone(), cluster.clone());
            let view = told.subscribe();
            async move { befriend(&connection, &cluster, &name, view).await }
        });
        Ok(Self {
            rogue: Rogue::start(world, name, &serve)?,
            view,
        })
    }

    /// From now on it tells of these.
    pub fn tell(&self, view: Vec<Member>) {
        self.view.send_replace(view);
    }
}

async fn befriend(
    connection: &Connection,
    cluster: &str,
    name: &str,
    mut told: watch::Receiver<Vec<Member>>,
) -> Result {
    let (mut send, mut recv) = welcome(connection, cluster, name).await?;
    loop {
        let members = told.borrow_and_update().clone();
        quic::write(&mut send, &view(members)).await?;
        tokio::select! {
            changed = told.changed() => changed?,
            () = tokio::time::sleep(REFRESH) => {}
            frame = quic::read::<AgentFrame>(&mut recv) => match frame? {
                AgentFrame::Leaving(_) => {
                    quic::write(&mut send, &ProxyFrame::Released(Default::default())).await?;
                    connection.closed().await;
                    return Ok(());
                }
                other @ (AgentFrame::Hello(_) | AgentFrame::Services(_)) => bail!("{other:?}"),
            },
            error = connection.closed() => return Err(error.into()),
        }
    }
}
