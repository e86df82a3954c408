//! What the drivers of the pools do, and what must hold whenever they have done it.

use mesh_proto::name::Generation;
use mesh_proto::pool::{Action, LetGo, Member, MemberState, Reached, Verdict, Whom};
use mesh_proto::tracker::LeaseId;

use super::{Balancer, Connection, Event, Health, Proxy, World, millis};

impl World {
    /// What a balancer finds: one that is up, as its health checks say at once.
    pub(super) fn balance(&mut self, agent: usize) -> Option<usize> {
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

    pub(super) fn arrive(&mut self, agent: usize, lease: LeaseId, proxy: Option<usize>) {
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

    pub(super) fn fail(&mut self, agent: usize, lease: LeaseId) {
        assert!(self.agents[agent].dialling.remove(&lease).is_some());
        let mut rng = self.rng.clone();
        self.agents[agent].pool.failed(self.now, lease, &mut rng);
        self.rng = rng;
        self.drive(agent);
    }

    /// The view of the proxy at the other end, which knows itself best.
    pub(super) fn tell(&mut self, agent: usize, lease: LeaseId) {
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
        pool.announced(Some(lease), self.setup.count, self.setup.spread);
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

    pub(super) fn dial(&mut self, agent: usize, lease: LeaseId, whom: Whom) {
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

    pub(super) fn let_go(&mut self, agent: usize, lease: LeaseId, why: LetGo) {
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
    pub(super) fn check(&self, index: usize) {
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
