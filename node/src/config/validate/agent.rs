//! `[agent]` and `[[service]]`

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::allow::{AllowList, AllowRule, InvalidAllowRule};
use mesh_proto::name::{InvalidName, ServiceName};
use mesh_proto::target::{InvalidTarget, Target};
use mesh_proto::wire::Protocol;

use super::checker::{Checker, without_forms};
use super::proxy::drain_deadline;
use crate::config::errors::quoted;
use crate::config::file::{AgentShape, ServiceShape, Shape, Texts};
use crate::config::model::{AgentConfig, CommonConfig, ServiceConfig};

/// The most addresses to dial.
const PROXIES_MAX: usize = 64;

/// The most rules of an allow list.
const ALLOW_RULES_MAX: usize = 1024;

/// The most services: as many as a hello can announce.
const SERVICES_MAX: usize = 1024;

/// An agent's configuration but for what both roles have.
pub(super) struct AgentPart {
    proxies: Vec<String>,
    connection_count: Option<u32>,
    allow: AllowList,
    services: Vec<ServiceConfig>,
    drain_deadline: Duration,
}

impl AgentPart {
    pub(super) fn with(self, common: CommonConfig) -> AgentConfig {
        AgentConfig {
            common: CommonConfig {
                drain_deadline: self.drain_deadline,
                ..common
            },
            proxies: self.proxies,
            connection_count: self.connection_count,
            allow: self.allow,
            services: self.services,
        }
    }
}

pub(super) fn agent(check: &mut Checker<'_>, shape: &Shape) -> Option<AgentPart> {
    let absent = AgentShape::default();
    let section = shape.agent.as_ref().unwrap_or(&absent);
    let proxies = proxies(check, section.proxies.as_ref());
    let connection_count = match section.connection_count {
        None => Some(None),
        Some(_) => check
            .number(
                "agent.connection_count",
                section.connection_count,
                0..=1024,
                0_u32,
                "0 is every proxy",
            )
            .map(Some),
    };
    let drain_deadline = drain_deadline(
        check,
        "agent.drain_deadline",
        section.drain_deadline.as_ref(),
    );
    let services = services(check, shape.service.as_deref().unwrap_or_default());
    let allow = match &section.allow {
        Some(texts) => {
            let allow = allow(check, "agent.allow", texts);
            if let Some(allow) = &allow {
                for (index, service) in &services {
                    covered(check, *index, service, allow);
                }
            }
            allow
        }
        None => Some(AllowList(
            services
                .iter()
                .filter_map(|(_, service)| rule_for(&service.address))
                .collect(),
        )),
    };
    Some(AgentPart {
        proxies: proxies?,
        connection_count: connection_count?,
        allow: allow?,
        services: services.into_iter().map(|(_, service)| service).collect(),
        drain_deadline: drain_deadline?,
    })
}

fn proxies(check: &mut Checker<'_>, texts: Option<&Texts>) -> Option<Vec<String>> {
    const REMEDY: &str =
        "write proxies = [\"lb.example.com:7443\"], a load balancer or the proxies themselves";
    let Some(Texts(texts)) = texts else {
        check.missing("agent.proxies", REMEDY);
        return None;
    };
    if texts.is_empty() {
        check.error("agent.proxies", "is empty", REMEDY);
        return None;
    }
    check.dial_addresses("agent.proxies", texts, PROXIES_MAX)
}

/// A list of rules at `list`.
pub(super) fn allow(
    check: &mut Checker<'_>,
    list: &str,
    Texts(texts): &Texts,
) -> Option<AllowList> {
    if texts.len() > ALLOW_RULES_MAX {
        check.error(
            list,
            format!(
                "has {} rules, over the limit of {ALLOW_RULES_MAX}",
                texts.len()
            ),
            "use networks and port ranges",
        );
        return None;
    }
    let mut rules = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let key = format!("{list}[{index}]");
        let rule = check.parse(&key, text, "an allow rule", |error: InvalidAllowRule| {
            error.rule
        });
        if let Some(rule) = rule {
            // Its text is the one spelling of a rule.
            let spelling = AllowRule::to_string(&rule);
            if spelling.starts_with("0.0.0.0/0:") || spelling.starts_with("[::]/0:") {
                check.warn(&key, &format!("{} permits every address that this host can reach, its own included: name networks where you can", quoted(text)));
            }
            rules.push(rule);
        }
    }
    (rules.len() == texts.len()).then_some(AllowList(rules))
}

/// The services that are in order, with their indexes.
fn services(check: &mut Checker<'_>, entries: &[ServiceShape]) -> Vec<(usize, ServiceConfig)> {
    if entries.len() > SERVICES_MAX {
        check.error(
            "service",
            format!(
                "there are {}, over the limit of {SERVICES_MAX}",
                entries.len()
            ),
            "split them over several agents",
        );
        return Vec::new();
    }
    let mut names: BTreeMap<ServiceName, usize> = BTreeMap::new();
    let mut services = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let key = |name: &str| format!("service[{index}].{name}");
        let name: Option<ServiceName> = check
            .required(
                &key("name"),
                entry.name.as_ref(),
                "write name = \"web\"; users ask for service:web",
            )
            .and_then(|text| {
                check.parse(
                    &key("name"),
                    text,
                    "a service's name",
                    |error: InvalidName| error.rule,
                )
            });
        if let Some(name) = &name
            && let Some(first) = names.insert(name.clone(), index)
        {
            check.error(
                &key("name"),
                format!("\"{name}\" is the name of service[{first}] too"),
                "give every service a name of its own",
            );
        }
        let address: Option<Target> = check
            .required(
                &key("address"),
                entry.address.as_ref(),
                "write address = \"127.0.0.1:8125\", what the agent dials",
            )
            .and_then(|text| {
                check.parse(
                    &key("address"),
                    text,
                    "an address",
                    |error: InvalidTarget| {
                        let why = without_forms(&error.rule);
                        format!("{why}; write host:port, [v6]:port or unix:/path")
                    },
                )
            });
        if let Some(Target::Service(_)) = address {
            check.error(
                &key("address"),
                "is itself a service",
                "write host:port, [v6]:port or unix:/path, what the agent dials",
            );
            continue;
        }
        let protocol = match &entry.protocol {
            None => Some(Protocol::Tcp),
            Some(text) => check.word(
                &key("protocol"),
                &text.0,
                &[
                    ("tcp", Protocol::Tcp),
                    ("http", Protocol::Http),
                    ("https", Protocol::Https),
                ],
            ),
        };
        if let (Some(name), Some(address), Some(protocol)) = (name, address, protocol) {
            services.push((
                index,
                ServiceConfig {
                    name,
                    address,
                    protocol,
                },
            ));
        }
    }
    services
}

/// A service that the agent may not dial is an error. What a host name resolves to is known only
/// when it is dialled.
fn covered(check: &mut Checker<'_>, index: usize, service: &ServiceConfig, allow: &AllowList) {
    let permitted = match &service.address {
        Target::Address(address) => allow.permits_address(*address),
        Target::Unix(path) => allow.permits_unix(path),
        Target::Host { .. } | Target::Service(_) => true,
    };
    if !permitted {
        let address = &service.address;
        check.error(
            &format!("service[{index}].address"),
            format!("\"{address}\" is not permitted by agent.allow"),
            format!("add \"{address}\" to agent.allow"),
        );
    }
}

/// The rule that permits exactly this address.
fn rule_for(address: &Target) -> Option<AllowRule> {
    address.to_string().parse().ok()
}
