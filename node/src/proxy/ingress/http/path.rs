//! `/client/<agent>/<http or https>/<host:port>/<path>`: what a user's request asks for.

use std::fmt;

use http::uri::PathAndQuery;
use mesh_proto::name::AgentRef;
use mesh_proto::target::Target;
use percent_encoding::percent_decode_str;

/// How a request is to be written; shown to those who wrote it otherwise.
pub(super) const FORM: &str = "/client/<agent>/<http or https>/<host:port>/<path>";

/// What stands before the agent.
const PREFIX: &str = "/client/";

/// How HTTP is spoken with the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// As in a URI.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port of a target that names none.
    pub(super) fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A parsed request target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UserPath {
    /// Whose target.
    pub(super) agent: AgentRef,
    /// How to speak with the target.
    pub(super) scheme: Scheme,
    /// What the agent is asked to reach.
    pub(super) target: Target,
    /// What the target does not see: `/client/<agent>/<scheme>/<host:port>`, as it was written.
    pub(super) prefix: String,
    /// What the target sees: the rest of the path, and the query, byte by byte.
    pub(super) rest: PathAndQuery,
}

/// Why a request target is none of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathError {
    /// It is not under `/client/`.
    NotClient,
    /// It is, and is not well formed.
    Malformed(String),
}

/// Reads a path with its query, as it stands in the request line.
pub(super) fn parse(path_and_query: &str) -> Result<UserPath, PathError> {
    let (path, query) = match path_and_query.find('?') {
        Some(at) => path_and_query.split_at(at),
        None => (path_and_query, ""),
    };
    let Some(after) = path.strip_prefix(PREFIX) else {
        return Err(if path == "/client" {
            missing("agent")
        } else {
            PathError::NotClient
        });
    };
    let (agent, after) = after.split_once('/').ok_or_else(|| missing("scheme"))?;
    let (scheme, after) = after.split_once('/').ok_or_else(|| missing("host:port"))?;
    let (target, rest) = match after.find('/') {
        Some(at) => after.split_at(at),
        None => (after, "/"),
    };
    let agent: AgentRef = agent
        .parse()
        .map_err(|error| PathError::Malformed(format!("{error}")))?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => {
            let why = "the scheme behind the agent is neither `http` nor `https`";
            return Err(PathError::Malformed(why.to_owned()));
        }
    };
    let decoded = percent_decode_str(target).decode_utf8().map_err(|_| {
        PathError::Malformed("the target is not UTF-8 when percent-decoded".to_owned())
    })?;
    let target = Target::default_port(&decoded, scheme.default_port())
        .map_err(|error| PathError::Malformed(format!("{error}")))?;
    let prefix = path.strip_suffix(rest).unwrap_or(path).to_owned();
    let rest = PathAndQuery::try_from(format!("{rest}{query}"))
        .map_err(|error| PathError::Malformed(format!("the path cannot be passed on: {error}")))?;
    Ok(UserPath {
        agent,
        scheme,
        target,
        prefix,
        rest,
    })
}

