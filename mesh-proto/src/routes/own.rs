//! What this proxy holds, and what its readers have to be told.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::{ENVELOPE_BYTES_MAX, FRAME_BYTES_MIN, Head, Limits, RoutesError, row_bytes};
use crate::name::AgentName;
use crate::wire::{
    CONTROL_BYTES_MAX, Ext, ROUTES_ROWS_MAX, RoutesApplied, RoutesDelta, RoutesFrame,
    RoutesPosition, RoutesRows, RoutesSnapshot, Row,
};

/// What this proxy holds. Written by it alone. Its rows are as many as its sessions at most, which
/// have a limit of their own.
#[derive(Debug)]
pub struct OwnRoutes {
    epoch: u64,
    sequence: u64,
    log_rows_max: usize,
    frame_rows_bytes_max: usize,
    /// Sessions of each row.
    rows: BTreeMap<Row, usize>,
    /// The last changes; the last one of them made `sequence`.
    log: VecDeque<Change>,
}

/// A row came or went: it is the other way round than before.
#[derive(Debug)]
struct Change {
    row: Row,
    added: bool,
}

/// How far one reader has been told, and how far it has acknowledged.
#[derive(Debug)]
pub struct Cursor {
    reading: Reading,
    /// The last complete state that the reader has been told.
    told: Option<RoutesPosition>,
    applied: Option<RoutesPosition>,
}

#[derive(Debug)]
enum Reading {
    /// A snapshot must begin.
    Nothing,
    /// A snapshot of this sequence has been told up to this row, or nothing of it.
    Snapshot { sequence: u64, after: Option<Row> },
    /// All of this sequence has been told.
    Complete { sequence: u64 },
}

impl OwnRoutes {
    /// No rows yet. The epoch is higher than in any life of this proxy before.
    #[must_use]
    pub fn new(epoch: u64, limits: &Limits) -> Self {
        let frame_bytes = limits
            .frame_bytes_max
            .clamp(FRAME_BYTES_MIN, CONTROL_BYTES_MAX);
        Self {
            epoch,
            sequence: 0,
            log_rows_max: limits.log_rows_max,
            frame_rows_bytes_max: frame_bytes - ENVELOPE_BYTES_MAX,
            rows: BTreeMap::new(),
            log: VecDeque::new(),
        }
    }

    /// One more session of an agent's instance. Returns the sequence that has the row.
    pub fn add(&mut self, agent: AgentName, instance: [u8; 16]) -> u64 {
        match self.rows.entry(Row { agent, instance }) {
            Entry::Occupied(mut sessions) => *sessions.get_mut() += 1,
            Entry::Vacant(row) => {
                let change = Change {
                    row: row.key().clone(),
                    added: true,
                };
                row.insert(1);
                self.changed(change);
            }
        }
        self.sequence
    }

    /// One session less; the row goes with the last one. Nothing happens if there is none. Returns
    /// the sequence afterwards.
    pub fn remove(&mut self, agent: &AgentName, instance: &[u8; 16]) -> u64 {
        let row = Row {
            agent: agent.clone(),
            instance: *instance,
        };
        if let Entry::Occupied(mut sessions) = self.rows.entry(row) {
            *sessions.get_mut() -= 1;
            if *sessions.get() == 0 {
                let (row, _) = sessions.remove_entry();
                self.changed(Change { row, added: false });
            }
        }
        self.sequence
    }

    fn changed(&mut self, change: Change) {
        self.sequence += 1;
        self.log.push_back(change);
        if self.log.len() > self.log_rows_max {
            self.log.pop_front();
        }
    }

    /// Where the rows stand: what gossip tells.
    #[must_use]
    pub fn head(&self) -> Head {
        Head {
            epoch: self.epoch,
            sequence: self.sequence,
            count: self.rows.len() as u64,
        }
    }

    /// Whether there is a session of that agent.
    #[must_use]
    pub fn holds(&self, agent: &AgentName) -> bool {
        let first = Row {
            agent: agent.clone(),
            instance: [0; 16],
        };
        self.rows
            .range(first..)
            .next()
            .is_some_and(|(row, _)| row.agent == *agent)
    }

    /// Rows in order, for status pages: at most `rows_max`, behind `after`.
    pub fn rows(&self, after: Option<&Row>, rows_max: usize) -> impl Iterator<Item = &Row> {
        self.rows_behind(after).take(rows_max)
    }

    fn rows_behind(&self, after: Option<&Row>) -> impl Iterator<Item = &Row> {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.rows
            .range::<Row, _>((after, Bound::Unbounded))
            .map(|(row, _)| row)
    }

    /// A reader that says it has this state. It is believed if that is one of this epoch which the
    /// log still reaches; otherwise it is told everything.
    #[must_use]
    pub fn cursor(&self, have: Option<RoutesPosition>) -> Cursor {
        let have = have
            .filter(|have| have.epoch == self.epoch && self.changes_since(have.sequence).is_some());
        Cursor {
            reading: have.map_or(Reading::Nothing, |have| Reading::Complete {
                sequence: have.sequence,
            }),
            told: have,
            applied: have,
        }
    }

