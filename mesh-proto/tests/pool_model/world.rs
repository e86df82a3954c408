//! A small world in virtual time: proxies that come and go, a balancer before them, gossip among
//! them, and agents that are nothing but pools. The same seed gives the same run.

#[path = "driving.rs"]
mod driving;

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::name::{Group, NodeName};
use mesh_proto::pool::{Draw, LetGo, Limits, Pool, Whom};
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
}