fn missing(what: &str) -> PathError {
    PathError::Malformed(format!("the {what} is missing"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn well_formed() {
        for (path, agent, scheme, target, prefix, rest) in [
            (
                "/client/foo/http/127.0.0.1:8125/README.md",
                "foo",
                "http",
                "127.0.0.1:8125",
                "/client/foo/http/127.0.0.1:8125",
                "/README.md",
            ),
            (
                "/client/foo/http/127.0.0.1:8125",
                "foo",
                "http",
                "127.0.0.1:8125",
                "/client/foo/http/127.0.0.1:8125",
                "/",
            ),
            (
                "/client/foo/http/127.0.0.1:8125/",
                "foo",
                "http",
                "127.0.0.1:8125",
                "/client/foo/http/127.0.0.1:8125",
                "/",
            ),
            (
                "/client/foo/http/web.svc?x=/y",
                "foo",
                "http",
                "web.svc:80",
                "/client/foo/http/web.svc",
                "/?x=/y",
            ),
            (
                "/client/foo/https/web.svc//a//b/?",
                "foo",
                "https",
                "web.svc:443",
                "/client/foo/https/web.svc",
                "//a//b/?",
            ),
            (
                "/client/foo.example.com/http/[::1]:80/x",
                "foo.example.com",
                "http",
                "[::1]:80",
                "/client/foo.example.com/http/[::1]:80",
                "/x",
            ),
            (
                "/client/foo/http/%5B::1%5D:80/x",
                "foo",
                "http",
                "[::1]:80",
                "/client/foo/http/%5B::1%5D:80",
                "/x",
            ),
            (
                "/client/foo/http/[::1]/x",
                "foo",
                "http",
                "[::1]:80",
                "/client/foo/http/[::1]",
                "/x",
            ),
            (
                "/client/foo/http/service:web/a/../b/./%2e%2E/%2f?q=%20&r=?",
                "foo",
                "http",
                "service:web",
                "/client/foo/http/service:web",
                "/a/../b/./%2e%2E/%2f?q=%20&r=?",
            ),
            (
                "/client/foo/http/service%3Aweb/x",
                "foo",
                "http",
                "service:web",
                "/client/foo/http/service%3Aweb",
                "/x",
            ),
            (
                "/client/foo/http/unix:%2Frun%2Fdb.sock/v1",
                "foo",
                "http",
                "unix:/run/db.sock",
                "/client/foo/http/unix:%2Frun%2Fdb.sock",
                "/v1",
            ),
            (
                "/client/foo/http/h:80/client/bar/http/h:80/",
                "foo",
                "http",
                "h:80",
                "/client/foo/http/h:80",
                "/client/bar/http/h:80/",
            ),
        ] {
            let parsed = parse(path).unwrap_or_else(|error| panic!("{path}: {error:?}"));
            assert_eq!(parsed.agent.as_str(), agent, "{path}");
            assert_eq!(parsed.scheme.as_str(), scheme, "{path}");
            assert_eq!(parsed.target.to_string(), target, "{path}");
            assert_eq!(parsed.prefix, prefix, "{path}");
            assert_eq!(parsed.rest.as_str(), rest, "{path}");
        }
    }

    #[test]
    fn malformed() {
        for (path, why) in [
            ("/client", "the agent is missing"),
            ("/client/", "the scheme is missing"),
            ("/client/foo", "the scheme is missing"),
            ("/client/foo?/http/h:80/", "the scheme is missing"),
            ("/client/foo/http", "the host:port is missing"),
            ("/client//http/h:80/", "agent"),
            ("/client/Foo/http/h:80/", "Foo"),
            ("/client/foo%2Ebar/http/h:80/", "foo%2Ebar"),
            ("/client/foo/ftp/h:80/", "neither `http` nor `https`"),
            ("/client/foo/HTTP/h:80/", "neither `http` nor `https`"),
            ("/client/foo/http//x", "target"),
            ("/client/foo/http/h:0/x", "h:0"),
            ("/client/foo/http/h:80%2Fx", "h:80/x"),
            ("/client/foo/http/%252e:80/x", "%2e"),
            ("/client/foo/http/user@h:80/x", "user@h"),
            ("/client/foo/http/2130706433:80/x", "2130706433"),
            ("/client/foo/http/%ff:80/x", "not UTF-8"),
            ("/client/foo/http/unix:%2Frun%2F..%2Fdb.sock/x", "unix"),
        ] {
            let Err(PathError::Malformed(text)) = parse(path) else {
                panic!("{path} is taken")
            };
            assert!(text.contains(why), "{path}: {text}");
        }
        for path in [
            "",
            "/",
            "*",
            "/x",
            "/Client/foo/http/h:80/",
            "//client/foo/http/h/",
            "/clients/",
            "/?/client/",
        ] {
            assert_eq!(parse(path), Err(PathError::NotClient), "{path}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(path in "\\PC*") {
            let _ = parse(&path);
            let _ = parse(&format!("/client/{path}"));
            let _ = parse(&format!("/client/foo/http/{path}"));
        }

        #[test]
        fn the_rest_is_untouched(
            target in "[a-z]{1,8}(\\.[a-z]{1,8})?:[1-9][0-9]{0,3}",
            rest in "(/[!-\"$->@-~]{0,12}){1,5}(\\?[!-\"$-~]{0,12})?",
        ) {
            let path = format!("/client/foo/http/{target}{rest}");
            // What the http crate does not take, hyper has refused before it comes to us.
            if PathAndQuery::try_from(path.as_str()).is_ok() {
                let parsed = parse(&path).unwrap();
                prop_assert_eq!(parsed.rest.as_str(), rest);
                prop_assert_eq!(parsed.target.to_string(), target);
            }
        }
    }
}
