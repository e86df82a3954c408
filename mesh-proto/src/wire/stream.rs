//! How every stream starts: one [`Open`], answered by `Opened` or `Refused`, then raw bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::codec;
use super::frame::{Ext, Frame, FrameHeader, WireError};
use super::limits::{HOPS_LEFT_MAX, MESSAGE_BYTES_MAX, OPEN_BYTES_MAX};
use super::routes::{OpenFind, OpenRoutes};
use crate::name::AgentRef;
use crate::principal::Principal;
use crate::refusal::Reason;
use crate::target::Target;
use crate::text::quote;

const OPEN_CONTROL: u16 = 0x0001;
const OPEN_DIAL: u16 = 0x0002;
const OPEN_ROUTES: u16 = 0x0003;
const OPEN_ADMIN: u16 = 0x0004;
const OPEN_FIND: u16 = 0x0005;
const OPEN_CLUSTER_ROUTES: u16 = 0x0006;
const OPENED: u16 = 0x0101;
const REFUSED: u16 = 0x0102;

/// The first frame of a stream: what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Open {
    /// The agent's first stream to a proxy.
    Control(OpenControl),
    /// A connection to a target.
    Dial(Dial),
    /// Between proxies: which agents the other one holds, from now on.
    Routes(OpenRoutes),
    /// Between proxies: whether the other one holds an agent, now.
    Find(OpenFind),
    /// From a user to a proxy: HTTP/1.1 follows the answer, the admin API.
    Admin(OpenAdmin),
    /// Between proxies: which other clusters are connected to the other one, from now on. They have a
    /// stream of their own, since a reader of routes takes no name with a dot.
    ClusterRoutes(OpenRoutes),
}

/// Opens the control stream of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenControl {
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// Asks for the admin API of a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAdmin {
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// Asks for a connection to a target. The bytes after the answer are that connection's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dial {
    /// What the agent is asked to reach.
    pub target: Target,
    /// Which agent.
    pub agent: AgentRef,
    /// On whose behalf: the original principal, not whoever passes the dial on.
    pub principal: Principal,
    /// Hops between proxies that may still follow: 0 or 1, and more is malformed.
    #[serde(
        serialize_with = "serialize_hops",
        deserialize_with = "deserialize_hops"
    )]
    pub hops_left: u8,
    /// Time that remains until the answer must be there, in milliseconds.
    pub deadline_ms: u64,
    /// The trace to which this belongs.
    pub trace: Option<TraceContext>,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

impl Frame for Open {
    const BODY_BYTES_MAX: usize = OPEN_BYTES_MAX;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Control(body) => codec::encode_frame::<Self>(OPEN_CONTROL, body, out),
            Self::Dial(body) => codec::encode_frame::<Self>(OPEN_DIAL, body, out),
            Self::Routes(body) => codec::encode_frame::<Self>(OPEN_ROUTES, body, out),
            Self::Find(body) => codec::encode_frame::<Self>(OPEN_FIND, body, out),
            Self::Admin(body) => codec::encode_frame::<Self>(OPEN_ADMIN, body, out),
            Self::ClusterRoutes(body) => {
                codec::encode_frame::<Self>(OPEN_CLUSTER_ROUTES, body, out)
            }
        }
    }

    fn decode(header: FrameHeader, body: &[u8]) -> Result<Option<Self>, WireError> {
        match header.kind {
            OPEN_CONTROL => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Control(body)))
            }
            OPEN_DIAL => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Dial(body)))
            }
            OPEN_ROUTES => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Routes(body)))
            }
            OPEN_FIND => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Find(body)))
            }
            OPEN_ADMIN => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Admin(body)))
            }
            OPEN_CLUSTER_ROUTES => codec::decode_body::<Self, _>(header, body)
                .map(|body| Some(Self::ClusterRoutes(body))),
            _ => codec::unknown(header, body),
        }
    }
}

/// The answer to an [`Open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done; raw bytes follow.
    Opened(Opened),
    /// Not done, and why.
    Refused(Refused),
}

/// The stream is connected to what was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// The stream is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why. A code that is not known here decodes as [`Reason::Internal`].
    pub reason: Reason,
    /// The same for people: what failed, where, and what to do. On the wire it has at most
    /// [`MESSAGE_BYTES_MAX`] and no control characters: a longer one is cut, and a control
    /// character travels as a space.
    #[serde(
        serialize_with = "serialize_message",
        deserialize_with = "deserialize_message"
    )]
    pub message: String,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// The tag of a [`Refused`] by a proxy that is about to leave itself. Its bytes are empty.
const PROXY_LEAVES: u16 = 1;

/// The tag of a [`Refused`] that another cluster has said, for whom the dial was. Its bytes are empty.
const OTHER_CLUSTER: u16 = 2;

impl Refused {
    /// A refusal whose message is as it will travel.
    #[must_use]
    pub fn new(reason: Reason, message: &str) -> Self {
        Self {
            reason,
            message: clean_message(message),
            ext: Ext::new(),
        }
    }

    /// The same, by a proxy that is about to leave: whoever asked should ask another proxy.
    #[must_use]
    pub fn by_leaving_proxy(mut self) -> Self {
        self.ext.push((PROXY_LEAVES, Vec::new()));
        self
    }

