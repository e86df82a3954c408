//! Connections between the proxies of a cluster. Each tells the other about itself, and so every
//! proxy knows those that it can reach.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::close::CloseCode;
use mesh_proto::name::NodeName;
use mesh_proto::wire::{
    Answer, Open, OpenControl, Opened, PeerChanged, PeerFrame, PeerHello, Refused, WireError,
};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rand::Rng as _;

use super::Shared;
use super::view::Presence;
use crate::quic::endpoint::{EndpointError, peer_client_config};
use crate::quic::frames::{self, FrameError, FrameReader};
use crate::quic::{identity, transport};
use crate::tasks::Tasks;

/// The bound of the first wait after a peer could not be reached.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);

/// The bound that those waits grow to: a network that is back is noticed within it.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A conversation with a peer that did not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("`{0}` cannot be resolved: {1}")]
    Resolve(String, std::io::Error),
    #[error("its hello took longer than quic.handshake_timeout ({0:?})")]
    Timeout(Duration),
    #[error("it calls itself {claimed}, but its certificate says {proven}")]
    Lies { claimed: NodeName, proven: NodeName },
    #[error("it is this proxy itself")]
    Itself,
    #[error("this proxy leaves")]
    Left,
    #[error("another proxy has this proxy's name, {0}: give each its own name and certificate")]
    SameName(NodeName),
    #[error("a newer start of the same name is known, or there are too many proxies")]
    NotTaken,
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("it refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("cannot be dialled: {0}")]
    Connect(#[from] quinn::ConnectError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Write(#[from] quinn::WriteError),
    #[error(transparent)]
    Encode(#[from] WireError),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl PeerError {
    /// Whether a connection that was in order has come to its end, as connections do.
    fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Itself
                | Self::Left
                | Self::Connection(
                    ConnectionError::LocallyClosed | ConnectionError::ApplicationClosed(_)
                )
        )
    }
}

/// Keeps a connection to each configured peer, until the proxy ends.
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint) {
    let mut tasks = Tasks::new("connection to a peer");
    for address in &shared.config.peers {
        tasks.spawn(keep(shared.clone(), endpoint.clone(), address.clone()));
    }
    tasks.join_all().await;
}

async fn keep(shared: Arc<Shared>, endpoint: Endpoint, address: String) {
    let mut failures = 0u32;
    let mut said = String::new();
    let mut rng = shared.random.generator();
    while !shared.cut.is_cancelled() {
        let error = match dial(&shared, &endpoint, &address).await {
            Ok((connection, control, peer)) => {
                failures = 0;
                said.clear();
                let error = converse(&shared, &connection, control, peer).await;
                close(&shared, &connection, &error);
                error
            }
            Err(error) => error,
        };
        if matches!(error, PeerError::Itself) {
            tracing::debug!(address, "this address of proxy.peers is this proxy itself");
            return;
        }
        let what = error.to_string();
        if error.is_end() || shared.cut.is_cancelled() {
            tracing::debug!(address, "the connection to a peer has ended: {what}");
        } else if what != said {
            tracing::warn!(
                address,
                "no connection to a peer, and will go on trying: {what}"
            );
            said = what;
        }
        let bound = BACKOFF_FIRST
            .saturating_mul(2u32.saturating_pow(failures))
            .min(BACKOFF_MAX);
        failures = failures.saturating_add(1);
        let wait = rng.random_range(Duration::ZERO..=bound);
        shared
            .cut
            .run_until_cancelled(tokio::time::sleep(wait))
            .await;
    }
}

struct Control {
    send: SendStream,
    recv: RecvStream,
    reader: FrameReader,
}

type Greeted = (Connection, Control, PeerHello);

