//! Owners, readers and the streams between them.

use std::collections::{BTreeSet, VecDeque};

use mesh_proto::NodeName;
use mesh_proto::routes::{Cursor, Head, Limits, OwnRoutes, PeerRoutes};
use mesh_proto::wire::{
    FRAME_HEADER_BYTES, Frame, FrameHeader, RoutesApplied, RoutesFrame, RoutesReaderFrame, Row,
};

use crate::model;

pub(crate) const OWNERS: usize = 3;
pub(crate) const READERS: usize = 2;
pub(crate) const INSTANCES: u8 = 3;
/// Some names begin with others, and one is as long as it may be.
pub(crate) const AGENTS: [&str; 7] = [
    "a",
    "a-1",
    "a1",
    "a10",
    "b",
    "z",
    "long-long-long-long-long-long-long-long-long-long-long-long-lon",
];

/// The least that a frame's body is bounded to, so that it can carry a row.
const FRAME_BYTES_MIN: usize = 115;

#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) log_rows_max: usize,
    pub(crate) frame_bytes_max: usize,
}

#[derive(Debug, Clone)]
#[rustfmt::skip]
pub(crate) enum Op {
    Add { owner: usize, agent: usize, instance: u8 },
    Remove { owner: usize, agent: usize, instance: u8 },
    /// It goes and comes, or comes and goes.
    Flap { owner: usize, agent: usize, instance: u8 },
    /// Breaks the stream that there is.
    Open { reader: usize, owner: usize },
    /// The owner writes frames.
    Tell { reader: usize, owner: usize, frames: usize },
    /// The reader takes frames.
    Deliver { reader: usize, owner: usize, frames: usize },
    /// The owner takes the acknowledgements.
    Acknowledge { reader: usize, owner: usize },
    Break { reader: usize, owner: usize },
    Restart { owner: usize },
    Forget { reader: usize, owner: usize },
    /// Everybody reads everything.
    Settle,
}

/// What has happened, to know that it does.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) snapshots: usize,
    pub(crate) chunks: usize,
    pub(crate) undone: usize,
    pub(crate) begun_anew: usize,
    pub(crate) over_an_old_epoch: usize,
    pub(crate) over_a_mixture: usize,
    pub(crate) deltas: usize,
    pub(crate) split_deltas: usize,
    pub(crate) empty_deltas: usize,
    pub(crate) resumed: usize,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        self.snapshots += other.snapshots;
        self.chunks += other.chunks;
        self.undone += other.undone;
        self.begun_anew += other.begun_anew;
        self.over_an_old_epoch += other.over_an_old_epoch;
        self.over_a_mixture += other.over_a_mixture;
        self.deltas += other.deltas;
        self.split_deltas += other.split_deltas;
        self.empty_deltas += other.empty_deltas;
        self.resumed += other.resumed;
    }
}

struct Owner {
    name: NodeName,
    routes: OwnRoutes,
    truth: model::Truth,
}

struct Reader {
    routes: PeerRoutes,
    /// By owner.
    seen: Vec<model::Seen>,
    streams: Vec<Option<Stream>>,
}

struct Stream {
    cursor: Cursor,
    frames: VecDeque<Vec<u8>>,
    applied: VecDeque<Vec<u8>>,
}

pub(crate) struct World {
    limits: Limits,
    owners: Vec<Owner>,
    readers: Vec<Reader>,
    pub(crate) seen: Seen,
}

fn row(agent: usize, instance: u8) -> Row {
    Row {
        agent: AGENTS[agent].parse().unwrap(),
        instance: [instance; 16],
    }
}

fn encoded(frame: &impl Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes).unwrap();
    bytes
}

fn decoded<F: Frame>(bytes: &[u8]) -> F {
    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
    let header = FrameHeader::decode(*header, F::BODY_BYTES_MAX).unwrap();
    F::decode(header, body).unwrap().unwrap()
}

impl World {
    pub(crate) fn new(setup: &Setup) -> Self {
        let limits = Limits {
            log_rows_max: setup.log_rows_max,
            frame_bytes_max: setup.frame_bytes_max,
            ..Limits::default()
        };
        let owner = |n: usize| Owner {
            name: format!("p{n}").parse().unwrap(),
            routes: OwnRoutes::new(1, &limits),
            truth: model::Truth::new(1),
        };
        let reader = |_| Reader {
            routes: PeerRoutes::new(limits.clone()),
            seen: vec![model::Seen::default(); OWNERS],
            streams: (0..OWNERS).map(|_| None).collect(),
        };
        Self {
            owners: (0..OWNERS).map(owner).collect(),
            readers: (0..READERS).map(reader).collect(),
            seen: Seen::default(),
            limits,
        }
    }

