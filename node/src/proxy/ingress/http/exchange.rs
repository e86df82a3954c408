//! One request and its response.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;

use super::access::Access;
use super::body::{RequestBody, ResponseBody, UserBodyError};
use super::connection::ConnectionState;
use super::headers::{self, Arrival};
use super::path::{self, PathError, Scheme, UserPath};
use super::respond::Refusal;
use super::upgrade::Upgrade;
use super::upstream::{PoolKey, SendError};
use super::{Server, hosts};
use crate::config::IngressAuth;
use crate::proxy::ingress::auth;
use crate::proxy::router::DialError;

/// Sends of a request that is safe to repeat, while pooled connections turn out to be closed.
const SENDS_MAX: u32 = 3;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The authority of requests to targets, which is not sent: a pool has one target, and `Host` says
/// what the target calls itself.
const AUTHORITY: &str = "target.invalid";

/// A user's connection.
#[derive(Debug)]
pub(super) struct UserConnection {
    pub(super) state: Arc<ConnectionState>,
    pub(super) peer: Option<SocketAddr>,
    /// From the user's certificate.
    pub(super) identity: Option<Principal>,
    /// Agreed on, and waiting for the connection to be done with HTTP.
    upgrade: Mutex<Option<Upgrade>>,
}

impl UserConnection {
    pub(super) fn new(
        state: Arc<ConnectionState>,
        peer: Option<SocketAddr>,
        identity: Option<Principal>,
    ) -> Self {
        Self {
            state,
            peer,
            identity,
            upgrade: Mutex::default(),
        }
    }

    /// The upgrade on which the last request ended.
    pub(super) fn take_upgrade(&self) -> Option<Upgrade> {
        self.upgrade
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn set_upgrade(&self, upgrade: Upgrade) {
        *self.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(upgrade);
    }
}

/// A request whose sender is known and may ask.
struct Admitted {
    path: UserPath,
    principal: Principal,
    host: Option<HeaderValue>,
}

impl Server {
    /// Answers a request, always.
    pub(super) async fn answer(
        &self,
        connection: &UserConnection,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let method = request.method().clone();
        let access = Arc::new(Access::begin(
            self.shared.metrics.clone(),
            connection.state.clone(),
            method.clone(),
            request.uri().path(),
            connection.peer,
            request.body().is_end_stream(),
        ));
        match self.exchange(connection, request, &access).await {
            Ok(response) => {
                access.answered(response.status().as_u16(), None);
                response.map(|body| ResponseBody::target(body, access))
            }
            Err(refusal) => {
                access.answered(refusal.status.as_u16(), refusal.reason);
                let text = (method != Method::HEAD).then(|| refusal.body());
                refusal.response(ResponseBody::text(text, access))
            }
        }
    }

    async fn exchange(
        &self,
        connection: &UserConnection,
        mut request: Request<Incoming>,
        access: &Arc<Access>,
    ) -> Result<Response<Incoming>, Refusal> {
        let Admitted {
            path,
            principal,
            host,
        } = self.admit(connection, &mut request, access)?;
        let trace = request
            .headers()
            .get(TRACEPARENT)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        let user_upgrade = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let Head {
            mut request,
            wanted,
        } = self.head(
            connection,
            parts,
            &path,
            host.as_ref(),
            body.is_end_stream(),
        )?;
        let key = PoolKey {
            agent: path.agent.clone(),
            target: path.target.clone(),
            scheme: path.scheme,
            principal,
        };

        // RFC 9110, section 9.2.2: what is idempotent may be repeated, if all of it is at hand.
        let repeatable = body.is_end_stream() && request.method().is_idempotent();
        let mut body = Some(body);
        let mut sends = 1;
        let response = loop {
            let again = (repeatable && sends < SENDS_MAX).then(|| request.clone());
            let body = RequestBody::new(body.take(), access.clone());
            match self
                .upstream
                .send(key.clone(), request.map(|()| body), trace)
                .await
            {
                Ok(response) => break response,
                Err(SendError {
                    on_used: true,
                    error,
                }) if dial_error(&error).is_none() => {
                    let Some(again) = again else {
                        return Err(failure(&error, &path));
                    };
                    tracing::debug!(%error, target = %path.target, "a pooled connection was closed, sending the request again");
                    request = again;
                    sends += 1;
                }
                Err(SendError { error, .. }) => return Err(failure(&error, &path)),
            }
        };
        finish(
            connection,
            response,
            &path,
            access,
            user_upgrade,
            wanted.upgrade,
            wanted.version,
        )
    }

