//! Validated names: of clusters, nodes, groups, services and tokens.
//!
//! A plain name is one DNS label and a cluster's name contains a dot, so that `<agent>`,
//! `<agent>.<cluster>` and `<cluster>` never collide. All of them are lower case: what is compared
//! with a certificate must have one spelling.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::text::{quote, serde_as_text};

/// The longest DNS label, in bytes (RFC 1035, section 2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;
/// The longest DNS name in text form, in bytes (RFC 1035, section 2.3.4, less the root's dot).
pub const DNS_NAME_BYTES_MAX: usize = 253;
/// The longest name of a cluster, in bytes: `proxy.<cluster>` must be a DNS name too.
pub const CLUSTER_BYTES_MAX: usize = DNS_NAME_BYTES_MAX - PROXY_LABEL.len();

/// What stands before the cluster's name in the DNS name that every proxy's certificate bears.
const PROXY_LABEL: &str = "proxy.";

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} \"{value}\" is not valid: {rule}")]
pub struct InvalidName {
    /// What was to be named: `cluster`, `name`, `group`, `service name`, `token name`, `agent` or
    /// `generation`.
    pub what: &'static str,
    /// What was written, escaped and cut to 80 characters.
    pub value: String,
    /// The rule that it breaks, and what to do.
    pub rule: String,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                match $check(text) {
                    Ok(()) => Ok(Self(text.into())),
                    Err(rule) => Err(InvalidName { what: $what, value: quote(text), rule }),
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl TryFrom<&str> for $type {
            type Error = InvalidName;

            fn try_from(text: &str) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.as_str().to_owned()
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
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

        serde_as_text!($type, $what);
    };
}

name! {
    /// A trust domain: one certificate authority, one name. At least two lower-case DNS labels, at
    /// most [`CLUSTER_BYTES_MAX`] bytes.
    Cluster, "cluster", check_cluster
}
name! {
    /// The name of a proxy, agent or user: one lower-case DNS label.
    NodeName, "name", check_label
}
name! {
    /// An independent deployment of proxies: one lower-case DNS label.
    Group, "group", check_label
}
name! {
    /// What an agent calls a service that it offers: one lower-case DNS label.
    ServiceName, "service name", check_label
}
name! {
    /// What an ingress calls the holder of a token: one lower-case DNS label.
    TokenName, "token name", check_label
}
name! {
    /// Who is connected under a name as an agent is: an agent of the own cluster, by its
    /// [`NodeName`], or the proxies of another cluster, by its [`Cluster`]. The dot tells the two
    /// apart, so that neither can take the other's place.
    AgentName, "agent", check_agent_name
}
name! {
    /// An agent as a user writes it: `<agent>` (in this cluster), `<agent>.<cluster>`, or `<cluster>`
    /// (that cluster's proxies themselves).
    ///
    /// Text alone does not tell the last two apart: `a.example.com` is the agent `a` where
    /// `example.com` is known, and a cluster where `a.example.com` is. So the methods ask about a
    /// given cluster.
    AgentRef, "agent", check_agent_ref
}

impl Cluster {
    /// The DNS name that every proxy's certificate of this cluster bears: `proxy.<cluster>`.
    #[must_use]
    pub fn proxy_dns_name(&self) -> String {
        format!("{PROXY_LABEL}{self}")
    }
}

impl AgentRef {
    /// `<agent>.<cluster>`.
    #[must_use]
    pub fn qualified(agent: &NodeName, cluster: &Cluster) -> Self {
        Self(format!("{agent}.{cluster}").into())
    }

    /// The agent's name if it is one of the cluster `own`: written plainly, or as `<name>.<own>`.
    #[must_use]
    pub fn local_name(&self, own: &Cluster) -> Option<NodeName> {
        if self.as_str().contains('.') {
            self.name_in(own)
        } else {
            Some(NodeName(Arc::clone(&self.0)))
        }
    }

    /// The other cluster behind which this is, of those that `known` knows: the cluster itself, or
    /// an agent of it. Where both could be meant, it is the cluster itself.
    #[must_use]
    pub fn cluster_in(&self, known: impl Fn(&Cluster) -> bool) -> Option<Cluster> {
        let known = |text: &str| text.parse::<Cluster>().ok().filter(&known);
        known(self.as_str()).or_else(|| {
            let (_, rest) = self.as_str().split_once('.')?;
            known(rest)
        })
    }

    /// The agent's name if this is `<name>.<cluster>` of that very cluster; a plain name is none.
    #[must_use]
    pub fn name_in(&self, cluster: &Cluster) -> Option<NodeName> {
        let name = self
            .as_str()
            .strip_suffix(cluster.as_str())?
            .strip_suffix('.')?;
        name.parse().ok()
    }

