//! What goes on between two proxies for as long as a connection stands.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::membership::Standing;
use mesh_proto::wire::{PeerChanged, PeerFrame, Profile, TakenForDead};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::{Shared, routing};
use super::hello::{Control, PeerError};
use super::links::Joined;
use super::streams;
use crate::quic::frames::FrameReader;
use crate::tasks::Tasks;

/// How long a superfluous connection is kept at least, so that both sides know the other one.
const SUPERFLUOUS_FOR: Duration = Duration::from_secs(2);

/// How long the tasks of a connection may take to end with it.
const END_GRACE: Duration = Duration::from_secs(1);

/// Which start of a peer this proxy takes for dead, so that it must be told.
type Dead = Option<(u64, u32)>;

/// Keeps the peer among the links for as long as the connection stands. Returns why it ended.
pub(super) async fn converse(
    shared: &Arc<Shared>,
    connection: &Connection,
    control: Control,
    peer: Profile,
    dialled: bool,
) -> PeerError {
    let (name, epoch) = (peer.name.clone(), peer.epoch);
    let dead = watch::Sender::new(None);
    // Before anything is said of the peer: what a receiver finds at its birth counts as seen.
    let dead_news = dead.subscribe();
    let mut control = control;
    if let Err(error) = stand(shared, peer, &dead) {
        if let PeerError::Older { epoch, .. } = &error {
            say_older(shared, &mut control.send, *epoch).await;
        }
        return error;
    }
    let joined = shared
        .links
        .join(name.clone(), epoch, connection.clone(), dialled);
    tracing::info!(peer = %name, epoch, remote = %connection.remote_address(), "connected to a peer");
    let Control {
        send,
        recv,
        reader,
        told,
    } = control;
    let mut tasks = Tasks::new("stream of a peer");
    // Apart from the reading, which must not wait for a peer that takes nothing.
    tasks.spawn(speak(
        shared.clone(),
        connection.clone(),
        send,
        told,
        dead_news,
    ));
    for of in routing::Of::ALL {
        tasks.spawn(routing::follow(shared.clone(), joined.link.clone(), of));
    }
    let error = listen(shared, &joined, recv, reader, &dead, &mut tasks).await;
    if joined.part() {
        shared.mesh.closed(&name);
    }
    tracing::info!(peer = %name, epoch, %error, "disconnected from a peer");
    // Their streams end with the connection.
    super::close(shared, connection, &error);
    tasks.shutdown(END_GRACE).await;
    error
}

/// Tells a peer that a later start of its name is known, and waits until it has heard.
async fn say_older(shared: &Shared, send: &mut SendStream, epoch: u64) {
    let taken = PeerFrame::TakenForDead(TakenForDead {
        epoch,
        revision: 0,
        ext: Vec::new(),
    });
    let said = async {
        send.write_all(&shared.hooks.encode(&taken).unwrap_or_default())
            .await?;
        let _ = send.finish();
        Ok::<_, quinn::WriteError>(send.stopped().await)
    };
    // One that does not listen cannot be helped.
    let _ = tokio::time::timeout(END_GRACE, said).await;
}

/// What the membership says of a peer that tells of itself.
fn stand(shared: &Shared, peer: Profile, dead: &watch::Sender<Dead>) -> Result<(), PeerError> {
    let name = peer.name.clone();
    judge(shared, name, shared.mesh.connected(peer), dead)
}

fn judge(
    shared: &Shared,
    name: mesh_proto::NodeName,
    standing: Standing,
    dead: &watch::Sender<Dead>,
) -> Result<(), PeerError> {
    match standing {
        Standing::Taken => Ok(()),
        Standing::Dead { epoch, revision } => {
            dead.send_replace(Some((epoch, revision)));
            Ok(())
        }
        Standing::Older { epoch } => Err(PeerError::Older { name, epoch }),
        Standing::Full => Err(PeerError::Full),
        Standing::Invalid(error) => Err(PeerError::Profile(error)),
        Standing::SameName => Err(PeerError::SameName(shared.config.common.name.clone())),
    }
}

