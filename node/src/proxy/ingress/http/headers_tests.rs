#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            value.parse().unwrap(),
        );
    }
    headers
}

/// `name: value`, sorted.
fn lines(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<_> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    lines.sort();
    lines
}

fn arrival<'a>(peer: &str, host: Option<&'a HeaderValue>) -> Arrival<'a> {
    Arrival {
        peer: peer.parse().ok(),
        scheme: Scheme::Http,
        version: Version::HTTP_11,
        host,
        prefix: "/client/foo/http/h:8125",
    }
}

#[test]
fn a_request_to_the_target() {
    let mut headers = map(&[
        ("host", "proxy:8123"),
        ("accept", "*/*"),
        ("x-custom", "one"),
        ("x-custom", "two"),
        ("connection", "keep-alive, X-Hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authorization", "Basic x"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip, trailers;q=0.5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("x-mesh-token", "secret"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-for", "198.51.100.1"),
        ("x-forwarded-host", "forged"),
        ("forwarded", "for=203.0.113.7"),
        ("via", "1.0 cache"),
    ]);
    let host = headers.get(HOST).cloned();
    to_target(
        &mut headers,
        &arrival("192.0.2.1", host.as_ref()),
        "h:8125".parse().unwrap(),
        None,
        true,
    );
    assert_eq!(
        lines(&headers),
        [
            "accept: */*",
            "connection: te",
            "forwarded: for=203.0.113.7, for=192.0.2.1;host=\"proxy:8123\";proto=http",
            "host: h:8125",
            "te: trailers",
            "transfer-encoding: chunked",
            "via: 1.0 cache, 1.1 mesh",
            "x-custom: one",
            "x-custom: two",
            "x-forwarded-for: 203.0.113.7, 198.51.100.1, 192.0.2.1",
            "x-forwarded-host: proxy:8123",
            "x-forwarded-prefix: /client/foo/http/h:8125",
            "x-forwarded-proto: http",
        ]
    );
}

#[test]
fn an_upgrade_passes() {
    let mut headers = map(&[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "k"),
    ]);
    let upgrade = wanted_upgrade(&headers, Version::HTTP_11);
    assert_eq!(upgrade.as_ref().unwrap(), "websocket");
    to_target(
        &mut headers,
        &arrival("192.0.2.1", None),
        "h".parse().unwrap(),
        upgrade,
        false,
    );
    assert_eq!(headers["connection"], "upgrade");
    assert_eq!(headers["upgrade"], "websocket");
    assert_eq!(headers["sec-websocket-key"], "k");
    assert!(!headers.contains_key("transfer-encoding"));

    for (fields, version) in [
        (&[("connection", "upgrade")][..], Version::HTTP_11),
        (&[("upgrade", "websocket")], Version::HTTP_11),
        (
            &[("connection", "upgrade"), ("upgrade", "websocket")],
            Version::HTTP_10,
        ),
        (
            &[
                ("connection", "Upgrade, HTTP2-Settings"),
                ("upgrade", "h2c"),
            ],
            Version::HTTP_11,
        ),
        (
            &[
                ("connection", "upgrade"),
                ("upgrade", "a"),
                ("upgrade", "b"),
            ],
            Version::HTTP_11,
        ),
    ] {
        assert_eq!(wanted_upgrade(&map(fields), version), None, "{fields:?}");
    }
}

#[test]
fn a_response_to_the_user() {
    let fields = [
        ("connection", "close, x-hop, upgrade"),
        ("x-hop", "1"),
        ("upgrade", "websocket"),
        ("transfer-encoding", "chunked"),
        ("proxy-authenticate", "Basic"),
        ("proxy-status", "cache"),
        ("x-mesh-error", "no_agent"),
        ("trailer", "x-sum"),
        ("set-cookie", "a"),
        ("set-cookie", "b"),
    ];
    let mut headers = map(&fields);
    to_user(&mut headers, StatusCode::OK, Version::HTTP_11);
    assert_eq!(
        lines(&headers),
        [
            "proxy-status: cache",
            "set-cookie: a",
            "set-cookie: b",
            "trailer: x-sum"
        ]
    );
    for (status, version, kept) in [
        (101, Version::HTTP_11, true),
        (426, Version::HTTP_11, true),
        (426, Version::HTTP_2, false),
    ] {
        let mut headers = map(&fields);
        to_user(&mut headers, StatusCode::from_u16(status).unwrap(), version);
        assert_eq!(
            headers.get("upgrade").is_some(),
            kept,
            "{status} {version:?}"
        );
        assert_eq!(
            headers
                .get("connection")
                .is_some_and(|value| value == "upgrade"),
            kept
        );
    }
}

#[test]
fn forwarded_elements() {
    for (peer, host, element) in [
        (Some("192.0.2.1"), None, "for=192.0.2.1;proto=https"),
        (
            Some("2001:db8::1"),
            Some("proxy"),
            "for=\"[2001:db8::1]\";host=proxy;proto=https",
        ),
        (
            Some("192.0.2.1"),
            Some("[::1]:8123"),
            "for=192.0.2.1;host=\"[::1]:8123\";proto=https",
        ),
        (
            None,
            Some("a\"b\\c"),
            "for=unknown;host=\"a\\\"b\\\\c\";proto=https",
        ),
        (None, Some(""), "for=unknown;host=\"\";proto=https"),
    ] {
        let peer = peer.map(|peer| peer.parse().unwrap());
        assert_eq!(forwarded(peer, Scheme::Https, host), element);
    }
    let mut headers = HeaderMap::new();
    to_target(
        &mut headers,
        &arrival("::ffff:192.0.2.1", None),
        "h".parse().unwrap(),
        None,
        false,
    );
    assert_eq!(headers["x-forwarded-for"], "192.0.2.1");
    assert!(!headers.contains_key("x-forwarded-host"));
}

#[test]
fn hosts_of_targets() {
    for (target, scheme, host) in [
        ("192.0.2.1:80", Scheme::Http, "192.0.2.1"),
        ("192.0.2.1:443", Scheme::Http, "192.0.2.1:443"),
        ("192.0.2.1:443", Scheme::Https, "192.0.2.1"),
        ("[2001:db8::1]:80", Scheme::Http, "[2001:db8::1]"),
        ("[2001:db8::1]:81", Scheme::Http, "[2001:db8::1]:81"),
        ("web.svc:80", Scheme::Http, "web.svc"),
        ("web.svc:8080", Scheme::Http, "web.svc:8080"),
        ("service:web", Scheme::Https, "web"),
        ("unix:/run/db.sock", Scheme::Http, "localhost"),
    ] {
        assert_eq!(host_of(&target.parse().unwrap(), scheme), host, "{target}");
    }
}

#[test]
fn cookies_of_http2_become_one() {
    let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
    let arrival = Arrival {
        version: Version::HTTP_2,
        ..arrival("192.0.2.1", None)
    };
    to_target(&mut headers, &arrival, "h".parse().unwrap(), None, false);
    assert_eq!(lines(&headers)[0], "cookie: a=1; b=2");
    assert_eq!(headers["via"], "2 mesh");
}

proptest! {
    #[test]
    fn nothing_of_one_hop_gets_through(fields in prop::collection::vec(("[a-z-]{1,12}|connection|te|upgrade|keep-alive|proxy-x", "[ -~]{0,24}"), 0..12)) {
        let mut headers = HeaderMap::new();
        for (name, value) in &fields {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        let mut response = headers.clone();
        to_user(&mut response, StatusCode::OK, Version::HTTP_11);
        for name in ["connection", "keep-alive", "te", "transfer-encoding", "upgrade", "proxy-x", "x-mesh-error"] {
            prop_assert!(!response.contains_key(name));
        }
        let host = headers.get(HOST).cloned();
        to_target(&mut headers, &arrival("192.0.2.1", host.as_ref()), "h".parse().unwrap(), None, false);
        prop_assert_eq!(headers.get_all(HOST).iter().count(), 1);
        for name in ["keep-alive", "transfer-encoding", "upgrade", "proxy-x", "x-mesh-token"] {
            prop_assert!(!headers.contains_key(name));
        }
    }
}
