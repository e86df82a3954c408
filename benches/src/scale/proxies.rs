//! Proxies in one mesh: what gossip costs each, in virtual time. Each has a connection to every other, as
//! in a real mesh; what that connection costs itself (a keepalive each way every 5 s) is not in it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use anyhow::ensure;
use mesh_proto::NodeName;
use mesh_proto::membership::{Membership, Output, Settings};
use mesh_proto::time::Time;
use mesh_proto::wire::{MemberState, Profile, RoutesHead};

use super::Grown;

/// On its way.
const DELAY: Duration = Duration::from_millis(20);

/// Until everybody knows everybody.
const SETTLE: Duration = Duration::from_secs(60);

const MEASURED: Duration = Duration::from_secs(60);

/// When agents come and go: each proxy has a new head of its routes that often.
const HEADS: Duration = Duration::from_secs(1);

/// What happens next: when, in which order, to whom.
type Queue = BinaryHeap<Reverse<(Time, u64, usize, Happening)>>;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Wake,
    Datagram(usize, Vec<u8>),
    Head(u64),
}

struct Mesh {
    now: Time,
    proxies: Vec<Membership>,
    names: Vec<NodeName>,
    by_name: BTreeMap<NodeName, usize>,
    queue: Queue,
    count: u64,
    wakes: Vec<Option<Time>>,
    packets: u64,
    bytes: u64,
    cpu: Duration,
}

fn profile(number: usize) -> anyhow::Result<Profile> {
    Ok(Profile {
        name: format!("proxy-{number}").parse()?,
        epoch: 1,
        revision: 0,
        group: "blue".parse()?,
        generation: mesh_proto::Generation(1),
        addresses: vec![format!("proxy-{number}.example.com:7443")],
        peer_addresses: Vec::new(),
        draining: false,
        ext: Vec::new(),
    })
}

impl Mesh {
    fn grow(count: usize) -> anyhow::Result<Self> {
        let mut mesh = Self {
            now: Time::ZERO,
            proxies: Vec::new(),
            names: Vec::new(),
            by_name: BTreeMap::new(),
            queue: Queue::new(),
            count: 0,
            wakes: vec![None; count],
            packets: 0,
            bytes: 0,
            cpu: Duration::ZERO,
        };
        let profiles = (0..count)
            .map(profile)
            .collect::<anyhow::Result<Vec<_>>>()?;
        for (number, own) in profiles.iter().enumerate() {
            mesh.names.push(own.name.clone());
            mesh.by_name.insert(own.name.clone(), number);
            let membership = Membership::new(own.clone(), number as u64, Settings::default())?;
            mesh.proxies.push(membership);
        }
        for number in 0..count {
            // Never in step with the others.
            mesh.now = Time::since_start(Duration::from_millis(number as u64 * 7));
            for (other, profile) in profiles.iter().enumerate() {
                if other != number {
                    mesh.proxies[number].connected(mesh.now, profile.clone());
                }
            }
            mesh.pump(number);
        }
        Ok(mesh)
    }

    fn later(&mut self, at: Time, whom: usize, what: Happening) {
        self.count += 1;
        self.queue.push(Reverse((at, self.count, whom, what)));
    }

    /// Whatever a proxy has to say now.
    fn pump(&mut self, whom: usize) {
        loop {
            let began = Instant::now();
            let output = self.proxies[whom].poll(self.now);
            self.cpu += began.elapsed();
            match output {
                Some(Output::Send { to, datagram }) => {
                    self.packets += 1;
                    self.bytes += datagram.len() as u64;
                    if let Some(to) = self.by_name.get(&to).copied() {
                        let datagram = Happening::Datagram(whom, datagram.to_vec());
                        self.later(self.now + DELAY, to, datagram);
                    }
                }
                Some(Output::Event(_)) => {}
                None => break,
            }
        }
        if let Some(next) = self.proxies[whom].next_wake()
            && self.wakes[whom].is_none_or(|wake| next < wake || wake <= self.now)
        {
            self.wakes[whom] = Some(next);
            self.later(next, whom, Happening::Wake);
        }
    }

    fn run(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = self.now + time;
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.0 > until {
                break;
            }
            let Some(Reverse((at, _, whom, what))) = self.queue.pop() else {
                break;
            };
            self.now = at;
            match what {
                Happening::Wake => {
                    if self.wakes[whom] != Some(at) {
                        continue;
                    }
                    self.wakes[whom] = None;
                }
                Happening::Datagram(from, datagram) => {
                    let began = Instant::now();
                    self.proxies[whom].receive(at, &self.names[from], &datagram)?;
                    self.cpu += began.elapsed();
                }
                Happening::Head(number) => {
                    let head = RoutesHead {
                        epoch: 1,
                        sequence: number,
                        count: 1_000,
                    };
                    self.proxies[whom].set_head(at, head);
                    self.later(at + HEADS, whom, Happening::Head(number + 1));
                }
            }
            self.pump(whom);
        }
        self.now = until;
        Ok(())
    }

    /// Packets a second, bytes a second, microseconds of CPU a second: of each proxy.
    fn look(&mut self) -> anyhow::Result<[f64; 3]> {
        (self.packets, self.bytes, self.cpu) = (0, 0, Duration::ZERO);
        self.run(MEASURED)?;
        let each = 1.0 / self.proxies.len() as f64 / MEASURED.as_secs_f64();
        Ok([
            self.packets as f64 * each,
            self.bytes as f64 * each,
            self.cpu.as_secs_f64() * 1e6 * each,
        ])
    }

    fn all_alive(&self) -> bool {
        self.proxies.iter().all(|proxy| {
            let alive = proxy
                .members()
                .filter(|known| known.state == MemberState::Alive);
            alive.count() + 1 >= self.proxies.len()
        })
    }
}

pub(super) fn measure(sizes: &[usize]) -> anyhow::Result<Grown> {
    let mut grown = Grown::new(
        "Proxies in one mesh: gossip, each proxy a second",
        &[
            "proxies",
            "quiet: packets",
            "bytes",
            "CPU µs",
            "agents come and go: packets",
            "bytes",
            "CPU µs",
        ],
    );
    for count in sizes.iter().copied() {
        eprintln!("{count} proxies");
        let mut mesh = Mesh::grow(count)?;
        mesh.run(SETTLE)?;
        ensure!(mesh.all_alive(), "not everybody knows everybody");
        let quiet = mesh.look()?;
        for proxy in 0..count {
            let offset = HEADS * u32::try_from(proxy)? / u32::try_from(count)?;
            mesh.later(mesh.now + offset, proxy, Happening::Head(1));
        }
        mesh.run(HEADS)?;
        let busy = mesh.look()?;
        ensure!(mesh.all_alive(), "somebody was taken for dead");
        let mut row = vec![count as f64];
        row.extend(quiet);
        row.extend(busy);
        grown.rows.push(row);
    }
    Ok(grown)
}