    /// The same, said by the cluster for whom the dial was: that this one has a way there is not in
    /// doubt, whatever the reason.
    #[must_use]
    pub fn by_other_cluster(mut self) -> Self {
        self.ext.push((OTHER_CLUSTER, Vec::new()));
        self
    }

    /// Whether the cluster for whom the dial was has said this.
    #[must_use]
    pub fn is_by_other_cluster(&self) -> bool {
        self.ext.iter().any(|(tag, _)| *tag == OTHER_CLUSTER)
    }

    /// Whether the proxy that says this is about to leave. [`Reason::Draining`] alone may as well be
    /// about an agent, which is no nearer through another proxy.
    #[must_use]
    pub fn is_by_leaving_proxy(&self) -> bool {
        self.ext.iter().any(|(tag, _)| *tag == PROXY_LEAVES)
    }
}

impl Frame for Answer {
    const BODY_BYTES_MAX: usize = OPEN_BYTES_MAX;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Opened(body) => codec::encode_frame::<Self>(OPENED, body, out),
            Self::Refused(body) => codec::encode_frame::<Self>(REFUSED, body, out),
        }
    }

    fn decode(header: FrameHeader, body: &[u8]) -> Result<Option<Self>, WireError> {
        match header.kind {
            OPENED => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Opened(body)))
            }
            REFUSED => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Refused(body)))
            }
            _ => codec::unknown(header, body),
        }
    }
}

/// The trace to which a dial belongs (W3C Trace Context, level 1). `Display` writes the
/// `traceparent` header of version 00; `FromStr` reads it, and later versions as that standard asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TraceContext {
    /// The whole trace; all zero is invalid.
    pub trace_id: [u8; 16],
    /// The caller's span (`parent-id` in the standard); all zero is invalid.
    pub span_id: [u8; 8],
    /// The lowest bit says that the caller recorded the trace.
    pub flags: u8,
}

/// A text that is no `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("traceparent \"{value}\" is not valid: {rule}")]
pub struct InvalidTraceContext {
    /// What was written, escaped and cut to 80 characters.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl TraceContext {
    /// Whether neither id is all zero, as the standard asks. An invalid one is to be ignored.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.trace_id != [0; 16] && self.span_id != [0; 8]
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trace_id = u128::from_be_bytes(self.trace_id);
        let span_id = u64::from_be_bytes(self.span_id);
        write!(
            formatter,
            "00-{trace_id:032x}-{span_id:016x}-{:02x}",
            self.flags
        )
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceContext;

    fn from_str(text: &str) -> Result<Self, InvalidTraceContext> {
        parse_traceparent(text).map_err(|rule| InvalidTraceContext {
            value: quote(text),
            rule,
        })
    }
}

const TRACEPARENT_RULE: &str =
    "write 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, in lower case";

fn parse_traceparent(text: &str) -> Result<TraceContext, &'static str> {
    let mut fields = text.split('-');
    let mut field = |digits: usize| -> Result<u128, &'static str> {
        let text = fields.next().ok_or(TRACEPARENT_RULE)?;
        let hex = text.len() == digits
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !hex {
            return Err(TRACEPARENT_RULE);
        }
        u128::from_str_radix(text, 16).map_err(|_| TRACEPARENT_RULE)
    };
    let version = field(2)?;
    let trace_id = field(32)?;
    let span_id = field(16)?;
    let flags = field(2)?;
    if version == 0xff {
        return Err("version ff is forbidden");
    }
    // A later version may append fields, version 00 has none to follow.
    if version == 0 && fields.next().is_some() {
        return Err(TRACEPARENT_RULE);
    }
    let narrow = |value: u128| u64::try_from(value).map_err(|_| TRACEPARENT_RULE);
    let context = TraceContext {
        trace_id: trace_id.to_be_bytes(),
        span_id: narrow(span_id)?.to_be_bytes(),
        flags: u8::try_from(flags).map_err(|_| TRACEPARENT_RULE)?,
    };
    if context.is_valid() {
        Ok(context)
    } else {
        Err("an id of zeros alone is invalid")
    }
}

fn check_hops(hops_left: u8) -> Result<u8, String> {
    if hops_left <= HOPS_LEFT_MAX {
        Ok(hops_left)
    } else {
        Err(format!(
            "it has {hops_left} hops left, and at most {HOPS_LEFT_MAX} is allowed"
        ))
    }
}

// The signature is what `serialize_with` asks for.
#[expect(clippy::trivially_copy_pass_by_ref)]
fn serialize_hops<S: Serializer>(hops_left: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(check_hops(*hops_left).map_err(ser::Error::custom)?)
}

fn deserialize_hops<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    check_hops(u8::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn serialize_message<S: Serializer>(message: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&clean_message(message))
}

fn deserialize_message<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let message = <&str>::deserialize(deserializer)?;
    if message.len() > MESSAGE_BYTES_MAX {
        let why = format!(
            "the message has {} bytes, and at most {MESSAGE_BYTES_MAX} are allowed",
            message.len()
        );
        return Err(de::Error::custom(why));
    }
    Ok(clean_message(message))
}

/// The message ends up in terminals and logs of people who do not trust its sender.
fn clean_message(message: &str) -> String {
    let mut clean = String::new();
    for character in message.chars() {
        let character = if character.is_control() {
            ' '
        } else {
            character
        };
        if clean.len() + character.len_utf8() > MESSAGE_BYTES_MAX {
            break;
        }
        clean.push(character);
    }
    clean
}

#[cfg(test)]
mod tests;
