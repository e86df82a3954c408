//! The policy of a proxy against a naive model of its documented rules, over random grants.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mesh_proto::grant::{AgentPattern, TargetPattern, WhoPattern};
use mesh_proto::grant::{Grant, May, Policy};
use mesh_proto::{AgentRef, AllowList, AllowRule, Cluster, Principal, Target};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

const OWN: &str = "example.com";

const PRINCIPALS: [&str; 11] = [
    "user:a",
    "user:ab",
    "user:b",
    "agent:a",
    "agent:ab",
    "token:a",
    "token:b",
    "ingress:127.0.0.1:80",
    "ingress:127.0.0.1:81",
    "cluster:b.example.org",
    "cluster:c.example.org",
];

const WHO: [&str; 16] = [
    "user:a",
    "user:a*",
    "user:*b",
    "user:*",
    "user:c",
    "agent:a",
    "agent:*",
    "agent:a*b",
    "token:b",
    "token:*",
    "ingress:127.0.0.1:80",
    "ingress:127.0.0.1:*",
    "ingress:*",
    "cluster:b.example.org",
    "cluster:*.org",
    "cluster:*",
];

/// Each with the agent that it is: in this cluster a plain name, elsewhere the whole.
const AGENTS: [(&str, &str); 6] = [
    ("db-1", "db-1"),
    ("db-1.example.com", "db-1"),
    ("web", "web"),
    ("web.b.example.org", "web.b.example.org"),
    ("b.example.org", "b.example.org"),
    ("example.com", "example.com"),
];

const AGENT_PATTERNS: [&str; 9] = [
    "db-1",
    "db-*",
    "*",
    "w*b",
    "db-1.example.com",
    "*.example.com",
    "*.b.example.org",
    "web.*",
    "b.example.org",
];

const TARGETS: [&str; 7] = [
    "10.0.0.7:5432",
    "10.0.0.7:80",
    "db.svc.local:5432",
    "svc.local:80",
    "service:db",
    "service:web",
    "unix:/run/db.sock",
];

/// Patterns of targets, each with exactly those of [`TARGETS`] that it covers, written out.
const TARGET_PATTERNS: [(&str, &[&str]); 9] = [
    ("10.0.0.0/8:*", &["10.0.0.7:5432", "10.0.0.7:80"]),
    ("10.0.0.7:5432", &["10.0.0.7:5432"]),
    ("0.0.0.0/0:80", &["10.0.0.7:80"]),
    ("*.svc.local:*", &["db.svc.local:5432"]),
    ("svc.local:80-443", &["svc.local:80"]),
    ("service:db", &["service:db"]),
    ("service:*", &["service:db", "service:web"]),
    ("service:w*", &["service:web"]),
    ("unix:/run/db.sock", &["unix:/run/db.sock"]),
];

/// A grant as it is written.
#[derive(Debug, Clone)]
struct Written {
    who: Vec<&'static str>,
    may: Vec<May>,
    agents: Option<Vec<&'static str>>,
    targets: Option<Vec<(&'static str, &'static [&'static str])>>,
}

impl Written {
    fn parsed(&self) -> Grant {
        Grant {
            who: self.who.iter().map(|text| text.parse().unwrap()).collect(),
            may: self.may.iter().copied().collect(),
            agents: self
                .agents
                .as_ref()
                .map(|agents| agents.iter().map(|text| text.parse().unwrap()).collect()),
            targets: self.targets.as_ref().map(|targets| {
                targets
                    .iter()
                    .map(|(text, _)| text.parse().unwrap())
                    .collect()
            }),
        }
    }
}

fn written() -> impl Strategy<Value = Written> {
    (
        vec(select(&WHO[..]), 1..4),
        subsequence(&May::ALL[..], 1..=4),
        option::weighted(0.6, vec(select(&AGENT_PATTERNS[..]), 1..3)),
        option::weighted(0.6, vec(select(&TARGET_PATTERNS[..]), 1..3)),
    )
        .prop_map(|(who, may, agents, targets)| Written {
            who,
            may,
            agents,
            targets,
        })
}

/// Whether a star stands for some text, letter by letter.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => {
            glob(rest, text) || (!text.is_empty() && glob(pattern, &text[1..]))
        }
        ([a, pattern @ ..], [b, text @ ..]) => a == b && glob(pattern, text),
        ([], _) | (_, []) => false,
    }
}

