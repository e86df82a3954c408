//! Allow lists: which addresses, names and sockets a node may be asked to reach.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::target::{
    HostName, HostText, Target, UnixPath, canonical, parse_host_name, parse_unix_path, parse_v6,
    split_host_port,
};
use crate::text::{quote, serde_as_text};

/// One rule of an [`AllowList`].
///
/// Text forms: `192.0.2.7:80`, `10.0.0.0/8:5432`, `[2001:db8::7]:80`, `[fd00::]/8:*`,
/// `db.example.com:5432`, `*.svc.local:80-443` (one or more labels in the star's place),
/// `unix:/run/db.sock`. Ports are `*`, one, or a range. IPv4-mapped IPv6 addresses and networks are
/// read as IPv4; `[::]/0` therefore covers IPv6 alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AllowRule(Rule);

/// A rule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("allow rule \"{value}\" is not valid: {rule}")]
pub struct InvalidAllowRule {
    /// What was written, escaped and cut to 80 characters.
    pub value: String,
    /// The rule that it breaks, and what to do.
    pub rule: String,
}

/// What may be reached: whatever one of the rules permits. An empty list permits nothing.
///
/// A name is checked twice: before it is resolved ([`permits_name`](Self::permits_name), or an
/// address rule may still admit what it resolves to), and each resolved address
/// ([`permits_name_address`](Self::permits_name_address)), of which exactly the checked one is then
/// dialled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllowList(pub Vec<AllowRule>);

impl AllowList {
    /// Whether an address rule permits this address. IPv4-mapped IPv6 counts as IPv4.
    #[must_use]
    pub fn permits_address(&self, address: SocketAddr) -> bool {
        let ip = canonical(address.ip());
        self.rules().any(|rule| match rule {
            Rule::Net { net, ports } => net.contains(&ip) && ports.contain(address.port()),
            Rule::Name { .. } | Rule::Unix(_) => false,
        })
    }

    /// Whether a name rule permits this name and port.
    #[must_use]
    pub fn permits_name(&self, name: &HostName, port: u16) -> bool {
        self.rules().any(|rule| match rule {
            Rule::Name { pattern, ports } => pattern.matches(name) && ports.contain(port),
            Rule::Net { .. } | Rule::Unix(_) => false,
        })
    }

    /// Whether this address, to which the name has resolved, may be dialled.
    ///
    /// A name rule admits whatever its name resolves to, loopback and private addresses included,
    /// but no link-local, multicast, broadcast or unspecified address and no cloud's metadata
    /// service: whoever controls the name's DNS must not gain the host's credentials. An address
    /// rule that covers the address admits it in any case.
    #[must_use]
    pub fn permits_name_address(&self, name: &HostName, address: SocketAddr) -> bool {
        self.permits_address(address)
            || (self.permits_name(name, address.port())
                && !needs_address_rule(canonical(address.ip())))
    }

    /// Whether a rule names exactly this Unix socket.
    #[must_use]
    pub fn permits_unix(&self, path: &UnixPath) -> bool {
        self.rules().any(|rule| match rule {
            Rule::Unix(permitted) => permitted == path,
            Rule::Net { .. } | Rule::Name { .. } => false,
        })
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter().map(|AllowRule(rule)| rule)
    }
}

impl AllowRule {
    /// Whether the target, as it is written, is one that this rule names: an address by a rule for
    /// addresses, a name by one for names, a Unix socket by its path. No service is.
    #[must_use]
    pub fn covers(&self, target: &Target) -> bool {
        match (&self.0, target) {
            (Rule::Net { net, ports }, Target::Address(address)) => {
                net.contains(&canonical(address.ip())) && ports.contain(address.port())
            }
            (Rule::Name { pattern, ports }, Target::Host { host, port }) => {
                pattern.matches(host) && ports.contain(*port)
            }
            (Rule::Unix(permitted), Target::Unix(path)) => permitted == path,
            (Rule::Net { .. } | Rule::Name { .. } | Rule::Unix(_), _) => false,
        }
    }

