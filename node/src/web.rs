//! What HTTP listeners of the node have in common: names that a browser may call them by, tokens.

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::uri::Authority;

/// Whether a host name, without its port, means this very host.
pub(crate) fn is_loopback_name(host: &str) -> bool {
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
        || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether `Host`, and `Origin` where a browser sent one, are names that `allowed` takes. The
/// host is compared without its port.
pub(crate) fn is_same_site(headers: &HeaderMap, allowed: impl Fn(&str) -> bool) -> bool {
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .and_then(host_of);
    let host_allowed = host.is_some_and(|host| allowed(&host));
    let origin_allowed = headers.get_all(ORIGIN).iter().all(|origin| {
        origin
            .to_str()
            .ok()
            .and_then(|origin| origin.split_once("://"))
            .and_then(|(_, authority)| host_of(authority))
            .is_some_and(|host| allowed(&host))
    });
    host_allowed && origin_allowed
}

fn host_of(authority: &str) -> Option<String> {
    let authority: Authority = authority.parse().ok()?;
    // User information has no place in either header.
    (!authority.as_str().contains('@')).then(|| authority.host().to_owned())
}

/// The token that a request brings, in `X-Mesh-Token` or as a bearer.
pub(crate) fn presented_token(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(token) = headers.get("x-mesh-token") {
        return Some(token.as_bytes());
    }
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names() {
        for name in [
            "localhost",
            "LocalHost",
            "127.0.0.1",
            "127.8.8.8",
            "[::1]",
            "::1",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_loopback_name(name), "{name}");
        }
        for name in [
            "",
            "localhost.example.com",
            "128.0.0.1",
            "[::2]",
            "0.0.0.0",
            "example.com",
        ] {
            assert!(!is_loopback_name(name), "{name}");
        }
    }
}
