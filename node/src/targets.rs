//! From a target to a connected socket: is it allowed, where is it.
//!
//! A name is resolved once, each of its addresses is checked, and only checked addresses are
//! dialled: a resolver that answers differently the second time cannot lead elsewhere.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use mesh_proto::allow::AllowList;
use mesh_proto::refusal::Reason;
use mesh_proto::target::{HostName, Target, UnixPath};
use mesh_proto::wire::Refused;
use tokio::time::Instant;

use crate::config::ServiceConfig;
use crate::net::{Network, Socket};

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// Whoever connects to targets, and what he may reach.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Targets<'a> {
    pub(crate) network: &'a dyn Network,
    pub(crate) allow: &'a AllowList,
    pub(crate) services: &'a [ServiceConfig],
    /// What he is called in what users read: "the agent a1".
    pub(crate) called: &'a str,
    /// Which list says what is allowed.
    pub(crate) list: &'a str,
    /// Whether the other side may hear what names that are not allowed resolve to, or that they do
    /// not: a stranger must not read a resolver through a list that keeps him out.
    pub(crate) tells: bool,
}

impl Targets<'_> {
    /// Connects to a target, before `until`; the caller bounds the whole.
    ///
    /// # Errors
    /// The refusal, for whoever asked.
    pub(crate) async fn connect(
        &self,
        target: &Target,
        until: Instant,
    ) -> Result<Box<dyn Socket>, Refused> {
        match target {
            Target::Address(address) => self.connect_address(target, *address).await,
            Target::Host { host, port } => self.connect_host(target, host, *port, until).await,
            Target::Unix(path) => self.connect_unix(target, path).await,
            Target::Service(name) => {
                let service = self.services.iter().find(|service| service.name == *name);
                let Some(service) = service else {
                    let message = format!(
                        "{} has no service `{name}`; an agent has those of the [[service]] sections in its config",
                        self.called
                    );
                    return Err(Refused::new(Reason::BadTarget, &message));
                };
                match &service.address {
                    Target::Address(address) => {
                        self.connect_address(&service.address, *address).await
                    }
                    Target::Host { host, port } => {
                        self.connect_host(&service.address, host, *port, until)
                            .await
                    }
                    Target::Unix(path) => self.connect_unix(&service.address, path).await,
                    Target::Service(_) => Err(Refused::new(
                        Reason::BadTarget,
                        "a service's address must not be a service again",
                    )),
                }
            }
        }
    }

    fn not_allowed(&self, target: &Target, what: &str) -> Refused {
        let message = format!(
            "{} does not allow {target}{what}; add a rule that covers it to {}",
            self.called, self.list
        );
        Refused::new(Reason::NotAllowed, &message)
    }

    async fn connect_address(
        &self,
        target: &Target,
        address: SocketAddr,
    ) -> Result<Box<dyn Socket>, Refused> {
        if !self.allow.permits_address(address) {
            return Err(self.not_allowed(target, ""));
        }
        self.network
            .connect(address)
            .await
            .map_err(|error| self.failed(target, address, &error))
    }

    async fn connect_host(
        &self,
        target: &Target,
        host: &HostName,
        port: u16,
        until: Instant,
    ) -> Result<Box<dyn Socket>, Refused> {
        let tells = self.tells || self.allow.permits_name(host, port);
        let resolved = self.network.resolve(host.as_str(), port).await;
        let resolved = match resolved {
            Ok(addresses) if !addresses.is_empty() => addresses,
            _ if !tells => return Err(self.not_allowed(target, "")),
            Ok(_) => return Err(self.unresolved(host, "it has no address")),
            Err(error) => return Err(self.unresolved(host, &error.to_string())),
        };
        let allowed: Vec<SocketAddr> = resolved
            .iter()
            .copied()
            .filter(|address| self.allow.permits_name_address(host, *address))
            .take(ADDRESSES_MAX)
            .collect();
        let mut refused = None;
        for (index, address) in allowed.iter().enumerate() {
            // Each address gets its share of what is left, so that one that swallows packets does
            // not use up the others' time.
            let left = until.saturating_duration_since(Instant::now());
            let shares = u32::try_from(allowed.len() - index).unwrap_or(u32::MAX);
            match tokio::time::timeout(left / shares, self.network.connect(*address)).await {
                Ok(Ok(socket)) => return Ok(socket),
                Ok(Err(error)) => refused = Some(self.failed(target, *address, &error)),
                Err(_) => {
                    let message =
                        format!("{target} ({address}) did not answer {} in time", self.who());
                    refused = Some(Refused::new(Reason::Timeout, &message));
                }
            }
        }
        Err(refused.unwrap_or_else(|| {
            let addresses: Vec<_> = resolved
                .iter()
                .map(|address| address.ip().to_string())
                .collect();
            let what = if self.tells {
                format!(" (which is {})", addresses.join(", "))
            } else {
                String::new()
            };
            self.not_allowed(target, &what)
        }))
    }

    fn unresolved(&self, host: &HostName, why: &str) -> Refused {
        let message = format!(
            "{} cannot resolve {host} ({why}); the name is looked up on {}'s host",
            self.called,
            self.who()
        );
        Refused::new(Reason::ResolveFailed, &message)
    }

    /// "the agent" of "the agent a1".
    fn who(&self) -> &str {
        self.called
            .rsplit_once(' ')
            .map_or(self.called, |(who, _)| who)
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the kinds of errors of the system have no end"
    )]
    async fn connect_unix(
        &self,
        target: &Target,
        path: &UnixPath,
    ) -> Result<Box<dyn Socket>, Refused> {
        if !self.allow.permits_unix(path) {
            return Err(self.not_allowed(target, ""));
        }
        self.network
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
    fn failed(&self, target: &Target, address: SocketAddr, error: &io::Error) -> Refused {
        let place = if matches!(target, Target::Address(_)) {
            target.to_string()
        } else {
            format!("{target} ({address})")
        };
        let who = self.who();
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Refused::new(
                Reason::Refused,
                &format!(
                    "{place} refused {who}'s connection; does the service run, and on that port?"
                ),
            ),
            io::ErrorKind::TimedOut => {
                Refused::new(Reason::Timeout, &format!("{place} did not answer {who}"))
            }
            _ => Refused::new(
                Reason::Unreachable,
                &format!("{who} cannot reach {place}: {error}"),
            ),
        }
    }
}
