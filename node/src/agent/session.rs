//! A standing connection to a proxy: its control stream, and the dials that come through it.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::close::{CloseCode, ResetCode};
use mesh_proto::name::{Cluster, NodeName};
use mesh_proto::pool::LetGo;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{AgentFrame, Answer, Leaving, Open, Opened, ProxyFrame, Refused, WireError};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connect::ProxyConnection;
use super::ending::Ending;
use super::pool::Lease;
use super::realm::{Other, Realm};
use super::{CLOSE_GRACE, Shared, target};
use crate::changes::Watcher;
use crate::forward;
use crate::metrics::StreamMeter;
use crate::quic::frames::{self, FrameError, FrameReader};
use crate::quic::{TunnelRecv, TunnelSend, TunnelStream};
use crate::tasks::Tasks;

/// After how long a connection has stood for so long that what failed before is history.
const STANDS_AFTER: Duration = Duration::from_secs(60);

/// Counts a connection as standing for as long as it lives, and its end, once.
struct Standing<'a> {
    shared: &'a Shared,
    ending: Ending,
}

impl<'a> Standing<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.connected.send_modify(|connected| *connected += 1);
        Self {
            shared,
            // Of a task that was cut, or has panicked.
            ending: Ending::TransportError,
        }
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        let Self { shared, ending } = self;
        shared.connected.send_modify(|connected| {
            *connected -= 1;
            if *connected == 0 {
                shared.set_down();
            }
        });
        shared.metrics.disconnect(*ending);
    }
}

