//! Under which names an ingress is served.
//!
//! A browser runs pages from anywhere, and they can make it send requests to a listener of its own
//! host. On a loopback address only requests for a loopback name are therefore served (a page of
//! another site arrives with that site's name, even when its DNS says 127.0.0.1), and none that a
//! page of another site makes (`Origin`).

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, HeaderMap, HeaderValue, ORIGIN};
use http::uri::Authority;

use crate::web;

/// The names under which an ingress is served.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    /// Lower case, without ports; IP addresses without brackets.
    names: Vec<String>,
    loopback: bool,
}

impl Hosts {
    /// For an ingress at `address` with the `hosts` of its config.
    pub(super) fn new(address: SocketAddr, names: &[String]) -> Self {
        Self {
            names: names.iter().map(|name| normal(name)).collect(),
            loopback: address.ip().to_canonical().is_loopback(),
        }
    }

    /// Whether a request with this `Host` is served, as far as its names go.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(super) fn check(
        &self,
        host: Option<&HeaderValue>,
        headers: &HeaderMap,
    ) -> Result<(), String> {
        if !self.loopback && self.names.is_empty() {
            return Ok(());
        }
        if !host
            .and_then(|host| host.to_str().ok())
            .is_some_and(|host| self.serves(host))
        {
            let host = host.map_or("no Host".into(), |host| format!("the Host {host:?}"));
            return Err(format!(
                "this ingress does not serve {host}; ask for it by {}, or add the name to the ingress's `hosts`",
                self.names()
            ));
        }
        if self.loopback {
            for origin in headers.get_all(ORIGIN) {
                let site = origin
                    .to_str()
                    .ok()
                    .and_then(|origin| origin.split_once("://"));
                if !site.is_some_and(|(_, authority)| self.serves(authority)) {
                    return Err(format!(
                        "the request comes from a page of {origin:?}, another site, and this ingress listens on a loopback address; add that site's name to the ingress's `hosts` if it may"
                    ));
                }
            }
        }
        Ok(())
    }

    fn serves(&self, authority: &str) -> bool {
        let Ok(parsed) = authority.parse::<Authority>() else {
            return false;
        };
        // User information has no place in either field.
        if authority.contains('@') {
            return false;
        }
        let name = normal(parsed.host());
        (self.loopback && web::is_loopback_name(&name)) || self.names.contains(&name)
    }

    fn names(&self) -> String {
        let loopback = self
            .loopback
            .then(|| "a loopback name such as localhost".to_owned());
        let names: Vec<String> = loopback
            .into_iter()
            .chain(self.names.iter().map(|name| format!("`{name}`")))
            .collect();
        names.join(" or ")
    }
}

/// The one host of a request: from `Host`, or from HTTP/2's `:authority`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn host_of(
    headers: &HeaderMap,
    authority: Option<&Authority>,
) -> Result<Option<HeaderValue>, &'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err("there is more than one Host");
    }
    let authority = authority.map(|authority| HeaderValue::from_str(authority.as_str()));
    match (host, authority) {
        (_, Some(Err(_))) => Err("the authority is malformed"),
        (Some(host), Some(Ok(authority)))
            if !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) =>
        {
            Err("Host and :authority differ")
        }
        (_, Some(Ok(authority))) => Ok(Some(authority)),
        (host, None) => Ok(host.cloned()),
    }
}

/// A host name or address in one spelling: lower case, no brackets, no final dot.
fn normal(host: &str) -> String {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().to_string(),
        Err(_) => bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    fn check(hosts: &Hosts, host: Option<&str>, origin: Option<&str>) -> Result<(), String> {
        let mut headers = HeaderMap::new();
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        let host = host.map(|host| host.parse().unwrap());
        hosts.check(host.as_ref(), &headers)
    }

    #[test]
    fn a_loopback_ingress() {
        let hosts = Hosts::new("127.0.0.1:8123".parse().unwrap(), &[]);
        for (host, origin, served) in [
            (Some("localhost:8123"), None, true),
            (Some("LocalHost"), None, true),
            (Some("localhost.:1"), None, true),
            (Some("127.0.0.1:9"), None, true),
            (Some("127.8.8.8"), None, true),
            (Some("[::1]:8123"), None, true),
            (None, None, false),
            (Some(""), None, false),
            (Some("rebound.example.com:8123"), None, false),
            (Some("localhost.example.com"), None, false),
            (Some("x@localhost"), None, false),
            (Some("localhost:8123"), Some("http://127.0.0.1:3000"), true),
            (
                Some("localhost:8123"),
                Some("https://evil.example.com"),
                false,
            ),
            (Some("localhost:8123"), Some("null"), false),
            (Some("localhost:8123"), Some(""), false),
            (
                Some("localhost:8123"),
                Some("http://localhost@evil.example.com"),
                false,
            ),
        ] {
            let checked = check(&hosts, host, origin);
            assert_eq!(checked.is_ok(), served, "{host:?} {origin:?}");
            if let Err(why) = checked {
                assert!(why.contains("`hosts`"), "{why}");
            }
        }
        let named = Hosts::new("[::1]:8123".parse().unwrap(), &["mesh.test".into()]);
        assert!(check(&named, Some("Mesh.Test:8123"), Some("http://mesh.test")).is_ok());
        assert!(check(&named, Some("localhost"), None).is_ok());
        assert!(check(&named, Some("other.test"), None).is_err());
    }

    #[test]
    fn another_ingress() {
        let any = Hosts::new("0.0.0.0:8123".parse().unwrap(), &[]);
        assert!(check(&any, Some("whatever"), Some("https://evil.example.com")).is_ok());
        assert!(check(&any, None, None).is_ok());

        let named = Hosts::new(
            "0.0.0.0:8123".parse().unwrap(),
            &["mesh.example.com".into(), "2001:db8::1".into()],
        );
        assert!(
            check(
                &named,
                Some("mesh.example.com:8123"),
                Some("https://elsewhere")
            )
            .is_ok()
        );
        assert!(check(&named, Some("[2001:DB8:0::1]:8123"), None).is_ok());
        assert!(check(&named, Some("localhost"), None).is_err());
        assert!(check(&named, None, None).is_err());
    }

    #[test]
    fn one_host() {
        let mut headers = HeaderMap::new();
        let authority: Authority = "a:1".parse().unwrap();
        assert_eq!(host_of(&headers, None), Ok(None));
        assert_eq!(host_of(&headers, Some(&authority)).unwrap().unwrap(), "a:1");
        headers.append(HOST, "A:1".parse().unwrap());
        assert_eq!(host_of(&headers, None).unwrap().unwrap(), "A:1");
        assert_eq!(host_of(&headers, Some(&authority)).unwrap().unwrap(), "a:1");
        assert!(host_of(&headers, Some(&"b".parse().unwrap())).is_err());
        headers.append(HOST, "A:1".parse().unwrap());
        assert!(host_of(&headers, None).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(host in "\\PC*") {
            let hosts = Hosts::new("127.0.0.1:1".parse().unwrap(), std::slice::from_ref(&host));
            let _ = hosts.serves(&host);
        }
    }
}
