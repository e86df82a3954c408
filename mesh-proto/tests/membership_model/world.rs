//! The world: nodes with a membership each, connections between them, packets on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_proto::NodeName;
use mesh_proto::membership::{Event, Membership, Output, Settings, Standing};
use mesh_proto::time::Time;
use mesh_proto::wire::{MemberState, Profile};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// After how long without a packet a connection ends.
const IDLE: Duration = Duration::from_secs(15);
/// What is under way.
#[derive(Debug)]
pub(crate) enum Happening {
    Datagram(usize, usize, u64, Vec<u8>),
    Message(usize, usize, u64, Message),
    Wake(usize),
    Redial(usize),
    /// The connection is idle since then, if the way is still shut.
    Idle(usize, usize, u64),
}

/// On a control stream: nothing is lost while the connection lives.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Hello(Profile),
    Told(Profile),
    Dead(u64, u32),
    Closed,
}

pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) membership: Membership,
    pub(crate) alive: bool,
    pub(crate) superseded: Option<u64>,
    pub(crate) renewals: u32,
    pub(crate) frozen_until: Time,
    wake: Option<Time>,
    told: Profile,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Node>,
    /// Of a thousand datagrams, how many are lost.
    pub(crate) loss: u64,
    /// Ways that are shut, from one to the other.
    pub(crate) shut: BTreeSet<(usize, usize)>,
    /// Whether a node tells its peers of its changes on the control streams as well.
    pub(crate) tells: bool,
    /// Whether a node that hears of its death is told on the control stream.
    pub(crate) tells_dead: bool,
    /// Whether nodes dial whom they know.
    pub(crate) dials: bool,
    /// Every time that somebody was shown as dead: when, to whom, who, as what.
    pub(crate) deaths: Vec<(Time, usize, usize, MemberState)>,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) longest: usize,
    pub(crate) settings: Settings,
    /// Of each node: to whom, and which connection that is.
    connections: Vec<BTreeMap<usize, u64>>,
    queue: BTreeMap<(Time, u64), Happening>,
    arrivals: BTreeMap<(usize, usize), Time>,
    count: u64,
    random: u64,
}

