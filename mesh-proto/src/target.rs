//! Targets: what an agent is asked to reach.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer, ser};

use crate::name::{DNS_NAME_BYTES_MAX, LABEL_BYTES_MAX, ServiceName};
use crate::text::{quote, serde_as_text};

/// The longest path of a Unix socket, in bytes: what Linux's `sockaddr_un` holds before its NUL.
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// What an agent is asked to reach.
///
/// Text forms: `192.0.2.7:80`, `[2001:db8::7]:80`, `db.example.com:5432`, `unix:/run/db.sock`,
/// `service:web`. `Display` writes what `FromStr` reads. [`Target::address`] and [`Target::host`]
/// build valid ones; one made by hand that breaks the rules is refused when it is serialized.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An IP address and a port. IPv4-mapped IPv6 addresses are written as IPv4, and there is no
    /// zone.
    Address(SocketAddr),
    /// A DNS name, resolved by the agent, and a port.
    Host {
        /// The name to resolve.
        host: HostName,
        /// TCP port, from 1.
        port: u16,
    },
    /// A Unix socket on the agent's host.
    Unix(UnixPath),
    /// A service by the name that the agent announces.
    Service(ServiceName),
}

/// A target, host name or path that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("target \"{value}\" is not valid: {rule}")]
pub struct InvalidTarget {
    /// What was written, escaped and cut to 80 characters.
    pub value: String,
    /// The rule that it breaks, and what to do.
    pub rule: String,
}

impl Target {
    /// An address as a target: IPv4-mapped IPv6 becomes IPv4.
    ///
    /// # Errors
    /// When the port is 0, or the address has a zone (which means something on one host alone).
    pub fn address(address: SocketAddr) -> Result<Self, InvalidTarget> {
        address_target(address).map_err(|rule| InvalidTarget {
            value: quote(&address.to_string()),
            rule,
        })
    }

    /// A DNS name and a port as a target.
    ///
    /// # Errors
    /// When the port is 0.
    pub fn host(host: HostName, port: u16) -> Result<Self, InvalidTarget> {
        if port == 0 {
            return Err(InvalidTarget {
                value: quote(&format!("{host}:0")),
                rule: PORT_RULE.to_owned(),
            });
        }
        Ok(Self::Host { host, port })
    }

    /// Reads a target whose `:port` may be missing, and is then `port`.
    ///
    /// # Errors
    /// As `FromStr`, or when the port is missing and `port` is 0.
    pub fn default_port(text: &str, port: u16) -> Result<Self, InvalidTarget> {
        parse(text, Some(port)).map_err(|rule| InvalidTarget {
            value: quote(text),
            rule,
        })
    }

    /// The TCP port, where there is one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Address(address) => Some(address.port()),
            Self::Host { port, .. } => Some(*port),
            Self::Unix(_) | Self::Service(_) => None,
        }
    }
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        parse(text, None).map_err(|rule| InvalidTarget {
            value: quote(text),
            rule,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Host { host, port } => write!(formatter, "{host}:{port}"),
            Self::Unix(path) => write!(formatter, "unix:{path}"),
            Self::Service(name) => write!(formatter, "service:{name}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The variants are open, so a caller may have filled in what no reader would accept.
        let checked = match self {
            Self::Address(address) => Self::address(*address),
            Self::Host { host, port } => Self::host(host.clone(), *port),
            Self::Unix(_) | Self::Service(_) => Ok(self.clone()),
        };
        serializer.collect_str(&checked.map_err(ser::Error::custom)?)
    }
}

impl<'de> serde::Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::deserialize(deserializer, "a target")
    }
}

impl TryFrom<String> for Target {
    type Error = InvalidTarget;

    fn try_from(text: String) -> Result<Self, InvalidTarget> {
        text.parse()
    }
}

/// A DNS name to be resolved by an agent: lower-cased, without the trailing dot. Labels of 1 to 63
/// of a-z, 0-9, '-' and '_' with no '-' at either end; at most 253 bytes.
///
/// A name whose last label is a number is none: resolvers read `127.1`, `0x7f.1` and `2130706433`
/// as IPv4 addresses, which would slip past a list of names. Nor are `unix` and `service` alone,
/// which begin other kinds of target.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

impl HostName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        parse_host_name(text).map_err(|rule| InvalidTarget {
            value: quote(text),
            rule,
        })
    }
}

/// The path of a Unix socket: absolute, at most 107 bytes, no `..`, no control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixPath(Arc<str>);

impl UnixPath {
    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UnixPath {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        parse_unix_path(text).map_err(|rule| InvalidTarget {
            value: quote(text),
            rule,
        })
    }
}

macro_rules! text_type {
    ($type:ident, $expecting:literal) => {
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), formatter)
            }
        }

        serde_as_text!($type, $expecting);
    };
}

text_type!(HostName, "a host name");
text_type!(UnixPath, "an absolute path");

/// As hosts these would be written as `service:80`, which reads as something else.
const RESERVED_HOSTS: [&str; 2] = ["unix", "service"];

const FORMS: &str = "write host:port, [v6]:port, unix:/path or service:name";
const PORT_RULE: &str = "a port is a number from 1 to 65535";
const UNIX_RULE: &str = "the path of a Unix socket is absolute, has at most 107 bytes, no '..' and no control characters";
const V6_RULE: &str = "write an IPv6 address in brackets, as [2001:db8::7]:80";

