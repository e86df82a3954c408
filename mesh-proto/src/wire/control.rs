//! The control stream: a hello each way, then services, draining and leaving.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::codec;
use super::frame::{Ext, Frame, FrameHeader, WireError};
use super::limits::{CONTROL_BYTES_MAX, VERSION_BYTES_MAX};
use super::members::Members;
use crate::name::{Cluster, Generation, Group, NodeName, ServiceName};
use crate::text::quote;

const AGENT_HELLO: u16 = 0x0201;
const AGENT_SERVICES: u16 = 0x0202;
const AGENT_LEAVING: u16 = 0x0203;
const PROXY_HELLO: u16 = 0x0301;
const PROXY_DRAINING: u16 = 0x0302;
const PROXY_RELEASED: u16 = 0x0303;
const PROXY_MEMBERS: u16 = 0x0304;

/// From the agent to the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentFrame {
    /// First: who it is.
    Hello(AgentHello),
    /// What it offers has changed.
    Services(Services),
    /// It wants to leave.
    Leaving(Leaving),
}

/// The agent's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHello {
    /// Random, new with each process: tells two processes with one name apart.
    pub instance: [u8; 16],
    /// The agent's version: at most [`VERSION_BYTES_MAX`] printable ASCII characters.
    #[serde(
        serialize_with = "serialize_version",
        deserialize_with = "deserialize_version"
    )]
    pub version: String,
    /// What it offers: at most [`SERVICES_MAX`](super::SERVICES_MAX).
    #[serde(with = "services")]
    pub services: Vec<Service>,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// One service that an agent offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name on that agent.
    pub name: ServiceName,
    /// What it speaks.
    pub protocol: Protocol,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// What a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Bytes.
    Tcp,
    /// HTTP in the clear.
    Http,
    /// HTTP over TLS.
    Https,
    /// A protocol of a later version, by its code.
    Other(u16),
}

/// Replaces the list of services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// What the agent offers from now on: at most [`SERVICES_MAX`](super::SERVICES_MAX).
    #[serde(with = "services")]
    pub services: Vec<Service>,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// The agent wants to leave: the proxy stops dialling it and answers [`Released`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Time until the agent closes, whatever still runs, in milliseconds.
    pub deadline_ms: u64,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

impl Frame for AgentFrame {
    const BODY_BYTES_MAX: usize = CONTROL_BYTES_MAX;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Hello(body) => codec::encode_frame::<Self>(AGENT_HELLO, body, out),
            Self::Services(body) => codec::encode_frame::<Self>(AGENT_SERVICES, body, out),
            Self::Leaving(body) => codec::encode_frame::<Self>(AGENT_LEAVING, body, out),
        }
    }

    fn decode(header: FrameHeader, body: &[u8]) -> Result<Option<Self>, WireError> {
        match header.kind {
            AGENT_HELLO => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Hello(body)))
            }
            AGENT_SERVICES => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Services(body)))
            }
            AGENT_LEAVING => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Leaving(body)))
            }
            _ => codec::unknown(header, body),
        }
    }
}

/// From the proxy to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyFrame {
    /// First: who it is, and what it knows. The connection counts as made when it arrives.
    Hello(ProxyHello),
    /// The proxy is about to leave.
    Draining(Draining),
    /// The proxy dials this agent no more, as it asked.
    Released(Released),
    /// The proxies of the cluster, or what has changed of them.
    Members(Members),
}

/// The proxy's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyHello {
    /// Its name.
    pub name: NodeName,
    /// Its cluster.
    pub cluster: Cluster,
    /// How often it has started; the higher wins over a leftover of the same name.
    pub epoch: u64,
    /// Its group.
    pub group: Group,
    /// The group's rollout number.
    pub generation: Generation,
    /// How many proxies an agent without a wish of its own connects to; 0 is all that are desired.
    pub agent_connection_count: Option<u32>,
    /// The proxy's version: at most [`VERSION_BYTES_MAX`] printable ASCII characters.
    #[serde(
        serialize_with = "serialize_version",
        deserialize_with = "deserialize_version"
    )]
    pub version: String,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// The proxy is about to leave: a replacement is wanted now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// Time until it closes what still runs, in milliseconds.
    pub deadline_ms: u64,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// The answer to [`Leaving`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

