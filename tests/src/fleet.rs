//! Proxies and agents in this process, on free ports.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
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
use crate::services::{self, Service};

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
    let kind = IngressKind::Tcp {
        agent: agent.parse()?,
        target: target.parse()?,
    };
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
        allow
            .iter()
            .map(|rule| rule.parse())
            .collect::<std::result::Result<_, _>>()?,
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
        Self::start(
            NodeConfig::Proxy(Box::new(config)),
            Parts {
                hooks,
                ..Parts::current()
            },
        )
        .await
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
        Self::start(
            NodeConfig::Agent(Box::new(config)),
            Parts {
                hooks,
                ..Parts::current()
            },
        )
        .await
    }

    /// Starts a node with its own runtimes, network and hooks.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn start(config: NodeConfig, parts: Parts) -> Result<Self> {
        Ok(Self(app::build_with(config, parts).await?))
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
        self.as_proxy()?
            .ingress_addrs()
            .get(index)
            .copied()
            .context("no such ingress")
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
        Self::start_in(allow, proxy, agent, Parts::current(), Parts::current()).await
    }

    /// Starts both, each with its own parts.
    ///
    /// # Errors
    /// When one cannot start or they do not connect.
    pub async fn start_in(
        allow: &[String],
        proxy: impl FnOnce(&mut ProxyConfig),
        agent: impl FnOnce(&mut AgentConfig),
        proxy_parts: Parts,
        agent_parts: Parts,
    ) -> Result<Self> {
        let pki = Arc::new(Pki::new("test.example.com")?);
        let mut config = proxy_config(&pki, "proxy-1")?;
        proxy(&mut config);
        let proxy = Node::start(NodeConfig::Proxy(Box::new(config)), proxy_parts).await?;
        let mut config = agent_config(&pki, "a1", &[proxy.quic_addr()?], allow)?;
        agent(&mut config);
        let agent = Node::start(NodeConfig::Agent(Box::new(config)), agent_parts).await?;
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

/// A pair whose agent serves an echo through a `tcp` ingress: it must go on undisturbed beside
/// whatever a test does to its proxy or its agent.
pub struct Bystander {
    /// The pair; the echo's ingress is the proxy's first.
    pub pair: Pair,
    /// The target of `a1`.
    pub echo: Service,
}

impl Bystander {
    /// Starts it with the defaults of [`Pair`].
    ///
    /// # Errors
    /// When it does not work from the start.
    pub async fn start() -> Result<Self> {
        Self::start_with(|_| {}, |_| {}).await
    }

    /// Starts it. The closures may change the configs.
    ///
    /// # Errors
    /// When it does not work from the start.
    pub async fn start_with(
        proxy: impl FnOnce(&mut ProxyConfig),
        agent: impl FnOnce(&mut AgentConfig),
    ) -> Result<Self> {
        let echo = Service::echo().await?;
        let ingress = tcp_ingress("a1", &echo.rule())?;
        let proxy = |config: &mut ProxyConfig| {
            config.ingresses.insert(0, ingress);
            proxy(config);
        };
        let pair = Pair::start_with(&[echo.rule()], proxy, agent).await?;
        let bystander = Self { pair, echo };
        bystander.check().await?;
        Ok(bystander)
    }

    /// The proxy's address for agents and users with a certificate.
    ///
    /// # Errors
    /// Never, but for a defect of the harness.
    pub fn quic_addr(&self) -> Result<SocketAddr> {
        self.pair.proxy.quic_addr()
    }

    /// Makes a request, and sees that the agent is still on its first connection.
    ///
    /// # Errors
    /// When either is not so.
    pub async fn check(&self) -> Result {
        services::echoes(self.pair.proxy.ingress(0)?, b"undisturbed")
            .await
            .context("a request of the bystander")?;
        let connects = self
            .pair
            .agent
            .metrics()?
            .get("mesh_agent_connects_total{result=\"ok\"}")?;
        ensure!(
            connects.to_bits() == 1f64.to_bits(),
            "the agent has connected {connects} times"
        );
        Ok(())
    }

    /// Stops both nodes.
    pub async fn stop(self) {
        self.pair.stop().await;
    }
}