    /// Whether this is that cluster itself, that is, its proxies.
    #[must_use]
    pub fn is_cluster(&self, cluster: &Cluster) -> bool {
        self.as_str() == cluster.as_str()
    }
}

impl AgentName {
    /// The agent of the own cluster, if it is one.
    #[must_use]
    pub fn node(&self) -> Option<NodeName> {
        (!self.is_cluster()).then(|| NodeName(Arc::clone(&self.0)))
    }

    /// The other cluster, if it is one.
    #[must_use]
    pub fn cluster(&self) -> Option<Cluster> {
        self.is_cluster().then(|| Cluster(Arc::clone(&self.0)))
    }

    /// Whether it is another cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.as_str().contains('.')
    }
}

impl From<NodeName> for AgentName {
    fn from(name: NodeName) -> Self {
        Self(name.0)
    }
}

impl From<&NodeName> for AgentName {
    fn from(name: &NodeName) -> Self {
        Self(Arc::clone(&name.0))
    }
}

impl From<Cluster> for AgentName {
    fn from(cluster: Cluster) -> Self {
        Self(cluster.0)
    }
}

impl From<&Cluster> for AgentName {
    fn from(cluster: &Cluster) -> Self {
        Self(Arc::clone(&cluster.0))
    }
}

impl From<NodeName> for AgentRef {
    fn from(name: NodeName) -> Self {
        Self(name.0)
    }
}

impl From<Cluster> for AgentRef {
    fn from(cluster: Cluster) -> Self {
        Self(cluster.0)
    }
}

/// The rollout number of a [`Group`]: the higher is the newer.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for Generation {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        // `u64::from_str` alone would take a leading plus sign.
        if text.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(number) = text.parse()
        {
            return Ok(Self(number));
        }
        Err(InvalidName {
            what: "generation",
            value: quote(text),
            rule: format!("write a whole number from 0 to {}", u64::MAX),
        })
    }
}

const LABEL_RULE: &str = "use 1 to 63 of a-z, 0-9 and '-', with no '-' at either end";
const CLUSTER_RULE: &str = "a cluster is a DNS name of two labels or more, such as example.com; each has 1 to 63 of a-z, 0-9 and '-', with no '-' at either end";

fn check_label(text: &str) -> Result<(), String> {
    match label_fault(text) {
        None => Ok(()),
        Some(fault) => Err(format!("{fault}; {LABEL_RULE}")),
    }
}

fn check_cluster(text: &str) -> Result<(), String> {
    if text.len() > CLUSTER_BYTES_MAX {
        return Err(format!(
            "it has {} bytes and a cluster may have {CLUSTER_BYTES_MAX}, so that {PROXY_LABEL}<cluster> is a DNS name; choose a shorter one",
            text.len()
        ));
    }
    if let Some(fault) = text.split('.').find_map(label_fault) {
        return Err(format!("{fault}; {CLUSTER_RULE}"));
    }
    if !text.contains('.') {
        return Err(format!("it has no dot; {CLUSTER_RULE}"));
    }
    Ok(())
}

fn check_agent_name(text: &str) -> Result<(), String> {
    if text.contains('.') {
        check_cluster(text)
    } else {
        check_label(text)
    }
}

fn check_agent_ref(text: &str) -> Result<(), String> {
    let Some((first, rest)) = text.split_once('.') else {
        return check_label(text)
            .map_err(|rule| format!("{rule}; or write <agent>.<cluster>, or <cluster>"));
    };
    if check_cluster(text).is_ok() {
        return Ok(());
    }
    // Only the length can tell `<agent>.<cluster>` from a cluster: it may be one label longer.
    check_label(first)
        .and_then(|()| check_cluster(rest))
        .map_err(|rule| format!("write <agent>, <agent>.<cluster> or <cluster>: {rule}"))
}

/// What is wrong with a label, if anything.
fn label_fault(label: &str) -> Option<String> {
    if label.is_empty() {
        return Some("a label is empty".to_owned());
    }
    if let Some(character) = label
        .chars()
        .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-'))
    {
        return Some(if character.is_ascii_uppercase() {
            format!("'{character}' is upper case")
        } else {
            format!("'{}' is not allowed", character.escape_debug())
        });
    }
    if label.len() > LABEL_BYTES_MAX {
        return Some(format!("a label has {} bytes", label.len()));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Some("a label begins or ends with '-'".to_owned());
    }
    None
}

#[cfg(test)]
mod tests;
