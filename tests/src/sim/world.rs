//! The world of a scenario: a network, and the nodes on it.

mod traffic;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use certs::Kind;
use mesh_proto::allow::AllowList;
use node::app::{self, Bound, Parts, Runtimes};
use node::clock::WallClock;
use node::config::{AgentConfig, NodeConfig, ProxyConfig};
use node::hooks::Hooks;
use node::random::Random;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::balancer::mix;
use super::clock::Clock;
use super::network::SimNet;
use super::state::{HostId, NatId};
use crate::Result;
use crate::pki::Pki;
use crate::probe::Metrics;

/// The cluster of every simulated fleet.
const CLUSTER: &str = "sim.example.com";

/// The UDP port of simulated proxies.
const QUIC_PORT: u16 = 7443;

/// How long a condition may take to come true, in virtual time.
const PATIENCE: Duration = Duration::from_secs(600);

/// Interval of the looks at a condition, in virtual time.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The largest UDP payload that simulated nodes try: what the default link takes.
const MTU: u16 = 1472;

/// Streams that a simulated agent takes per connection: quinn allocates for each of them, and the
/// default of 4,096 costs 400 KiB for every connection of a fleet.
const AGENT_STREAMS: u32 = 64;

/// A node of the world; it stands for its host, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    index: usize,
    host: HostId,
}

impl From<NodeId> for HostId {
    fn from(node: NodeId) -> Self {
        node.host
    }
}

impl From<&NodeId> for HostId {
    fn from(node: &NodeId) -> Self {
        node.host
    }
}

struct Node {
    name: String,
    config: NodeConfig,
    hooks: Hooks,
    clock: Arc<Clock>,
    starts: u64,
    bound: Option<Bound>,
}

/// A proxy that is about to start.
#[derive(Debug)]
pub struct ProxyPlan {
    /// Its config, with a state directory of its own.
    pub config: ProxyConfig,
    /// The test's say.
    pub hooks: Hooks,
}

/// An agent that is about to start.
#[derive(Debug)]
pub struct AgentPlan {
    /// Its config; it dials every proxy of the world.
    pub config: AgentConfig,
    /// The test's say.
    pub hooks: Hooks,
    /// The NAT that it is behind.
    pub behind: Option<NatId>,
}

impl AgentPlan {
    /// Adds rules to what it allows.
    ///
    /// # Errors
    /// When one is none.
    pub fn allow(&mut self, rules: &[String]) -> Result {
        let AllowList(allowed) = &mut self.config.allow;
        for rule in rules {
            allowed.push(rule.parse()?);
        }
        Ok(())
    }
}

/// A network, and the nodes on it.
pub struct World {
    net: SimNet,
    seed: u64,
    started: Instant,
    pki: Pki,
    dir: TempDir,
    nodes: Vec<Node>,
    proxies: Vec<NodeId>,
    agents: usize,
    /// The network's driver and the services.
    tasks: JoinSet<()>,
}

impl World {
    /// An empty world.
    ///
    /// # Errors
    /// When there is no room for state directories.
    pub fn new(seed: u64) -> Result<Self> {
        let net = SimNet::empty(seed);
        let mut tasks = JoinSet::new();
        tasks.spawn(net.drive());
        Ok(Self {
            net,
            seed,
            started: Instant::now(),
            pki: Pki::new(CLUSTER)?,
            dir: tempfile::Builder::new().prefix("mesh-sim-").tempdir()?,
            nodes: Vec::new(),
            proxies: Vec::new(),
            agents: 0,
            tasks,
        })
    }

    /// The network.
    #[must_use]
    pub fn net(&self) -> &SimNet {
        &self.net
    }

