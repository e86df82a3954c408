//! Dials that this proxy makes itself, under its cluster's name: services beside a proxy need no
//! agent.

use std::sync::Arc;

use mesh_proto::allow::AllowList;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use tokio::time::Instant;

use super::super::Shared;
use super::super::metrics::Path;
use super::super::stream::{DirectStream, Stream};
use super::{DialRequest, Refusal, log_dial};
use crate::metrics::StreamMeter;
use crate::targets::Targets;

/// Connects to the target of `request`: what `proxy.allow` says for principals of this cluster, and
/// `[[trust]]` for another one.
pub(super) async fn connect(
    shared: &Arc<Shared>,
    request: &DialRequest,
) -> Result<Stream, Refusal> {
    let until = Instant::now() + request.deadline;
    let config = &shared.config;
    let (allow, list, tells) = match &request.principal {
        Principal::Cluster(cluster) => (
            // Trusted when it was admitted; if not any more, it may reach nothing.
            shared.trust.allow(cluster).unwrap_or_default(),
            format!("allow of the [[trust]] of {cluster} in its config"),
            false,
        ),
        Principal::User(_) | Principal::Agent(_) | Principal::Token(_) | Principal::Ingress(_) => (
            AllowList::clone(&config.allow),
            "proxy.allow in its config".to_owned(),
            true,
        ),
    };
    let called = format!("the proxy {}", config.common.name);
    let targets = Targets {
        network: &*shared.network,
        allow: &allow,
        services: &[],
        called: &called,
        list: &list,
        tells,
    };
    // Counted from the attempt on, so that a drain waits for it.
    let meter = StreamMeter::open(&shared.node_metrics);
    let connected = tokio::time::timeout_at(until, targets.connect(&request.target, until));
    let socket = match connected.await {
        Ok(Ok(socket)) => socket,
        Ok(Err(refused)) => return Err(Refusal::new(refused.reason, refused.message)),
        Err(_) => {
            let message = format!(
                "{} did not answer {called} within {:?}",
                request.target, request.deadline
            );
            return Err(Refusal::new(Reason::Timeout, message));
        }
    };
    let (request, started) = (request.clone(), Instant::now());
    meter.on_end(Box::new(move |totals| {
        log_dial(&request, Path::Local, None, started, totals);
    }));
    Ok(Stream::Direct(DirectStream::new(socket, meter)))
}