    #[rustfmt::skip]
    pub(crate) fn step(&mut self, op: &Op) {
        match *op {
            Op::Add { owner, agent, instance } => self.owners[owner].add(row(agent, instance)),
            Op::Remove { owner, agent, instance } => self.owners[owner].remove(&row(agent, instance)),
            Op::Flap { owner, agent, instance } => {
                let row = row(agent, instance);
                if self.owners[owner].truth.since.contains_key(&row) {
                    self.owners[owner].remove(&row);
                    self.owners[owner].add(row);
                } else {
                    self.owners[owner].add(row.clone());
                    self.owners[owner].remove(&row);
                }
            }
            Op::Open { reader, owner } => self.open(reader, owner),
            Op::Tell { reader, owner, frames } => { self.tell(reader, owner, frames); }
            Op::Deliver { reader, owner, frames } => self.deliver(reader, owner, frames),
            Op::Acknowledge { reader, owner } => self.acknowledge(reader, owner),
            Op::Break { reader, owner } => self.break_stream(reader, owner),
            Op::Restart { owner } => self.restart(owner),
            Op::Forget { reader, owner } => {
                self.break_stream(reader, owner);
                let reader = &mut self.readers[reader];
                reader.routes.forget(&self.owners[owner].name);
                reader.seen[owner] = model::Seen::default();
            }
            Op::Settle => self.settle(),
        }
    }

    fn open(&mut self, reader: usize, owner: usize) {
        self.break_stream(reader, owner);
        let Reader {
            routes, streams, ..
        } = &mut self.readers[reader];
        let owner_routes = &self.owners[owner].routes;
        let have = routes.have(&self.owners[owner].name).map(Head::position);
        let cursor = owner_routes.cursor(have);
        if have.is_some_and(|have| {
            have.epoch == self.owners[owner].truth.epoch && cursor.has_applied(have.sequence)
        }) {
            self.seen.resumed += 1;
        }
        streams[owner] = Some(Stream {
            cursor,
            frames: VecDeque::new(),
            applied: VecDeque::new(),
        });
    }

    fn break_stream(&mut self, reader: usize, owner: usize) {
        let reader = &mut self.readers[reader];
        reader.streams[owner] = None;
        reader.seen[owner].broken();
    }

    fn restart(&mut self, owner: usize) {
        for reader in 0..READERS {
            self.break_stream(reader, owner);
        }
        let owner = &mut self.owners[owner];
        owner.truth.restart();
        owner.routes = OwnRoutes::new(owner.truth.epoch, &self.limits);
    }

    /// Whether there was something to tell.
    fn tell(&mut self, reader: usize, owner: usize, frames: usize) -> bool {
        let owner_of = &self.owners[owner];
        let Some(stream) = &mut self.readers[reader].streams[owner] else {
            return false;
        };
        for told in 0..frames {
            let Some(frame) = owner_of.routes.next_for(&mut stream.cursor) else {
                return told > 0;
            };
            let bytes = encoded(&frame);
            let body_bytes_max = self.limits.frame_bytes_max.max(FRAME_BYTES_MIN);
            assert!(
                bytes.len() - FRAME_HEADER_BYTES <= body_bytes_max,
                "{frame:?}"
            );
            stream.frames.push_back(bytes);
            self.seen.count(&frame, owner_of);
        }
        true
    }

    fn deliver(&mut self, reader: usize, owner: usize, frames: usize) {
        let Reader {
            routes,
            seen,
            streams,
        } = &mut self.readers[reader];
        let Some(stream) = &mut streams[owner] else {
            return;
        };
        let owner_of = &self.owners[owner];
        for _ in 0..frames {
            let Some(bytes) = stream.frames.pop_front() else {
                return;
            };
            let frame: RoutesFrame = decoded(&bytes);
            if let RoutesFrame::Snapshot(snapshot) = &frame {
                let before = &seen[owner];
                self.seen.begun_anew += usize::from(before.is_reading());
                self.seen.over_a_mixture += usize::from(
                    !before.is_reading() && before.complete.is_none() && !before.rows.is_empty(),
                );
                self.seen.over_an_old_epoch += usize::from(
                    before
                        .complete
                        .is_some_and(|(epoch, _)| epoch < snapshot.epoch),
                );
            }
            seen[owner].apply(&owner_of.truth, &frame);
            let applied = routes.apply(&owner_of.name, frame).unwrap();
            let complete = seen[owner].complete.map(|(epoch, sequence)| RoutesApplied {
                epoch,
                sequence,
                ext: Vec::new(),
            });
            assert_eq!(
                applied, complete,
                "acknowledged when complete, and only then"
            );
            if let Some(applied) = applied {
                stream
                    .applied
                    .push_back(encoded(&RoutesReaderFrame::Applied(applied)));
            }
        }
    }

    fn acknowledge(&mut self, reader: usize, owner: usize) {
        if let Some(stream) = &mut self.readers[reader].streams[owner] {
            for bytes in stream.applied.drain(..) {
                let RoutesReaderFrame::Applied(applied) = decoded(&bytes);
                stream.cursor.applied(&applied).unwrap();
            }
        }
    }

