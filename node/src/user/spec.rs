//! How a forward is written: `[BIND:]PORT:AGENT/TARGET` or `unix:/PATH:AGENT/TARGET`; and how a
//! proxy's address is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use mesh_proto::name::AgentRef;
use mesh_proto::target::{Target, UnixPath};

use super::dial::Request;

/// The port of a proxy whose address has none.
const PROXY_PORT: u16 = 7443;

/// How much of a refused value an error shows, in characters.
const SHOWN_CHARS_MAX: usize = 120;

const FORM: &str = "write [BIND:]PORT:AGENT/TARGET, as 5432:a1/10.0.0.7:5432";
const LOCAL_FORM: &str =
    "the local side is PORT, ADDRESS:PORT, [V6]:PORT or unix:/path; port 0 takes a free one";
const UDP: &str = "UDP is not forwarded: the mesh carries byte streams (TCP, Unix sockets) alone";

/// The local side of a forward.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Local {
    /// A TCP address; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Local {
    /// Whether programs of other hosts can reach it.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        match self {
            Self::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => false,
        }
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One forward: a local side, and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardSpec {
    /// Where local programs connect.
    pub local: Local,
    /// What they reach.
    pub request: Request,
}

impl fmt::Display for ForwardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { agent, target } = &self.request;
        write!(f, "{}:{agent}/{target}", self.local)
    }
}

/// A forward or a proxy's address is not written as one; the text names the part and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}`: {why}")]
pub struct InvalidSpec {
    /// What was written, escaped and cut.
    pub value: String,
    /// Which part is wrong, and what to write.
    pub why: String,
}

impl InvalidSpec {
    fn new(value: &str, why: impl Into<String>) -> Self {
        let mut shown: String = value.chars().take(SHOWN_CHARS_MAX).collect();
        if shown.len() < value.len() {
            shown.push('…');
        }
        Self {
            value: shown.escape_debug().to_string(),
            // It repeats parts of the value, which must not drive a terminal either.
            why: why.into().replace(char::is_control, "?"),
        }
    }
}

impl FromStr for ForwardSpec {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        parse(text).map_err(|why| InvalidSpec::new(text, why))
    }
}

fn parse(text: &str) -> Result<ForwardSpec, String> {
    if text.starts_with("udp:") || text.ends_with("/udp") {
        return Err(UDP.to_owned());
    }
    let (local, rest) = match text.strip_prefix("unix:") {
        Some(rest) => {
            let (path, rest) = rest
                .split_once(':')
                .ok_or_else(|| format!("the agent is missing behind the local path; {FORM}"))?;
            let path: UnixPath =
                path.parse()
                    .map_err(|error: mesh_proto::target::InvalidTarget| {
                        format!("the local path \"{path}\": {}", error.rule)
                    })?;
            (Local::Unix(PathBuf::from(path.as_str())), rest)
        }
        None => {
            let (head, rest) = split_local(text)?;
            (Local::Tcp(parse_local(head)?), rest)
        }
    };
    let (agent, target) = rest.split_once('/').ok_or_else(|| match rest.parse::<AgentRef>() {
        Ok(agent) => format!(
            "the target is missing: write what {agent} shall reach behind a slash, as {agent}/127.0.0.1:22"
        ),
        Err(_) => format!("there is no slash between agent and target; {FORM}"),
    })?;
    if agent.is_empty() {
        return Err(format!("the agent is missing before the slash; {FORM}"));
    }
    let agent = agent
        .parse()
        .map_err(|error: mesh_proto::name::InvalidName| {
            format!("the agent \"{}\": {}", error.value, error.rule)
        })?;
    if target.is_empty() {
        return Err("the target is missing behind the slash: write host:port, [v6]:port, unix:/path or service:name".into());
    }
    let target = target
        .parse()
        .map_err(|error: mesh_proto::target::InvalidTarget| {
            format!("the target \"{}\": {}", error.value, error.rule)
        })?;
    Ok(ForwardSpec {
        local,
        request: Request { agent, target },
    })
}

