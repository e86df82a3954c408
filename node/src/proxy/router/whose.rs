//! What the name of an agent in a dial stands for, and whether the dial may go there at all.

use mesh_proto::grant::Whose;
use mesh_proto::name::{AgentName, AgentRef, Cluster, NodeName};
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;

use super::super::Shared;
use super::{DialRequest, Refusal};
use crate::hooks::DialInfo;
use crate::trust::Trust;

/// Where a dial is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::proxy) enum Place {
    /// To an agent of this cluster.
    Agent(NodeName),
    /// To another cluster: its proxies, or agents behind them.
    Cluster(Cluster),
    /// To a target that this proxy reaches itself.
    Here,
}

impl Place {
    /// Who has to be connected for that.
    pub(in crate::proxy) fn name(&self) -> Option<AgentName> {
        match self {
            Self::Agent(name) => Some(name.into()),
            Self::Cluster(cluster) => Some(cluster.into()),
            Self::Here => None,
        }
    }

    /// One spelling for `a1` and `a1.<own cluster>`.
    pub(in crate::proxy) fn canonical(&self, written: AgentRef) -> AgentRef {
        match self {
            Self::Agent(name) => name.clone().into(),
            Self::Cluster(_) | Self::Here => written,
        }
    }
}

/// Understands a name. Where it could be that of an agent of this cluster and of a cluster that is
/// trusted, it is the cluster's: the agent has a shorter one.
pub(in crate::proxy) fn place(own: &Cluster, trust: &Trust, agent: &AgentRef) -> Option<Place> {
    if agent.is_cluster(own) {
        return Some(Place::Here);
    }
    let cluster = agent.cluster_in(|cluster| trust.knows(cluster));
    match (cluster, agent.local_name(own)) {
        (Some(cluster), Some(_)) if agent.is_cluster(&cluster) => Some(Place::Cluster(cluster)),
        (_, Some(name)) => Some(Place::Agent(name)),
        (Some(cluster), None) => Some(Place::Cluster(cluster)),
        (None, None) => None,
    }
}

/// Where a dial goes, if its principal may have that.
pub(super) fn admitted(shared: &Shared, request: &DialRequest) -> Result<Place, Refusal> {
    let own = &shared.config.common.cluster;
    let not_allowed = |why: String| Refusal::new(Reason::NotAllowed, why);
    let place = place(own, &shared.trust, &request.agent);
    if let Principal::Cluster(cluster) = &request.principal {
        if !shared.trust.knows(cluster) {
            let why = format!("the cluster {cluster} is not trusted by this one, {own}");
            return Err(not_allowed(why));
        }
        // Whether there is another cluster behind this one is none of its business either.
        if !matches!(place, Some(Place::Agent(_) | Place::Here)) {
            let why = format!(
                "`{}` is not of the cluster {own}, and that one passes nothing on from {cluster} to a third",
                request.agent
            );
            return Err(not_allowed(why));
        }
    }
    let Some(place) = place else {
        let message = format!(
            "`{}` is neither an agent of the cluster {own} nor of one that is connected to it",
            request.agent
        );
        return Err(Refusal::new(Reason::NoAgent, message));
    };
    let whose = match &place {
        Place::Agent(name) => Whose::Agent(name),
        Place::Cluster(_) | Place::Here => Whose::Cluster(&request.agent),
    };
    // What another cluster may reach through this proxy itself, is in `[[trust]]` alone.
    let by_trust = matches!(
        (&place, &request.principal),
        (Place::Here, Principal::Cluster(_))
    );
    if !by_trust {
        shared
            .policy
            .may_dial_of(&request.principal, whose, &request.agent, &request.target)
            .map_err(|denied| not_allowed(denied.why))?;
    }
    Ok(place)
}

/// What the hooks are asked.
pub(super) fn info(request: &DialRequest) -> DialInfo {
    DialInfo {
        agent: request.agent.clone(),
        target: request.target.clone(),
        principal: request.principal.clone(),
    }
}