/// Serves the connection until it ends, or until the agent has left it: because the agent leaves
/// altogether, or because the pool lets the connection go.
pub(super) async fn run(
    shared: &Arc<Shared>,
    connected: ProxyConnection,
    lease: &mut Lease,
    place: &str,
    mut let_go: watch::Receiver<Option<LetGo>>,
) {
    let ProxyConnection {
        endpoint,
        connection,
        mut stream_limit,
        mut control_send,
        mut control_recv,
        mut reader,
        hello,
    } = connected;
    let registered = shared
        .links
        .register(hello.name.clone(), connection.clone());
    let other = match &shared.realm {
        Realm::Own => None,
        Realm::Other(other) => Some(other),
    };
    let mut trust = other.map(|other| other.trust.changes());
    if let Some(other) = other {
        // Trust may have changed since the handshake; from now on, its changes are heard of.
        judge(other, &connection);
    }
    let link = &registered.link;
    let mut own_dials = link.watch();
    let mut standing = Standing::new(shared);
    let mut stands_at = Some(Instant::now() + STANDS_AFTER);
    let mut broken = None;
    let mut streams = Tasks::new("stream of a dial");
    let mut leaving = shared.leaving.subscribe();
    let mut leave_until: Option<Instant> = None;
    let mut released = false;
    let mut proxy_leaves = false;
    loop {
        let let_go_now = *let_go.borrow_and_update();
        let agent_leaves = *leaving.borrow_and_update();
        let asked_to_leave = agent_leaves.or_else(|| {
            let why = let_go_now?;
            if leave_until.is_none() {
                tracing::info!(cluster = %hello.cluster, proxy = %hello.name, why = why.as_str(), "letting a proxy go");
            }
            Some(Instant::now() + shared.config.common.drain_deadline)
        });
        if let Some(until) = asked_to_leave
            && leave_until.is_none()
        {
            leave_until = Some(until);
            link.set_leaving();
            let deadline_ms =
                u64::try_from(until.saturating_duration_since(Instant::now()).as_millis())
                    .unwrap_or(u64::MAX);
            let frame = AgentFrame::Leaving(Leaving {
                deadline_ms,
                ext: Vec::new(),
            });
            let Ok(bytes) = shared.hooks.encode(&frame) else {
                break;
            };
            if control_send.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let dialling = own_dials.borrow_and_update().streams > 0;
        if released && streams.len() == 0 && !dialling {
            connection.close(CloseCode::Left.code().into(), b"the agent has left");
            break;
        }
        tokio::select! {
            biased;
            () = shared.cut.cancelled() => {
                connection.close(CloseCode::Left.code().into(), b"the agent has left");
                break;
            }
            frame = reader.next::<ProxyFrame>(&mut control_recv) => match frame {
                Ok(ProxyFrame::Released(_)) => released = true,
                Ok(ProxyFrame::Members(members)) => lease.members(shared, &hello.name, members, connection.rtt()),
                Ok(ProxyFrame::Draining(draining)) => {
                    proxy_leaves = true;
                    link.set_draining();
                    lease.draining(Duration::from_millis(draining.deadline_ms));
                    tracing::info!(proxy = %hello.name, deadline_ms = draining.deadline_ms, "the proxy is about to leave");
                }
                Ok(ProxyFrame::Hello(_)) => {
                    connection.close(CloseCode::ProtocolError.code().into(), b"a second hello");
                    broken = Some("it said hello twice".to_owned());
                    break;
                }
                Err(error) => {
                    if connection.close_reason().is_none() {
                        connection.close(CloseCode::ProtocolError.code().into(), b"protocol error on the control stream");
                        broken = Some(format!("on its control stream, {error}"));
                    }
                    break;
                }
            },
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    let cut = shared.cut.clone();
                    if let Realm::Other(other) = &shared.realm {
                        let answered = other.answers.answer(&hello.name, leave_until.is_some(), send, recv);
                        streams.spawn(async move {
                            cut.run_until_cancelled(answered).await;
                        });
                    } else {
                        let (shared, rtt) = (shared.clone(), connection.rtt());
                        streams.spawn(async move {
                            cut.run_until_cancelled(serve_stream(shared, rtt, send, recv)).await;
                        });
                    }
                    stream_limit.in_use(&connection, streams.len());
                }
                Err(_) => break,
            },
            () = streams.reap() => {}
            // It ends with the connection's registration, after this loop.
            Ok(()) = own_dials.changed(), if released => {}
            () = until(stands_at), if stands_at.is_some() => {
                stands_at = None;
                lease.stands(place, &hello.name);
            }
            () = changed(trust.as_mut()) => {
                if let Some(other) = other {
                    judge(other, &connection);
                }
            }
            _ = leaving.changed(), if leave_until.is_none() => {}
            Ok(()) = let_go.changed(), if leave_until.is_none() => {}
            () = until(leave_until) => {
                connection.close(CloseCode::Left.code().into(), b"the agent has left");
                break;
            }
        }
    }
    drop(registered);
    let reason = match connection.close_reason() {
        Some(reason) => reason,
        None => {
            // Without its control stream a connection is of no use.
            let why = b"the control stream is broken";
            connection.close(CloseCode::ProtocolError.code().into(), why);
            broken.get_or_insert_with(|| "its control stream is broken".to_owned());
            connection.closed().await
        }
    };
    standing.ending = if leave_until.is_some() {
        Ending::Left
    } else if broken.is_some() {
        Ending::ProtocolError
    } else if proxy_leaves {
        Ending::ProxyLeft
    } else {
        Ending::of(&reason)
    };
    log_end(
        lease,
        shared.cluster(),
        &hello.name,
        standing.ending,
        &reason,
        broken,
    );
    drop(standing);
    // The streams have failed with the connection, and the sockets behind them are being reset.
    streams.shutdown(CLOSE_GRACE).await;
    let _ = tokio::time::timeout(CLOSE_GRACE, endpoint.wait_idle()).await;
}

fn log_end(
    lease: &Lease,
    cluster: &Cluster,
    proxy: &NodeName,
    ending: Ending,
    reason: &ConnectionError,
    broken: Option<String>,
) {
    match ending {
        Ending::Left => tracing::info!(%cluster, %proxy, %reason, "left the proxy"),
        Ending::ProxyLeft => tracing::info!(%cluster, %proxy, %reason, "the proxy has left"),
        Ending::IdleTimeout
        | Ending::ClosedByProxy
        | Ending::Reset
        | Ending::ProtocolError
        | Ending::TransportError => {
            let why = broken.map_or_else(
                || reason.to_string(),
                |broken| format!("the proxy broke the protocol: {broken}"),
            );
            if lease.is_lost_news(proxy, ending, &why) {
                tracing::warn!(%cluster, %proxy, reason = why, "lost the connection to a proxy, and will connect again");
            } else {
                tracing::debug!(%cluster, %proxy, reason = why, "lost the connection to a proxy again");
            }
        }
    }
}

