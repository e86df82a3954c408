//! A small world in virtual time: proxies that come and go, a balancer before them, gossip among
//! them, and agents that are nothing but pools. The same seed gives the same run.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::name::{Generation, Group, NodeName};
use mesh_proto::pool::{
    Action, Draw, LetGo, Limits, Member, MemberState, Pool, Reached, Verdict, Whom,
};
use mesh_proto::time::Time;
use mesh_proto::tracker::LeaseId;

pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut hash = self.0;
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    pub(crate) fn between(&mut self, from: Duration, to: Duration) -> Duration {
        from + self.up_to(to.saturating_sub(from))
    }
}

impl Draw for Rng {
    fn up_to(&mut self, bound: Duration) -> Duration {
        let nanoseconds = (bound.as_nanos() * u128::from(self.next() >> 32)) >> 32;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap())
    }
}

/// How the balancer chooses among the proxies that are in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Balancer {
    RoundRobin,
    /// As a hash over addresses and ports does, when each dial leaves from a fresh port.
    Random,
    /// Each agent always gets the same proxy.
    Sticky,
    /// Everybody always gets this one, if it is in service.
    Always(usize),
    Down,
}

/// In the order in which a proxy goes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Health {
    Up,
    Draining,
    Down,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) name: NodeName,
    pub(crate) group: Group,
    pub(crate) generation: u64,
    pub(crate) epoch: u64,
    pub(crate) health: Health,
    /// Whether agents can reach the address that it advertises.
    pub(crate) reachable: bool,
    /// What others have heard of it: health and epoch.
    heard: Option<(Health, u64)>,
    /// When dials arrived, in whole seconds: those that found it up.
    pub(crate) arrivals: BTreeMap<u64, usize>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    pub(crate) proxy: usize,
    pub(crate) epoch: u64,
    pub(crate) let_go: Option<LetGo>,
}

pub(crate) struct Agent {
    pub(crate) pool: Pool,
    pub(crate) dialling: BTreeMap<LeaseId, Whom>,
    pub(crate) connections: BTreeMap<LeaseId, Connection>,
    pub(crate) dials_directed: usize,
    pub(crate) dials_configured: usize,
    pub(crate) duplicates: usize,
    pub(crate) wakes: usize,
    wake: Option<Time>,
    pub(crate) log: Vec<(Time, String)>,
}

impl Agent {
    pub(crate) fn dials(&self) -> usize {
        self.dials_configured + self.dials_directed
    }

    /// Indices of the proxies that serve it, in order.
    pub(crate) fn serving(&self) -> Vec<usize> {
        let mut serving: Vec<usize> = self
            .connections
            .values()
            .filter(|connection| connection.let_go.is_none())
            .map(|connection| connection.proxy)
            .collect();
        serving.sort_unstable();
        serving
    }
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// A dial ends, at the proxy that it finds.
    Arrive {
        agent: usize,
        lease: LeaseId,
        proxy: Option<usize>,
    },
    Fail {
        agent: usize,
        lease: LeaseId,
    },
    Hello {
        agent: usize,
        lease: LeaseId,
    },
    Close {
        agent: usize,
        lease: LeaseId,
    },
    /// What others hear of a proxy.
    Heard {
        proxy: usize,
        health: Health,
        epoch: u64,
    },
    /// A connection tells its view once more.
    Renew {
        agent: usize,
        lease: LeaseId,
    },
    DrainEnds {
        proxy: usize,
        epoch: u64,
    },
    Wake {
        agent: usize,
    },
}

pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) balancer: Balancer,
    /// What proxies announce.
    pub(crate) spread: Duration,
    pub(crate) count: Option<u32>,
    pub(crate) ttl: Duration,
    /// How long news take among proxies, and from a crash until it is heard of.
    pub(crate) gossip: Duration,
    pub(crate) crash_noticed: Duration,
    /// From a crash until its agents notice, at most.
    pub(crate) loss_noticed: Duration,
    /// From dial to answer.
    pub(crate) latency: Duration,
    /// From dial to the failure, when nobody answers.
    pub(crate) dial_timeout: Duration,
    /// From the answer to the first view.
    pub(crate) hello: Duration,
    /// How many of a thousand dials fail for no reason.
    pub(crate) failures_per_mille: usize,
    /// The longest that streams keep a connection that is let go.
    pub(crate) linger: Duration,
    pub(crate) limits: Limits,
    /// Polls pools at every multiple of this instead of when they ask for it.
    pub(crate) step: Option<Duration>,
    /// Everything happens on multiples of this.
    pub(crate) grid: Duration,
    /// Checks every pool after every input.
    pub(crate) checked: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            seed: 1,
            balancer: Balancer::RoundRobin,
            spread: Duration::ZERO,
            count: None,
            ttl: seconds(180),
            gossip: seconds(1),
            crash_noticed: seconds(5),
            loss_noticed: seconds(1),
            latency: millis(20),
            dial_timeout: seconds(5),
            hello: millis(20),
            failures_per_mille: 0,
            linger: seconds(2),
            limits: Limits::default(),
            step: None,
            grid: Duration::from_nanos(1),
            checked: true,
        }
    }
}

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) now: Time,
    pub(crate) rng: Rng,
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) agents: Vec<Agent>,
    next_proxy: usize,
    events: BTreeMap<(Time, bool, u64), Event>,
    sequence: u64,
}

impl World {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            rng: Rng(setup.seed),
            setup,
            now: Time::ZERO,
            proxies: Vec::new(),
            agents: Vec::new(),
            next_proxy: 0,
            events: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// As many proxies as that, all up and known to each other.
    pub(crate) fn with_proxies(mut self, count: usize) -> Self {
        for _ in 0..count {
            let proxy = self.add_proxy("blue", 1);
            self.proxies[proxy].heard = Some((Health::Up, 1));
        }
        self
    }

    pub(crate) fn with_agents(mut self, count: usize, own_count: Option<u32>) -> Self {
        for _ in 0..count {
            self.add_agent(own_count);
        }
        self
    }

    /// A proxy that starts now.
    pub(crate) fn add_proxy(&mut self, group: &str, generation: u64) -> usize {
        let index = self.proxies.len();
        self.proxies.push(Proxy {
            name: format!("proxy-{index}").parse().unwrap(),
            group: group.parse().unwrap(),
            generation,
            epoch: 0,
            health: Health::Down,
            reachable: true,
            heard: None,
            arrivals: BTreeMap::new(),
        });
        self.start(index);
        index
    }

    pub(crate) fn start(&mut self, proxy: usize) {
        let gossip = self.setup.gossip;
        let it = &mut self.proxies[proxy];
        it.health = Health::Up;
        it.epoch += 1;
        let epoch = it.epoch;
        self.after(
            gossip,
            Event::Heard {
                proxy,
                health: Health::Up,
                epoch,
            },
        );
    }

    /// It is gone without a word; agents and peers notice after a while.
    pub(crate) fn crash(&mut self, proxy: usize) {
        let noticed = self.setup.crash_noticed;
        let it = &mut self.proxies[proxy];
        it.health = Health::Down;
        let epoch = it.epoch;
        self.after(
            noticed,
            Event::Heard {
                proxy,
                health: Health::Down,
                epoch,
            },
        );
        for (agent, lease) in self.connections_of(proxy) {
            let wait = self.rng.between(millis(10), self.setup.loss_noticed);
            self.after(wait, Event::Close { agent, lease });
        }
    }

    pub(crate) fn drain(&mut self, proxy: usize, within: Duration) {
        let gossip = self.setup.gossip;
        let it = &mut self.proxies[proxy];
        it.health = Health::Draining;
        let epoch = it.epoch;
        self.after(
            gossip,
            Event::Heard {
                proxy,
                health: Health::Draining,
                epoch,
            },
        );
        self.after(within, Event::DrainEnds { proxy, epoch });
        for (agent, lease) in self.connections_of(proxy) {
            let mut rng = self.rng.clone();
            self.agents[agent]
                .pool
                .draining(self.now, lease, within, &mut rng);
            self.rng = rng;
            self.drive(agent);
        }
    }

    pub(crate) fn add_agent(&mut self, own_count: Option<u32>) {
        let index = self.agents.len();
        self.agents.push(Agent {
            pool: Pool::new(
                format!("agent-{index}").parse().unwrap(),
                "example.com",
                vec!["balancer:7443".to_owned()],
                own_count,
                self.setup.limits.clone(),
            ),
            dialling: BTreeMap::new(),
            connections: BTreeMap::new(),
            dials_directed: 0,
            dials_configured: 0,
            duplicates: 0,
            wakes: 0,
            wake: None,
            log: Vec::new(),
        });
        if self.setup.step.is_some() {
            self.wake_at(index, self.now);
        }
        self.drive(index);
    }

