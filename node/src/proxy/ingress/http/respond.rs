//! What a user reads when the mesh itself answers.

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use mesh_proto::refusal::Reason;

use super::headers::X_MESH_ERROR;
use super::path::FORM;
use crate::proxy::ingress::auth::AuthError;
use crate::proxy::router::DialError;

/// A request that is answered by the mesh, for want of an answer from the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// None where nothing of the mesh was asked for.
    pub(super) reason: Option<Reason>,
    /// What went wrong, and what to do about it.
    text: String,
}

impl Refusal {
    /// With the status that goes with the reason.
    pub(super) fn new(reason: Reason, text: impl Into<String>) -> Self {
        let status =
            StatusCode::from_u16(reason.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            status,
            reason: Some(reason),
            text: text.into(),
        }
    }

    /// The request breaks a rule of HTTP.
    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            reason: None,
            text: text.into(),
        }
    }

    /// Nothing is served under this path.
    pub(super) fn not_found() -> Self {
        let text = format!(
            "nothing is served here: ask for {FORM}, as in\n  /client/a1/http/127.0.0.1:8080/index.html"
        );
        Self {
            status: StatusCode::NOT_FOUND,
            reason: None,
            text,
        }
    }

    /// The path is not well formed.
    pub(super) fn bad_path(why: &str) -> Self {
        Self::new(Reason::BadTarget, format!("{why}; ask for {FORM}"))
    }

    /// The user has to say who it is.
    pub(super) fn unauthorized(error: AuthError) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            reason: Some(Reason::NotAllowed),
            text: error.to_string(),
        }
    }

    /// This is no forward proxy.
    pub(super) fn connect() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            reason: Some(Reason::Unsupported),
            text: format!("this ingress takes no CONNECT; ask for {FORM}"),
        }
    }

    /// The body, one line mostly.
    pub(super) fn body(&self) -> String {
        match self.reason {
            Some(reason) => format!("{reason}: {}\n", self.text),
            None => format!("{}\n", self.text),
        }
    }

    /// The response, with the body that `body` makes of the text.
    pub(super) fn response<B>(&self, body: B) -> Response<B> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(reason) = self.reason {
            headers.insert(X_MESH_ERROR, HeaderValue::from_static(reason.as_str()));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(
                WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"mesh\""),
            );
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<&DialError> for Refusal {
    fn from(error: &DialError) -> Self {
        let DialError {
            agent,
            target,
            reason,
            message,
            by_other_cluster: _,
        } = error;
        Self::new(
            *reason,
            format!("cannot reach {target} through agent {agent}: {message}"),
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn every_reason_has_its_response() {
        for reason in Reason::ALL {
            let error = DialError {
                agent: "a1".parse().unwrap(),
                target: "h:80".parse().unwrap(),
                reason,
                message: "what happened; what to do".into(),
                by_other_cluster: false,
            };
            let refusal = Refusal::from(&error);
            let response = refusal.response(());
            assert_eq!(response.status().as_u16(), reason.http_status());
            assert_eq!(response.headers()["x-mesh-error"], reason.as_str());
            assert_eq!(
                response.headers()["content-type"],
                "text/plain; charset=utf-8"
            );
            assert_eq!(
                response.headers().contains_key("retry-after"),
                response.status() == 503
            );
            assert_eq!(
                refusal.body(),
                format!(
                    "{reason}: cannot reach h:80 through agent a1: what happened; what to do\n"
                )
            );
        }
    }

    #[test]
    fn others() {
        let response = Refusal::unauthorized(AuthError::Missing).response(());
        assert_eq!(response.status(), 401);
        assert_eq!(
            response.headers()["www-authenticate"],
            "Bearer realm=\"mesh\""
        );
        assert_eq!(response.headers()["x-mesh-error"], "not_allowed");
        let not_found = Refusal::not_found();
        assert_eq!(not_found.status, 404);
        assert!(
            !not_found
                .response(())
                .headers()
                .contains_key("x-mesh-error")
        );
        assert!(not_found.body().contains(FORM) && not_found.body().ends_with('\n'));
        let bad_path = Refusal::bad_path("the agent is missing");
        assert_eq!(bad_path.status, 400);
        assert!(
            bad_path
                .body()
                .starts_with("bad_target: the agent is missing; ask for /client/")
        );
        assert_eq!(Refusal::connect().status, 405);
    }
}
