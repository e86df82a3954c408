//! Patterns of grants: whom, whose and what they cover.

use std::fmt;
use std::str::FromStr;

use crate::allow::{AllowRule, InvalidAllowRule};
use crate::name::{AgentRef, Cluster, NodeName, ServiceName};
use crate::principal::Principal;
use crate::target::Target;
use crate::text::quote;

/// Principals: `user:alice`, `user:*`, `agent:db-*`, `token:ci`, `ingress:127.0.0.1:8123`,
/// `cluster:b.example.com`. One star may stand anywhere behind the kind, for any text or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhoPattern {
    kind: &'static str,
    name: Glob,
}

/// Agents: `db-1`, `db-*`, `*`, with one star for any text without a dot, or none. Without a dot it is
/// about agents of the proxy's own cluster, and so it is with that cluster's name behind it;
/// `*.b.example.com` is about those of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPattern(Glob);

/// Whose target a dial is for, once its name has been understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose<'a> {
    /// An agent of the own cluster, however it was written.
    Agent(&'a NodeName),
    /// Another cluster, an agent of one, or the own proxies themselves.
    Cluster(&'a AgentRef),
}

/// Targets: an [`AllowRule`] (`10.0.0.0/8:5432`, `*.svc.local:80-443`, `unix:/run/db.sock`), or a
/// service by its name, in which one star may stand (`service:web`, `service:*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPattern(What);

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Rule(AllowRule),
    Service(Glob),
}

/// A pattern that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pattern \"{value}\" is not valid: {rule}")]
pub struct InvalidPattern {
    /// What was written, escaped and cut to 80 characters.
    pub value: String,
    /// The rule that it breaks, and what to do.
    pub rule: String,
}

impl WhoPattern {
    /// The pattern of this principal alone.
    #[must_use]
    pub fn exactly(principal: &Principal) -> Self {
        Self {
            kind: principal.kind(),
            name: Glob(name_of(principal).to_owned()),
        }
    }

    /// The kind of principals that it is about: the word before the colon.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Whether the principal is one of these.
    #[must_use]
    pub fn matches(&self, principal: &Principal) -> bool {
        self.kind == principal.kind() && self.name.matches(name_of(principal))
    }
}

impl AgentPattern {
    /// The pattern of this agent alone, as a proxy of the cluster `own` sees it.
    #[must_use]
    pub fn exactly(agent: &AgentRef, own: &Cluster) -> Self {
        match agent.local_name(own) {
            Some(name) => Self::exactly_of(Whose::Agent(&name)),
            None => Self::exactly_of(Whose::Cluster(agent)),
        }
    }

    /// The pattern of this one alone.
    #[must_use]
    pub fn exactly_of(whose: Whose<'_>) -> Self {
        Self(Glob(match whose {
            Whose::Agent(name) => name.to_string(),
            Whose::Cluster(name) => name.to_string(),
        }))
    }

    /// Whether the agent is one of these, as a proxy of the cluster `own` sees it: however an agent
    /// of that cluster is written, it is the same one.
    #[must_use]
    pub fn matches(&self, agent: &AgentRef, own: &Cluster) -> bool {
        match agent.local_name(own) {
            Some(name) => self.covers(Whose::Agent(&name), own),
            None => self.covers(Whose::Cluster(agent), own),
        }
    }

    /// Whether this is one of these, at a proxy of the cluster `own`. A pattern without a dot covers
    /// agents of that cluster alone, and so does one without a dot before the name of that cluster,
    /// though the name of another cluster may look like one of theirs.
    #[must_use]
    pub fn covers(&self, whose: Whose<'_>, own: &Cluster) -> bool {
        let text = self.0.0.as_str();
        let of_own = text
            .strip_suffix(own.as_str())
            .and_then(|start| start.strip_suffix('.'))
            .unwrap_or(text);
        let own_alone = !of_own.contains('.');
        match whose {
            Whose::Agent(name) if text.contains('.') => {
                self.0.matches_in_label(&format!("{name}.{own}"))
            }
            Whose::Agent(name) => self.0.matches(name.as_str()),
            Whose::Cluster(name) => !own_alone && self.0.matches_in_label(name.as_str()),
        }
    }
}