/// Tells the peer of this proxy's changes. Ends with the connection.
async fn speak(
    shared: Arc<Shared>,
    connection: Connection,
    mut send: SendStream,
    mut told: Profile,
    mut dead: watch::Receiver<Dead>,
) {
    let mut changes = shared.mesh.changes();
    loop {
        changes.mark_unchanged();
        let own = shared.mesh.own();
        let mut bytes = Vec::new();
        if own != told {
            told = own.clone();
            let changed = PeerFrame::Changed(PeerChanged {
                profile: own,
                ext: Vec::new(),
            });
            bytes.extend(shared.hooks.encode(&changed).unwrap_or_default());
        }
        if dead.has_changed().unwrap_or(false)
            && let Some((epoch, revision)) = *dead.borrow_and_update()
        {
            let taken = PeerFrame::TakenForDead(TakenForDead {
                epoch,
                revision,
                ext: Vec::new(),
            });
            bytes.extend(shared.hooks.encode(&taken).unwrap_or_default());
        }
        if !bytes.is_empty() && send.write_all(&bytes).await.is_err() {
            // The reading side notices why.
            break;
        }
        tokio::select! {
            biased;
            _ = connection.closed() => break,
            () = changes.changed() => {}
            changed = dead.changed() => if changed.is_err() { break },
        }
    }
}

/// Hears the peer out until the connection ends. Returns why.
async fn listen(
    shared: &Arc<Shared>,
    joined: &Joined<'_>,
    mut recv: RecvStream,
    mut reader: FrameReader,
    dead: &watch::Sender<Dead>,
    tasks: &mut Tasks,
) -> PeerError {
    let link = &joined.link;
    let connection = &link.connection;
    let mut superseded = shared.mesh.superseded();
    let mut links = shared.links.changes();
    let mut superfluous_since: Option<Instant> = None;
    loop {
        links.mark_unchanged();
        let best = shared.links.best(&link.name);
        if let Some(later) = best.filter(|best| best.epoch > link.epoch) {
            // A leftover of the same name, unless this start has died without a word.
            let is_news = dead.send_if_modified(|dead| {
                let news = Some((later.epoch, 0));
                let is_news = *dead != news;
                *dead = news;
                is_news
            });
            if is_news {
                superfluous_since = Some(Instant::now());
            } else if superfluous_since.is_some_and(|since| since.elapsed() >= SUPERFLUOUS_FOR) {
                return PeerError::Older {
                    name: link.name.clone(),
                    epoch: later.epoch,
                };
            }
        } else if !shared.links.is_superfluous(link) {
            superfluous_since = None;
        } else if shared.links.closes(link) {
            let since = *superfluous_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= SUPERFLUOUS_FOR && link.streams() == 0 {
                return PeerError::Superfluous;
            }
        }
        tokio::select! {
            biased;
            () = shared.cut.cancelled() => return PeerError::Left,
            _ = superseded.wait_for(Option::is_some) => {
                return PeerError::SameName(shared.config.common.name.clone());
            }
            frame = reader.next::<PeerFrame>(&mut recv) => match frame {
                Ok(PeerFrame::Changed(PeerChanged { profile, .. })) => {
                    if profile.name != link.name || profile.epoch != link.epoch {
                        return PeerError::Protocol("it told of another proxy than itself");
                    }
                    let standing = shared.mesh.told(profile);
                    if let Err(error) = judge(shared, link.name.clone(), standing, dead) {
                        return error;
                    }
                }
                Ok(PeerFrame::TakenForDead(taken)) => {
                    shared.mesh.taken_for_dead(taken.epoch, taken.revision);
                }
                Ok(PeerFrame::Hello(_)) => return PeerError::Protocol("it said hello twice"),
                Err(error) => return PeerError::from(error).or_end_of(connection),
            },
            datagram = connection.read_datagram() => match datagram {
                Ok(datagram) => gossip(shared, link, &datagram),
                Err(error) => return error.into(),
            },
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => tasks.spawn(streams::serve(shared.clone(), link.clone(), send, recv)),
                Err(error) => return error.into(),
            },
            () = links.changed() => {}
            () = tasks.reap() => {}
            () = tokio::time::sleep(SUPERFLUOUS_FOR), if superfluous_since.is_some() => {}
        }
    }
}

fn gossip(shared: &Shared, link: &super::links::Link, datagram: &Bytes) {
    if let Err(error) = shared.mesh.receive(&link.name, datagram) {
        shared.metrics.gossip_refused.inc();
        tracing::debug!(peer = %link.name, %error, "a packet of gossip was refused");
    }
}