    /// Runs until then.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(entry) = self.events.first_entry() {
            let at = entry.key().0;
            if at > end {
                break;
            }
            assert!(at >= self.now, "time goes back");
            let event = entry.remove();
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    /// Runs until `done`, asked every 100 ms, and says how long that took; panics after `patience`.
    pub(crate) fn run_until(
        &mut self,
        patience: Duration,
        what: &str,
        done: impl Fn(&Self) -> bool,
    ) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(
                self.now - start < patience,
                "seed {}: not within {patience:?}: {what}; the first agent did {:#?}; the agents are served by {:?}",
                self.setup.seed,
                self.agents.first().map(|agent| agent
                    .log
                    .iter()
                    .rev()
                    .take(20)
                    .collect::<Vec<_>>()),
                self.agents
                    .iter()
                    .take(20)
                    .map(Agent::serving)
                    .collect::<Vec<_>>()
            );
            self.run(millis(100));
        }
        self.now - start
    }

    /// Whether every agent is served by exactly the proxies that are up.
    pub(crate) fn is_full_mesh(&self) -> bool {
        let up = self.up();
        self.agents.iter().all(|agent| agent.serving() == up)
    }

    pub(crate) fn up(&self) -> Vec<usize> {
        (0..self.proxies.len())
            .filter(|proxy| self.proxies[*proxy].health == Health::Up)
            .collect()
    }

    /// How many agents each proxy serves.
    pub(crate) fn loads(&self) -> Vec<usize> {
        let mut loads = vec![0; self.proxies.len()];
        for proxy in self.agents.iter().flat_map(Agent::serving) {
            loads[proxy] += 1;
        }
        loads
    }

    fn connections_of(&self, proxy: usize) -> Vec<(usize, LeaseId)> {
        let epoch = self.proxies[proxy].epoch;
        let of_agent = |(index, agent): (usize, &Agent)| -> Vec<(usize, LeaseId)> {
            agent
                .connections
                .iter()
                .filter(|(_, connection)| connection.proxy == proxy && connection.epoch == epoch)
                .map(|(lease, _)| (index, *lease))
                .collect()
        };
        self.agents.iter().enumerate().flat_map(of_agent).collect()
    }

    fn on_grid(&self, at: Time) -> Time {
        let grid = self.setup.grid.as_nanos();
        let nanoseconds = at.elapsed().as_nanos().div_ceil(grid) * grid;
        Time::since_start(Duration::from_nanos(
            u64::try_from(nanoseconds).unwrap_or(u64::MAX),
        ))
    }

    fn after(&mut self, wait: Duration, event: Event) {
        let at = self.on_grid(self.now + wait);
        self.sequence += 1;
        self.events.insert((at, false, self.sequence), event);
    }

    /// Wakes come after everything else of the same moment.
    fn wake_at(&mut self, agent: usize, at: Time) {
        self.sequence += 1;
        self.events
            .insert((at, true, self.sequence), Event::Wake { agent });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake { agent } => {
                if let Some(step) = self.setup.step {
                    self.wake_at(agent, self.now + step);
                } else if self.agents[agent].wake != Some(self.now) {
                    return;
                }
                self.agents[agent].wake = None;
                self.agents[agent].wakes += 1;
                self.drive(agent);
            }
            Event::Arrive {
                agent,
                lease,
                proxy,
            } => self.arrive(agent, lease, proxy),
            Event::Fail { agent, lease } => self.fail(agent, lease),
            Event::Hello { agent, lease } => {
                self.tell(agent, lease);
                self.after(self.setup.ttl / 3, Event::Renew { agent, lease });
            }
            Event::Renew { agent, lease } => {
                if self.agents[agent].connections.contains_key(&lease) {
                    self.tell(agent, lease);
                    self.after(self.setup.ttl / 3, Event::Renew { agent, lease });
                }
            }
            Event::Close { agent, lease } => {
                if self.agents[agent].connections.remove(&lease).is_some() {
                    let mut rng = self.rng.clone();
                    self.agents[agent].pool.closed(self.now, lease, &mut rng);
                    self.rng = rng;
                    self.drive(agent);
                }
            }
            Event::Heard {
                proxy,
                health,
                epoch,
            } => {
                // Of one start, the later health wins, in whatever order news arrive.
                if self.proxies[proxy]
                    .heard
                    .is_some_and(|(before, heard)| (heard, before) >= (epoch, health))
                {
                    return;
                }
                self.proxies[proxy].heard = Some((health, epoch));
                for agent in 0..self.agents.len() {
                    let leases: Vec<LeaseId> =
                        self.agents[agent].connections.keys().copied().collect();
                    for lease in leases {
                        self.tell(agent, lease);
                    }
                }
            }
            Event::DrainEnds { proxy, epoch } => {
                if self.proxies[proxy].epoch == epoch
                    && self.proxies[proxy].health == Health::Draining
                {
                    self.proxies[proxy].health = Health::Down;
                    self.after(
                        self.setup.gossip,
                        Event::Heard {
                            proxy,
                            health: Health::Down,
                            epoch,
                        },
                    );
                    for (agent, lease) in self.connections_of(proxy) {
                        self.after(millis(10), Event::Close { agent, lease });
                    }
                }
            }
        }
    }

    /// What a balancer finds: one that is up, as its health checks say at once.
    fn balance(&mut self, agent: usize) -> Option<usize> {
        let up = self.up();
        if up.is_empty() {
            return None;
        }
        match self.setup.balancer {
            Balancer::RoundRobin => {
                self.next_proxy += 1;
                Some(up[self.next_proxy % up.len()])
            }
            Balancer::Random => Some(up[self.rng.below(up.len())]),
            Balancer::Sticky => Some(up[agent % up.len()]),
            Balancer::Always(proxy) => up.contains(&proxy).then_some(proxy),
            Balancer::Down => None,
        }
    }

    fn arrive(&mut self, agent: usize, lease: LeaseId, proxy: Option<usize>) {
        let Some(proxy) = proxy
            .or_else(|| self.balance(agent))
            .filter(|proxy| self.proxies[*proxy].health == Health::Up)
        else {
            return self.fail(agent, lease);
        };
        let second = self.now.elapsed().as_secs();
        let it = &mut self.proxies[proxy];
        *it.arrivals.entry(second).or_default() += 1;
        let reached = Reached {
            proxy: it.name.clone(),
            epoch: it.epoch,
            group: it.group.clone(),
            generation: Generation(it.generation),
        };
        let epoch = it.epoch;
        let mut rng = self.rng.clone();
        let it = &mut self.agents[agent];
        assert!(it.dialling.remove(&lease).is_some());
        let verdict = it.pool.connected(self.now, lease, reached, &mut rng);
        self.rng = rng;
        match verdict {
            Verdict::Keep => {
                it.connections.insert(
                    lease,
                    Connection {
                        proxy,
                        epoch,
                        let_go: None,
                    },
                );
                self.after(self.setup.hello, Event::Hello { agent, lease });
            }
            Verdict::Duplicate => it.duplicates += 1,
        }
        self.drive(agent);
    }

    fn fail(&mut self, agent: usize, lease: LeaseId) {
        assert!(self.agents[agent].dialling.remove(&lease).is_some());
        let mut rng = self.rng.clone();
        self.agents[agent].pool.failed(self.now, lease, &mut rng);
        self.rng = rng;
        self.drive(agent);
    }

    /// The view of the proxy at the other end, which knows itself best.
    fn tell(&mut self, agent: usize, lease: LeaseId) {
        let Some(connection) = self.agents[agent].connections.get(&lease).copied() else {
            return;
        };
        if self.proxies[connection.proxy].epoch != connection.epoch
            || self.proxies[connection.proxy].health == Health::Down
        {
            return;
        }
        let ttl = self.setup.ttl;
        let member = |(index, proxy): (usize, &Proxy)| {
            let (health, epoch) = match index == connection.proxy {
                true => (proxy.health, proxy.epoch),
                false => proxy.heard?,
            };
            Some(Member {
                name: proxy.name.clone(),
                group: proxy.group.clone(),
                generation: Generation(proxy.generation),
                epoch,
                addresses: vec![format!("{}:7443", proxy.name)],
                state: match health {
                    Health::Up => MemberState::Alive,
                    Health::Draining => MemberState::Draining,
                    Health::Down => MemberState::Gone,
                },
                ttl: Some(ttl),
            })
        };
        let view = self.proxies.iter().enumerate().filter_map(member).collect();
        let pool = &mut self.agents[agent].pool;
        pool.announced(self.setup.count, self.setup.spread);
        pool.members(self.now, Some(lease), view);
        self.drive(agent);
    }

    /// What a driver does after each input.
    pub(crate) fn drive(&mut self, agent: usize) {
        let mut actions = 0;
        while let Some(action) = self.agents[agent].pool.poll(self.now) {
            actions += 1;
            assert!(
                actions < 1000,
                "seed {}: no end of actions",
                self.setup.seed
            );
            self.agents[agent]
                .log
                .push((self.now, format!("{action:?}")));
            match action {
                Action::Dial { lease, whom } => self.dial(agent, lease, whom),
                Action::LetGo { lease, why } => self.let_go(agent, lease, why),
            }
        }
        let next = self.agents[agent].pool.next_wake(self.now);
        assert!(
            next.is_none_or(|next| next > self.now),
            "a wake in the past: {next:?}"
        );
        if self.setup.step.is_none() {
            let next = next.map(|next| self.on_grid(next));
            if self.agents[agent].wake != next {
                self.agents[agent].wake = next;
                if let Some(next) = next {
                    self.wake_at(agent, next);
                }
            }
        }
        if self.setup.checked {
            self.check(agent);
        }
    }

    fn dial(&mut self, agent: usize, lease: LeaseId, whom: Whom) {
        let it = &mut self.agents[agent];
        let proxy = match &whom {
            Whom::Configured { .. } => {
                it.dials_configured += 1;
                None
            }
            Whom::Directed { proxy, addresses } => {
                assert!(!addresses.is_empty());
                it.dials_directed += 1;
                self.proxies.iter().position(|known| known.name == *proxy)
            }
        };
        assert!(
            it.dialling.insert(lease, whom).is_none(),
            "a lease is used twice"
        );
        let out_of_luck = self.rng.below(1000) < self.setup.failures_per_mille;
        let answers = match proxy {
            Some(proxy) => {
                self.proxies[proxy].reachable && self.proxies[proxy].health == Health::Up
            }
            None => self.setup.balancer != Balancer::Down,
        };
        if answers && !out_of_luck {
            self.after(
                self.setup.latency,
                Event::Arrive {
                    agent,
                    lease,
                    proxy,
                },
            );
        } else {
            let wait = self
                .rng
                .between(self.setup.latency, self.setup.dial_timeout);
            self.after(wait, Event::Fail { agent, lease });
        }
    }

    fn let_go(&mut self, agent: usize, lease: LeaseId, why: LetGo) {
        let seed = self.setup.seed;
        let it = self.agents[agent]
            .connections
            .get_mut(&lease)
            .expect("it is there");
        assert_eq!(it.let_go, None, "seed {seed}: let go twice");
        it.let_go = Some(why);
        assert!(
            !self.agents[agent].serving().is_empty(),
            "seed {seed}: the last connection is let go: {why:?}"
        );
        let wait = self.rng.between(millis(1), self.setup.linger);
        self.after(wait, Event::Close { agent, lease });
    }

    /// What holds whenever a pool has been driven.
    fn check(&self, index: usize) {
        let (agent, seed) = (&self.agents[index], self.setup.seed);
        let tracker = agent.pool.tracker();
        let counts = agent.pool.counts(self.now);
        assert_eq!(
            tracker.inflight(),
            agent.dialling.len(),
            "seed {seed}: leases leak"
        );
        assert_eq!(counts.dialling, agent.dialling.len(), "seed {seed}");
        assert_eq!(counts.held, agent.connections.len(), "seed {seed}");
        assert!(
            counts.dialling <= self.setup.limits.parallel_dials_max,
            "seed {seed}"
        );
        let serving = agent.serving();
        let index_of = |name: &str| {
            self.proxies
                .iter()
                .position(|proxy| proxy.name.as_str() == name)
                .unwrap()
        };
        let mut claimed: Vec<usize> = tracker.claimed().map(|name| index_of(name)).collect();
        claimed.sort_unstable();
        assert_eq!(
            claimed, serving,
            "seed {seed}: what is claimed is not what serves"
        );
    }
}