fn star(pattern: &str, text: &str) -> bool {
    glob(pattern.as_bytes(), text.as_bytes())
}

/// The same, label by label: a star stands for no dot.
fn labels(pattern: &str, text: &str) -> bool {
    let (patterns, texts): (Vec<_>, Vec<_>) =
        (pattern.split('.').collect(), text.split('.').collect());
    patterns.len() == texts.len()
        && patterns
            .iter()
            .zip(texts)
            .all(|(one, other)| star(one, other))
}

fn kind(text: &str) -> &str {
    text.split(':').next().unwrap()
}

/// The documented rules, word by word.
fn may_dial(grants: &[Written], principal: &str, agent: &str, target: &str) -> bool {
    let dialling: Vec<&Written> = grants
        .iter()
        .filter(|grant| grant.may.contains(&May::Dial))
        .collect();
    let kind_is_named = dialling
        .iter()
        .any(|grant| grant.who.iter().any(|who| kind(who) == kind(principal)));
    let default = matches!(kind(principal), "user" | "token" | "ingress");
    if !kind_is_named {
        return default;
    }
    dialling.iter().any(|grant| {
        let who = grant.who.iter().any(|who| star(who, principal));
        let agents = grant.agents.as_ref().is_none_or(|agents| {
            agents.iter().any(|pattern| {
                if !pattern.contains('.') {
                    !agent.contains('.') && star(pattern, agent)
                } else if agent.contains('.') {
                    // None of the names here is that of a cluster below the own one.
                    labels(pattern, agent)
                } else {
                    labels(pattern, &format!("{agent}.{OWN}"))
                }
            })
        });
        let targets = grant
            .targets
            .as_ref()
            .is_none_or(|targets| targets.iter().any(|(_, covered)| covered.contains(&target)));
        who && agents && targets
    })
}

fn may(grants: &[Written], principal: &str, may: May) -> bool {
    let granted = grants
        .iter()
        .any(|grant| grant.may.contains(&may) && grant.who.iter().any(|who| star(who, principal)));
    let some_dial_grant_names_its_kind = grants.iter().any(|grant| {
        grant.may.contains(&May::Dial) && grant.who.iter().any(|who| kind(who) == kind(principal))
    });
    let default = match may {
        May::Read => kind(principal) == "user",
        May::Dial => {
            matches!(kind(principal), "user" | "token" | "ingress")
                && !some_dial_grant_names_its_kind
        }
        May::Tunnel | May::Admin => false,
    };
    granted || default
}

fn policy(grants: &[Written]) -> Policy {
    let own: Cluster = OWN.parse().unwrap();
    Policy::new(own, grants.iter().map(Written::parsed).collect())
}