impl Frame for ProxyFrame {
    const BODY_BYTES_MAX: usize = CONTROL_BYTES_MAX;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Hello(body) => codec::encode_frame::<Self>(PROXY_HELLO, body, out),
            Self::Draining(body) => codec::encode_frame::<Self>(PROXY_DRAINING, body, out),
            Self::Released(body) => codec::encode_frame::<Self>(PROXY_RELEASED, body, out),
            Self::Members(body) => codec::encode_frame::<Self>(PROXY_MEMBERS, body, out),
        }
    }

    fn decode(header: FrameHeader, body: &[u8]) -> Result<Option<Self>, WireError> {
        match header.kind {
            PROXY_HELLO => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Hello(body)))
            }
            PROXY_DRAINING => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Draining(body)))
            }
            PROXY_RELEASED => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Released(body)))
            }
            PROXY_MEMBERS => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Members(body)))
            }
            _ => codec::unknown(header, body),
        }
    }
}

impl Protocol {
    /// The code on the wire. A released code never changes.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Tcp => 1,
            Self::Http => 2,
            Self::Https => 3,
            Self::Other(code) => code,
        }
    }

    /// The protocol of a code, which may be one of a later version.
    #[must_use]
    pub const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::Tcp,
            2 => Self::Http,
            3 => Self::Https,
            _ => Self::Other(code),
        }
    }
}

/// A text that is no [`Protocol`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{value}\" is no protocol; write tcp, http or https")]
pub struct UnknownProtocol {
    /// What was written, escaped and cut to 80 characters.
    pub value: String,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => formatter.pad("tcp"),
            Self::Http => formatter.pad("http"),
            Self::Https => formatter.pad("https"),
            Self::Other(code) => write!(formatter, "protocol {code}"),
        }
    }
}

/// Reads the names that a config may use; a protocol of a later version has none.
impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "http" => Ok(Self::Http),
            "https" => Ok(Self::Https),
            _ => Err(UnknownProtocol { value: quote(text) }),
        }
    }
}

/// Its name where people read (JSON, TOML), its code on the wire.
impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u16(self.code())
        }
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            crate::text::deserialize(deserializer, "tcp, http or https")
        } else {
            u16::deserialize(deserializer).map(Self::from_code)
        }
    }
}

fn check_version(version: &str) -> Result<(), String> {
    if version.len() <= VERSION_BYTES_MAX && version.bytes().all(|byte| matches!(byte, b' '..=b'~'))
    {
        return Ok(());
    }
    Err(format!(
        "the version \"{}\" is not at most {VERSION_BYTES_MAX} printable ASCII characters",
        quote(version)
    ))
}

fn serialize_version<S: Serializer>(version: &str, serializer: S) -> Result<S::Ok, S::Error> {
    check_version(version).map_err(ser::Error::custom)?;
    serializer.serialize_str(version)
}

fn deserialize_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let version = <&str>::deserialize(deserializer)?;
    check_version(version).map_err(de::Error::custom)?;
    Ok(version.to_owned())
}

/// The list of services, for `#[serde(with)]`.
mod services {
    use super::{Deserializer, Serializer, Service, codec};
    use crate::wire::limits::SERVICES_MAX;

    pub(super) fn serialize<S: Serializer>(
        services: &[Service],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        codec::serialize_list(services, "services", SERVICES_MAX, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Service>, D::Error> {
        codec::deserialize_list("services", SERVICES_MAX, deserializer)
    }
}

#[cfg(test)]
mod tests;
