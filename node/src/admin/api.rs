//! `/api/v1`: what the node tells of itself, and what it can be told to do. See
//! [`crate::report`] for the shapes.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use axum::{Extension, middleware};
use mesh_proto::grant::May;
use mesh_proto::name::AgentName;

use super::drain::{DrainAsk, NotNow};
use super::{rights, tunnels};
use crate::proxy::Caller;
use crate::report::{ApiError, DrainRequest};
use crate::{agent, proxy};

/// The longest deadline of a drain, as in the config.
const DRAIN_DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The node behind the API.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// A proxy.
    Proxy(proxy::Observer),
    /// An agent.
    Agent(agent::Observer),
}

/// The largest body of a request, in bytes: some more than the largest tunnel.
const BODY_BYTES_MAX: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Api {
    pub(super) node: Node,
    drain: DrainAsk,
}

/// The routes of the API.
///
/// Each says what its callers need to be allowed to do.
pub(crate) fn routes(node: Node, drain: DrainAsk) -> Router {
    let api = Arc::new(Api { node, drain });
    let needs = |may| middleware::from_fn_with_state((api.clone(), may), rights::check);
    let read = || needs(May::Read);
    Router::new()
        .route("/api/v1/status", get(status).route_layer(read()))
        .route("/api/v1/peers", get(peers).route_layer(read()))
        .route("/api/v1/routes/{agent}", get(route).route_layer(read()))
        .route("/api/v1/tunnels", get(tunnels::list).route_layer(read()))
        .route(
            "/api/v1/tunnels/{cluster}",
            put(tunnels::upsert)
                .delete(tunnels::delete)
                .route_layer(needs(May::Tunnel)),
        )
        .route(
            "/api/v1/drain",
            post(begin_drain)
                .delete(cancel_drain)
                .route_layer(needs(May::Admin)),
        )
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

pub(super) fn refused(status: StatusCode, error: impl Into<String>) -> Response {
    let error = ApiError {
        error: error.into(),
    };
    (status, Json(error)).into_response()
}

pub(super) fn not_a_proxy() -> Response {
    refused(StatusCode::NOT_FOUND, "this node is an agent: ask a proxy")
}

async fn status(State(api): State<Arc<Api>>) -> Response {
    match &api.node {
        Node::Proxy(proxy) => Json(proxy.status()).into_response(),
        Node::Agent(agent) => Json(agent.status()).into_response(),
    }
}

impl Api {
    pub(super) fn proxy(&self) -> Option<&proxy::Observer> {
        match &self.node {
            Node::Proxy(proxy) => Some(proxy),
            Node::Agent(_) => None,
        }
    }
}

async fn peers(State(api): State<Arc<Api>>) -> Response {
    match api.proxy() {
        Some(proxy) => Json(proxy.peers()).into_response(),
        None => not_a_proxy(),
    }
}

async fn route(State(api): State<Arc<Api>>, Path(agent): Path<String>) -> Response {
    let Some(proxy) = api.proxy() else {
        return not_a_proxy();
    };
    match agent.parse::<AgentName>() {
        Ok(agent) => Json(proxy.route(&agent)).into_response(),
        Err(error) => refused(StatusCode::BAD_REQUEST, error.to_string()),
    }
}

async fn begin_drain(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Result<Json<DrainRequest>, JsonRejection>,
) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(error) => return refused(StatusCode::BAD_REQUEST, error.body_text()),
    };
    let deadline = match request.deadline_seconds.map(Duration::try_from_secs_f64) {
        None => None,
        Some(Ok(deadline)) if deadline <= DRAIN_DEADLINE_MAX => Some(deadline),
        Some(_) => {
            return refused(
                StatusCode::BAD_REQUEST,
                "deadline_seconds is not between 0 and 86400",
            );
        }
    };
    match api.drain.ask(deadline) {
        Ok(()) => {
            tracing::info!(target: "audit", who = %caller, ?deadline, "a drain was asked for");
            StatusCode::ACCEPTED.into_response()
        }
        Err(NotNow) => refused(StatusCode::CONFLICT, "the node drains already"),
    }
}

async fn cancel_drain(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
) -> Response {
    match api.drain.cancel() {
        Ok(()) => {
            tracing::info!(target: "audit", who = %caller, "a drain was taken back");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(NotNow) => refused(
            StatusCode::CONFLICT,
            "there is no drain that can be cancelled: it can during proxy.drain_notice, when it was asked for by `node drain`",
        ),
    }
}
