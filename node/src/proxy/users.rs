//! Users who connect by QUIC with an identity of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_proto::name::NodeName;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Draining, Open, ProxyFrame, Refused};
use quinn::Connection;
use tokio::time::Instant;

use super::administer;
use super::inbound::Inbound;
use super::router::Reach;
use super::{Phase, Shared};
use crate::quic::frames;
use crate::quic::transport::StreamLimit;
use crate::tasks::Tasks;

/// A user's connection.
struct User {
    name: NodeName,
    /// It has its control stream.
    controlled: AtomicBool,
    /// What it asks of the admin API.
    exchanges: administer::Exchanges,
}

/// Serves a user's connection until it ends.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection, user: NodeName) {
    let quic = &shared.config.common.quic;
    let mut limit = StreamLimit::admit(&connection, quic, quic.streams_max);
    tracing::debug!(%user, remote = %connection.remote_address(), "user connected");
    let user = Arc::new(User {
        name: user,
        controlled: AtomicBool::new(false),
        exchanges: administer::Exchanges::default(),
    });
    let mut tasks = Tasks::new("stream of a user");
    loop {
        tokio::select! {
            biased;
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    let (shared, user) = (shared.clone(), user.clone());
                    let inbound = Inbound::new(&shared, format!("user:{}", user.name), send, recv);
                    tasks.spawn(async move {
                        let cut = shared.cut.clone();
                        cut.run_until_cancelled(serve_stream(shared, &user, inbound)).await;
                    });
                    limit.in_use(&connection, tasks.len());
                }
                Err(error) => {
                    tracing::debug!(user = %user.name, %error, "user disconnected");
                    break;
                }
            },
            () = tasks.reap() => {}
        }
    }
    // Their streams have ended with the connection.
    tasks.join_all().await;
}

async fn serve_stream(shared: Arc<Shared>, user: &User, inbound: Inbound) {
    let Some((inbound, open)) = inbound.open(&shared).await else {
        return;
    };
    match open {
        // Who it is, is in the certificate; what the frame claims is of no interest.
        Open::Dial(dial) => {
            let principal = Principal::User(user.name.clone());
            inbound.dial(&shared, dial, principal, Reach::Mesh).await;
        }
        Open::Admin(_) => {
            administer::serve(&shared, &user.name, &user.exchanges, inbound).await;
        }
        Open::Control(_) => control(&shared, user, inbound).await,
        Open::Routes(_) | Open::Find(_) | Open::ClusterRoutes(_) => {
            let what = "a user may dial and administer, and nothing else";
            inbound
                .refuse(Refused::new(Reason::Unsupported, what))
                .await;
        }
    }
}

/// Tells the user when this proxy is about to leave, while it still serves: who has gone by then to
/// another one misses nothing. The stream lasts as long as the connection.
async fn control(shared: &Shared, user: &User, inbound: Inbound) {
    let mut phase = shared.phase.subscribe();
    let leaves = |phase: Phase| matches!(phase, Phase::Notice | Phase::Draining);
    let refused = if user.controlled.swap(true, Ordering::AcqRel) {
        let what = "this connection has a control stream already";
        Some(Refused::new(Reason::Unsupported, what))
    } else if leaves(*phase.borrow_and_update()) {
        let what = "this proxy is about to leave: connect to another one";
        Some(Refused::new(Reason::Draining, what))
    } else {
        None
    };
    if let Some(refused) = refused {
        inbound.refuse(refused).await;
        return;
    }
    let Some((mut send, _recv)) = inbound.opened().await else {
        return;
    };
    if phase.wait_for(|phase| leaves(*phase)).await.is_err() {
        return;
    }
    let left = match *shared.drain_until.borrow() {
        Some(until) => until.saturating_duration_since(Instant::now()),
        None => shared.config.common.drain_deadline,
    };
    let notice = ProxyFrame::Draining(Draining {
        deadline_ms: milliseconds(left),
        ext: Vec::new(),
    });
    if let Ok(notice) = frames::encode(&notice)
        && send.write_all(&notice).await.is_ok()
    {
        // It has been said; the stream itself stays, as the user's program may count on.
        let _ = send.stopped().await;
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