async fn dial(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    address: &str,
) -> Result<Greeted, PeerError> {
    let common = &shared.config.common;
    let timeout = common.quic.handshake_timeout;
    let attempt = async {
        let resolved = crate::net::resolve_address(&*shared.network, address)
            .await
            .map_err(|error| PeerError::Resolve(address.to_owned(), error))?;
        let mut last = PeerError::Protocol("it has no address");
        for remote in resolved {
            let client = peer_client_config(&common.credentials, &common.quic, &shared.random)?;
            let server_name = common.cluster.proxy_dns_name();
            let connecting = endpoint.connect_with(client, remote, &server_name)?;
            match connecting.await {
                Ok(connection) => return greet(shared, connection).await,
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    };
    tokio::time::timeout(timeout, attempt)
        .await
        .unwrap_or(Err(PeerError::Timeout(timeout)))
}

async fn greet(shared: &Shared, connection: Connection) -> Result<Greeted, PeerError> {
    let (mut send, mut recv) = connection.open_bi().await?;
    let mut bytes = frames::encode(&Open::Control(OpenControl::default()))?;
    bytes.extend(frames::encode(&hello(shared)?)?);
    send.write_all(&bytes).await?;
    let mut reader = FrameReader::default();
    match reader.next::<Answer>(&mut recv).await? {
        Answer::Opened(_) => {}
        Answer::Refused(Refused { message, .. }) => return Err(PeerError::Refused(message)),
    }
    let peer = hello_of(shared, &connection, &mut reader, &mut recv).await?;
    transport::admit(
        &connection,
        &shared.config.common.quic,
        transport::STREAMS_BEFORE_HELLO,
    );
    Ok((connection, Control { send, recv, reader }, peer))
}

/// Serves a connection that a peer has dialled.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection) {
    let timeout = shared.config.common.quic.handshake_timeout;
    let greeted = tokio::time::timeout(timeout, accept(&shared, &connection))
        .await
        .unwrap_or(Err(PeerError::Timeout(timeout)));
    let error = match greeted {
        Ok((control, peer)) => converse(&shared, &connection, control, peer).await,
        Err(error) => error,
    };
    let remote = connection.remote_address();
    if error.is_end() {
        tracing::debug!(%remote, %error, "a peer has gone");
    } else {
        tracing::warn!(%remote, %error, "a peer's connection ended");
    }
    close(&shared, &connection, &error);
}

/// Tells the peer why; nothing when the connection is closed already.
fn close(shared: &Shared, connection: &Connection, error: &PeerError) {
    let code = if shared.cut.is_cancelled() {
        CloseCode::Draining
    } else {
        CloseCode::ProtocolError
    };
    connection.close(code.code().into(), error.to_string().as_bytes());
}

async fn accept(
    shared: &Shared,
    connection: &Connection,
) -> Result<(Control, PeerHello), PeerError> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    let mut reader = FrameReader::default();
    match reader.next::<Open>(&mut recv).await? {
        Open::Control(_) => {}
        Open::Dial(_) | Open::Routes(_) | Open::Find(_) => {
            return Err(PeerError::Protocol(
                "its first stream is not a control stream",
            ));
        }
    }
    let peer = hello_of(shared, connection, &mut reader, &mut recv).await?;
    let mut bytes = frames::encode(&Answer::Opened(Opened::default()))?;
    bytes.extend(frames::encode(&hello(shared)?)?);
    send.write_all(&bytes).await?;
    transport::admit(
        connection,
        &shared.config.common.quic,
        transport::STREAMS_BEFORE_HELLO,
    );
    Ok((Control { send, recv, reader }, peer))
}

fn hello(shared: &Shared) -> Result<PeerFrame, PeerError> {
    let member = shared.view.own().ok_or(PeerError::NotTaken)?;
    Ok(PeerFrame::Hello(PeerHello {
        member,
        ext: Vec::new(),
    }))
}

async fn hello_of(
    shared: &Shared,
    connection: &Connection,
    reader: &mut FrameReader,
    recv: &mut RecvStream,
) -> Result<PeerHello, PeerError> {
    let PeerFrame::Hello(peer) = reader.next::<PeerFrame>(recv).await? else {
        return Err(PeerError::Protocol("its first message is not a hello"));
    };
    reader.converse();
    let proven = identity::identity(connection)?.name;
    let claimed = peer.member.name.clone();
    if claimed != proven {
        return Err(PeerError::Lies { claimed, proven });
    }
    let own = &shared.config.common.name;
    if claimed == *own {
        return Err(if peer.member.epoch == shared.epoch {
            PeerError::Itself
        } else {
            PeerError::SameName(claimed)
        });
    }
    Ok(peer)
}

/// Keeps the peer in the view for as long as the connection stands. Returns why it ended.
async fn converse(
    shared: &Arc<Shared>,
    connection: &Connection,
    mut control: Control,
    peer: PeerHello,
) -> PeerError {
    let name = peer.member.name.clone();
    let Some(presence) = shared.view.connected(peer.member) else {
        return PeerError::NotTaken;
    };
    tracing::info!(peer = %name, remote = %connection.remote_address(), "connected to a peer");
    let error = speak(shared, connection, &mut control, &presence).await;
    drop(presence);
    tracing::info!(peer = %name, %error, "disconnected from a peer");
    error
}

async fn speak(
    shared: &Arc<Shared>,
    connection: &Connection,
    control: &mut Control,
    presence: &Presence<'_>,
) -> PeerError {
    let mut changes = shared.view.changes();
    let mut told = shared.view.own();
    loop {
        changes.mark_unchanged();
        let own = shared.view.own();
        if own != told
            && let Some(member) = own.clone()
        {
            let changed = PeerFrame::Changed(PeerChanged {
                member,
                ext: Vec::new(),
            });
            let written = match frames::encode(&changed) {
                Ok(bytes) => control
                    .send
                    .write_all(&bytes)
                    .await
                    .map_err(PeerError::from),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = written {
                return error;
            }
            told = own;
        }
        tokio::select! {
            biased;
            () = shared.cut.cancelled() => return PeerError::Left,
            frame = control.reader.next::<PeerFrame>(&mut control.recv) => match frame {
                Ok(PeerFrame::Changed(changed)) => {
                    if !presence.update(changed.member) {
                        return PeerError::Protocol("it told of another proxy than itself");
                    }
                }
                Ok(PeerFrame::Hello(_)) => return PeerError::Protocol("it said hello twice"),
                Err(error) => return match connection.close_reason() {
                    Some(reason) => reason.into(),
                    None => error.into(),
                },
            },
            changed = changes.changed() => {
                if changed.is_err() {
                    return PeerError::Connection(ConnectionError::LocallyClosed);
                }
            }
        }
    }
}
