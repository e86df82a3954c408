//! From a dial request to a connected socket: what is asked, of whom, and may it be.

use std::time::Duration;

use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Dial, Refused};
use tokio::time::Instant;

use super::Shared;
use crate::hooks::DialInfo;
use crate::net::Socket;
use crate::targets::Targets;

/// The longest that a dial may take here, whatever deadline it brought.
const DEADLINE_MAX: Duration = Duration::from_secs(300);

/// Connects to what `dial` asks for, within its deadline.
pub(super) async fn connect(shared: &Shared, dial: &Dial) -> Result<Box<dyn Socket>, Refused> {
    let deadline = Duration::from_millis(dial.deadline_ms).min(DEADLINE_MAX);
    let until = Instant::now() + deadline;
    let common = &shared.config.common;
    if dial.agent.local_name(&common.cluster).as_ref() != Some(&common.name) {
        let message = format!("this is the agent {}, not {}", common.name, dial.agent);
        return Err(Refused::new(Reason::NoAgent, &message));
    }
    if shared.leaving.borrow().is_some() {
        return Err(Refused::new(
            Reason::Draining,
            "the agent is about to leave",
        ));
    }
    let info = DialInfo {
        agent: dial.agent.clone(),
        target: dial.target.clone(),
        principal: dial.principal.clone(),
    };
    if let Err(why) = shared.hooks.authorize(&info).await {
        return Err(Refused::new(Reason::NotAllowed, &why));
    }
    let called = format!("the agent {}", common.name);
    let targets = Targets {
        network: &*shared.network,
        allow: &shared.config.allow,
        services: &shared.config.services,
        called: &called,
        list: "agent.allow in its config",
        tells: true,
    };
    tokio::time::timeout_at(until, targets.connect(&dial.target, until))
        .await
        .unwrap_or_else(|_| {
            let message = format!(
                "{} did not answer the agent within {deadline:?}",
                dial.target
            );
            Err(Refused::new(Reason::Timeout, &message))
        })
}
