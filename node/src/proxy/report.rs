//! What the admin API tells of a proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_proto::grant::May;
use mesh_proto::membership::Known;
use mesh_proto::name::{AgentName, NodeName};
use mesh_proto::principal::Principal;
use mesh_proto::wire::MemberState;

use super::mesh::{is_active, state_name};
use super::peers::links::Link;
use super::router;
use super::session::Session;
use super::tunnels::Resources;
use super::{Phase, Shared};
use crate::report::{
    Holder, Peer, PeerConnection, Problem, ProxyStatus, Route, SessionReport, Status,
};

/// A running proxy, to look at.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    shared: Arc<Shared>,
    ingress_addrs: Vec<SocketAddr>,
}

impl Observer {
    pub(super) fn new(shared: Arc<Shared>, ingress_addrs: Vec<SocketAddr>) -> Self {
        Self {
            shared,
            ingress_addrs,
        }
    }

    /// The whole at a glance.
    pub(crate) fn status(&self) -> Status {
        let shared = &self.shared;
        let common = &shared.config.common;
        let sessions = shared.sessions.all();
        let agents: BTreeSet<_> = sessions.iter().map(|session| &session.agent).collect();
        let members = shared.mesh.members();
        let phase = *shared.phase.borrow();
        Status {
            role: "proxy".into(),
            name: common.name.to_string(),
            cluster: common.cluster.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            state: match phase {
                Phase::Joining => "joining",
                Phase::Serving => "serving",
                Phase::Notice => "notice",
                Phase::Draining => "draining",
            }
            .into(),
            uptime_seconds: shared.started.elapsed().as_secs_f64(),
            problems: self.problems(&members),
            proxy: Some(ProxyStatus {
                group: shared.config.group.to_string(),
                generation: shared.config.generation.0,
                epoch: shared.epoch,
                agents: agents.len(),
                sessions: sessions.len(),
                peers_connected: shared.links.all().len(),
                peers_known: members
                    .iter()
                    .filter(|known| is_active(known.state))
                    .count(),
                streams: shared.node_metrics.streams_open(),
                ingresses: self.ingress_addrs.iter().map(ToString::to_string).collect(),
                store: shared
                    .tunnels
                    .as_ref()
                    .map(|tunnels| tunnels.store_report()),
                tunnels: shared
                    .tunnels
                    .as_ref()
                    .map(|tunnels| tunnels.by_state())
                    .unwrap_or_default(),
            }),
            agent: None,
        }
    }

    fn problems(&self, members: &[Known]) -> Vec<Problem> {
        let shared = &self.shared;
        let name = &shared.config.common.name;
        let mut problems = Vec::new();
        let mut problem = |what: String, remedy: String| problems.push(Problem { what, remedy });
        if let Some(epoch) = *shared.mesh.superseded().borrow() {
            problem(
                format!(
                    "another proxy is in the mesh as {name}, with epoch {epoch} above this one's {}: this one takes no part",
                    shared.epoch
                ),
                "give each its own name, certificate and proxy.state_dir, and restart".into(),
            );
        }
        let connected = shared.links.all().len();
        if connected == 0 && !shared.config.peers.is_empty() {
            let failure = shared.links.failures().into_iter().next();
            let why = failure.map_or_else(String::new, |(at, failure)| {
                format!(" (last, {at}: {})", failure.what)
            });
            problem(
                format!("no peer is connected, and proxy.peers names some{why}"),
                "see that they run, and that UDP reaches them both ways; `node peers` tells more"
                    .into(),
            );
        }
        for known in members {
            let peer = &known.profile.name;
            let failure = shared.links.failure(peer.as_str());
            match known.state {
                MemberState::Down => problem(
                    format!("the proxy {peer} is down"),
                    "start it again, or forget about it: it is dropped after ten minutes".into(),
                ),
                MemberState::Suspect | MemberState::Alive | MemberState::Draining
                    if shared.links.best(peer).is_none() =>
                {
                    let why =
                        failure.map_or_else(String::new, |failure| format!(": {}", failure.what));
                    problem(
                        format!("the proxy {peer} is {} for others, and not connected to this one{why}", state_name(known.state)),
                        "see that UDP passes between the two both ways, and what each advertises (quic.advertise, quic.peer_advertise)".into(),
                    );
                }
                MemberState::Suspect
                | MemberState::Alive
                | MemberState::Draining
                | MemberState::Left
                | MemberState::Other(_) => {}
            }
        }
        if let Some(tunnels) = &shared.tunnels {
            for found in tunnels.problems() {
                problem(found.what, found.remedy);
            }
        }
        for (agent, instances) in self.clones() {
            problem(
                format!("{instances} live processes call themselves agent {agent}"),
                "two machines share one identity, or a former process still runs: issue each its own certificate, or stop one".into(),
            );
        }
        problems
    }

