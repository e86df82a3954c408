//! The conversation with one agent, from its first stream to its end.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::close::CloseCode;
use mesh_proto::name::{AgentName, NodeName};
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{
    AgentFrame, AgentHello, Answer, Draining, Member, Members, Open, Opened, ProxyFrame,
    ProxyHello, Refused, Released, WireError,
};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream};
use rand::Rng as _;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::mesh::REFRESH_INTERVAL;
use super::metrics::HandshakeRefusal;
use super::routing::Row;
use super::session::{Ending, NewSession, Registration};
use super::{Phase, Shared, grants};
use crate::config::DuplicateNames;
use crate::hooks::Connected;
use crate::quic::frames::{FrameError, FrameReader};
use crate::quic::transport;
use crate::tasks::Tasks;
use crate::trust::Side;

/// A conversation that never became a session.
#[derive(Debug, thiserror::Error)]
enum HelloError {
    #[error("its hello took longer than quic.handshake_timeout ({0:?})")]
    Timeout(Duration),
    #[error("its first stream is not a control stream")]
    NotControl,
    #[error("another process is connected under its name (proxy.duplicate_names)")]
    Duplicate,
    #[error("it is trusted no more: {0}")]
    Untrusted(String),
    #[error("its first message is not a hello")]
    NotHello,
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Write(#[from] quinn::WriteError),
    #[error(transparent)]
    Encode(#[from] WireError),
}

/// How long changes of the view are gathered before agents are told.
const COALESCE: Duration = Duration::from_millis(200);

impl HelloError {
    /// What the agent is told, and as what it counts.
    fn verdict(&self) -> (CloseCode, HandshakeRefusal) {
        match self {
            Self::Timeout(_) => (CloseCode::HandshakeTimeout, HandshakeRefusal::Timeout),
            // This proxy closes all connections at the end of its drain.
            Self::Connection(ConnectionError::LocallyClosed) => {
                (CloseCode::Draining, HandshakeRefusal::Overloaded)
            }
            Self::Connection(_) | Self::Write(_) | Self::Frame(FrameError::Read(_)) => {
                (CloseCode::ProtocolError, HandshakeRefusal::Abandoned)
            }
            Self::Duplicate => (CloseCode::Superseded, HandshakeRefusal::Duplicate),
            Self::Untrusted(_) => (CloseCode::Untrusted, HandshakeRefusal::UnknownAuthority),
            Self::NotControl | Self::NotHello | Self::Frame(_) | Self::Encode(_) => {
                (CloseCode::ProtocolError, HandshakeRefusal::Protocol)
            }
        }
    }
}

struct Control {
    send: SendStream,
    recv: RecvStream,
    reader: FrameReader,
    /// The proxies, as this agent was told of them.
    told: Vec<Member>,
    /// Peers know by this that the agent is here.
    row: Option<Row>,
}

/// Who has connected as agents do.
#[derive(Debug, Clone)]
pub(super) struct Who {
    /// Under which name it is reached: as its certificate says, and nothing that it claims.
    pub(super) agent: AgentName,
    /// The proxy of another cluster that it is.
    pub(super) proxy: Option<NodeName>,
}

/// Serves an agent's connection, or that of another cluster's proxy, until it ends.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection, who: Who) {
    let Who { agent, proxy } = who.clone();
    let timeout = shared.config.common.quic.handshake_timeout;
    let greeted = tokio::time::timeout(timeout, greet(&shared, &connection, who))
        .await
        .unwrap_or(Err(HelloError::Timeout(timeout)));
    let (control, mut registration) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            let (code, refusal) = error.verdict();
            shared.metrics.refused(refusal);
            tracing::warn!(
                %agent, cluster_proxy = proxy.as_ref().map(NodeName::as_str), remote = %connection.remote_address(), %error,
                "an agent connected but did not become a session"
            );
            connection.close(code.code().into(), error.to_string().as_bytes());
            return;
        }
    };
    let session = registration.session.clone();
    match (&proxy, agent.node()) {
        (Some(proxy), _) => {
            tracing::info!(cluster = %agent, cluster_proxy = %proxy, session = session.id, remote = %session.remote, version = session.version, "a proxy of another cluster connected");
        }
        (None, node) => {
            tracing::info!(%agent, session = session.id, remote = %session.remote, version = session.version, "agent connected");
            if let Some(agent) = node {
                shared.hooks.connected(&Connected {
                    agent,
                    proxy: shared.config.common.name.clone(),
                    remote: session.remote,
                });
            }
        }
    }

    let mut dials = Tasks::new("dial of an agent");
    registration.ending = converse(&shared, &connection, control, &registration, &mut dials).await;
    if session.distrusted().is_some() {
        registration.ending = Ending::Untrusted;
    }
    let ending = registration.ending;
    if ending == Ending::ProtocolError {
        connection.close(
            CloseCode::ProtocolError.code().into(),
            b"protocol error on the control stream",
        );
    }
    drop(registration);
    shared.session_ended(&agent);
    match ending {
        Ending::Left | Ending::Drained => {
            tracing::info!(%agent, session = session.id, reason = ending.as_str(), "agent disconnected");
        }
        Ending::Untrusted => {
            tracing::warn!(
                cluster = %agent, cluster_proxy = proxy.as_ref().map(NodeName::as_str), session = session.id, why = session.distrusted(),
                "ended a session of another cluster, which is trusted no more"
            );
        }
        Ending::IdleTimeout
        | Ending::ClosedByAgent
        | Ending::Reset
        | Ending::ProtocolError
        | Ending::TransportError => {
            let why = connection.close_reason().map(|reason| reason.to_string());
            tracing::warn!(
                %agent, session = session.id, reason = ending.as_str(), why,
                "agent lost; it will come back by itself unless its host or network is down"
            );
        }
    }
    // Their streams have ended with the connection.
    dials.join_all().await;
}