    /// Decides whether a request is served at all, and for whom. What it says does not depend on
    /// which agents there are.
    fn admit(
        &self,
        connection: &UserConnection,
        request: &mut Request<Incoming>,
        access: &Access,
    ) -> Result<Admitted, Refusal> {
        if request.method() == Method::CONNECT {
            return Err(Refusal::connect());
        }
        let http2 = request.version() >= Version::HTTP_2;
        if !http2 && request.uri().authority().is_some() {
            let why = format!(
                "this ingress is no forward proxy: the request line has a whole URI; ask for {}",
                path::FORM
            );
            return Err(Refusal::bad_request(why));
        }
        let host = hosts::host_of(request.headers(), request.uri().authority())
            .map_err(Refusal::bad_request)?;
        if request.version() == Version::HTTP_11 && host.is_none() {
            return Err(Refusal::bad_request("the request has no Host"));
        }
        self.hosts
            .check(host.as_ref(), request.headers())
            .map_err(|why| Refusal::new(Reason::NotAllowed, why))?;
        let principal = match &self.ingress.config.auth {
            IngressAuth::Tokens(tokens) => {
                auth::by_token(tokens, request.headers_mut()).map_err(Refusal::unauthorized)?
            }
            IngressAuth::Open | IngressAuth::ClientCa(_) => connection
                .identity
                .clone()
                .unwrap_or_else(|| Principal::Ingress(self.ingress.address.to_string())),
        };
        access.by(&principal);
        let asked = request
            .uri()
            .path_and_query()
            .map_or("", PathAndQuery::as_str);
        let path = path::parse(asked).map_err(|error| match error {
            PathError::NotClient => Refusal::not_found(),
            PathError::Malformed(why) => Refusal::bad_path(&why),
        })?;
        access.asks_for(&path.agent, &path.target);
        Ok(Admitted {
            path,
            principal,
            host,
        })
    }

    /// The head of the request to the target.
    fn head(
        &self,
        connection: &UserConnection,
        mut user: http::request::Parts,
        path: &UserPath,
        host: Option<&HeaderValue>,
        bodyless: bool,
    ) -> Result<Head, Refusal> {
        let upgrade = headers::wanted_upgrade(&user.headers, user.version);
        let arrival = Arrival {
            peer: connection.peer.map(|peer| peer.ip()),
            scheme: if self.ingress.tls.is_some() {
                Scheme::Https
            } else {
                Scheme::Http
            },
            version: user.version,
            host,
            prefix: &path.prefix,
        };
        let target_host = headers::host_of(&path.target, path.scheme);
        let wanted = Wanted {
            upgrade: upgrade.is_some(),
            version: user.version,
        };
        headers::to_target(&mut user.headers, &arrival, target_host, upgrade, !bodyless);
        let uri = Uri::builder()
            .scheme("http")
            .authority(AUTHORITY)
            .path_and_query(path.rest.clone())
            .build()
            .map_err(|error| {
                Refusal::bad_path(&format!("the path cannot be passed on: {error}"))
            })?;
        let mut request = Request::new(());
        *request.method_mut() = user.method;
        *request.uri_mut() = uri;
        *request.headers_mut() = user.headers;
        Ok(Head { request, wanted })
    }
}

struct Head {
    request: Request<()>,
    wanted: Wanted,
}

/// What the user wants beside a response.
struct Wanted {
    upgrade: bool,
    version: Version,
}

/// Makes the target's response the user's.
fn finish(
    connection: &UserConnection,
    mut response: Response<Incoming>,
    path: &UserPath,
    access: &Arc<Access>,
    user: OnUpgrade,
    wants_upgrade: bool,
    version: Version,
) -> Result<Response<Incoming>, Refusal> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if !wants_upgrade {
            let why = format!(
                "{} answered with an upgrade that was not asked for",
                path.target
            );
            return Err(Refusal::new(Reason::Unsupported, why));
        }
        let target = hyper::upgrade::on(&mut response);
        connection.set_upgrade(Upgrade {
            user,
            target,
            access: access.clone(),
        });
    }
    let status = response.status();
    headers::to_user(response.headers_mut(), status, version);
    // A target that speaks HTTP/1.0 does not make us do so.
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}

/// What became of a request to which no response came.
fn failure(error: &legacy::Error, path: &UserPath) -> Refusal {
    if let Some(error) = dial_error(error) {
        return Refusal::from(error);
    }
    let UserPath { agent, target, .. } = path;
    if cause::<UserBodyError>(error).is_some() {
        return Refusal::bad_request("the request's body ended early");
    }
    match cause::<hyper::Error>(error) {
        Some(error) if is_not_http(error) => Refusal::new(
            Reason::Unsupported,
            format!(
                "what {target} (through agent {agent}) answers is not HTTP: {}; see that an HTTP server listens there, and ask for a TLS one with `https`",
                chain(error)
            ),
        ),
        _ => Refusal::new(
            Reason::Lost,
            format!(
                "the connection to {target} through agent {agent} broke before an answer came: {}; the target may have seen the request: see its log, and the agent's, before it is sent again",
                chain(error)
            ),
        ),
    }
}

/// Whether a target spoke, but not HTTP: out of turn, or what cannot be read. That it spoke out of
/// turn hyper tells by being none of the others.
fn is_not_http(error: &hyper::Error) -> bool {
    let broke = error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || error.is_body_write_aborted()
        || cause::<std::io::Error>(error).is_some();
    error.is_parse() || !broke
}

fn dial_error(error: &legacy::Error) -> Option<&DialError> {
    cause::<DialError>(error)
}

/// The first cause of a type.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An error with its causes, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = error.source();
    }
    text
}
