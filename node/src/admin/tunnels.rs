//! `/api/v1/tunnels`

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use mesh_proto::tunnel::Tunnel;

use super::api::{Api, not_a_proxy, refused};
use crate::proxy::Caller;
use crate::proxy::tunnels::{ChangeError, Changed, Resources, Wish};
use crate::report::{TunnelChange, TunnelForm, TunnelRequest};
use crate::store::StoreError;

const NO_STORE: &str = "this proxy keeps no tunnels, since its config has no store: add [store] url = \"redb:store.redb\" (this proxy alone) or url = \"etcd://host:2379/mesh\" (a fleet), and restart it";

impl Api {
    /// The tunnels of the node, or why there are none.
    fn tunnels(&self) -> Result<&Arc<Resources>, Box<Response>> {
        let proxy = self.proxy().ok_or_else(|| Box::new(not_a_proxy()))?;
        proxy
            .tunnels()
            .ok_or_else(|| Box::new(refused(StatusCode::NOT_FOUND, NO_STORE)))
    }
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Response {
    match api.tunnels() {
        Ok(tunnels) => Json(tunnels.report()).into_response(),
        Err(refusal) => *refusal,
    }
}

pub(super) async fn upsert(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(cluster): Path<String>,
    request: Result<Json<TunnelRequest>, JsonRejection>,
) -> Response {
    let tunnels = match api.tunnels() {
        Ok(tunnels) => tunnels,
        Err(refusal) => return *refusal,
    };
    let request = match request {
        Ok(Json(request)) => request,
        Err(error) => return refused(StatusCode::BAD_REQUEST, error.body_text()),
    };
    let ttl = match request.ttl_seconds.map(Duration::try_from_secs_f64) {
        None => None,
        Some(Ok(ttl)) => Some(ttl),
        Some(Err(error)) => {
            return refused(StatusCode::BAD_REQUEST, format!("ttl_seconds: {error}"));
        }
    };
    let wish = Wish {
        cluster: cluster.clone(),
        addresses: request.addresses,
        connections: request.connections,
        labels: request.labels,
        ttl,
        expected: request.revision,
    };
    answer(cluster, tunnels.upsert(&wish, &caller.to_string()).await)
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Path(cluster): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let tunnels = match api.tunnels() {
        Ok(tunnels) => tunnels,
        Err(refusal) => return *refusal,
    };
    // Only if this is its revision.
    let revision = match query.as_deref().filter(|query| !query.is_empty()) {
        None => None,
        Some(query) => match query.strip_prefix("revision=").map(str::parse) {
            Some(Ok(revision)) => Some(revision),
            Some(Err(_)) | None => {
                return refused(
                    StatusCode::BAD_REQUEST,
                    "the query is ?revision=NUMBER, or there is none",
                );
            }
        },
    };
    let who = caller.to_string();
    let deleted = tunnels.delete(&cluster, revision, &who).await;
    answer(cluster, deleted)
}

fn answer(cluster: String, done: Result<Changed, ChangeError>) -> Response {
    let changed = match done {
        Ok(changed) => changed,
        Err(error) => return refused(status(&error), error.to_string()),
    };
    let what = match (&changed.before, &changed.after) {
        (_, None) => "deleted",
        (None, Some(_)) => "created",
        (Some(before), Some(after)) if before.wishes_the_same(after) => "renewed",
        (Some(_), Some(_)) => "changed",
    };
    Json(TunnelChange {
        cluster,
        what: what.to_owned(),
        before: changed.before.as_ref().map(form),
        after: changed.after.as_ref().map(form),
    })
    .into_response()
}

fn form(tunnel: &Tunnel) -> TunnelForm {
    TunnelForm {
        addresses: tunnel.addresses().iter().map(ToString::to_string).collect(),
        connections: tunnel.connections(),
        labels: tunnel.labels().clone(),
        created_ms: tunnel.created_ms(),
        expires_ms: tunnel.expires_ms(),
        revision: tunnel.revision(),
    }
}

fn status(error: &ChangeError) -> StatusCode {
    match error {
        ChangeError::Invalid(_) | ChangeError::Own(_) => StatusCode::BAD_REQUEST,
        ChangeError::Absent(_) => StatusCode::NOT_FOUND,
        ChangeError::Conflict { .. } => StatusCode::CONFLICT,
        ChangeError::Store(StoreError::TooLarge { .. } | StoreError::BadKey { .. }) => {
            StatusCode::BAD_REQUEST
        }
        ChangeError::Store(
            StoreError::Unreachable { .. }
            | StoreError::Conflict { .. }
            | StoreError::Compacted
            | StoreError::Corrupt { .. }
            | StoreError::Foreign { .. }
            | StoreError::InUse { .. }
            | StoreError::Denied { .. }
            | StoreError::Credentials { .. }
            | StoreError::Unsupported,
        ) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