/// Hello both ways. The agent is registered before it is answered, so that a dial works as soon
/// as the agent knows that it is connected.
async fn greet(
    shared: &Arc<Shared>,
    connection: &Connection,
    who: Who,
) -> Result<(Control, Registration), HelloError> {
    let Who { agent, proxy } = who;
    let (send, recv) = connection.accept_bi().await?;
    let (mut send, mut recv, mut reader) = (send, recv, FrameReader::default());
    match reader.next::<Open>(&mut recv).await? {
        Open::Control(_) => {}
        Open::Dial(_)
        | Open::Routes(_)
        | Open::Find(_)
        | Open::ClusterRoutes(_)
        | Open::Admin(_) => {
            return Err(HelloError::NotControl);
        }
    }
    let AgentFrame::Hello(AgentHello {
        instance,
        version,
        services,
        ..
    }) = reader.next::<AgentFrame>(&mut recv).await?
    else {
        return Err(HelloError::NotHello);
    };
    // The proxies of another cluster are many, and one agent here.
    if shared.config.duplicate_names == DuplicateNames::Refuse && !agent.is_cluster() {
        let others = shared.instances(&agent);
        if others.iter().any(|other| *other != instance) {
            let why = "another process is connected under this name, and proxy.duplicate_names is \"refuse\"; stop it, or issue this one an identity of its own";
            let refused = Refused::new(Reason::NotAllowed, why);
            send.write_all(&shared.hooks.encode(&Answer::Refused(refused))?)
                .await?;
            return Err(HelloError::Duplicate);
        }
    }
    let registration = shared.sessions.register(NewSession {
        agent: agent.clone(),
        proxy,
        instance,
        version,
        services,
        connection: connection.clone(),
        runtime: Handle::current(),
    });
    // Trust may have changed since the handshake; from now on, whoever changes it sees this session.
    if let Some(cluster) = agent.cluster()
        && let Err(why) = shared.trust.judge(&cluster, connection, Side::Client)
    {
        return Err(HelloError::Untrusted(why));
    }
    let row = shared
        .routes_of(&agent)
        .hold(registration.session.agent.clone(), instance);
    row.shared().await;
    let config = &shared.config;
    let told = shared.mesh.view();
    let mut answer = shared.hooks.encode(&Answer::Opened(Opened::default()))?;
    answer.extend(shared.hooks.encode(&ProxyFrame::Hello(ProxyHello {
        name: config.common.name.clone(),
        cluster: config.common.cluster.clone(),
        epoch: shared.epoch,
        group: config.group.clone(),
        generation: config.generation,
        agent_connection_count: config.agent_connection_count,
        version: env!("CARGO_PKG_VERSION").into(),
        ext: Vec::new(),
    }))?);
    answer.extend(shared.hooks.encode(&members(shared, told.clone()))?);
    send.write_all(&answer).await?;
    reader.converse();
    let streams = grants::agent_streams(&shared.policy, &config.common.quic, &agent);
    transport::admit(connection, &config.common.quic, streams);
    let control = Control {
        send,
        recv,
        reader,
        told,
        row: Some(row),
    };
    Ok((control, registration))
}