pub(crate) fn profile(name: &str, epoch: u64) -> Profile {
    Profile {
        name: name.parse().unwrap(),
        epoch,
        revision: 0,
        group: "blue".parse().unwrap(),
        generation: mesh_proto::Generation(3),
        addresses: vec![format!("{name}.example.com:7443")],
        peer_addresses: vec!["10.0.0.10:7443".to_owned()],
        draining: false,
        ext: Vec::new(),
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Time::ZERO,
            nodes: Vec::new(),
            loss: 0,
            shut: BTreeSet::new(),
            tells: true,
            tells_dead: true,
            dials: true,
            deaths: Vec::new(),
            packets: 0,
            bytes: 0,
            longest: 0,
            settings: Settings::default(),
            connections: Vec::new(),
            queue: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            count: 0,
            random: seed,
        }
    }

    /// `count` nodes that all know the first one, and a while for them to find each other.
    pub(crate) fn grown(seed: u64, count: usize) -> Self {
        let mut world = Self::new(seed);
        world.grow(count);
        world.run(20 * SECOND);
        world.assert_truth();
        world.deaths.clear();
        world
    }

    pub(crate) fn grow(&mut self, count: usize) {
        for index in 0..count {
            self.start(&format!("p{index}"), 1);
        }
        for index in 1..count {
            self.connect(0, index);
        }
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub(crate) fn start(&mut self, name: &str, epoch: u64) -> usize {
        let mut own = profile(name, epoch);
        // Wherever it is started, it has another address.
        own.addresses = vec![format!("host-{}.example.com:7443", self.nodes.len())];
        let seed = self.below(u64::MAX);
        let membership = Membership::new(own.clone(), seed, self.settings.clone()).unwrap();
        let index = self.nodes.len();
        self.connections.push(BTreeMap::new());
        self.nodes.push(Node {
            name: own.name.clone(),
            membership,
            alive: true,
            superseded: None,
            renewals: 0,
            frozen_until: Time::ZERO,
            wake: None,
            told: own,
        });
        let first = self.below(1000);
        self.later(MS * u32::try_from(first).unwrap(), Happening::Redial(index));
        self.pump(index);
        index
    }

    /// A process ends without a word, and nobody's connection to it notices.
    pub(crate) fn vanish(&mut self, index: usize) {
        self.nodes[index].alive = false;
    }

    /// A process ends; its peers see their connections end.
    pub(crate) fn crash(&mut self, index: usize) {
        self.vanish(index);
        for peer in self.peers(index) {
            self.close(index, peer);
        }
    }

    /// A process says goodbye and ends.
    pub(crate) fn leave(&mut self, index: usize) {
        let now = self.now;
        self.nodes[index].membership.leave(now);
        self.pump(index);
        // The last datagrams leave before the connections are closed.
        self.run(100 * MS);
        self.crash(index);
    }

    pub(crate) fn drain(&mut self, index: usize, draining: bool) {
        let now = self.now;
        let membership = &mut self.nodes[index].membership;
        membership
            .update_own(now, |own| own.draining = draining)
            .unwrap();
        self.pump(index);
    }

    pub(crate) fn connect(&mut self, one: usize, other: usize) {
        let open = self.passes(one, other) && self.passes(other, one);
        let alive = self.nodes[one].alive && self.nodes[other].alive;
        let thawed = !self.is_frozen(one) && !self.is_frozen(other);
        if one == other || !open || !alive || !thawed || self.connections[one].contains_key(&other)
        {
            return;
        }
        // A proxy has one connection to each name: the latest.
        for (end, peer) in [(one, other), (other, one)] {
            for stale in self.peers(end) {
                if self.nodes[stale].name == self.nodes[peer].name {
                    self.close(end, stale);
                }
            }
        }
        self.count += 1;
        self.connections[one].insert(other, self.count);
        self.connections[other].insert(one, self.count);
        for (from, to) in [(one, other), (other, one)] {
            let hello = Message::Hello(self.nodes[from].membership.own().clone());
            self.message(from, to, hello);
        }
    }

    pub(crate) fn close(&mut self, one: usize, other: usize) {
        for (from, to) in [(one, other), (other, one)] {
            self.message(from, to, Message::Closed);
        }
        self.connections[one].remove(&other);
        self.connections[other].remove(&one);
    }

    fn connection(&self, one: usize, other: usize) -> Option<u64> {
        self.connections[one].get(&other).copied()
    }

    pub(crate) fn peers(&self, index: usize) -> Vec<usize> {
        self.connections[index].keys().copied().collect()
    }

    pub(crate) fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > until {
                break;
            }
            let ((at, _), happening) = entry.remove_entry();
            self.now = at;
            self.happen(happening);
        }
        self.now = until;
    }

    /// Runs until `done`, and returns how long that took, rounded up to tenths of a second.
    pub(crate) fn run_until(
        &mut self,
        most: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(
                self.now.since(start) < most,
                "not within {most:?}: {:?}",
                self.difference()
            );
            self.run(100 * MS);
        }
        self.now.since(start)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Datagram(from, to, connection, datagram) => {
                if self.connection(from, to) != Some(connection)
                    || !self.nodes[to].alive
                    || !self.passes(from, to)
                {
                    return;
                }
                if self.is_frozen(to) {
                    let wait = self.nodes[to].frozen_until.since(self.now);
                    let datagram = Happening::Datagram(from, to, connection, datagram);
                    return self.later(wait, datagram);
                }
                let name = self.nodes[from].name.clone();
                let now = self.now;
                let membership = &mut self.nodes[to].membership;
                membership.receive(now, &name, &datagram).unwrap();
                self.pump(to);
            }
            Happening::Message(from, to, connection, message) => {
                self.hear(from, to, connection, message);
            }
            Happening::Wake(index) => {
                self.nodes[index].wake = None;
                if self.nodes[index].alive && !self.is_frozen(index) {
                    self.pump(index);
                }
            }
            Happening::Redial(index) => {
                // Never in step with others.
                let wait = 500 + self.below(1000);
                let wait = MS * u32::try_from(wait).unwrap();
                self.later(wait, Happening::Redial(index));
                if self.dials && !self.is_frozen(index) {
                    self.dial(index);
                }
            }
            Happening::Idle(one, other, connection) => {
                let shut = !self.passes(one, other) || !self.passes(other, one);
                let dumb = self.is_frozen(one) || self.is_frozen(other);
                if (shut || dumb) && self.connection(one, other) == Some(connection) {
                    self.close(one, other);
                }
            }
        }
    }

    fn hear(&mut self, from: usize, to: usize, connection: u64, message: Message) {
        if !self.nodes[to].alive {
            return;
        }
        let closed = matches!(message, Message::Closed);
        if !closed && self.connection(from, to) != Some(connection) {
            return;
        }
        // A connection that ends shows at both ends, also when nothing passes.
        if self.is_frozen(to) || !closed && !self.passes(from, to) {
            let wait = self.nodes[to].frozen_until.since(self.now).max(200 * MS);
            return self.later(wait, Happening::Message(from, to, connection, message));
        }
        let name = self.nodes[from].name.clone();
        let now = self.now;
        let peers = self.peers(to);
        let gone = !peers.iter().any(|peer| self.nodes[*peer].name == name);
        let membership = &mut self.nodes[to].membership;
        let standing = match message {
            Message::Hello(profile) => membership.connected(now, profile),
            Message::Told(profile) => membership.told(now, profile),
            Message::Dead(epoch, revision) => {
                membership.taken_for_dead(now, epoch, revision);
                Standing::Taken
            }
            Message::Closed => {
                if gone {
                    membership.closed(now, &name);
                }
                Standing::Taken
            }
        };
        match standing {
            Standing::Dead { epoch, revision } if self.tells_dead => {
                self.message(to, from, Message::Dead(epoch, revision));
            }
            Standing::Older { epoch } => self.message(to, from, Message::Dead(epoch, 0)),
            Standing::Taken
            | Standing::Dead { .. }
            | Standing::SameName
            | Standing::Full
            | Standing::Invalid(_) => {}
        }
        self.pump(to);
    }

    /// About once a second it dials whom it knows, those that are taken for dead too: that is how a split heals.
    fn dial(&mut self, index: usize) {
        if !self.nodes[index].alive || self.nodes[index].superseded.is_some() {
            return;
        }
        let members = self.nodes[index].membership.members();
        let known: BTreeSet<_> = members
            .filter(|known| known.state != MemberState::Left)
            .map(|known| known.profile.addresses.clone())
            .collect();
        for other in 0..self.nodes.len() {
            if known.contains(&self.nodes[other].membership.own().addresses) {
                self.connect(index, other);
            }
        }
    }

    pub(crate) fn pump(&mut self, index: usize) {
        let now = self.now;
        while let Some(output) = self.nodes[index].membership.poll(now) {
            match output {
                Output::Send { to, datagram } => self.send(index, &to, &datagram),
                Output::Event(event) => self.note(index, event),
            }
        }
        let node = &mut self.nodes[index];
        assert_eq!(node.membership.faults(), 0, "{}", node.name);
        let own = node.membership.own().clone();
        if node.told != own {
            node.told = own.clone();
            if self.tells {
                for peer in self.peers(index) {
                    self.message(index, peer, Message::Told(own.clone()));
                }
            }
        }
        let node = &mut self.nodes[index];
        if let Some(next) = node.membership.next_wake() {
            assert!(next > now, "it is awake for ever");
            if node.wake.is_none_or(|wake| next < wake) {
                node.wake = Some(next);
                self.later(next.since(now), Happening::Wake(index));
            }
        }
    }

    fn note(&mut self, index: usize, event: Event) {
        match event {
            Event::Changed(name) => {
                let known = self.nodes[index].membership.member(&name).unwrap();
                let (state, epoch) = (known.state, known.profile.epoch);
                // A connection to an earlier start of that name has become one.
                for peer in self.peers(index) {
                    let node = &self.nodes[peer];
                    if node.name == name && node.membership.own().epoch < epoch {
                        self.message(index, peer, Message::Dead(epoch, 0));
                    }
                }
                if matches!(state, MemberState::Down | MemberState::Left) {
                    let who = self.last(&name);
                    self.deaths.push((self.now, index, who, state));
                }
            }
            Event::Superseded { epoch } => self.nodes[index].superseded = Some(epoch),
            Event::Renewed => self.nodes[index].renewals += 1,
            Event::Removed(_) | Event::Head { .. } => {}
        }
    }

    /// The last node that was started under a name.
    pub(crate) fn last(&self, name: &NodeName) -> usize {
        let mut nodes = self.nodes.iter();
        nodes.rposition(|node| node.name == *name).unwrap()
    }

    fn send(&mut self, from: usize, to: &NodeName, datagram: &[u8]) {
        self.packets += 1;
        self.bytes += datagram.len() as u64;
        self.longest = self.longest.max(datagram.len());
        let peers = self.peers(from).into_iter();
        let near = peers.filter(|peer| self.nodes[*peer].name == *to);
        let Some(to) = near.max_by_key(|peer| self.connection(from, *peer)) else {
            return;
        };
        let connection = self.connection(from, to).unwrap();
        let copies = if self.below(100) == 0 { 2 } else { 1 };
        for _ in 0..copies {
            let delay = 5 + self.below(45) + if self.below(50) == 0 { 150 } else { 0 };
            if self.below(1000) >= self.loss {
                let datagram = Happening::Datagram(from, to, connection, datagram.to_owned());
                self.later(MS * u32::try_from(delay).unwrap(), datagram);
            }
        }
    }

    fn message(&mut self, from: usize, to: usize, message: Message) {
        let Some(connection) = self.connection(from, to) else {
            return;
        };
        let delay = 20 + self.below(60);
        let at = self.now + MS * u32::try_from(delay).unwrap();
        let last = self.arrivals.entry((from, to)).or_default();
        *last = at.max(*last + MS);
        let wait = last.since(self.now);
        self.later(wait, Happening::Message(from, to, connection, message));
    }

    pub(crate) fn idle(&mut self, one: usize, other: usize) {
        if let Some(connection) = self.connection(one, other) {
            self.later(IDLE, Happening::Idle(one, other, connection));
        }
    }

    pub(crate) fn later(&mut self, wait: Duration, happening: Happening) {
        self.count += 1;
        self.queue.insert((self.now + wait, self.count), happening);
    }
}