    fn settle(&mut self) {
        for reader in 0..READERS {
            for owner in 0..OWNERS {
                if self.readers[reader].streams[owner].is_none() {
                    self.open(reader, owner);
                }
                // Each frame tells a row or a change at the least.
                const FRAMES_MAX: usize = 2000;
                let told = (0..FRAMES_MAX).take_while(|_| self.tell(reader, owner, 1));
                assert!(told.count() < FRAMES_MAX, "there is no end to what is told");
                self.deliver(reader, owner, usize::MAX);
                self.acknowledge(reader, owner);

                let Owner {
                    name,
                    routes,
                    truth,
                } = &self.owners[owner];
                let reader = &self.readers[reader];
                let head = routes.head();
                assert_eq!(
                    reader.seen[owner].rows,
                    truth.rows(),
                    "the copy equals the truth"
                );
                assert_eq!(reader.routes.have(name), Some(head));
                assert!(!reader.routes.is_behind(name, head));
                let stream = reader.streams[owner].as_ref().unwrap();
                assert!(stream.cursor.has_applied(head.sequence));
            }
        }
    }

    /// Every lookup against the model.
    pub(crate) fn check(&self) {
        for owner in &self.owners {
            owner.check();
        }
        for reader in &self.readers {
            reader.check(&self.owners);
        }
    }
}

impl Owner {
    fn add(&mut self, row: Row) {
        self.truth.add(&row);
        let sequence = self.routes.add(row.agent, row.instance);
        assert_eq!(sequence, self.truth.sequence);
    }

    fn remove(&mut self, row: &Row) {
        self.truth.remove(row);
        let sequence = self.routes.remove(&row.agent, &row.instance);
        assert_eq!(sequence, self.truth.sequence);
    }

    fn check(&self) {
        let truth = self.truth.rows();
        assert_eq!(
            self.routes.head(),
            Head {
                epoch: self.truth.epoch,
                sequence: self.truth.sequence,
                count: truth.len() as u64,
            }
        );
        for agent in AGENTS {
            let agent: mesh_proto::name::AgentName = agent.parse().unwrap();
            let held = truth.iter().any(|row| row.agent == agent);
            assert_eq!(self.routes.holds(&agent), held, "{agent}");
        }
        assert!(self.routes.rows(None, usize::MAX).eq(&truth));
    }
}

impl Reader {
    fn check(&self, owners: &[Owner]) {
        let mut agents_of_all = BTreeSet::new();
        for agent in AGENTS {
            let agent: mesh_proto::name::AgentName = agent.parse().unwrap();
            let claims: BTreeSet<(&NodeName, &[u8; 16])> = (owners.iter().zip(&self.seen))
                .flat_map(|(owner, seen)| seen.rows.iter().map(move |row| (&owner.name, row)))
                .filter(|(_, row)| row.agent == agent)
                .map(|(owner, row)| (owner, &row.instance))
                .collect();
            let listed: Vec<_> = self.routes.instances(&agent).collect();
            assert_eq!(listed.len(), claims.len(), "an instance is listed twice");
            assert_eq!(
                listed.into_iter().collect::<BTreeSet<_>>(),
                claims,
                "{agent}"
            );
            let holders: Vec<_> = self.routes.holders(&agent).collect();
            let expected: BTreeSet<_> = claims.iter().map(|(owner, _)| *owner).collect();
            assert_eq!(holders.len(), expected.len(), "a holder is listed twice");
            assert_eq!(
                holders.into_iter().collect::<BTreeSet<_>>(),
                expected,
                "{agent}"
            );
            if !claims.is_empty() {
                agents_of_all.insert(agent);
            }
        }
        assert!(self.routes.agents(None, usize::MAX).eq(&agents_of_all));
        assert_eq!(self.routes.agents_len(), agents_of_all.len());
        let rows: usize = self.seen.iter().map(|seen| seen.rows.len()).sum();
        assert_eq!(self.routes.len(), rows);

        for ((owner, seen), stream) in owners.iter().zip(&self.seen).zip(&self.streams) {
            let have = seen.complete.map(|(epoch, sequence)| Head {
                epoch,
                sequence,
                count: seen.rows.len() as u64,
            });
            assert_eq!(self.routes.have(&owner.name), have);
            let head = owner.routes.head();
            let behind = have != Some(head);
            assert_eq!(self.routes.is_behind(&owner.name, head), behind);
            let Some(stream) = stream else { continue };
            for (row, since) in &owner.truth.since {
                assert!(
                    !stream.cursor.has_applied(*since) || seen.rows.contains(row),
                    "{row:?} was acknowledged, is still there, and the reader does not see it"
                );
            }
        }
    }
}

impl Seen {
    fn count(&mut self, frame: &RoutesFrame, owner: &Owner) {
        match frame {
            RoutesFrame::Snapshot(_) => self.snapshots += 1,
            RoutesFrame::Rows(rows) => {
                self.chunks += usize::from(!rows.last);
                let gone = |row: &Row| !owner.truth.since.contains_key(row);
                self.undone += usize::from(rows.rows.iter().any(gone));
            }
            RoutesFrame::Delta(delta) => {
                self.deltas += 1;
                self.split_deltas += usize::from(delta.to < owner.truth.sequence);
                self.empty_deltas +=
                    usize::from(delta.added.is_empty() && delta.removed.is_empty());
            }
        }
    }
}