    /// The seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The name of the fleet's cluster.
    #[must_use]
    pub fn cluster(&self) -> &'static str {
        CLUSTER
    }

    /// The authority of the fleet.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Virtual time since the world began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Lets virtual time pass.
    pub async fn run_for(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Lets virtual time pass until `condition` holds.
    ///
    /// # Errors
    /// When it does not within ten virtual minutes.
    pub async fn until(&self, what: &str, condition: impl FnMut(&Self) -> bool) -> Result {
        self.within(PATIENCE, what, condition).await.map(drop)
    }

    /// Lets virtual time pass until `condition` holds; returns how long it took.
    ///
    /// # Errors
    /// When it does not within `bound`.
    pub async fn within(
        &self,
        bound: Duration,
        what: &str,
        mut condition: impl FnMut(&Self) -> bool,
    ) -> Result<Duration> {
        let started = Instant::now();
        while !condition(self) {
            if started.elapsed() >= bound {
                bail!("waited {bound:?} of virtual time for: {what}");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(started.elapsed())
    }

    // ---- nodes

    /// Starts `count` proxies on hosts of their own: `proxy-1` and so on.
    ///
    /// # Errors
    /// When one cannot start.
    pub async fn start_proxies(&mut self, count: usize) -> Result<Vec<NodeId>> {
        self.start_proxies_with(count, |_, _| Ok(())).await
    }

    /// As [`World::start_proxies`]; `change` sees each before it starts, with its index.
    ///
    /// # Errors
    /// When one cannot start, or `change` fails.
    pub async fn start_proxies_with(
        &mut self,
        count: usize,
        mut change: impl FnMut(usize, &mut ProxyPlan) -> Result,
    ) -> Result<Vec<NodeId>> {
        let mut started = Vec::new();
        for index in 0..count {
            let name = format!("proxy-{}", self.proxies.len() + 1);
            let credentials = self.pki.issue(Kind::Proxy, &name)?;
            let mut config = ProxyConfig::new(credentials, "sim".parse()?);
            config.common.quic.listen = (Ipv4Addr::UNSPECIFIED, QUIC_PORT).into();
            config.common.quic.mtu_max = MTU;
            config.state_dir = Some(self.dir.path().join(&name));
            let host = self.net.add_host(&name);
            let address = SocketAddr::new(self.net.ip(host), QUIC_PORT).to_string();
            config.common.quic.advertise = vec![address];
            config.peers = self
                .proxies
                .iter()
                .map(|proxy| self.quic_addr(*proxy).to_string())
                .collect();
            let mut plan = ProxyPlan {
                config,
                hooks: Hooks::default(),
            };
            change(index, &mut plan)?;
            let config = NodeConfig::Proxy(Box::new(plan.config));
            let node = self.start(name, host, config, plan.hooks).await?;
            self.proxies.push(node);
            started.push(node);
        }
        Ok(started)
    }

    /// Starts `count` agents on hosts of their own, `a-1` and so on, which dial the proxies that
    /// there are.
    ///
    /// # Errors
    /// When one cannot start.
    pub async fn start_agents(&mut self, count: usize) -> Result<Vec<NodeId>> {
        self.start_agents_with(count, |_, _| Ok(())).await
    }

    /// As [`World::start_agents`]; `change` sees each before it starts, with its index.
    ///
    /// # Errors
    /// When one cannot start, or `change` fails.
    pub async fn start_agents_with(
        &mut self,
        count: usize,
        mut change: impl FnMut(usize, &mut AgentPlan) -> Result,
    ) -> Result<Vec<NodeId>> {
        let proxies: Vec<String> = self
            .proxies
            .iter()
            .map(|proxy| self.quic_addr(*proxy).to_string())
            .collect();
        let mut started = Vec::new();
        for index in 0..count {
            self.agents += 1;
            let name = format!("a-{}", self.agents);
            let credentials = self.pki.issue(Kind::Agent, &name)?;
            let mut config = AgentConfig::new(credentials, proxies.clone());
            config.common.quic.mtu_max = MTU;
            config.common.quic.streams_max = AGENT_STREAMS;
            let mut plan = AgentPlan {
                config,
                hooks: Hooks::default(),
                behind: None,
            };
            change(index, &mut plan)?;
            let host = match plan.behind {
                Some(nat) => self.net.add_host_behind(&name, nat),
                None => self.net.add_host(&name),
            };
            let config = NodeConfig::Agent(Box::new(plan.config));
            started.push(self.start(name, host, config, plan.hooks).await?);
        }
        Ok(started)
    }

    async fn start(
        &mut self,
        name: String,
        host: HostId,
        config: NodeConfig,
        hooks: Hooks,
    ) -> Result<NodeId> {
        let index = self.nodes.len();
        self.nodes.push(Node {
            name,
            config,
            hooks,
            clock: Arc::new(Clock::new(self.started)),
            starts: 0,
            bound: None,
        });
        let node = NodeId { index, host };
        self.build(node).await?;
        Ok(node)
    }

    async fn build(&mut self, id: NodeId) -> Result {
        let network = self.net.network(id.host);
        let node = &mut self.nodes[id.index];
        node.starts += 1;
        let parts = Parts {
            runtimes: Runtimes::current(),
            network,
            random: Random::seeded(mix(mix(self.seed ^ id.index as u64) ^ node.starts)),
            clock: WallClock::of(node.clock.clone()),
            hooks: node.hooks.clone(),
        };
        let bound = Box::pin(app::build_with(node.config.clone(), parts)).await;
        node.bound = Some(bound.with_context(|| format!("cannot start {}", node.name))?);
        Ok(())
    }

    /// Kills a node: all its sockets vanish, and nobody is told.
    pub fn kill(&mut self, node: NodeId) {
        self.net.kill(node);
        self.nodes[node.index].bound = None;
    }

    /// Starts a node again that was killed or stopped, with what it has kept: its name, its host,
    /// its config and its state directory. Services of its host are not started again.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn restart(&mut self, node: NodeId) -> Result {
        // The sockets of a process that has ended vanish with it, whatever is still on its way out.
        self.kill(node);
        self.net.revive(node);
        self.build(node).await
    }

    /// Lets a node leave in order; returns how many streams were cut.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn stop(&mut self, node: NodeId) -> Result<u64> {
        Ok(self.leave(node)?.await)
    }

    /// As [`World::stop`], to be spawned, so that the scenario can look on while the node leaves. For
    /// the world it does not run any more.
    ///
    /// # Errors
    /// When it does not run.
    pub fn leave(&mut self, node: NodeId) -> Result<impl Future<Output = u64> + Send + use<>> {
        let bound = self.nodes[node.index].bound.take();
        Ok(bound.context("the node does not run")?.shutdown())
    }

    /// Changes what a node is started with the next time.
    pub fn config(&mut self, node: NodeId) -> &mut NodeConfig {
        &mut self.nodes[node.index].config
    }

    /// Cuts both directions between two nodes.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        self.net.cut(a, b);
    }

    /// Restores both directions between two nodes.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        self.net.heal(a, b);
    }

    /// Makes a node's wall clock wrong by so many seconds, or right again; virtual time goes on.
    pub fn set_clock_off(&self, node: NodeId, seconds: i64) {
        self.nodes[node.index].clock.set(seconds);
    }

    /// Freezes a node: see [`SimNet::freeze`].
    pub fn freeze(&self, node: NodeId) {
        self.net.freeze(node);
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self, node: NodeId) {
        self.net.thaw(node);
    }

    /// The proxies that were started, living or not.
    #[must_use]
    pub fn proxies(&self) -> &[NodeId] {
        &self.proxies
    }

    /// The name of a node.
    #[must_use]
    pub fn name(&self, node: NodeId) -> &str {
        &self.nodes[node.index].name
    }

    /// A running node.
    ///
    /// # Errors
    /// When it does not run.
    pub fn bound(&self, node: NodeId) -> Result<&Bound> {
        let node = &self.nodes[node.index];
        let bound = node.bound.as_ref();
        bound.with_context(|| format!("{} does not run", node.name))
    }

    /// A running proxy.
    ///
    /// # Errors
    /// When it does not run, or is an agent.
    pub fn proxy(&self, node: NodeId) -> Result<&node::Proxy> {
        self.bound(node)?.proxy().context("not a proxy")
    }

    /// The address that agents dial.
    #[must_use]
    pub fn quic_addr(&self, proxy: NodeId) -> SocketAddr {
        SocketAddr::new(self.net.ip(proxy), QUIC_PORT)
    }

    /// How many connections of an agent stand; none when it does not run.
    #[must_use]
    pub fn connections(&self, agent: NodeId) -> usize {
        let bound = self.nodes[agent.index].bound.as_ref();
        bound
            .and_then(Bound::agent)
            .map_or(0, |agent| *agent.connected().borrow())
    }

    /// Whether all these agents have so many connections.
    #[must_use]
    pub fn all_hold(&self, agents: &[NodeId], count: usize) -> bool {
        agents.iter().all(|agent| self.connections(*agent) == count)
    }

    /// How many sessions of agents a proxy has; none when it does not run.
    #[must_use]
    pub fn sessions(&self, proxy: NodeId) -> usize {
        self.proxy(proxy).map_or(0, |proxy| proxy.sessions().len())
    }

    /// What a node measures, now.
    ///
    /// # Errors
    /// When it does not run.
    pub fn metrics(&self, node: NodeId) -> Result<Metrics> {
        Metrics::gather(self.bound(node)?.registry())
    }

    // ---- the end

    /// What the network has done so far, for the report of a failure.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = format!(
            "after {:?} of virtual time, trace {:016x}:\n",
            self.elapsed(),
            self.net.trace_hash()
        );
        for ((transport, action), count) in self.net.counts() {
            let _ = writeln!(text, "  {transport:?} {action:?}: {count}");
        }
        for record in self.net.recent() {
            let _ = writeln!(text, "  {record}");
        }
        text
    }

    /// Ends everything at once.
    pub(super) async fn end(mut self) {
        for node in &mut self.nodes {
            node.bound = None;
        }
        self.tasks.shutdown().await;
    }
}