impl TargetPattern {
    /// The pattern of this target alone.
    #[must_use]
    pub fn exactly(target: &Target) -> Self {
        Self(match target {
            Target::Service(name) => What::Service(Glob(name.to_string())),
            Target::Address(address) => What::Rule(AllowRule::of_address(*address)),
            Target::Host { host, port } => What::Rule(AllowRule::of_host(host.clone(), *port)),
            Target::Unix(path) => What::Rule(AllowRule::of_unix(path.clone())),
        })
    }

    /// Whether the target is one of these, as it is written: a name is not resolved, and a service
    /// is its name alone.
    #[must_use]
    pub fn matches(&self, target: &Target) -> bool {
        match (&self.0, target) {
            (What::Service(pattern), Target::Service(name)) => pattern.matches(name.as_str()),
            (What::Rule(rule), _) => rule.covers(target),
            (What::Service(_), _) => false,
        }
    }
}

impl FromStr for WhoPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        // A star stands in the name alone. What has no colon is no principal, which its rule says.
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        let principal = if text.contains(':') {
            fits(name, |filled| {
                format!("{kind}:{filled}").parse::<Principal>()
            })
        } else {
            text.parse()
        };
        let principal = principal.map_err(|error| invalid(text, error.rule))?;
        Ok(Self {
            kind: principal.kind(),
            name: Glob::parse(text, name)?,
        })
    }
}

impl FromStr for AgentPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        fits(text, |filled| filled.parse::<AgentRef>())
            .map_err(|error| invalid(text, error.rule))?;
        Glob::parse(text, text).map(Self)
    }
}

impl FromStr for TargetPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        if let Some(name) = text.strip_prefix("service:") {
            fits(name, |filled| filled.parse::<ServiceName>())
                .map_err(|error| invalid(text, error.rule))?;
            return Ok(Self(What::Service(Glob::parse(text, name)?)));
        }
        text.parse().map(|rule| Self(What::Rule(rule))).map_err(
            |InvalidAllowRule { rule, .. }| {
                let forms = rule.replace(" or unix:/path", ", unix:/path or service:name");
                invalid(text, forms)
            },
        )
    }
}

impl fmt::Display for WhoPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.kind, self.name.0)
    }
}

impl fmt::Display for AgentPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.0)
    }
}

impl fmt::Display for TargetPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            What::Rule(rule) => rule.fmt(formatter),
            What::Service(name) => write!(formatter, "service:{}", name.0),
        }
    }
}

/// A text in which one star may stand for any text or none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Glob(String);

impl Glob {
    /// `part` of the pattern `whole`, whose characters were checked.
    fn parse(whole: &str, part: &str) -> Result<Self, InvalidPattern> {
        if part.matches('*').count() > 1 {
            let rule =
                "it has several stars; one may stand for any text, so write several patterns";
            return Err(invalid(whole, rule.to_owned()));
        }
        Ok(Self(part.to_owned()))
    }

    fn matches(&self, text: &str) -> bool {
        match self.0.split_once('*') {
            None => self.0 == text,
            // The two ends must not share characters: `ab*ba` does not match `aba`.
            Some((start, end)) => text
                .strip_prefix(start)
                .is_some_and(|rest| rest.ends_with(end)),
        }
    }

    /// The same, where the star stands for no dot.
    fn matches_in_label(&self, text: &str) -> bool {
        // Nothing else than the star can add a dot.
        self.matches(text) && self.0.matches('.').count() == text.matches('.').count()
    }
}

/// Whether some text in the stars' place makes a valid whole: what can never match is a mistake.
/// The error is that of the most likely one.
fn fits<T, E>(text: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<T, E> {
    let first = parse(&text.replace('*', "x"));
    if first.is_ok() || !text.contains('*') {
        return first;
    }
    // None, where a name is as long as it may be; two labels, where a cluster is.
    parse(&text.replace('*', ""))
        .or_else(|_| parse(&text.replace('*', "x.x")))
        .or(first)
}

fn name_of(principal: &Principal) -> &str {
    match principal {
        Principal::User(name) | Principal::Agent(name) => name.as_str(),
        Principal::Cluster(cluster) => cluster.as_str(),
        Principal::Token(name) => name.as_str(),
        Principal::Ingress(listen) => listen,
    }
}

fn invalid(text: &str, rule: String) -> InvalidPattern {
    InvalidPattern {
        value: quote(text),
        rule,
    }
}
