//! `[proxy]`

use std::path::PathBuf;
use std::time::Duration;

use certs::Credentials;
use mesh_proto::allow::AllowList;
use mesh_proto::grant::Grant;
use mesh_proto::name::{Cluster, Generation, Group, InvalidName};

use super::Listeners;
use super::checker::Checker;
use crate::config::file::{ProxyShape, Shape};
use crate::config::model::{
    CommonConfig, DuplicateNames, IngressConfig, IngressKind, ProxyConfig, TrustConfig,
};
use crate::config::units::format_duration;
use crate::store::StoreUrl;

/// The most peers to join.
const PEERS_MAX: usize = 256;

/// The most ingresses.
const INGRESSES_MAX: usize = 256;

/// The largest file of expected agents, in bytes.
const EXPECTED_AGENTS_BYTES_MAX: u64 = 1 << 20;

/// A proxy's configuration but for what both roles have.
pub(super) struct ProxyPart {
    group: Group,
    generation: Generation,
    peers: Vec<String>,
    join_deadline: Duration,
    drain_notice: Duration,
    drain_deadline: Duration,
    dial_deadline: Duration,
    reconnects_per_second: u32,
    duplicate_names: DuplicateNames,
    agent_connection_count: Option<u32>,
    state_dir: Option<PathBuf>,
    ingresses: Vec<IngressConfig>,
    grants: Vec<Grant>,
    store: Option<StoreUrl>,
    allow: AllowList,
    trust: Vec<TrustConfig>,
}

impl ProxyPart {
    pub(super) fn with(self, common: CommonConfig) -> ProxyConfig {
        ProxyConfig {
            common: CommonConfig {
                drain_deadline: self.drain_deadline,
                ..common
            },
            group: self.group,
            generation: self.generation,
            peers: self.peers,
            join_deadline: self.join_deadline,
            drain_notice: self.drain_notice,
            dial_deadline: self.dial_deadline,
            reconnects_per_second: self.reconnects_per_second,
            duplicate_names: self.duplicate_names,
            agent_connection_count: self.agent_connection_count,
            state_dir: self.state_dir,
            ingresses: self.ingresses,
            grants: self.grants,
            store: self.store,
            allow: self.allow,
            trust: self.trust,
        }
    }
}

pub(super) fn proxy(
    check: &mut Checker<'_>,
    shape: &Shape,
    own: Option<&Credentials>,
    listeners: &mut Listeners,
) -> Option<ProxyPart> {
    let absent = ProxyShape::default();
    let section = shape.proxy.as_ref().unwrap_or(&absent);
    let group_text = section
        .group
        .as_ref()
        .map_or("default", |text| text.0.as_str());
    let group = check.parse(
        "proxy.group",
        group_text,
        "a group",
        |error: InvalidName| error.rule,
    );
    let generation = check
        .number(
            "proxy.generation",
            section.generation,
            0..=i64::MAX,
            0_u64,
            "it counts rollouts",
        )
        .map(Generation);
    let peers = peers(check, section);
    let join_deadline = check.duration(
        "proxy.join_deadline",
        section.join_deadline.as_ref(),
        Duration::ZERO..=Duration::from_secs(600),
        Duration::from_secs(10),
        "/readyz waits so long for a peer",
    );
    let drain = drain(check, section);
    let dial_deadline = check.duration(
        "proxy.dial_deadline",
        section.dial_deadline.as_ref(),
        Duration::from_millis(100)..=Duration::from_secs(300),
        Duration::from_secs(10),
        "a user waits that long for an answer at most",
    );
    let agent_connection_count = match section.agent_connection_count {
        None => Some(None),
        Some(_) => check
            .number(
                "proxy.agent_connection_count",
                section.agent_connection_count,
                0..=1024,
                0_u32,
                "0 is every proxy",
            )
            .map(Some),
    };
    let duplicate_names = match &section.duplicate_names {
        None => Some(DuplicateNames::Newest),
        Some(text) => check.word(
            "proxy.duplicate_names",
            &text.0,
            &[
                ("newest", DuplicateNames::Newest),
                ("refuse", DuplicateNames::Refuse),
            ],
        ),
    };
    let reconnects_per_second = check.number(
        "proxy.reconnects_per_second",
        section.reconnects_per_second,
        1..=1_000_000,
        200_u32,
        "agents that have lost a proxy come back at that rate",
    );
    if let Some(text) = &section.expected_agents_file {
        let read = check.read(
            "proxy.expected_agents_file",
            &text.0,
            EXPECTED_AGENTS_BYTES_MAX,
        );
        if read.is_some() {
            check.warn("proxy.expected_agents_file", "this version does not report missing agents: the file is readable and has no further effect");
        }
    }
    let state_dir = match &section.state_dir {
        None => Some(None),
        Some(text) if text.0.is_empty() => {
            check.error(
                "proxy.state_dir",
                "is empty",
                "write the path of a directory, or remove it",
            );
            None
        }
        Some(text) => Some(Some(check.path("proxy.state_dir", &text.0))),
    };
    let store = match &shape.store {
        None => Some(None),
        Some(store) => super::store::store(
            check,
            store,
            state_dir.as_ref().map(Option::as_deref),
            peers.as_ref().is_some_and(|peers| !peers.is_empty()),
        )
        .map(Some),
    };
    let grants = super::grants::grants(check, shape.grant.as_deref().unwrap_or_default());
    let allow = match &section.allow {
        Some(texts) => super::agent::allow(check, "proxy.allow", texts),
        None => Some(AllowList::default()),
    };
    let entries = shape.trust.as_deref().unwrap_or_default();
    let trust = super::trust::trusts(check, entries, own);

    let entries = shape.ingress.as_deref().unwrap_or_default();
    if entries.len() > INGRESSES_MAX {
        check.error(
            "ingress",
            format!(
                "there are {}, over the limit of {INGRESSES_MAX}",
                entries.len()
            ),
            "split them over several proxies",
        );
        return None;
    }
    let ingresses: Vec<Option<IngressConfig>> = entries
        .iter()
        .enumerate()
        .map(|(index, entry)| super::ingress::ingress(check, index, entry, listeners))
        .collect();

    if let (Some(own), Some(trust)) = (own, &trust) {
        for (index, ingress) in ingresses.iter().enumerate() {
            if let Some(ingress) = ingress {
                leads_somewhere(check, index, ingress, &own.identity().cluster, trust);
            }
        }
    }

    let (drain_notice, drain_deadline) = drain?;
    Some(ProxyPart {
        group: group?,
        generation: generation?,
        peers: peers?,
        join_deadline: join_deadline?,
        drain_notice,
        drain_deadline,
        dial_deadline: dial_deadline?,
        reconnects_per_second: reconnects_per_second?,
        duplicate_names: duplicate_names?,
        agent_connection_count: agent_connection_count?,
        state_dir: state_dir?,
        ingresses: ingresses.into_iter().collect::<Option<_>>()?,
        grants: grants?,
        store: store?,
        allow: allow?,
        trust: trust?,
    })
}

