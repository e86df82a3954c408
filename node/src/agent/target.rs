//! From a dial request to a connected socket: what is asked, is it allowed, where is it.
//!
//! A name is resolved once, each of its addresses is checked, and only checked addresses are
//! dialled: a resolver that answers differently the second time cannot lead elsewhere.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use mesh_proto::refusal::Reason;
use mesh_proto::target::{HostName, Target, UnixPath};
use mesh_proto::wire::{Dial, Refused};
use tokio::time::Instant;

use super::Shared;
use crate::hooks::DialInfo;
use crate::net::Socket;

/// The longest that a dial may take here, whatever deadline it brought.
const DEADLINE_MAX: Duration = Duration::from_secs(300);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

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
    tokio::time::timeout_at(until, connect_target(shared, &dial.target, until))
        .await
        .unwrap_or_else(|_| {
            let message = format!(
                "{} did not answer the agent within {deadline:?}",
                dial.target
            );
            Err(Refused::new(Reason::Timeout, &message))
        })
}

async fn connect_target(
    shared: &Shared,
    target: &Target,
    until: Instant,
) -> Result<Box<dyn Socket>, Refused> {
    match target {
        Target::Address(address) => connect_address(shared, target, *address).await,
        Target::Host { host, port } => connect_host(shared, target, host, *port, until).await,
        Target::Unix(path) => connect_unix(shared, target, path).await,
        Target::Service(name) => {
            let service = shared
                .config
                .services
                .iter()
                .find(|service| service.name == *name);
            let Some(service) = service else {
                let message = format!(
                    "the agent {} has no service `{name}`; add a [[service]] to its config",
                    shared.config.common.name
                );
                return Err(Refused::new(Reason::BadTarget, &message));
            };
            match &service.address {
                Target::Address(address) => {
                    connect_address(shared, &service.address, *address).await
                }
                Target::Host { host, port } => {
                    connect_host(shared, &service.address, host, *port, until).await
                }
                Target::Unix(path) => connect_unix(shared, &service.address, path).await,
                Target::Service(_) => Err(Refused::new(
                    Reason::BadTarget,
                    "a service's address must not be a service again",
                )),
            }
        }
    }
}

fn not_allowed(shared: &Shared, target: &Target, what: &str) -> Refused {
    let message = format!(
        "the agent {} does not allow {target}{what}; add a rule that covers it to agent.allow in its config",
        shared.config.common.name
    );
    Refused::new(Reason::NotAllowed, &message)
}

async fn connect_address(
    shared: &Shared,
    target: &Target,
    address: SocketAddr,
) -> Result<Box<dyn Socket>, Refused> {
    if !shared.config.allow.permits_address(address) {
        return Err(not_allowed(shared, target, ""));
    }
    shared
        .network
        .connect(address)
        .await
        .map_err(|error| failed(target, address, &error))
}

async fn connect_host(
    shared: &Shared,
    target: &Target,
    host: &HostName,
    port: u16,
    until: Instant,
) -> Result<Box<dyn Socket>, Refused> {
    let resolved = shared.network.resolve(host.as_str(), port).await;
    let resolved = match resolved {
        Ok(addresses) if !addresses.is_empty() => addresses,
        Ok(_) => return Err(unresolved(shared, host, "it has no address")),
        Err(error) => return Err(unresolved(shared, host, &error.to_string())),
    };
    let allowed: Vec<SocketAddr> = resolved
        .iter()
        .copied()
        .filter(|address| shared.config.allow.permits_name_address(host, *address))
        .take(ADDRESSES_MAX)
        .collect();
    let mut refused = None;
    for (index, address) in allowed.iter().enumerate() {
        // Each address gets its share of what is left, so that one that swallows packets does
        // not use up the others' time.
        let left = until.saturating_duration_since(Instant::now());
        let shares = u32::try_from(allowed.len() - index).unwrap_or(u32::MAX);
        match tokio::time::timeout(left / shares, shared.network.connect(*address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => refused = Some(failed(target, *address, &error)),
            Err(_) => {
                let message = format!("{target} ({address}) did not answer the agent in time");
                refused = Some(Refused::new(Reason::Timeout, &message));
            }
        }
    }
    Err(refused.unwrap_or_else(|| {
        let addresses: Vec<_> = resolved
            .iter()
            .map(|address| address.ip().to_string())
            .collect();
        not_allowed(
            shared,
            target,
            &format!(" (which is {})", addresses.join(", ")),
        )
    }))
}

fn unresolved(shared: &Shared, host: &HostName, why: &str) -> Refused {
    let message = format!(
        "the agent {} cannot resolve {host} ({why}); the name is looked up on the agent's host",
        shared.config.common.name
    );
    Refused::new(Reason::ResolveFailed, &message)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of errors of the system have no end"
)]
async fn connect_unix(
    shared: &Shared,
    target: &Target,
    path: &UnixPath,
) -> Result<Box<dyn Socket>, Refused> {
    if !shared.config.allow.permits_unix(path) {
        return Err(not_allowed(shared, target, ""));
    }
    shared
        .network
        .connect_unix(Path::new(path.as_str()))
        .await
        .map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::PermissionDenied => {
                    Reason::Refused
                }
                _ => Reason::Unreachable,
            };
            Refused::new(reason, &format!("{target}: {error}"))
        })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kinds of errors of the system have no end"
)]
fn failed(target: &Target, address: SocketAddr, error: &io::Error) -> Refused {
    let place = if matches!(target, Target::Address(_)) {
        target.to_string()
    } else {
        format!("{target} ({address})")
    };
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Refused::new(
            Reason::Refused,
            &format!(
                "{place} refused the agent's connection; does the service run, and on that port?"
            ),
        ),
        io::ErrorKind::TimedOut => Refused::new(
            Reason::Timeout,
            &format!("{place} did not answer the agent"),
        ),
        _ => Refused::new(
            Reason::Unreachable,
            &format!("the agent cannot reach {place}: {error}"),
        ),
    }
}
