//! The naive model: sets of rows, and every state that an owner ever had.

use std::collections::{BTreeMap, BTreeSet};

use mesh_proto::wire::{RoutesFrame, Row};

pub(crate) type Rows = BTreeSet<Row>;

/// An owner's rows, and all it had before.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) epoch: u64,
    sessions: BTreeMap<Row, usize>,
    /// The sequence that brought each row that is there.
    pub(crate) since: BTreeMap<Row, u64>,
    states: BTreeMap<(u64, u64), Rows>,
    pub(crate) sequence: u64,
}

impl Truth {
    pub(crate) fn new(epoch: u64) -> Self {
        let states = BTreeMap::from([((epoch, 0), Rows::new())]);
        Self {
            epoch,
            states,
            ..Self::default()
        }
    }

    /// States of former lives stay: copies may still be of one.
    pub(crate) fn restart(&mut self) {
        let mut next = Self::new(self.epoch + 1);
        next.states.append(&mut self.states);
        *self = next;
    }

    pub(crate) fn add(&mut self, row: &Row) {
        let sessions = self.sessions.entry(row.clone()).or_default();
        *sessions += 1;
        if *sessions == 1 {
            self.sequence += 1;
            self.since.insert(row.clone(), self.sequence);
            self.record();
        }
    }

    pub(crate) fn remove(&mut self, row: &Row) {
        let Some(sessions) = self.sessions.get_mut(row) else {
            return;
        };
        *sessions -= 1;
        if *sessions == 0 {
            self.sessions.remove(row);
            self.since.remove(row);
            self.sequence += 1;
            self.record();
        }
    }

    fn record(&mut self) {
        let rows = self.rows();
        self.states.insert((self.epoch, self.sequence), rows);
    }

    pub(crate) fn rows(&self) -> Rows {
        self.sessions.keys().cloned().collect()
    }

    pub(crate) fn state(&self, epoch: u64, sequence: u64) -> &Rows {
        self.states
            .get(&(epoch, sequence))
            .unwrap_or_else(|| panic!("there was no state {epoch}/{sequence}"))
    }
}

/// What one reader should see of one owner.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) rows: Rows,
    /// Set when the copy is complete: it is this state.
    pub(crate) complete: Option<(u64, u64)>,
    /// While a snapshot is read: the state that it is of, and what was there before.
    reading: Option<((u64, u64), Rows)>,
    pub(crate) epoch: u64,
}

impl Seen {
    /// What a frame makes of it. From frames come the positions and how far the chunks reach; what
    /// the rows are comes from the owner's states.
    pub(crate) fn apply(&mut self, truth: &Truth, frame: &RoutesFrame) {
        match frame {
            RoutesFrame::Snapshot(snapshot) => {
                let position = (snapshot.epoch, snapshot.sequence);
                assert_eq!(
                    snapshot.count,
                    truth.state(position.0, position.1).len() as u64,
                    "a snapshot's count is that of its state"
                );
                self.complete = None;
                self.epoch = snapshot.epoch;
                self.reading = Some((position, self.rows.clone()));
            }
            RoutesFrame::Rows(chunk) => {
                let (position, old) = self.reading.clone().expect("a snapshot had begun");
                let new = truth.state(position.0, position.1);
                let end = chunk.rows.last();
                let is_new = |row: &Row| chunk.last || end.is_some_and(|end| row <= end);
                self.rows = (new.iter().filter(|row| is_new(row)))
                    .chain(old.iter().filter(|row| !is_new(row)))
                    .cloned()
                    .collect();
                assert!(
                    old.intersection(new).all(|row| self.rows.contains(row)),
                    "a row that was there and is there is missing"
                );
                if chunk.last {
                    self.reading = None;
                    self.complete = Some(position);
                }
            }
            RoutesFrame::Delta(delta) => {
                assert_eq!(self.complete, Some((delta.epoch, delta.from)));
                let from = truth.state(delta.epoch, delta.from);
                let to = truth.state(delta.epoch, delta.to);
                let difference = |a: &Rows, b: &Rows| a.difference(b).cloned().collect::<Vec<_>>();
                assert_eq!(
                    delta.added,
                    difference(to, from),
                    "what has come, and no more"
                );
                assert_eq!(
                    delta.removed,
                    difference(from, to),
                    "what has gone, and no more"
                );
                self.rows = to.clone();
                self.complete = Some((delta.epoch, delta.to));
            }
        }
    }

    pub(crate) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// The stream has ended.
    pub(crate) fn broken(&mut self) {
        self.reading = None;
    }
}
