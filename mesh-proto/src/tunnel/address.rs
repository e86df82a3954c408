//! Where a tunnel dials.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::target::{
    HostName, HostText, canonical, parse_host_name, parse_port, parse_v6, split_host_port,
};
use crate::text::{quote, serde_as_text};

/// The port where none is written: the one that a proxy listens on unless it is told otherwise.
pub const DEFAULT_PORT: u16 = 7443;

const FORMS: &str = "write host:port, v4:port or [v6]:port, as in lb.example.com:7443";

/// An address to dial, in its one spelling: a lower-case host name without a trailing dot, or an IP
/// address (IPv4-mapped IPv6 as IPv4, IPv6 in brackets), and a port from 1.
///
/// `FromStr` adds the [`DEFAULT_PORT`] where none is written. `Display` always writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialAddress(Repr);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Repr {
    Ip(SocketAddr),
    Host(HostName, u16),
}

/// An address that cannot be dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address \"{value}\" is not valid: {rule}")]
pub struct InvalidAddress {
    /// What was written, escaped and cut to 80 characters.
    pub value: String,
    /// The rule that it breaks, and what to do.
    pub rule: String,
}

impl DialAddress {
    /// The IP address and port, unless it is a name.
    #[must_use]
    pub fn ip(&self) -> Option<SocketAddr> {
        match &self.0 {
            Repr::Ip(address) => Some(*address),
            Repr::Host(..) => None,
        }
    }

    /// The name to look up, unless it is an IP address.
    #[must_use]
    pub fn host(&self) -> Option<&HostName> {
        match &self.0 {
            Repr::Ip(_) => None,
            Repr::Host(host, _) => Some(host),
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match &self.0 {
            Repr::Ip(address) => address.port(),
            Repr::Host(_, port) => *port,
        }
    }
}

impl FromStr for DialAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        parse(text).map(Self).map_err(|rule| InvalidAddress {
            value: quote(text),
            rule,
        })
    }
}

impl fmt::Display for DialAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Ip(address) => address.fmt(formatter),
            Repr::Host(host, port) => write!(formatter, "{host}:{port}"),
        }
    }
}

serde_as_text!(DialAddress, "an address to dial");

/// The addresses of a list as people write it: `10.0.0.4:2023,10.0.0.5:2033`, with or without spaces
/// around the commas. An empty place stays, so that the check can say where it is.
#[must_use]
pub fn split_addresses(text: &str) -> Vec<String> {
    text.split(',').map(|part| part.trim().to_owned()).collect()
}

fn parse(text: &str) -> Result<Repr, String> {
    if text.is_empty() {
        return Err(format!("it is empty; {FORMS}"));
    }
    if text.starts_with("unix:") || text.starts_with("service:") {
        return Err(format!("it is a target and no address of a proxy; {FORMS}"));
    }
    let (host, port) = split_host_port(text)?;
    let port = port.map_or(Ok(DEFAULT_PORT), parse_port);
    // What is wrong with both is said at once.
    let host = match host {
        HostText::V6(inner) => parse_v6(inner).map(IpAddr::V6).map(Host::Ip),
        HostText::Other("" | ".") => Err(format!("the host is missing; {FORMS}")),
        HostText::Other(host) => match host.parse::<Ipv4Addr>() {
            Ok(address) => Ok(Host::Ip(IpAddr::V4(address))),
            Err(_) => parse_host_name(host).map(Host::Name),
        },
    };
    let host = host.and_then(|host| match host {
        Host::Ip(address) => dialled(canonical(address)).map(Host::Ip),
        name @ Host::Name(_) => Ok(name),
    });
    match (host, port) {
        (Ok(Host::Ip(address)), Ok(port)) => Ok(Repr::Ip(SocketAddr::from((address, port)))),
        (Ok(Host::Name(name)), Ok(port)) => Ok(Repr::Host(name, port)),
        (Err(host), Err(port)) => Err(format!("{host}; {port}")),
        (Err(rule), Ok(_)) | (Ok(_), Err(rule)) => Err(rule),
    }
}

enum Host {
    Ip(IpAddr),
    Name(HostName),
}

/// An address that one host can have.
fn dialled(address: IpAddr) -> Result<IpAddr, String> {
    let fault = if address.is_unspecified() {
        "it stands for all addresses of a host, and is listened on, not dialled"
    } else if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        "it is the address of many hosts"
    } else {
        return Ok(address);
    };
    Err(format!("{fault}; write the address of one"))
}
