//! Who may speak to the admin listener over TCP.
//!
//! A browser of somebody who may reach the listener must not be made to speak to it by a page
//! from elsewhere: on a loopback address `Host` and `Origin` must be loopback names (DNS rebinding
//! brings another `Host`, a foreign page another `Origin`).

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};

use crate::config::{IngressAuth, TokenTable};
use crate::proxy::Caller;
use crate::web;

/// The checks of one listener.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    loopback_names_only: bool,
    tokens: Option<Arc<TokenTable>>,
}

impl Guard {
    pub(super) fn new(address: SocketAddr, auth: IngressAuth) -> Self {
        Self {
            loopback_names_only: address.ip().is_loopback(),
            tokens: match auth {
                IngressAuth::Tokens(tokens) => Some(tokens),
                IngressAuth::Open | IngressAuth::ClientCa(_) => None,
            },
        }
    }

    /// Puts the checks before `routes`.
    pub(super) fn protect(self, routes: Router) -> Router {
        routes.layer(middleware::from_fn(
            move |mut request: Request, next: Next| {
                let judged = self.judge(request.headers());
                async move {
                    match judged {
                        Ok(caller) => {
                            request.extensions_mut().insert(caller);
                            next.run(request).await
                        }
                        Err(refusal) => *refusal,
                    }
                }
            },
        ))
    }

    /// Who it is, or why not.
    fn judge(&self, headers: &HeaderMap) -> Result<Caller, Box<Response>> {
        if self.loopback_names_only && !web::is_same_site(headers, web::is_loopback_name) {
            let why = "the Host and Origin of a request to this listener must be loopback names, such as localhost\n";
            return Err(Box::new((StatusCode::FORBIDDEN, why).into_response()));
        }
        let Some(tokens) = &self.tokens else {
            return Ok(Caller::Operator("admin listener".to_owned()));
        };
        let name = web::presented_token(headers).and_then(|token| tokens.matches(token));
        if let Some(name) = name {
            return Ok(Caller::Operator(format!("token:{name}")));
        }
        let why = "this listener needs a token of admin.auth.tokens_file: send it as `Authorization: Bearer`\n";
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer realm=\"mesh\"")];
        Err(Box::new(
            (StatusCode::UNAUTHORIZED, challenge, why).into_response(),
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pages_from_elsewhere_are_refused() {
        let guard = Guard::new("127.0.0.1:7480".parse().unwrap(), IngressAuth::Open);
        for (host, origin, status) in [
            ("localhost:7480", None, None),
            ("127.0.0.1:7480", Some("http://localhost:7480"), None),
            ("[::1]:7480", None, None),
            ("rebound.example.com", None, Some(403)),
            (
                "localhost:7480",
                Some("https://evil.example.com"),
                Some(403),
            ),
            ("localhost:7480", Some("null"), Some(403)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            let refusal = guard
                .judge(&headers)
                .err()
                .map(|response| response.status().as_u16());
            assert_eq!(refusal, status, "{host} {origin:?}");
        }
    }

    #[test]
    fn tokens_are_asked_for() {
        let tokens = TokenTable::from_text("ci:0123456789abcdef0123\n").unwrap();
        let guard = Guard::new(
            "192.0.2.1:7480".parse().unwrap(),
            IngressAuth::Tokens(Arc::new(tokens)),
        );
        for (header, allowed) in [
            (None, false),
            (Some("Bearer 0123456789abcdef0123"), true),
            (Some("Bearer 0123456789abcdef0124"), false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(header::AUTHORIZATION, header.parse().unwrap());
            }
            let who = guard.judge(&headers).map(|caller| caller.to_string()).ok();
            assert_eq!(who, allowed.then(|| "token:ci".to_owned()), "{header:?}");
        }
    }
}