    /// The rule of this address and port alone.
    pub(crate) fn of_address(address: SocketAddr) -> Self {
        Self(Rule::Net {
            net: canonical(address.ip()).into(),
            ports: Ports::one(address.port()),
        })
    }

    /// The rule of this name and port alone.
    pub(crate) fn of_host(name: HostName, port: u16) -> Self {
        let pattern = NamePattern { name, below: false };
        Self(Rule::Name {
            pattern,
            ports: Ports::one(port),
        })
    }

    /// The rule of this Unix socket.
    pub(crate) fn of_unix(path: UnixPath) -> Self {
        Self(Rule::Unix(path))
    }
}

impl FromIterator<AllowRule> for AllowList {
    fn from_iter<I: IntoIterator<Item = AllowRule>>(rules: I) -> Self {
        Self(rules.into_iter().collect())
    }
}

impl FromStr for AllowRule {
    type Err = InvalidAllowRule;

    fn from_str(text: &str) -> Result<Self, InvalidAllowRule> {
        parse(text).map(Self).map_err(|rule| InvalidAllowRule {
            value: quote(text),
            rule,
        })
    }
}

impl fmt::Display for AllowRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rule::Net { net, ports } => {
                match net.addr() {
                    IpAddr::V4(address) => write!(formatter, "{address}")?,
                    IpAddr::V6(address) => write!(formatter, "[{address}]")?,
                }
                if net.prefix_len() != net.max_prefix_len() {
                    write!(formatter, "/{}", net.prefix_len())?;
                }
                write!(formatter, ":{ports}")
            }
            Rule::Name { pattern, ports } => {
                let star = if pattern.below { "*." } else { "" };
                write!(formatter, "{star}{}:{ports}", pattern.name)
            }
            Rule::Unix(path) => write!(formatter, "unix:{path}"),
        }
    }
}

impl TryFrom<String> for AllowRule {
    type Error = InvalidAllowRule;

    fn try_from(text: String) -> Result<Self, InvalidAllowRule> {
        text.parse()
    }
}