    /// The tunnel resources, where there is a store.
    pub(crate) fn tunnels(&self) -> Option<&Arc<Resources>> {
        self.shared.tunnels.as_ref()
    }

    /// Whether the policy lets a principal do this.
    pub(crate) fn may(&self, principal: &Principal, may: May) -> bool {
        self.shared.policy.may(principal, may)
    }

    /// Agents of this proxy of whose name more than one process has been connected for a while, here
    /// or at peers.
    fn clones(&self) -> BTreeMap<AgentName, usize> {
        let sessions = self.shared.sessions.all();
        let cloned = sessions.iter().filter(|session| session.is_cloned());
        cloned
            .map(|session| {
                (
                    session.agent.clone(),
                    self.shared.instances(&session.agent).len(),
                )
            })
            .filter(|(_, instances)| *instances > 1)
            .collect()
    }

    /// All other proxies, in the order of their names.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        let shared = &self.shared;
        shared
            .mesh
            .members()
            .into_iter()
            .map(|known| {
                let profile = known.profile;
                Peer {
                    connection: shared
                        .links
                        .best(&profile.name)
                        .map(|link| connection(&link)),
                    routes: shared.routing.have(&profile.name).map(|head| head.count),
                    last_error: shared.links.failure(profile.name.as_str()),
                    name: profile.name.to_string(),
                    group: profile.group.to_string(),
                    generation: profile.generation.0,
                    epoch: profile.epoch,
                    state: state_name(known.state).into(),
                    state_seconds: shared.mesh.age(known.since).as_secs_f64(),
                    addresses: if profile.peer_addresses.is_empty() {
                        profile.addresses.clone()
                    } else {
                        profile.peer_addresses.clone()
                    },
                }
            })
            .collect()
    }

    /// Who holds an agent.
    pub(crate) fn route(&self, agent: &AgentName) -> Route {
        let shared = &self.shared;
        let sessions = shared.sessions.live(agent);
        let mut holders = Vec::new();
        if !sessions.is_empty() {
            let instances: BTreeSet<_> = sessions.iter().map(|session| session.instance).collect();
            holders.push(Holder {
                proxy: shared.config.common.name.to_string(),
                here: true,
                reachable: true,
                instances: instances.iter().map(hex).collect(),
                sessions: sessions.iter().map(|session| report(session)).collect(),
            });
        }
        let claims = shared.routes_of(agent).instances(agent);
        let reachable = router::claimants(shared, agent);
        let mut order: Vec<NodeName> = reachable.iter().map(|link| link.name.clone()).collect();
        for (owner, _) in &claims {
            if !order.contains(owner) {
                order.push(owner.clone());
            }
        }
        for owner in order {
            holders.push(Holder {
                here: false,
                reachable: reachable.iter().any(|link| link.name == owner),
                instances: claims
                    .iter()
                    .filter(|(of, _)| *of == owner)
                    .map(|(_, instance)| hex(instance))
                    .collect(),
                sessions: Vec::new(),
                proxy: owner.to_string(),
            });
        }
        Route {
            agent: agent.to_string(),
            holders,
        }
    }
}

fn connection(link: &Link) -> PeerConnection {
    PeerConnection {
        remote: link.connection.remote_address().to_string(),
        age_seconds: link.since.elapsed().as_secs_f64(),
        rtt_seconds: link.connection.rtt().as_secs_f64(),
        streams: link.streams(),
    }
}

fn report(session: &Session) -> SessionReport {
    SessionReport {
        id: session.id,
        remote: session.connection.remote_address().to_string(),
        version: session.version.clone(),
        proxy: session.proxy.as_ref().map(ToString::to_string),
        age_seconds: session.since.elapsed().as_secs_f64(),
        rtt_seconds: session.connection.rtt().as_secs_f64(),
    }
}

fn hex(bytes: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*bytes))
}