fn parse(text: &str, default_port: Option<u16>) -> Result<Target, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return parse_unix_path(path).map(Target::Unix);
    }
    if let Some(name) = text.strip_prefix("service:") {
        return name
            .parse()
            .map(Target::Service)
            .map_err(|error: crate::name::InvalidName| error.rule);
    }
    let (host, port) = split_host_port(text)?;
    let port = match (port, default_port) {
        (Some(port), _) => parse_port(port)?,
        (None, Some(0)) => return Err(PORT_RULE.to_owned()),
        (None, Some(port)) => port,
        (None, None) => return Err(format!("the port is missing; {FORMS}")),
    };
    match host {
        HostText::V6(address) => address_target(SocketAddr::from((parse_v6(address)?, port))),
        HostText::Other(host) => match host.parse::<Ipv4Addr>() {
            Ok(address) => Ok(Target::Address(SocketAddr::from((address, port)))),
            Err(_) => Ok(Target::Host {
                host: parse_host_name(host)?,
                port,
            }),
        },
    }
}

fn address_target(address: SocketAddr) -> Result<Target, String> {
    if address.port() == 0 {
        return Err(PORT_RULE.to_owned());
    }
    if let SocketAddr::V6(address) = address
        && address.scope_id() != 0
    {
        return Err(
            "an address with a zone means something on one host alone; leave the zone out"
                .to_owned(),
        );
    }
    Ok(Target::Address(SocketAddr::new(
        canonical(address.ip()),
        address.port(),
    )))
}

/// An address in its one spelling: IPv4-mapped IPv6 (RFC 4291, section 2.5.5.2) as IPv4.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The part of a target before its port.
pub(crate) enum HostText<'a> {
    /// What stood between brackets.
    V6(&'a str),
    /// Anything else.
    Other(&'a str),
}

/// Splits `host:rest`, `[v6]:rest`, or either without `:rest`.
pub(crate) fn split_host_port(text: &str) -> Result<(HostText<'_>, Option<&str>), String> {
    if let Some(inner) = text.strip_prefix('[') {
        let (address, rest) = inner
            .split_once(']')
            .ok_or_else(|| format!("the bracket is not closed; {V6_RULE}"))?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((HostText::V6(address), Some(port))),
            None if rest.is_empty() => Ok((HostText::V6(address), None)),
            None => Err(format!("only :port may follow the bracket; {V6_RULE}")),
        };
    }
    match text.split_once(':') {
        None => Ok((HostText::Other(text), None)),
        Some((_, port)) if port.contains(':') => Err(format!("it has several colons; {V6_RULE}")),
        Some((host, port)) => Ok((HostText::Other(host), Some(port))),
    }
}

pub(crate) fn parse_v6(text: &str) -> Result<Ipv6Addr, String> {
    text.parse().map_err(|_| {
        if text.contains('%') {
            "an address with a zone means something on one host alone; leave the zone out"
                .to_owned()
        } else {
            format!("there is no IPv6 address between the brackets; {V6_RULE}")
        }
    })
}

/// A port from 1; digits alone (`u16::from_str` would take a plus sign).
pub(crate) fn parse_port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(PORT_RULE.to_owned()),
    }
}

pub(crate) fn parse_host_name(text: &str) -> Result<HostName, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.is_empty() {
        return Err(format!("the host is missing; {FORMS}"));
    }
    if name.len() > DNS_NAME_BYTES_MAX {
        return Err(format!(
            "the host has {} bytes, and a DNS name has at most {DNS_NAME_BYTES_MAX}",
            name.len()
        ));
    }
    if let Some(fault) = name.split('.').find_map(host_label_fault) {
        return Err(fault);
    }
    if name.rsplit('.').next().is_some_and(reads_as_number) {
        return Err(
            "a host that ends in a number is an address; write IPv4 in full, as 192.0.2.7"
                .to_owned(),
        );
    }
    let name = name.to_ascii_lowercase();
    if RESERVED_HOSTS.contains(&name.as_str()) {
        return Err(format!(
            "a target that begins with {name}: is no host; write the host with its domain"
        ));
    }
    Ok(HostName(name.into()))
}

fn host_label_fault(label: &str) -> Option<String> {
    if label.is_empty() {
        return Some("the host has an empty label; write it as db.example.com".to_owned());
    }
    if let Some(character) = label
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')))
    {
        return Some(if character.is_ascii() {
            format!(
                "'{}' is not allowed in a host name; use letters, digits, '-', '_' and '.'",
                character.escape_debug()
            )
        } else {
            "a host name is ASCII; write an international one in its xn-- form".to_owned()
        });
    }
    if label.len() > LABEL_BYTES_MAX {
        return Some(format!(
            "a label of the host has {} bytes, and at most {LABEL_BYTES_MAX} are allowed",
            label.len()
        ));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Some("no label of a host name begins or ends with '-'".to_owned());
    }
    None
}

/// Whether resolvers would take a last label as part of an IPv4 address: decimal, octal or hex
/// (`inet_aton`, and the "ends in a number" check of the WHATWG URL standard).
fn reads_as_number(label: &str) -> bool {
    let hex = label
        .strip_prefix("0x")
        .or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

pub(crate) fn parse_unix_path(text: &str) -> Result<UnixPath, String> {
    let fault = if !text.starts_with('/') {
        "it does not begin with '/'".to_owned()
    } else if text.len() > UNIX_PATH_BYTES_MAX {
        format!("it has {} bytes", text.len())
    } else if text.split('/').any(|part| part == "..") {
        "it has a '..'".to_owned()
    } else if text.chars().any(char::is_control) {
        "it has a control character".to_owned()
    } else {
        return Ok(UnixPath(text.into()));
    };
    Err(format!("{fault}; {UNIX_RULE}"))
}

#[cfg(test)]
mod tests;
