//! Header fields on their way through the proxy (RFC 9110, section 7.6).

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{StatusCode, Version};
use mesh_proto::target::Target;

use super::path::Scheme;

/// Carries a user's token to an ingress; never further.
pub(super) const X_MESH_TOKEN: HeaderName = HeaderName::from_static("x-mesh-token");

/// Why the mesh did not reach the target: this proxy's word alone, see [`to_user`].
pub(super) const X_MESH_ERROR: HeaderName = HeaderName::from_static("x-mesh-error");

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// The name of the mesh in `Via`.
const PSEUDONYM: &str = "mesh";

/// What the target is told about how a request came.
#[derive(Debug, Clone)]
pub(super) struct Arrival<'a> {
    /// The user's address, where it has one.
    pub(super) peer: Option<IpAddr>,
    /// How the user spoke to the ingress.
    pub(super) scheme: Scheme,
    /// The HTTP version of the user's request.
    pub(super) version: Version,
    /// The `Host` that the user asked for, if any.
    pub(super) host: Option<&'a HeaderValue>,
    /// What of the path the target does not see.
    pub(super) prefix: &'a str,
}

/// Makes a user's request fields those of the request to the target. `has_body`: there is a body,
/// or may be one.
pub(super) fn to_target(
    headers: &mut HeaderMap,
    arrival: &Arrival<'_>,
    host: HeaderValue,
    upgrade: Option<HeaderValue>,
    has_body: bool,
) {
    let trailers = list_has(headers, &TE, "trailers");
    strip_hop_by_hop(headers);
    headers.remove(X_MESH_TOKEN);
    // Both fields say that they concern this connection alone (RFC 9110, section 7.6.1).
    let mut connection = Vec::new();
    if let Some(upgrade) = upgrade {
        headers.insert(UPGRADE, upgrade);
        connection.push("upgrade");
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        connection.push("te");
    }
    if let Ok(value) = HeaderValue::from_str(&connection.join(", "))
        && !connection.is_empty()
    {
        headers.insert(CONNECTION, value);
    }
    if has_body && !headers.contains_key(CONTENT_LENGTH) {
        // Without it hyper would drop the body of a GET.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if arrival.version >= Version::HTTP_2 {
        join_cookies(headers);
    }
    append(
        headers,
        &VIA,
        &format!("{} {PSEUDONYM}", version(arrival.version)),
    );
    let peer = arrival.peer.map(|peer| peer.to_canonical());
    append(
        headers,
        &X_FORWARDED_FOR,
        &peer.map_or("unknown".to_owned(), |peer| peer.to_string()),
    );
    let by_user = arrival.host.and_then(|host| host.to_str().ok());
    append(
        headers,
        &FORWARDED,
        &forwarded(peer, arrival.scheme, by_user),
    );
    headers.insert(
        X_FORWARDED_PROTO,
        HeaderValue::from_static(arrival.scheme.as_str()),
    );
    match arrival.host {
        Some(host) => headers.insert(X_FORWARDED_HOST, host.clone()),
        None => headers.remove(X_FORWARDED_HOST),
    };
    match HeaderValue::from_str(arrival.prefix) {
        Ok(prefix) => headers.insert(X_FORWARDED_PREFIX, prefix),
        Err(_) => headers.remove(X_FORWARDED_PREFIX),
    };
    headers.insert(HOST, host);
}

/// Makes a target's response fields those of the response to the user.
pub(super) fn to_user(headers: &mut HeaderMap, status: StatusCode, version: Version) {
    // What a target asks for may be spoken when the user asks for it, too (426).
    let offer = matches!(
        status,
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED
    ) && version == Version::HTTP_11;
    let upgrades: Vec<_> = if offer {
        headers.get_all(UPGRADE).iter().cloned().collect()
    } else {
        Vec::new()
    };
    strip_hop_by_hop(headers);
    // A target must not be able to pass its own answer off as the mesh's.
    headers.remove(X_MESH_ERROR);
    if !upgrades.is_empty() {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        for upgrade in upgrades {
            headers.append(UPGRADE, upgrade);
        }
    }
}

/// What a user asks to switch to. HTTP/2 by upgrade is not taken up, as RFC 9113 (section 3.1)
/// has it: the request is answered in HTTP/1.1.
pub(super) fn wanted_upgrade(headers: &HeaderMap, version: Version) -> Option<HeaderValue> {
    if version != Version::HTTP_11 || !list_has(headers, &CONNECTION, "upgrade") {
        return None;
    }
    let mut upgrades = headers.get_all(UPGRADE).iter();
    let upgrade = upgrades.next()?;
    let one = upgrades.next().is_none();
    (one && !upgrade.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| upgrade.clone())
}

/// The `Host` of a request to a target; the scheme's own port goes without saying.
pub(super) fn host_of(target: &Target, scheme: Scheme) -> HeaderValue {
    let default = scheme.default_port();
    let text = match target {
        Target::Address(address) if address.port() == default => match address.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        },
        Target::Address(address) => address.to_string(),
        Target::Host { host, port } if *port == default => host.to_string(),
        Target::Host { host, port } => format!("{host}:{port}"),
        Target::Service(name) => name.to_string(),
        Target::Unix(_) => "localhost".to_owned(),
    };
    // All of these are ASCII without spaces.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("localhost"))
}

/// Removes what concerns one connection alone, and what `Connection` says does so.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    let proxy: Vec<HeaderName> = headers
        .keys()
        // `Proxy-Status` alone is for the other end (RFC 9209).
        .filter(|name| name.as_str().starts_with("proxy-") && **name != PROXY_STATUS)
        .cloned()
        .collect();
    for name in named.iter().chain(&proxy) {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

/// Whether a comma-separated list has an element, whatever its case and parameters.
fn list_has(headers: &HeaderMap, name: &HeaderName, element: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|item| {
            let item = item.split(|byte| *byte == b';').next().unwrap_or_default();
            item.trim_ascii().eq_ignore_ascii_case(element.as_bytes())
        })
    })
}

/// Appends an element to a comma-separated list, which becomes one line.
fn append(headers: &mut HeaderMap, name: &HeaderName, element: &str) {
    let mut list = Vec::new();
    for value in headers.get_all(name) {
        if !value.as_bytes().trim_ascii().is_empty() {
            list.extend_from_slice(value.as_bytes());
            list.extend_from_slice(b", ");
        }
    }
    list.extend_from_slice(element.as_bytes());
    match HeaderValue::from_bytes(&list) {
        Ok(value) => headers.insert(name, value),
        // Values that were valid one by one are so together.
        Err(_) => headers.remove(name),
    };
}

/// HTTP/2 may split cookies, HTTP/1.1 may not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// An element of `Forwarded` (RFC 7239, section 4).
fn forwarded(peer: Option<IpAddr>, scheme: Scheme, host: Option<&str>) -> String {
    let mut element = match peer {
        Some(IpAddr::V4(ip)) => format!("for={ip}"),
        Some(IpAddr::V6(ip)) => format!("for=\"[{ip}]\""),
        None => "for=unknown".to_owned(),
    };
    if let Some(host) = host {
        element.push_str(";host=");
        if !host.is_empty() && host.bytes().all(is_tchar) {
            element.push_str(host);
        } else {
            element.push('"');
            for character in host.chars() {
                if matches!(character, '"' | '\\') {
                    element.push('\\');
                }
                element.push(character);
            }
            element.push('"');
        }
    }
    // Writing to a string does not fail.
    let _ = write!(element, ";proto={scheme}");
    element
}

/// Whether a byte may stand in a token (RFC 9110, section 5.6.2).
fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
