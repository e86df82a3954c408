//! One way to an agent: a session of its own, or a peer that holds one.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::close::ResetCode;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::Refused;
use quinn::Connection;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::super::Shared;
use super::super::metrics::Path;
use super::super::peers::links::{InUse, Link};
use super::super::session::Session;
use super::super::stream::Stream;
use super::ask::{EarlyBytes, ask};
use super::{DialRequest, Refusal, log_dial};
use crate::metrics::{OnEnd, StreamMeter};
use crate::quic::{TunnelRecv, TunnelSend, TunnelStream};

/// How long a dial waits for a place among the streams of a connection that has all of them in use.
const STREAM_CREDIT_WAIT: Duration = Duration::from_secs(1);

/// The least time after which a connection that nothing at all came back on counts as frozen. A slow
/// target does not: the process that asks it acknowledges what it is sent.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// The same in round-trip times.
const SILENCE_RTTS: u32 = 4;

/// One way to an agent.
#[derive(Debug, Clone)]
pub(super) enum Way {
    /// A session of the agent at this proxy.
    Session(Arc<Session>),
    /// A peer that holds it.
    Peer(Arc<Link>),
}

impl Way {
    fn connection(&self) -> &Connection {
        match self {
            Self::Session(session) => &session.connection,
            Self::Peer(link) => &link.connection,
        }
    }

    fn runtime(&self) -> Handle {
        match self {
            Self::Session(session) => session.runtime.clone(),
            Self::Peer(link) => link.runtime.clone(),
        }
    }

    pub(super) fn path(&self) -> Path {
        match self {
            Self::Session(_) => Path::Local,
            Self::Peer(_) => Path::Peer,
        }
    }

    /// What it is called in what users read.
    pub(super) fn called(&self) -> String {
        match self {
            Self::Session(session) => match &session.proxy {
                Some(proxy) => format!("the proxy {proxy} of {}", session.agent),
                None => "the agent".to_owned(),
            },
            Self::Peer(link) => format!("the proxy {}", link.name),
        }
    }

    /// Whether another cluster is at its end.
    pub(super) fn leads_to_cluster(&self) -> bool {
        match self {
            Self::Session(session) => session.agent.is_cluster(),
            Self::Peer(_) => false,
        }
    }

    /// What was refused on it.
    pub(super) fn refused(&self, refused: Refused) -> Refusal {
        Refusal {
            by_other_cluster: self.leads_to_cluster() || refused.is_by_other_cluster(),
            reason: refused.reason,
            message: refused.message,
        }
    }

    fn hold(&self) -> Option<InUse> {
        match self {
            Self::Session(_) => None,
            Self::Peer(link) => Some(link.hold()),
        }
    }

    /// Notes that nothing comes back on it, so that later dials try it last.
    fn set_silent(&self) {
        match self {
            Self::Session(session) => session.set_silent(),
            Self::Peer(link) => link.set_silent(),
        }
    }

    /// Asks once. `silence`: after how long without a sign of life it is given up, so that another
    /// way can be tried.
    pub(super) async fn open(
        &self,
        shared: &Arc<Shared>,
        request: &DialRequest,
        until: Instant,
        patience: Option<Duration>,
        early: Option<&mut EarlyBytes<'_>>,
    ) -> Result<Stream, Refusal> {
        let whom = self.called();
        let connection = self.connection();
        let in_use = self.hold();
        let credit_until = until.min(Instant::now() + STREAM_CREDIT_WAIT);
        let (send, mut recv) = match tokio::time::timeout_at(credit_until, connection.open_bi())
            .await
        {
            Ok(Ok(halves)) => halves,
            Ok(Err(error)) => {
                return Err(Refusal::new(
                    Reason::Lost,
                    format!("the connection to {whom} was lost: {error}"),
                ));
            }
            Err(_) => {
                let message =
                    format!("{whom} has as many streams open as it takes (its quic.streams_max)");
                return Err(Refusal::new(Reason::Overloaded, message));
            }
        };
        let meter = StreamMeter::open(&shared.node_metrics);
        let mut send = TunnelSend::new(send, meter);

        let asking = ask(&mut send, &mut recv, request, until, self, early);
        let asked = tokio::select! {
            biased;
            asked = tokio::time::timeout_at(until, asking) => asked,
            () = silent(connection, patience) => {
                self.set_silent();
                send.reset(ResetCode::DeadlinePassed);
                return Err(Refusal::new(
                    Reason::Lost,
                    format!("nothing comes back from {whom}: its process or host may be frozen, or the network between cut"),
                ));
            }
        };
        match asked {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => return Err(refusal),
            Err(_) => {
                send.reset(ResetCode::DeadlinePassed);
                let message = format!("no answer from {whom} within {:?}", request.deadline);
                return Err(Refusal::new(Reason::Timeout, message));
            }
        }
        shared
            .node_metrics
            .rtt
            .observe(connection.rtt().as_secs_f64());
        if let Self::Session(session) = self {
            session.count_lost_packets(&shared.metrics);
        }
        let recv = TunnelRecv::new(recv, send.meter().clone(), &shared.budget);
        send.meter()
            .on_end(log_at_end(request, self.path(), in_use));
        Ok(Stream::Tunnel(TunnelStream {
            home: Some(self.runtime()),
            ..TunnelStream::of(send, recv)
        }))
    }
}

/// Completes when nothing at all has come on a connection for so long. Never without a bound.
async fn silent(connection: &Connection, patience: Option<Duration>) {
    let Some(patience) = patience else {
        return std::future::pending().await;
    };
    let before = connection.stats().udp_rx.datagrams;
    let patience = patience
        .max(SILENCE_MIN)
        .max(connection.rtt() * SILENCE_RTTS);
    tokio::time::sleep(patience).await;
    if connection.stats().udp_rx.datagrams != before {
        std::future::pending::<()>().await;
    }
}

fn log_at_end(request: &DialRequest, path: Path, in_use: Option<InUse>) -> OnEnd {
    let request = request.clone();
    let started = Instant::now();
    Box::new(move |totals| {
        drop(in_use);
        log_dial(&request, path, None, started, totals);
    })
}
