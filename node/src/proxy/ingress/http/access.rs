//! The access log: one line for each request, when all of it is over.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use http::Method;
use mesh_proto::name::AgentRef;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::target::Target;
use tokio::time::Instant;

use super::connection::ConnectionState;
use crate::proxy::metrics::ProxyMetrics;

/// One request. It is logged when the last holder drops it, so on every path exactly once; the
/// bodies of the request and of the response hold it, and what follows an upgrade.
#[derive(Debug)]
pub(super) struct Access {
    metrics: ProxyMetrics,
    connection: Arc<ConnectionState>,
    started: Instant,
    method: Method,
    /// Without the query, which may hold secrets.
    path: String,
    peer: Option<SocketAddr>,
    principal: OnceLock<Principal>,
    asked: OnceLock<(AgentRef, Target)>,
    reason: OnceLock<Reason>,
    /// 0 until there is one.
    status: AtomicU16,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    complete: AtomicBool,
    cut: OnceLock<&'static str>,
}

impl Access {
    /// A request has arrived. `bodyless`: it has no body.
    pub(super) fn begin(
        metrics: ProxyMetrics,
        connection: Arc<ConnectionState>,
        method: Method,
        path: &str,
        peer: Option<SocketAddr>,
        bodyless: bool,
    ) -> Self {
        connection.request_began(bodyless);
        Self {
            metrics,
            connection,
            started: Instant::now(),
            method,
            path: path.to_owned(),
            peer,
            principal: OnceLock::new(),
            asked: OnceLock::new(),
            reason: OnceLock::new(),
            status: AtomicU16::new(0),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            cut: OnceLock::new(),
        }
    }

    /// It is known who asks.
    pub(super) fn by(&self, principal: &Principal) {
        let _ = self.principal.set(principal.clone());
    }

    /// It is known what is asked for.
    pub(super) fn asks_for(&self, agent: &AgentRef, target: &Target) {
        let _ = self.asked.set((agent.clone(), target.clone()));
    }

    /// The response's head is there: counts it.
    pub(super) fn answered(&self, status: u16, reason: Option<Reason>) {
        self.status.store(status, Ordering::Relaxed);
        if let Some(reason) = reason {
            let _ = self.reason.set(reason);
        }
        self.metrics.http_request(status);
    }

    /// Bytes on their way to the user.
    pub(super) fn add_sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes from the user.
    pub(super) fn add_received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether the end of the request's body may be a cut.
    pub(super) fn may_cut_body(&self) -> bool {
        self.connection.may_cut_body()
    }

    /// All of the request's body has come.
    pub(super) fn request_ended(&self) {
        self.connection.request_ended();
    }

    /// All of the response is on its way to the user.
    pub(super) fn response_ended(&self) {
        self.complete.store(true, Ordering::Relaxed);
        self.connection.response_ended();
    }

    /// The response has broken on its way from the target.
    pub(super) fn cut(&self, cause: &'static str) {
        let _ = self.cut.set(cause);
    }

    /// After an upgrade, more follows the response.
    pub(super) fn goes_on(&self) {
        self.complete.store(false, Ordering::Relaxed);
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        self.connection.request_over();
        let status = self.status.load(Ordering::Relaxed);
        let asked = self.asked.get();
        tracing::info!(
            target: "access",
            kind = "http",
            method = %self.method,
            agent = asked.map(|(agent, _)| agent.as_str()),
            target = asked.map(|(_, target)| target.to_string()),
            principal = self.principal.get().map(ToString::to_string),
            path = %self.path,
            // None when the user has gone before there was one.
            status = (status > 0).then_some(status),
            reason = self.reason.get().map(|reason| reason.as_str()),
            duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            sent_bytes = self.sent_bytes.load(Ordering::Relaxed),
            received_bytes = self.received_bytes.load(Ordering::Relaxed),
            peer = self.peer.map(|peer| peer.to_string()),
            complete = self.complete.load(Ordering::Relaxed),
            cut = self.cut.get(),
            "request"
        );
    }
}
