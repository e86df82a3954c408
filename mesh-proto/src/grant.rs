//! Grants: what principals may do at a proxy.
//!
//! A [`Policy`] is the grants of a proxy's config and the defaults beneath them:
//!
//! | kind of principal | by default |
//! |---|---|
//! | `user` | [`May::Read`] and [`May::Dial`] |
//! | `token`, `ingress` | [`May::Dial`] |
//! | `agent`, `cluster` | nothing |
//!
//! As soon as one grant that gives [`May::Dial`] names a kind of principal, the default dial right
//! of that kind is gone: its principals may dial what grants say, and nothing else. All other rights
//! are only ever added to. What an agent's own list does not allow stays refused in any case.

mod pattern;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

pub use self::pattern::{AgentPattern, InvalidPattern, TargetPattern, WhoPattern, Whose};
use crate::name::{AgentRef, Cluster};
use crate::principal::Principal;
use crate::target::Target;
use crate::text::quote;

/// Something that a principal may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum May {
    /// See what the fleet looks like.
    Read,
    /// Dial targets of agents.
    Dial,
    /// Change tunnel resources.
    Tunnel,
    /// Operate proxies: drain them, end sessions of agents.
    Admin,
}

/// A text that is no [`May`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{value}\" is nothing that can be granted; write read, dial, tunnel or admin")]
pub struct UnknownMay {
    /// What was written, escaped and cut to 80 characters.
    pub value: String,
}

impl May {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Dial, Self::Tunnel, Self::Admin];

    /// The name in configs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Dial => "dial",
            Self::Tunnel => "tunnel",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for May {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl FromStr for May {
    type Err = UnknownMay;

    fn from_str(text: &str) -> Result<Self, UnknownMay> {
        Self::ALL
            .into_iter()
            .find(|may| may.as_str() == text)
            .ok_or_else(|| UnknownMay { value: quote(text) })
    }
}

/// What some principals may do. `Display` writes it as in a config, on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who: whomever one of the patterns matches.
    pub who: Vec<WhoPattern>,
    /// What they may do.
    pub may: BTreeSet<May>,
    /// Whose targets they may dial; `None`: every agent's. It narrows [`May::Dial`] alone.
    pub agents: Option<Vec<AgentPattern>>,
    /// Which targets they may dial there; `None`: every one. It narrows [`May::Dial`] alone.
    pub targets: Option<Vec<TargetPattern>>,
}

impl Grant {
    fn names(&self, principal: &Principal) -> bool {
        self.who.iter().any(|who| who.matches(principal))
    }

    fn covers_agent(&self, whose: Whose<'_>, own: &Cluster) -> bool {
        let Some(agents) = &self.agents else {
            return true;
        };
        agents.iter().any(|pattern| pattern.covers(whose, own))
    }

    fn covers_target(&self, target: &Target) -> bool {
        let Some(targets) = &self.targets else {
            return true;
        };
        targets.iter().any(|pattern| pattern.matches(target))
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "who = [{}]", listed(&self.who))?;
        write!(formatter, ", may = [{}]", listed(&self.may))?;
        if let Some(agents) = &self.agents {
            write!(formatter, ", agents = [{}]", listed(agents))?;
        }
        if let Some(targets) = &self.targets {
            write!(formatter, ", targets = [{}]", listed(targets))?;
        }
        Ok(())
    }
}

/// Texts as TOML's strings, with commas. The path of a Unix socket is whatever was asked for: a quote
/// in it must not end the string, or a copied grant would allow more than its reader sees.
fn listed<T: fmt::Display>(texts: impl IntoIterator<Item = T>) -> String {
    let quoted: Vec<String> = texts
        .into_iter()
        .map(|text| {
            let text = text.to_string().replace('\\', "\\\\").replace('"', "\\\"");
            format!("\"{text}\"")
        })
        .collect();
    quoted.join(", ")
}

/// A dial that the policy of a proxy does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Denied {
    /// Why, for people, with the grant to add.
    pub why: String,
    /// The narrowest grant that would allow this dial.
    pub missing: Grant,
}

