//! Proxies and agents in this process, on free ports.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use certs::Kind;
use mesh_proto::allow::AllowList;
use node::app::{self, Bound, Parts};
use node::config::{
    AgentConfig, IngressConfig, IngressKind, NodeConfig, ProxyConfig, ServiceConfig,
};
use node::hooks::Hooks;

use crate::Result;
use crate::pki::Pki;
use crate::probe::{self, Metrics};

/// A loopback address with a port that the system chooses.
#[must_use]
pub fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// An `http` ingress on a free loopback port.
#[must_use]
pub fn http_ingress() -> IngressConfig {
    IngressConfig::new(any_port(), IngressKind::Http { upstream_ca: None })
}

/// A `tcp` ingress on a free loopback port, bound to `target` of `agent`.
///
/// # Errors
/// When either is not written as one.
pub fn tcp_ingress(agent: &str, target: &str) -> Result<IngressConfig> {
    let kind = IngressKind::Tcp { agent: agent.parse()?, target: target.parse()? };
    Ok(IngressConfig::new(any_port(), kind))
}

/// A proxy's config for tests: loopback, free ports, a short drain.
///
/// # Errors
/// When the name is none.
pub fn proxy_config(pki: &Pki, name: &str) -> Result<ProxyConfig> {
    let mut config = ProxyConfig::new(pki.issue(Kind::Proxy, name)?, "test".parse()?);
    config.common.quic.listen = any_port();
    config.common.drain_deadline = Duration::from_secs(5);
    config.drain_notice = Duration::ZERO;
    Ok(config)
}

/// An agent's config for tests, which dials `proxies` and allows `allow`.
///
/// # Errors
/// When the name or a rule is none.
pub fn agent_config(
    pki: &Pki,
    name: &str,
    proxies: &[SocketAddr],
    allow: &[String],
) -> Result<AgentConfig> {
    let proxies = proxies.iter().map(ToString::to_string).collect();
    let mut config = AgentConfig::new(pki.issue(Kind::Agent, name)?, proxies);
    config.common.drain_deadline = Duration::from_secs(5);
    config.allow = AllowList(
        allow.iter().map(|rule| rule.parse()).collect::<std::result::Result<_, _>>()?,
    );
    Ok(config)
}

/// A service of an agent.
///
/// # Errors
/// When the name or the address is none.
pub fn service(name: &str, address: SocketAddr) -> Result<ServiceConfig> {
    Ok(ServiceConfig {
        name: name.parse()?,
        address: address.to_string().parse()?,
        protocol: mesh_proto::wire::Protocol::Tcp,
    })
}

/// A running node.
pub struct Node(pub Bound);

impl Node {
    /// Starts a proxy.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn proxy(config: ProxyConfig) -> Result<Self> {
        Self::proxy_with(config, Hooks::default()).await
    }

    /// Starts a proxy with hooks.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn proxy_with(config: ProxyConfig, hooks: Hooks) -> Result<Self> {
        let parts = Parts { hooks, ..Parts::current() };
        Ok(Self(app::build_with(NodeConfig::Proxy(Box::new(config)), parts).await?))
    }

    /// Starts an agent, which connects in the background.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn agent(config: AgentConfig) -> Result<Self> {
        Self::agent_with(config, Hooks::default()).await
    }

    /// Starts an agent with hooks.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn agent_with(config: AgentConfig, hooks: Hooks) -> Result<Self> {
        let parts = Parts { hooks, ..Parts::current() };
        Ok(Self(app::build_with(NodeConfig::Agent(Box::new(config)), parts).await?))
    }

    /// The proxy in it.
    ///
    /// # Errors
    /// When it is an agent.
    pub fn as_proxy(&self) -> Result<&node::Proxy> {
        self.0.proxy().context("not a proxy")
    }

    /// The address that agents and users of this proxy dial by QUIC.
    ///
    /// # Errors
    /// When it is an agent.
    pub fn quic_addr(&self) -> Result<SocketAddr> {
        Ok(self.as_proxy()?.quic_addr())
    }

    /// The address of this proxy's ingress number `index`.
    ///
    /// # Errors
    /// When there is none.
    pub fn ingress(&self, index: usize) -> Result<SocketAddr> {
        self.as_proxy()?.ingress_addrs().get(index).copied().context("no such ingress")
    }

    /// What it measures, now.
    ///
    /// # Errors
    /// When the metrics cannot be read.
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::gather(self.0.registry())
    }

    /// Waits until this proxy has `count` sessions of agents.
    ///
    /// # Errors
    /// When it takes too long.
    pub async fn sessions(&self, count: usize) -> Result {
        let proxy = self.as_proxy()?;
        probe::until(&format!("{count} sessions at {}", proxy.name()), || {
            proxy.sessions().len() == count
        })
        .await
    }

    /// Leaves in order.
    pub async fn stop(self) -> u64 {
        self.0.shutdown().await
    }
}

/// One proxy and one agent `a1` of the cluster `test.example.com`, connected.
pub struct Pair {
    /// Whose identities they have.
    pub pki: Arc<Pki>,
    /// The proxy `proxy-1`.
    pub proxy: Node,
    /// The agent `a1`.
    pub agent: Node,
}

impl Pair {
    /// Starts both; the agent may reach `allow`. The closures may change the configs.
    ///
    /// # Errors
    /// When one cannot start or they do not connect.
    pub async fn start_with(
        allow: &[String],
        proxy: impl FnOnce(&mut ProxyConfig),
        agent: impl FnOnce(&mut AgentConfig),
    ) -> Result<Self> {
        let pki = Arc::new(Pki::new("test.example.com")?);
        let mut proxy_config = proxy_config(&pki, "proxy-1")?;
        proxy(&mut proxy_config);
        let proxy = Node::proxy(proxy_config).await?;
        let mut agent_config = agent_config(&pki, "a1", &[proxy.quic_addr()?], allow)?;
        agent(&mut agent_config);
        let agent = Node::agent(agent_config).await?;
        proxy.sessions(1).await?;
        Ok(Self { pki, proxy, agent })
    }

    /// Starts both with the ingresses given.
    ///
    /// # Errors
    /// When one cannot start or they do not connect.
    pub async fn start(allow: &[String], ingresses: Vec<IngressConfig>) -> Result<Self> {
        Self::start_with(allow, |config| config.ingresses = ingresses, |_| {}).await
    }

    /// Stops both, the agent first.
    pub async fn stop(self) {
        self.agent.stop().await;
        self.proxy.stop().await;
    }
}
