//! Who may dial what through this proxy, and agents who dial.

use std::sync::Arc;

use mesh_proto::grant::{May, Policy};
use mesh_proto::name::NodeName;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Open, Refused};
use quinn::{RecvStream, SendStream};

use super::Shared;
use super::inbound::Inbound;
use super::router::Reach;
use crate::config::QuicConfig;
use crate::hooks::DialInfo;
use crate::quic::transport::STREAMS_BEFORE_HELLO;

/// Streams that an agent who may dial can have open to this proxy, the control stream among them,
/// unless `quic.streams_max` is less. quinn sets aside 116 bytes for each, used or not: 30 KiB a
/// connection.
const DIALLING_STREAMS_MAX: u32 = 256;

/// What the policy says of a dial.
///
/// # Errors
/// Its refusal, for whoever asked: why, and the grant to add.
pub(super) fn check(policy: &Policy, dial: &DialInfo) -> Result<(), String> {
    policy
        .may_dial(&dial.principal, &dial.agent, &dial.target)
        .map_err(|denied| denied.why)
}

/// Streams that this agent may open: of an agent whom no grant lets dial, so many that it hears why
/// not, and no more than a connection costs anyway.
pub(super) fn agent_streams(policy: &Policy, quic: &QuicConfig, agent: NodeName) -> u32 {
    let streams = if policy.may(&Principal::Agent(agent), May::Dial) {
        DIALLING_STREAMS_MAX
    } else {
        STREAMS_BEFORE_HELLO
    };
    streams.min(quic.streams_max)
}

/// Serves a stream that an agent has opened beside its control stream, until it ends or the proxy
/// cuts what still runs.
pub(super) async fn serve_agent(
    shared: Arc<Shared>,
    agent: NodeName,
    send: SendStream,
    recv: RecvStream,
) {
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
            Open::Control(_) | Open::Routes(_) | Open::Find(_) | Open::Admin(_) => {
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
        let streams =
            |quic: &QuicConfig, agent: &str| agent_streams(&policy(), quic, agent.parse().unwrap());
        assert_eq!(streams(&quic, "db-1"), DIALLING_STREAMS_MAX);
        assert_eq!(streams(&quic, "web"), STREAMS_BEFORE_HELLO);
        quic.streams_max = 5;
        assert_eq!(streams(&quic, "db-1"), 5);
        assert_eq!(streams(&quic, "web"), 5);
    }

    #[test]
    fn a_refusal_names_the_grant() {
        let dial = |principal: &str| DialInfo {
            agent: "a1".parse().unwrap(),
            target: "service:db".parse().unwrap(),
            principal: principal.parse().unwrap(),
        };
        assert_eq!(check(&policy(), &dial("agent:db-1")), Ok(()));
        let why = check(&policy(), &dial("agent:web")).unwrap_err();
        let grant = "[[grant]] who = [\"agent:web\"], may = [\"dial\"], agents = [\"a1\"], targets = [\"service:db\"]";
        assert!(why.ends_with(grant), "{why}");
    }
}