/// A port that leads to another cluster needs that one to be trusted.
fn leads_somewhere(
    check: &mut Checker<'_>,
    index: usize,
    ingress: &IngressConfig,
    own: &Cluster,
    trust: &[TrustConfig],
) {
    let IngressKind::Tcp { agent, .. } = &ingress.kind else {
        return;
    };
    let is_trusted = |cluster: &Cluster| trust.iter().any(|trust| trust.cluster == *cluster);
    let is_known = agent.is_cluster(own)
        || agent.local_name(own).is_some()
        || agent.cluster_in(is_trusted).is_some();
    if !is_known {
        check.error(
            &format!("ingress[{index}].agent"),
            format!(
                "\"{agent}\" is not an agent of this cluster, {own}, nor of one in a [[trust]]"
            ),
            "correct it, or add a [[trust]] for the cluster",
        );
    }
}

fn peers(check: &mut Checker<'_>, section: &ProxyShape) -> Option<Vec<String>> {
    let Some(texts) = &section.peers else {
        return Some(Vec::new());
    };
    check.dial_addresses("proxy.peers", &texts.0, PEERS_MAX)
}

/// Notice and deadline of a drain.
fn drain(check: &mut Checker<'_>, section: &ProxyShape) -> Option<(Duration, Duration)> {
    let notice = check.duration(
        "proxy.drain_notice",
        section.drain_notice.as_ref(),
        Duration::ZERO..=Duration::from_secs(3600),
        Duration::from_secs(5),
        "a balancer must notice within it",
    );
    let deadline = drain_deadline(
        check,
        "proxy.drain_deadline",
        section.drain_deadline.as_ref(),
    );
    let (notice, deadline) = (notice?, deadline?);
    if notice >= deadline {
        let key = if section.drain_notice.is_some() {
            "proxy.drain_notice"
        } else {
            "proxy.drain_deadline"
        };
        check.error(
            key,
            format!(
                "drain_notice ({}) is not under drain_deadline ({}), which includes it",
                format_duration(notice),
                format_duration(deadline)
            ),
            "lower drain_notice or raise drain_deadline",
        );
        return None;
    }
    Some((notice, deadline))
}

/// The deadline of a drain, of either role.
pub(super) fn drain_deadline(
    check: &mut Checker<'_>,
    key: &str,
    value: Option<&crate::config::file::Time>,
) -> Option<Duration> {
    check.duration(
        key,
        value,
        Duration::from_millis(1)..=Duration::from_secs(24 * 3600),
        Duration::from_secs(30),
        "what is left at its end is cut",
    )
}