    /// What the reader has to be told next, bounded in bytes; `None`: it has been told everything.
    /// The cursor is one of these routes.
    pub fn next_for(&self, cursor: &mut Cursor) -> Option<RoutesFrame> {
        let frame = match &cursor.reading {
            Reading::Complete { sequence } if *sequence == self.sequence => return None,
            Reading::Complete { sequence } => self.delta(*sequence),
            Reading::Snapshot { sequence, after } => self.chunk(*sequence, after.as_ref()),
            Reading::Nothing => None,
        };
        // No frame: the log does not reach that far back, or there was nothing before.
        let frame = frame.unwrap_or_else(|| {
            RoutesFrame::Snapshot(RoutesSnapshot {
                epoch: self.epoch,
                sequence: self.sequence,
                count: self.rows.len() as u64,
                ext: Ext::new(),
            })
        });
        cursor.told(self.epoch, &frame);
        Some(frame)
    }

    /// What the state at `from` and a later one differ by: the latest that fits one frame.
    fn delta(&self, from: u64) -> Option<RoutesFrame> {
        let mut to = from;
        let mut bytes = 0;
        // Changes of a row alternate, so that two of them are none.
        let mut changed: BTreeMap<&Row, bool> = BTreeMap::new();
        for change in self.changes_since(from)? {
            let size = row_bytes(&change.row);
            if changed.remove(&change.row).is_some() {
                bytes -= size;
            } else {
                let is_full = bytes > 0 && bytes + size > self.frame_rows_bytes_max;
                if is_full || changed.len() == ROUTES_ROWS_MAX {
                    break;
                }
                changed.insert(&change.row, change.added);
                bytes += size;
            }
            to += 1;
        }
        let rows = |added: bool| {
            changed
                .iter()
                .filter(move |(_, was_added)| **was_added == added)
                .map(|(row, _)| (*row).clone())
                .collect()
        };
        Some(RoutesFrame::Delta(RoutesDelta {
            epoch: self.epoch,
            from,
            to,
            added: rows(true),
            removed: rows(false),
            ext: Ext::new(),
        }))
    }

    /// The next rows behind `after` of the state at `sequence`.
    fn chunk(&self, sequence: u64, after: Option<&Row>) -> Option<RoutesFrame> {
        // Rows that have changed since, and whether they were there: their first change tells.
        let mut then: BTreeMap<&Row, bool> = BTreeMap::new();
        for change in self.changes_since(sequence)? {
            if after.is_none_or(|after| change.row > *after) {
                then.entry(&change.row).or_insert(!change.added);
            }
        }
        let mut unchanged = self
            .rows_behind(after)
            .filter(|row| then.is_empty() || !then.contains_key(row))
            .peekable();
        let mut changed = then
            .iter()
            .filter(|(_, was_there)| **was_there)
            .map(|(row, _)| *row)
            .peekable();
        let mut rows = Vec::new();
        let mut bytes = 0;
        let last = loop {
            let behind = match (unchanged.peek(), changed.peek()) {
                (Some(now), Some(past)) => past < now,
                (None, Some(_)) => true,
                (Some(_), None) => false,
                (None, None) => break true,
            };
            let row = if behind {
                changed.peek()
            } else {
                unchanged.peek()
            };
            let Some(row) = row.copied() else { break true };
            bytes += row_bytes(row);
            let is_full = !rows.is_empty() && bytes > self.frame_rows_bytes_max;
            if is_full || rows.len() == ROUTES_ROWS_MAX {
                break false;
            }
            rows.push(row.clone());
            if behind {
                changed.next();
            } else {
                unchanged.next();
            }
        };
        Some(RoutesFrame::Rows(RoutesRows {
            rows,
            last,
            ext: Ext::new(),
        }))
    }

    /// The changes behind the state at `sequence`; `None` if the log does not have all of them, or
    /// there is no such state yet.
    fn changes_since(&self, sequence: u64) -> Option<impl Iterator<Item = &Change>> {
        let behind = usize::try_from(self.sequence.checked_sub(sequence)?).ok()?;
        let first = self.log.len().checked_sub(behind)?;
        Some(self.log.range(first..))
    }
}

impl Cursor {
    /// The reader has acknowledged a state.
    ///
    /// # Errors
    /// [`RoutesError::NotTold`] when it has not been told that state.
    pub fn applied(&mut self, applied: &RoutesApplied) -> Result<(), RoutesError> {
        let applied = RoutesPosition {
            epoch: applied.epoch,
            sequence: applied.sequence,
        };
        let told = self
            .told
            .filter(|told| told.epoch == applied.epoch && told.sequence >= applied.sequence);
        if told.is_none() {
            return Err(RoutesError::NotTold {
                told: self.told,
                applied,
            });
        }
        self.applied = self.applied.max(Some(applied));
        Ok(())
    }

    /// Whether the reader's lookups are known to see what [`OwnRoutes::add`] made this sequence of.
    #[must_use]
    pub fn has_applied(&self, sequence: u64) -> bool {
        self.applied
            .is_some_and(|applied| applied.sequence >= sequence)
    }

    /// Takes note of a frame that the reader is about to be told.
    fn told(&mut self, epoch: u64, frame: &RoutesFrame) {
        let complete = match frame {
            RoutesFrame::Snapshot(snapshot) => {
                let sequence = snapshot.sequence;
                let after = None;
                self.reading = Reading::Snapshot { sequence, after };
                None
            }
            RoutesFrame::Rows(rows) => match &mut self.reading {
                Reading::Snapshot { sequence, .. } if rows.last => Some(*sequence),
                Reading::Snapshot { after, .. } => {
                    *after = rows.rows.last().cloned();
                    None
                }
                Reading::Nothing | Reading::Complete { .. } => None,
            },
            RoutesFrame::Delta(delta) => Some(delta.to),
        };
        if let Some(sequence) = complete {
            self.reading = Reading::Complete { sequence };
            self.told = Some(RoutesPosition { epoch, sequence });
        }
    }
}