/// Who may do what at a proxy: its grants, and the defaults of this module.
#[derive(Debug, Clone)]
pub struct Policy {
    own: Cluster,
    grants: Vec<Grant>,
    /// Kinds of principals whose default dial right is replaced by grants.
    replaced: BTreeSet<&'static str>,
}

impl Policy {
    /// The policy of a proxy of the cluster `own`. Without grants, the defaults hold.
    #[must_use]
    pub fn new(own: Cluster, grants: Vec<Grant>) -> Self {
        let replaced = grants
            .iter()
            .filter(|grant| grant.may.contains(&May::Dial))
            .flat_map(|grant| grant.who.iter().map(WhoPattern::kind))
            .collect();
        Self {
            own,
            grants,
            replaced,
        }
    }

    /// Whether the principal may dial this target of this agent, which may be written as users do.
    ///
    /// A target is judged as it is asked for: a name is not resolved and a service not looked up, so
    /// that a rule for a network covers neither.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_dial(
        &self,
        principal: &Principal,
        agent: &AgentRef,
        target: &Target,
    ) -> Result<(), Denied> {
        match agent.local_name(&self.own) {
            Some(name) => self.may_dial_of(principal, Whose::Agent(&name), agent, target),
            None => self.may_dial_of(principal, Whose::Cluster(agent), agent, target),
        }
    }

    /// The same for a name that has been understood: `whose` says what `agent`, as it was written,
    /// stands for.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_dial_of(
        &self,
        principal: &Principal,
        whose: Whose<'_>,
        agent: &AgentRef,
        target: &Target,
    ) -> Result<(), Denied> {
        if self.by_default(principal, May::Dial) {
            return Ok(());
        }
        let mut named = false;
        for grant in self.giving(May::Dial, principal) {
            named = true;
            if grant.covers_agent(whose, &self.own) && grant.covers_target(target) {
                return Ok(());
            }
        }
        let kind = principal.kind();
        let because = if named {
            let apart = match target {
                Target::Host { .. } => " (a rule for a network covers no name)",
                Target::Service(_) => " (only service: rules cover a service)",
                Target::Address(_) | Target::Unix(_) => "",
            };
            format!("no grant for {principal} covers that{apart}")
        } else if self.replaced.contains(kind) {
            format!("grants say which {kind} principals may dial, and none names this one")
        } else {
            format!("by default no {kind} may dial")
        };
        let agents = vec![AgentPattern::exactly_of(whose)];
        let missing = Grant {
            who: vec![WhoPattern::exactly(principal)],
            may: BTreeSet::from([May::Dial]),
            // A cluster directly below this one is called like an agent of this one: no pattern is about it.
            agents: Some(agents)
                .filter(|agents| agents.iter().any(|agent| agent.covers(whose, &self.own))),
            targets: Some(vec![TargetPattern::exactly(target)]),
        };
        Err(Denied {
            why: format!(
                "{principal} may not dial {target} of {agent}: {because}; to allow it, add to the config of every proxy: [[grant]] {missing}"
            ),
            missing,
        })
    }

    /// Whether the principal may do this at all. For [`May::Dial`], to which agents and targets is
    /// [`Policy::may_dial`]'s matter.
    #[must_use]
    pub fn may(&self, principal: &Principal, may: May) -> bool {
        self.by_default(principal, may) || self.giving(may, principal).next().is_some()
    }

    fn giving(&self, may: May, principal: &Principal) -> impl Iterator<Item = &Grant> {
        self.grants
            .iter()
            .filter(move |grant| grant.may.contains(&may) && grant.names(principal))
    }

    fn by_default(&self, principal: &Principal, may: May) -> bool {
        match (principal, may) {
            (Principal::User(_), May::Read) => true,
            (Principal::User(_) | Principal::Token(_) | Principal::Ingress(_), May::Dial) => {
                !self.replaced.contains(principal.kind())
            }
            (Principal::Agent(_) | Principal::Cluster(_), May::Read | May::Dial)
            | (Principal::Token(_) | Principal::Ingress(_), May::Read)
            | (_, May::Tunnel | May::Admin) => false,
        }
    }
}

#[cfg(test)]
mod tests;