serde_as_text!(AllowRule, "an allow rule");

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Rule {
    /// Always a network in its one spelling: no host bits, IPv4 never as mapped IPv6.
    Net {
        net: IpNet,
        ports: Ports,
    },
    Name {
        pattern: NamePattern,
        ports: Ports,
    },
    Unix(UnixPath),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct NamePattern {
    name: HostName,
    /// Whether the pattern began with `*.`: names below `name`, but not `name` itself.
    below: bool,
}

impl NamePattern {
    fn matches(&self, name: &HostName) -> bool {
        if self.below {
            // A host name has no empty label, so that whatever stands before the dot is one or more.
            name.as_str()
                .strip_suffix(self.name.as_str())
                .is_some_and(|rest| rest.ends_with('.'))
        } else {
            self.name == *name
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    const ALL: Self = Self {
        first: 1,
        last: u16::MAX,
    };

    const fn one(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    fn contain(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            formatter.write_str("*")
        } else if self.first == self.last {
            write!(formatter, "{}", self.first)
        } else {
            write!(formatter, "{}-{}", self.first, self.last)
        }
    }
}

/// Metadata services that do not stand on a link-local address: AWS and Google over IPv6, Alibaba.
const METADATA_ADDRESSES: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// Whether a name that resolves to this (canonical) address does not suffice to reach it.
fn needs_address_rule(ip: IpAddr) -> bool {
    if METADATA_ADDRESSES.contains(&ip) {
        return true;
    }
    match ip {
        IpAddr::V4(ip) => {
            ip.is_link_local() || ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0
        }
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.is_multicast()
                || ip.is_unspecified()
                || translated(ip).is_some_and(|ip| needs_address_rule(IpAddr::V4(ip)))
        }
    }
}

/// The IPv4 address to which a translator or a tunnel would send on: NAT64 (RFC 6052, section 2.1)
/// and 6to4 (RFC 3056, section 2).
fn translated(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [high, low] = match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [high, low],
        [0x2002, high, low, ..] => [high, low],
        _ => return None,
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

const FORMS: &str = "write IP:ports, network/length:ports, [v6]:ports, [v6]/length:ports, name:ports, *.name:ports or unix:/path";
const PORTS_RULE: &str = "ports are *, one port, or a range such as 80-443, each from 1 to 65535";

fn parse(text: &str) -> Result<Rule, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return parse_unix_path(path).map(Rule::Unix);
    }
    // `[v6]/length:ports` has the length where a target has its port, so it is taken apart first.
    if let Some((address, rest)) = text
        .strip_prefix('[')
        .and_then(|inner| inner.split_once("]/"))
    {
        let (length, ports) = rest.split_once(':').ok_or_else(no_ports)?;
        return net_rule(IpAddr::V6(parse_v6(address)?), Some(length), ports);
    }
    let (host, ports) = split_host_port(text)?;
    let ports = ports.ok_or_else(no_ports)?;
    let host = match host {
        HostText::V6(address) => return net_rule(IpAddr::V6(parse_v6(address)?), None, ports),
        HostText::Other(host) => host,
    };
    if let Some((address, length)) = host.split_once('/') {
        let address: Ipv4Addr = address.parse().map_err(|_| {
            format!("a network is an IPv4 address in full, or IPv6 in brackets; {FORMS}")
        })?;
        return net_rule(IpAddr::V4(address), Some(length), ports);
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return net_rule(IpAddr::V4(address), None, ports);
    }
    let ports = parse_ports(ports)?;
    let pattern = match host.strip_prefix("*.") {
        Some(name) => NamePattern {
            name: parse_host_name(name)?,
            below: true,
        },
        None if host.contains('*') => {
            return Err(format!(
                "a star stands for whole labels at the front, as in *.svc.local; for every address write 0.0.0.0/0:ports and [::]/0:ports; {FORMS}"
            ));
        }
        None => NamePattern {
            name: parse_host_name(host)?,
            below: false,
        },
    };
    Ok(Rule::Name { pattern, ports })
}

fn no_ports() -> String {
    format!("the ports are missing; {FORMS}; {PORTS_RULE}")
}

fn net_rule(address: IpAddr, length: Option<&str>, ports: &str) -> Result<Rule, String> {
    let bits_max: u8 = if address.is_ipv4() { 32 } else { 128 };
    let bits = match length {
        None => bits_max,
        Some(length) => parse_length(length, bits_max)?,
    };
    let net = IpNet::new(address, bits).map_err(|error| error.to_string())?;
    if net.addr() != net.network() {
        let network = AllowRule(Rule::Net {
            net: net.trunc(),
            ports: parse_ports(ports)?,
        });
        return Err(format!(
            "the address has bits beyond the length {bits}; write {network} for the whole network, or leave the length out"
        ));
    }
    Ok(Rule::Net {
        net: canonical_net(net),
        ports: parse_ports(ports)?,
    })
}

fn parse_length(text: &str, bits_max: u8) -> Result<u8, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(bits) if digits && bits <= bits_max => Ok(bits),
        _ => Err(format!(
            "the length of this network is a number from 0 to {bits_max}"
        )),
    }
}

/// A network of IPv4-mapped IPv6 addresses as the IPv4 network that it is.
fn canonical_net(net: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    match (
        canonical(net.addr()),
        net.prefix_len().checked_sub(MAPPED_BITS),
    ) {
        (address @ IpAddr::V4(_), Some(bits)) if net.addr().is_ipv6() => {
            IpNet::new(address, bits).unwrap_or(net)
        }
        _ => net,
    }
}

fn parse_ports(text: &str) -> Result<Ports, String> {
    if text == "*" {
        return Ok(Ports::ALL);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text| crate::target::parse_port(text).map_err(|_| PORTS_RULE.to_owned());
    let ports = Ports {
        first: port(first)?,
        last: port(last)?,
    };
    if ports.first > ports.last {
        return Err(format!("the range runs backwards; {PORTS_RULE}"));
    }
    Ok(ports)
}

#[cfg(test)]
mod tests;
