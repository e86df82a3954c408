//! How a connection between two proxies begins: a control stream, and a hello each way.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::close::CloseCode;
use mesh_proto::name::NodeName;
use mesh_proto::wire::{
    Answer, Open, OpenControl, Opened, PeerFrame, PeerHello, Profile, Refused, WireError,
};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};

use super::super::Shared;
use crate::quic::endpoint::EndpointError;
use crate::quic::frames::{FrameError, FrameReader};
use crate::quic::{identity, transport};

/// A conversation with a peer that did not begin, or ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum PeerError {
    #[error("`{0}` cannot be resolved: {1}")]
    Resolve(String, std::io::Error),
    #[error("`{0}` has no address")]
    NoAddress(String),
    #[error("it took longer than quic.handshake_timeout ({0:?})")]
    Timeout(Duration),
    #[error("it calls itself {claimed}, but its certificate says {proven}")]
    Lies { claimed: NodeName, proven: NodeName },
    #[error("it is this proxy itself")]
    Itself,
    #[error("this proxy leaves")]
    Left,
    #[error("another connection to it stands already")]
    Superfluous,
    #[error(
        "another proxy has this proxy's name, {0}: give each its own name, certificate and proxy.state_dir"
    )]
    SameName(NodeName),
    #[error("a newer start of {name} is known, with epoch {epoch}: this one is a leftover")]
    Older { name: NodeName, epoch: u64 },
    #[error("there are as many proxies in the mesh as there may be")]
    Full,
    #[error("what it tells of itself cannot be: {0}")]
    Profile(#[from] mesh_proto::wire::ProfileError),
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("it refused: {0}")]
    Refused(String),
    #[error(
        "this proxy and whoever is there do not trust each other ({0}); check both certificates with `node certs show`: the same cluster, the same authority, kind proxy, not expired"
    )]
    Untrusted(ConnectionError),
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error(transparent)]
    Connection(ConnectionError),
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
    /// A closing connection ends its streams first, and its own end says more than theirs.
    pub(super) fn or_end_of(self, connection: &Connection) -> Self {
        match (&self, connection.close_reason()) {
            (
                Self::Frame(FrameError::Read(_) | FrameError::Ended | FrameError::Truncated)
                | Self::Write(_),
                Some(reason),
            ) => reason.into(),
            (_, _) => self,
        }
    }

    /// Whether this is how connections end that were in order, or are not needed.
    pub(super) fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Itself
                | Self::Left
                | Self::Superfluous
                | Self::Connection(ConnectionError::LocallyClosed)
        ) || self.is_superseded()
            || self.is_closed_as(CloseCode::Draining)
            || self.is_closed_as(CloseCode::Done)
    }

    /// Whether the other side needs this connection no more, or never did.
    pub(super) fn is_superseded(&self) -> bool {
        self.is_closed_as(CloseCode::Superseded)
    }

    fn is_closed_as(&self, code: CloseCode) -> bool {
        matches!(
            self,
            Self::Connection(ConnectionError::ApplicationClosed(close))
                if close.error_code == code.code().into()
        )
    }
}

impl From<ConnectionError> for PeerError {
    fn from(error: ConnectionError) -> Self {
        if identity::is_untrusted(&error) {
            Self::Untrusted(error)
        } else {
            Self::Connection(error)
        }
    }
}

/// The two halves of a control stream, whose hellos have been said.
pub(super) struct Control {
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    pub(super) reader: FrameReader,
    /// What this side has told of itself.
    pub(super) told: Profile,
}

/// Says hello on a connection that this proxy has dialled.
pub(super) async fn greet(
    shared: &Shared,
    connection: &Connection,
) -> Result<(Control, Profile), PeerError> {
    let (mut send, mut recv) = connection.open_bi().await?;
    let told = shared.mesh.own();
    let mut bytes = shared
        .hooks
        .encode(&Open::Control(OpenControl::default()))?;
    bytes.extend(shared.hooks.encode(&hello(told.clone()))?);
    send.write_all(&bytes).await?;
    let mut reader = FrameReader::default();
    match reader.next::<Answer>(&mut recv).await? {
        Answer::Opened(_) => {}
        Answer::Refused(Refused { message, .. }) => return Err(PeerError::Refused(message)),
    }
    let peer = hello_of(shared, connection, &mut reader, &mut recv).await?;
    admit(shared, connection);
    let control = Control {
        send,
        recv,
        reader,
        told,
    };
    Ok((control, peer))
}

/// Answers the hello on a connection that a peer has dialled.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    connection: &Connection,
) -> Result<(Control, Profile), PeerError> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    let mut reader = FrameReader::default();
    match reader.next::<Open>(&mut recv).await? {
        Open::Control(_) => {}
        Open::Dial(_)
        | Open::Routes(_)
        | Open::Find(_)
        | Open::ClusterRoutes(_)
        | Open::Admin(_) => {
            return Err(PeerError::Protocol(
                "its first stream is not a control stream",
            ));
        }
    }
    let peer = hello_of(shared, connection, &mut reader, &mut recv).await?;
    let told = shared.mesh.own();
    let mut bytes = shared.hooks.encode(&Answer::Opened(Opened::default()))?;
    bytes.extend(shared.hooks.encode(&hello(told.clone()))?);
    send.write_all(&bytes).await?;
    admit(shared, connection);
    let control = Control {
        send,
        recv,
        reader,
        told,
    };
    Ok((control, peer))
}

/// Every user of one proxy may want an agent of the other.
fn admit(shared: &Shared, connection: &Connection) {
    let quic = &shared.config.common.quic;
    transport::admit(connection, quic, quic.streams_max);
}

fn hello(profile: Profile) -> PeerFrame {
    PeerFrame::Hello(PeerHello {
        profile,
        ext: Vec::new(),
    })
}

async fn hello_of(
    shared: &Shared,
    connection: &Connection,
    reader: &mut FrameReader,
    recv: &mut RecvStream,
) -> Result<Profile, PeerError> {
    let PeerFrame::Hello(PeerHello { profile, .. }) = reader.next::<PeerFrame>(recv).await? else {
        return Err(PeerError::Protocol("its first message is not a hello"));
    };
    reader.converse();
    let proven = identity::identity(connection)?.name;
    if profile.name != proven {
        return Err(PeerError::Lies {
            claimed: profile.name,
            proven,
        });
    }
    if profile.name == shared.config.common.name {
        return Err(if profile.epoch == shared.epoch {
            PeerError::Itself
        } else {
            // The later start of the name goes on, and the other one hears of it here.
            shared.mesh.taken_for_dead(profile.epoch, 0);
            PeerError::SameName(profile.name)
        });
    }
    Ok(profile)
}