async fn converse(
    shared: &Arc<Shared>,
    connection: &Connection,
    mut control: Control,
    registration: &Registration,
    dials: &mut Tasks,
) -> Ending {
    let session = &registration.session;
    let mut phase = shared.phase.subscribe();
    let mut drain_told = false;
    let mut changes = shared.mesh.changes();
    // Agents that came together must not be told together.
    let mut rng = shared.random.generator();
    let mut refresh = Instant::now() + REFRESH_INTERVAL.mul_f64(rng.random_range(0.5..1.0));
    let mut tell_at: Option<Instant> = None;
    // By then a session of a former process of the same name has ended.
    let quic = &shared.config.common.quic;
    let clone_check = tokio::time::sleep(quic.idle_timeout + quic.keepalive);
    tokio::pin!(clone_check);
    let mut clones_checked = false;
    loop {
        if !drain_told && matches!(*phase.borrow_and_update(), Phase::Draining) {
            drain_told = true;
            let until = *shared.drain_until.borrow();
            let left = until.map_or(Duration::ZERO, |until| {
                until.saturating_duration_since(Instant::now())
            });
            let deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            let notice = ProxyFrame::Draining(Draining {
                deadline_ms,
                ext: Vec::new(),
            });
            if send(shared, &mut control.send, &notice).await.is_err() {
                return broken(connection);
            }
        }
        tokio::select! {
            biased;
            frame = control.reader.next::<AgentFrame>(&mut control.recv) => match frame {
                Ok(AgentFrame::Services(services)) => session.set_services(services.services),
                Ok(AgentFrame::Leaving(leaving)) => {
                    session.set_leaving();
                    control.row = None;
                    shared.session_ended(&session.agent);
                    tracing::info!(agent = %session.agent, session = session.id, deadline_ms = leaving.deadline_ms, "agent leaves");
                    if send(shared, &mut control.send, &ProxyFrame::Released(Released::default())).await.is_err() {
                        return broken(connection);
                    }
                }
                Ok(AgentFrame::Hello(_)) => {
                    tracing::warn!(agent = %session.agent, session = session.id, "the agent said hello twice");
                    return Ending::ProtocolError;
                }
                Err(FrameError::Read(ReadError::ConnectionLost(error))) => return Ending::of(&error),
                Err(error) => {
                    // A closing connection ends its streams first.
                    if let Some(reason) = connection.close_reason() {
                        return Ending::of(&reason);
                    }
                    tracing::warn!(agent = %session.agent, session = session.id, %error, "the agent broke the protocol on its control stream");
                    return Ending::ProtocolError;
                }
            },
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => dials.spawn(grants::serve(shared.clone(), session.agent.clone(), send, recv)),
                Err(error) => return Ending::of(&error),
            },
            () = dials.reap() => {}
            () = changes.changed(), if tell_at.is_none() => {
                // Changes come in flocks, as when proxies are rolled: told together.
                tell_at = Some(Instant::now() + COALESCE);
            }
            () = tokio::time::sleep_until(tell_at.unwrap_or(refresh)) => {
                let all = shared.mesh.view();
                let news: Vec<Member> = match tell_at.take() {
                    Some(_) => news(&control.told, &all),
                    None => {
                        refresh = Instant::now() + REFRESH_INTERVAL;
                        all.clone()
                    }
                };
                control.told = all;
                session.count_lost_packets(&shared.metrics);
                if send(shared, &mut control.send, &members(shared, news)).await.is_err() {
                    return broken(connection);
                }
            }
            () = &mut clone_check, if !clones_checked && session.proxy.is_none() => {
                clones_checked = true;
                let instances = shared.instances(&session.agent).len();
                if instances > 1 {
                    session.set_cloned();
                    shared.metrics.clones.inc();
                    tracing::warn!(
                        agent = %session.agent, session = session.id, remote = %session.remote, instances,
                        "several live processes have one agent's identity: issue each its own certificate, or stop the wrong one; the newest session is dialled"
                    );
                }
            }
            changed = phase.changed(), if !drain_told => {
                // The sender lives as long as the proxy, which then closes the connection.
                if changed.is_err() {
                    return Ending::of(&connection.closed().await);
                }
            }
        }
    }
}

/// What agents are told of `members`.
fn members(shared: &Shared, members: Vec<Member>) -> ProxyFrame {
    ProxyFrame::Members(Members {
        members,
        agent_connection_count: shared.config.agent_connection_count,
        reconnect_spread_ms: shared.reconnect_spread_ms(),
        ext: Vec::new(),
    })
}

/// The members of `all` that were not told, or are not any more as they were. Both are in the order
/// of names: each agent of each proxy is told of each change, so that this must not be quadratic.
fn news(told: &[Member], all: &[Member]) -> Vec<Member> {
    let is_told = |member: &&Member| {
        let at = told.binary_search_by(|told| told.name.cmp(&member.name));
        at.is_ok_and(|at| told[at] == **member)
    };
    let news = all.iter().filter(|member| !is_told(member));
    news.cloned().collect()
}

/// The control stream is broken: with its connection, or by the agent alone.
fn broken(connection: &Connection) -> Ending {
    connection
        .close_reason()
        .map_or(Ending::ProtocolError, |reason| Ending::of(&reason))
}

async fn send(
    shared: &Shared,
    stream: &mut SendStream,
    frame: &ProxyFrame,
) -> Result<(), HelloError> {
    stream.write_all(&shared.hooks.encode(frame)?).await?;
    Ok(())
}