/// Splits the local side from the agent: at the last colon before the first slash, which no agent
/// has.
fn split_local(text: &str) -> Result<(&str, &str), String> {
    let end = text.find('/').unwrap_or(text.len());
    let head = &text[..end];
    // The form of `ssh -L`, which knows of no agent.
    if end == text.len()
        && let Some((port, target)) = head.split_once(':')
        && target.contains(':')
        && !head.starts_with('[')
    {
        return Err(format!(
            "there is no agent before the target: write {port}:AGENT/{target}"
        ));
    }
    if let Some(inner) = head.strip_prefix('[')
        && !inner.contains(']')
    {
        return Err(format!(
            "the bracket of the local address is not closed; {LOCAL_FORM}"
        ));
    }
    match head.rfind(':') {
        // A colon within brackets is none that separates.
        Some(colon) if !head[colon..].contains(']') => Ok((&text[..colon], &text[colon + 1..])),
        Some(_) => Err(format!("the port and the agent are missing; {FORM}")),
        None if head.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("the agent is missing; {FORM}"))
        }
        None => Err(format!(
            "the local port is missing before the agent: write 5432:{text}, or 0:{text} for any free port"
        )),
    }
}

fn parse_local(text: &str) -> Result<SocketAddr, String> {
    if text.is_empty() {
        return Err(format!("the local port is missing; {LOCAL_FORM}"));
    }
    let (bind, port) = match text.strip_prefix('[') {
        Some(inner) => {
            let (address, rest) = inner.split_once(']').ok_or_else(|| {
                format!("the bracket of the local address is not closed; {LOCAL_FORM}")
            })?;
            let address: Ipv6Addr = address.parse().map_err(|_| {
                format!("the local address \"[{address}]\" is no IPv6 address; {LOCAL_FORM}")
            })?;
            let port = rest.strip_prefix(':').ok_or_else(|| {
                format!("the local port is missing behind the bracket; {LOCAL_FORM}")
            })?;
            (IpAddr::V6(address), port)
        }
        None => match text.split_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), text),
            Some((_, rest)) if rest.contains(':') => {
                return Err(format!(
                    "the local side \"{text}\" has too many colons: write an IPv6 address in brackets, and one agent; {FORM}"
                ));
            }
            Some(("localhost", port)) => (IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Some(("*" | "", _)) => {
                return Err("the local address is missing: to listen on all, write 0.0.0.0 or [::] in so many words".into());
            }
            Some((address, port)) => {
                let address: Ipv4Addr = address.parse().map_err(|_| {
                    format!("the local address \"{address}\" is none of this host's to listen on: write it as a number; {LOCAL_FORM}")
                })?;
                (IpAddr::V4(address), port)
            }
        },
    };
    Ok(SocketAddr::new(bind, parse_port(port)?))
}

/// Digits alone: `u16::from_str` would take a plus sign.
fn parse_port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits => Ok(port),
        Ok(_) | Err(_) => Err(format!(
            "the local port \"{text}\" is no number from 0 to 65535; {LOCAL_FORM}"
        )),
    }
}

/// The address of a proxy, `host[:port]`, as the rest of the client takes it: `host:port`.
///
/// # Errors
/// When it is not written so.
pub fn proxy_address(text: &str) -> Result<String, InvalidSpec> {
    let invalid = |why: String| InvalidSpec::new(text, why);
    if text.is_empty() {
        return Err(invalid(
            "the proxy's address is missing: write host:port, as proxy.example.com:7443".into(),
        ));
    }
    if text.contains("://") {
        return Err(invalid(
            "a proxy is named by host:port, not by a URL: leave the scheme out".into(),
        ));
    }
    match Target::default_port(text, PROXY_PORT) {
        Ok(target @ (Target::Address(_) | Target::Host { .. })) => Ok(target.to_string()),
        Ok(Target::Unix(_) | Target::Service(_)) => Err(invalid(
            "a proxy is reached by UDP: write host:port, as proxy.example.com:7443".into(),
        )),
        Err(error) => Err(invalid(error.rule)),
    }
}

#[cfg(test)]
mod tests;