proptest! {
    /// Every principal, agent and target of the small world, for each random policy.
    #[test]
    fn the_policy_is_the_model(grants in vec(written(), 0..6)) {
        let policy = policy(&grants);
        for principal in PRINCIPALS {
            let who: Principal = principal.parse().unwrap();
            for right in May::ALL {
                prop_assert_eq!(policy.may(&who, right), may(&grants, principal, right), "{} {}", principal, right);
            }
            for (agent, is) in AGENTS {
                for target in TARGETS {
                    let asked: (AgentRef, Target) = (agent.parse().unwrap(), target.parse().unwrap());
                    let allowed = policy.may_dial(&who, &asked.0, &asked.1).is_ok();
                    prop_assert_eq!(allowed, may_dial(&grants, principal, is, target), "{} {} {}", principal, agent, target);
                }
            }
        }
    }

    /// What a denial says is missing is a grant that can be written, allows this dial, and nothing
    /// else of the same kind of principal.
    #[test]
    fn what_is_missing_is_enough(
        grants in vec(written(), 0..6),
        principal in select(&PRINCIPALS[..]),
        agent in select(&AGENTS[..]),
        target in select(&TARGETS[..]),
    ) {
        let (who, whose, what): (Principal, AgentRef, Target) =
            (principal.parse().unwrap(), agent.0.parse().unwrap(), target.parse().unwrap());
        let Err(denied) = policy(&grants).may_dial(&who, &whose, &what) else {
            return Ok(());
        };
        prop_assert!(denied.why.ends_with(&format!("[[grant]] {}", denied.missing)), "{}", denied.why);
        let mut all: Vec<Grant> = grants.iter().map(Written::parsed).collect();
        let before = Policy::new(OWN.parse().unwrap(), all.clone());
        all.push(reread(&denied.missing));
        let after = Policy::new(OWN.parse().unwrap(), all);
        prop_assert!(after.may_dial(&who, &whose, &what).is_ok());
        for other in PRINCIPALS {
            for (text, is) in AGENTS {
                for target in TARGETS {
                    let this = other == principal && is == agent.1 && target == what.to_string();
                    let other: Principal = other.parse().unwrap();
                    let asked: (AgentRef, Target) = (text.parse().unwrap(), target.parse().unwrap());
                    if !this && after.may_dial(&other, &asked.0, &asked.1).is_ok() {
                        prop_assert!(before.may_dial(&other, &asked.0, &asked.1).is_ok(), "{} {} {}", other, text, target);
                    }
                }
            }
        }
    }

    /// No text does harm, and what is taken is written as it was read.
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,12}|[a-c*.:/0-9-]{0,20}|(user|ingress|service|cluster):[a-c*.:-]{0,8}") {
        if let Ok(who) = text.parse::<WhoPattern>() {
            prop_assert_eq!(who.to_string(), text.as_str());
        }
        if let Ok(agents) = text.parse::<AgentPattern>() {
            prop_assert_eq!(agents.to_string(), text.as_str());
        }
        if let Ok(targets) = text.parse::<TargetPattern>() {
            prop_assert_eq!(targets.to_string().parse(), Ok(targets));
        }
    }

    /// A rule covers as a target what a list of it alone permits by the same name.
    #[test]
    fn rules_cover_what_lists_permit(pattern in select(&TARGET_PATTERNS[..]), target in select(&TARGETS[..])) {
        let Ok(rule) = pattern.0.parse::<AllowRule>() else {
            return Ok(());
        };
        let target: Target = target.parse().unwrap();
        let covered = rule.covers(&target);
        let list: AllowList = [rule].into_iter().collect();
        prop_assert_eq!(covered, match &target {
            Target::Address(address) => list.permits_address(*address),
            Target::Host { host, port } => list.permits_name(host, *port),
            Target::Unix(path) => list.permits_unix(path),
            Target::Service(_) => false,
        });
    }

    /// Patterns write what they read.
    #[test]
    fn grants_are_read_as_they_are_written(grant in written()) {
        let parsed = grant.parsed();
        prop_assert_eq!(reread(&parsed), parsed);
    }
}

/// The grant, by way of its texts.
fn reread(grant: &Grant) -> Grant {
    fn texts<T: std::fmt::Display, R: std::str::FromStr<Err: std::fmt::Debug>>(
        all: &[T],
    ) -> Vec<R> {
        all.iter()
            .map(|one| one.to_string().parse().unwrap())
            .collect()
    }
    Grant {
        who: texts(&grant.who),
        may: grant
            .may
            .iter()
            .map(|may| may.as_str().parse().unwrap())
            .collect(),
        agents: grant.agents.as_deref().map(texts),
        targets: grant.targets.as_deref().map(texts),
    }
}
