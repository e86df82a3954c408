//! What whoever asks may do here.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use mesh_proto::grant::May;

use super::api::{Api, Node, refused};
use crate::proxy::Caller;

/// Lets a request through if its caller may do this.
pub(super) async fn check(
    State((api, may)): State<(Arc<Api>, May)>,
    request: Request,
    next: Next,
) -> Response {
    match request.extensions().get::<Caller>() {
        Some(Caller::Operator(_)) => next.run(request).await,
        Some(Caller::Remote(principal)) => {
            let is_allowed = match &api.node {
                Node::Proxy(proxy) => proxy.may(principal, may),
                Node::Agent(_) => false,
            };
            if is_allowed {
                return next.run(request).await;
            }
            let what = match may {
                May::Read => "look at this proxy",
                May::Tunnel => "change tunnels",
                May::Admin => "operate this proxy",
                May::Dial => "dial",
            };
            tracing::info!(target: "audit", who = %principal, right = %may, path = request.uri().path(), "refused");
            refused(
                StatusCode::FORBIDDEN,
                format!(
                    "{principal} may not {what}: that takes the right `{may}`; to allow it, add to the config of every proxy: [[grant]] who = [\"{principal}\"], may = [\"{may}\"]"
                ),
            )
        }
        // Every way in says who comes.
        None => refused(StatusCode::FORBIDDEN, "nobody knows who asks"),
    }
}
