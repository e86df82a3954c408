//! Who may dial what through this proxy, and agents who dial.

use std::sync::Arc;

use mesh_proto::grant::{May, Policy};
use mesh_proto::name::{AgentName, NodeName};
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Open, Refused};
use quinn::{RecvStream, SendStream};

use super::Shared;
use super::inbound::Inbound;
use super::router::Reach;
use crate::config::QuicConfig;
use crate::quic::transport::STREAMS_BEFORE_HELLO;

/// Streams that an agent who may dial can have open to this proxy, the control stream among them,
/// unless `quic.streams_max` is less. quinn sets aside 116 bytes for each, used or not: 30 KiB a
/// connection.
const DIALLING_STREAMS_MAX: u32 = 256;

/// Streams that this agent may open: of an agent whom no grant lets dial, so many that it hears why
/// not, and no more than a connection costs anyway.
pub(super) fn agent_streams(policy: &Policy, quic: &QuicConfig, agent: &AgentName) -> u32 {
    let may = |agent| policy.may(&Principal::Agent(agent), May::Dial);
    let streams = if agent.node().is_some_and(may) {
        DIALLING_STREAMS_MAX
    } else {
        STREAMS_BEFORE_HELLO
    };
    streams.min(quic.streams_max)
}

/// Serves a stream that an agent, or a proxy of another cluster, has opened beside its control stream,
/// until it ends or the proxy cuts what still runs.
pub(super) async fn serve(
    shared: Arc<Shared>,
    agent: AgentName,
    send: SendStream,
    recv: RecvStream,
) {
    match agent.node() {
        Some(agent) => serve_agent(shared, agent, send, recv).await,
        None => refuse_cluster(shared, &agent, send, recv).await,
    }
}

/// A connection of another cluster is for dials into that cluster, and for nothing else.
async fn refuse_cluster(
    shared: Arc<Shared>,
    cluster: &AgentName,
    send: SendStream,
    recv: RecvStream,
) {
    let inbound = Inbound::new(&shared, format!("cluster:{cluster}"), send, recv);
    let refused = async {
        let Some((inbound, _)) = inbound.open(&shared).await else {
            return;
        };
        let what = format!(
            "over this connection, {} dials into {cluster}; the other way needs a tunnel the other way",
            shared.config.common.cluster
        );
        inbound
            .refuse(Refused::new(Reason::NotAllowed, &what))
            .await;
    };
    shared.cut.run_until_cancelled(refused).await;
}

async fn serve_agent(shared: Arc<Shared>, agent: NodeName, send: SendStream, recv: RecvStream) {
    // Who it is, is in the certificate; what the frame claims is of no interest.
    let principal = Principal::Agent(agent);
    let inbound = Inbound::new(&shared, principal.to_string(), send, recv);
    let served = async {
        let Some((inbound, open)) = inbound.open(&shared).await else {
            return;
        };
        match open {
            Open::Dial(dial) => {
                inbound.dial(&shared, dial, principal, Reach::Mesh).await;
            }
            Open::Control(_)
            | Open::Routes(_)
            | Open::Find(_)
            | Open::ClusterRoutes(_)
            | Open::Admin(_) => {
                let what = "beside its one control stream, an agent may dial, and nothing else";
                inbound
                    .refuse(Refused::new(Reason::Unsupported, what))
                    .await;
            }
        }
    };
    shared.cut.run_until_cancelled(served).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use mesh_proto::grant::Grant;

    use super::*;

    fn policy() -> Policy {
        let grant = Grant {
            who: vec!["agent:db-*".parse().unwrap()],
            may: [May::Dial].into(),
            agents: None,
            targets: None,
        };
        Policy::new("example.com".parse().unwrap(), vec![grant])
    }

    #[test]
    fn agents_who_may_dial_get_more_streams() {
        let mut quic = QuicConfig::default();
        let streams = |quic: &QuicConfig, agent: &str| {
            agent_streams(&policy(), quic, &agent.parse().unwrap())
        };
        assert_eq!(streams(&quic, "db-1"), DIALLING_STREAMS_MAX);
        assert_eq!(streams(&quic, "web"), STREAMS_BEFORE_HELLO);
        assert_eq!(streams(&quic, "db-1.example.com"), STREAMS_BEFORE_HELLO);
        quic.streams_max = 5;
        assert_eq!(streams(&quic, "db-1"), 5);
        assert_eq!(streams(&quic, "web"), 5);
    }
}