/// Closes the connection unless its proxy is trusted still; also one that is being left.
fn judge(other: &Other, connection: &Connection) {
    if let Err(why) = other.judge(connection) {
        tracing::warn!(cluster = %other.cluster, remote = %connection.remote_address(), why, "ending a connection of a tunnel");
        connection.close(CloseCode::Untrusted.code().into(), why.as_bytes());
    }
}

async fn changed(watcher: Option<&mut Watcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Serves one stream: a dial, from its request to its end.
async fn serve_stream(shared: Arc<Shared>, rtt: Duration, send: SendStream, mut recv: RecvStream) {
    let meter = StreamMeter::open(&shared.node_metrics);
    shared.node_metrics.rtt.observe(rtt.as_secs_f64());
    let mut send = TunnelSend::new(send, meter.clone());
    let mut reader = FrameReader::default();
    let timeout = shared.config.common.quic.handshake_timeout;
    let request = match tokio::time::timeout(timeout, reader.next::<Open>(&mut recv)).await {
        Ok(Ok(Open::Dial(dial))) => Ok(dial),
        Ok(Ok(Open::Control(_))) => Err(Refused::new(
            Reason::Unsupported,
            "an agent has a control stream with its proxy already",
        )),
        Ok(Ok(Open::Routes(_) | Open::Find(_) | Open::ClusterRoutes(_) | Open::Admin(_))) => {
            Err(Refused::new(
                Reason::Unsupported,
                "an agent has no routes: proxies tell them to each other",
            ))
        }
        Ok(Err(FrameError::Wire(error @ WireError::UnknownFrame { .. }))) => Err(Refused::new(
            Reason::Unsupported,
            &format!(
                "this agent does not know that request ({error}); it may be older than the proxy"
            ),
        )),
        Ok(Err(FrameError::Wire(error))) => {
            tracing::warn!(%error, "a proxy sent a malformed request");
            Err(Refused::new(
                Reason::Internal,
                &format!("the request is malformed: {error}"),
            ))
        }
        Ok(Err(FrameError::Ended | FrameError::Truncated | FrameError::Read(_))) => return,
        Err(_) => Err(Refused::new(
            Reason::Timeout,
            "no request came on the stream",
        )),
    };
    let connected = match request {
        Ok(dial) => {
            // A dial whose user has gone meanwhile must not go on connecting.
            let connected = tokio::select! {
                biased;
                connected = target::connect(&shared, &dial) => connected,
                () = send.stopped() => return,
            };
            shared.metrics.dialled(
                connected
                    .as_ref()
                    .map(drop)
                    .map_err(|refused| refused.reason),
            );
            if let Err(refused) = &connected {
                tracing::debug!(target = %dial.target, principal = %dial.principal, reason = %refused.reason, message = refused.message, "refused a dial");
            }
            connected
        }
        Err(refused) => {
            shared.metrics.dialled(Err(refused.reason));
            Err(refused)
        }
    };
    match connected {
        Ok(socket) => {
            // Until forwarding has ended in order, its target is reset.
            socket.set_reset_on_close(true);
            let Ok(answer) = frames::encode(&Answer::Opened(Opened::default())) else {
                return;
            };
            if send.write_frame(&answer).await.is_err() {
                return;
            }
            let recv = TunnelRecv::new(recv, meter, &shared.budget);
            if let Err(error) = forward::socket(socket, TunnelStream::of(send, recv)).await {
                tracing::debug!(%error, "a stream broke");
            }
        }
        Err(refused) => {
            if let Ok(answer) = frames::encode(&Answer::Refused(refused))
                && send.write_frame(&answer).await.is_ok()
            {
                send.finish();
            }
            let _ = recv.stop(ResetCode::Refused.code().into());
        }
    }
}
