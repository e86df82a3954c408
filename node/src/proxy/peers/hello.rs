//! How a connection between two proxies begins: a control stream, and a hello each way.

use std::sync::Arc;
use std::time::Duration;

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
    /// Whether this is how connections end that were in order, or are not needed.
    pub(super) fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Itself
                | Self::Left
                | Self::Superfluous
                | Self::Connection(
                    ConnectionError::LocallyClosed | ConnectionError::ApplicationClosed(_)
                )
        )
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
        Open::Dial(_) | Open::Routes(_) | Open::Find(_) => {
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
