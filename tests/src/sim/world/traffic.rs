//! Services on the hosts of a world, and connections to them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use node::net::{Network as _, Socket};
use node::proxy::Stream;

use super::{NodeId, World};
use crate::Result;
use crate::sim::services::{self, Running, Service, Stats};
use crate::sim::state::HostId;

impl World {
    /// Starts a service on a node's host, on a port that is free when `port` is 0.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve(
        &mut self,
        host: impl Into<HostId>,
        port: u16,
        service: Service,
    ) -> Result<Running> {
        let host = host.into();
        let address = SocketAddr::new(self.net.ip(host), port);
        services::start(&self.net.network(host), address, service, &mut self.tasks)
    }

    /// Starts a service on the loopback address of a host, for it alone.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve_loopback(
        &mut self,
        host: impl Into<HostId>,
        port: u16,
        service: Service,
    ) -> Result<Running> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        services::start(
            &self.net.network(host.into()),
            address,
            service,
            &mut self.tasks,
        )
    }

    /// Starts a service on a Unix socket of a host.
    ///
    /// # Errors
    /// When the path is taken.
    pub fn serve_unix(
        &mut self,
        host: impl Into<HostId>,
        path: &Path,
        service: Service,
    ) -> Result<Arc<Stats>> {
        let network = self.net.network(host.into());
        services::start_unix(&network, path, service, &mut self.tasks)
    }

    /// Connects by TCP from a host.
    ///
    /// # Errors
    /// When the connection is refused, or nobody answers.
    pub async fn connect(
        &self,
        from: impl Into<HostId>,
        to: SocketAddr,
    ) -> Result<Box<dyn Socket>> {
        Ok(self.net.network(from.into()).connect(to).await?)
    }

    /// Dials a target of an agent through a proxy.
    ///
    /// # Errors
    /// The refusal.
    pub async fn dial(&self, proxy: NodeId, agent: NodeId, target: &str) -> Result<Stream> {
        let dialer = self.proxy(proxy)?.dialer(self.name(agent))?;
        Ok(dialer.dial(target).await?)
    }
}
