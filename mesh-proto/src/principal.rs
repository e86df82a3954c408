//! Principals: on whose behalf something is done.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer, ser};

use crate::name::{Cluster, NodeName, TokenName};
use crate::text::quote;

/// The longest name of an ingress in a principal, in bytes.
pub const INGRESS_BYTES_MAX: usize = 64;

/// On whose behalf a dial is made.
///
/// Text forms: `user:alice`, `agent:a1`, `cluster:b.example.com`, `token:ci`,
/// `ingress:127.0.0.1:8123`. `Display` writes what `FromStr` reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// A user with a certificate.
    User(NodeName),
    /// An agent, dialling another.
    Agent(NodeName),
    /// Another cluster, through its proxies.
    Cluster(Cluster),
    /// The holder of a token at an ingress.
    Token(TokenName),
    /// Whoever reaches an open ingress, by its listen address: 1 to 64 printable ASCII characters
    /// without spaces. [`Principal::ingress`] checks it.
    Ingress(String),
}

/// A principal that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("principal \"{value}\" is not valid: {rule}")]
pub struct InvalidPrincipal {
    /// What was written, escaped and cut to 80 characters.
    pub value: String,
    /// The rule that it breaks, and what to do.
    pub rule: String,
}

impl Principal {
    /// Whoever reaches an open ingress that listens on `listen`.
    ///
    /// # Errors
    /// When `listen` is not 1 to 64 printable ASCII characters without spaces.
    pub fn ingress(listen: impl Into<String>) -> Result<Self, InvalidPrincipal> {
        let listen = listen.into();
        match check_ingress(&listen) {
            Ok(()) => Ok(Self::Ingress(listen)),
            Err(rule) => Err(InvalidPrincipal {
                value: quote(&format!("ingress:{listen}")),
                rule,
            }),
        }
    }

    /// The word before the colon: `user`, `agent`, `cluster`, `token` or `ingress`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Agent(_) => "agent",
            Self::Cluster(_) => "cluster",
            Self::Token(_) => "token",
            Self::Ingress(_) => "ingress",
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::User(name) | Self::Agent(name) => name.as_str(),
            Self::Cluster(cluster) => cluster.as_str(),
            Self::Token(name) => name.as_str(),
            Self::Ingress(listen) => listen,
        };
        write!(formatter, "{}:{name}", self.kind())
    }
}

impl FromStr for Principal {
    type Err = InvalidPrincipal;

    fn from_str(text: &str) -> Result<Self, InvalidPrincipal> {
        parse(text).map_err(|rule| InvalidPrincipal {
            value: quote(text),
            rule,
        })
    }
}

impl TryFrom<String> for Principal {
    type Error = InvalidPrincipal;

    fn try_from(text: String) -> Result<Self, InvalidPrincipal> {
        text.parse()
    }
}

impl Serialize for Principal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The variant is open, so a caller may have filled in what no reader would accept.
        if let Self::Ingress(listen) = self {
            check_ingress(listen).map_err(ser::Error::custom)?;
        }
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Principal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::text::deserialize(deserializer, "a principal")
    }
}

const FORMS: &str =
    "write user:<name>, agent:<name>, cluster:<cluster>, token:<name> or ingress:<listen>";

fn parse(text: &str) -> Result<Principal, String> {
    let (kind, name) = text
        .split_once(':')
        .ok_or_else(|| format!("it has no colon; {FORMS}"))?;
    match kind {
        "user" => name.parse().map(Principal::User).map_err(rule),
        "agent" => name.parse().map(Principal::Agent).map_err(rule),
        "cluster" => name.parse().map(Principal::Cluster).map_err(rule),
        "token" => name.parse().map(Principal::Token).map_err(rule),
        "ingress" => check_ingress(name).map(|()| Principal::Ingress(name.to_owned())),
        _ => Err(format!("there is no such kind; {FORMS}")),
    }
}

fn rule(error: crate::name::InvalidName) -> String {
    error.rule
}

fn check_ingress(listen: &str) -> Result<(), String> {
    if (1..=INGRESS_BYTES_MAX).contains(&listen.len())
        && listen.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Ok(());
    }
    Err(format!(
        "an ingress is named by 1 to {INGRESS_BYTES_MAX} printable ASCII characters without spaces"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_and_writes() {
        for (text, kind) in [
            ("user:alice", "user"),
            ("agent:a1", "agent"),
            ("cluster:b.example.com", "cluster"),
            ("token:ci", "token"),
            ("ingress:127.0.0.1:8123", "ingress"),
            ("ingress:[::1]:8123", "ingress"),
        ] {
            let principal: Principal = text.parse().unwrap();
            assert_eq!(principal.to_string(), text);
            assert_eq!(principal.kind(), kind);
        }
        assert_eq!(
            Principal::ingress("0.0.0.0:80"),
            "ingress:0.0.0.0:80".parse()
        );
    }

    #[test]
    fn what_breaks_the_rule_is_refused_with_the_rule() {
        for (text, says) in [
            ("", "it has no colon"),
            ("alice", "it has no colon"),
            ("root:alice", "there is no such kind"),
            ("User:alice", "there is no such kind"),
            ("user:", "a label is empty"),
            ("user:Alice", "'A' is upper case"),
            ("user:alice.example.com", "'.' is not allowed"),
            ("cluster:local", "it has no dot"),
            ("token:a b", "' ' is not allowed"),
            ("ingress:", "1 to 64 printable"),
            ("ingress:a b", "1 to 64 printable"),
            ("ingress:a\nb", "1 to 64 printable"),
            ("ingress:é", "1 to 64 printable"),
        ] {
            let error = text.parse::<Principal>().unwrap_err();
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
        let longest = "x".repeat(INGRESS_BYTES_MAX);
        assert!(Principal::ingress(longest.clone()).is_ok());
        assert!(Principal::ingress(longest + "x").is_err());
    }
}
