//! Copies of the peers' routes.

use std::collections::BTreeMap;

use super::table::{OwnerId, Table};
use super::{Head, Limits, RoutesError};
use crate::name::{AgentName, NodeName};
use crate::wire::{
    Ext, RoutesApplied, RoutesDelta, RoutesFrame, RoutesPosition, RoutesRows, RoutesSnapshot, Row,
};

/// Copies of the peers' routes, in one table by agent.
#[derive(Debug)]
pub struct PeerRoutes {
    limits: Limits,
    copies: BTreeMap<NodeName, Copy>,
    /// The owner of each number; a number is free again when its owner was forgotten.
    owners: Vec<Option<NodeName>>,
    table: Table,
}

/// What is known of one owner.
#[derive(Debug)]
struct Copy {
    id: OwnerId,
    /// The highest that has come.
    epoch: u64,
    rows: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Its rows are of no single state: what is needed is a snapshot.
    Incomplete,
    /// A snapshot is being read.
    Reading {
        sequence: u64,
        announced: u64,
        came: u64,
        after: Option<Row>,
    },
    /// Its rows are those of this sequence.
    Complete { sequence: u64 },
}

impl PeerRoutes {
    /// No copies yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            copies: BTreeMap::new(),
            owners: Vec::new(),
            table: Table::default(),
        }
    }

    /// Takes a frame from the stream of `owner`, of which there is one at a time. Returns what to
    /// acknowledge, if the copy is complete now.
    ///
    /// # Errors
    /// Each says what it changed; see [`RoutesError`].
    pub fn apply(
        &mut self,
        owner: &NodeName,
        frame: RoutesFrame,
    ) -> Result<Option<RoutesApplied>, RoutesError> {
        let position = match frame {
            RoutesFrame::Snapshot(snapshot) => {
                self.begin(owner, &snapshot)?;
                return Ok(None);
            }
            RoutesFrame::Rows(rows) => self.rows(owner, rows)?,
            RoutesFrame::Delta(delta) => Some(self.delta(owner, delta)?),
        };
        Ok(position.map(|position| RoutesApplied {
            epoch: position.epoch,
            sequence: position.sequence,
            ext: Ext::new(),
        }))
    }

    fn begin(&mut self, owner: &NodeName, snapshot: &RoutesSnapshot) -> Result<(), RoutesError> {
        let rows_per_owner_max = self.limits.rows_per_owner_max;
        if snapshot.count > rows_per_owner_max as u64 {
            return Err(RoutesError::TooManyOfOwner {
                rows: snapshot.count,
                rows_per_owner_max,
            });
        }
        let copy = match self.copies.get_mut(owner) {
            Some(copy) => copy,
            None => {
                let id = self.new_id(owner)?;
                self.copies.entry(owner.clone()).or_insert(Copy {
                    id,
                    epoch: snapshot.epoch,
                    rows: 0,
                    state: State::Incomplete,
                })
            }
        };
        copy.check_epoch(snapshot.epoch)?;
        copy.epoch = snapshot.epoch;
        copy.state = State::Reading {
            sequence: snapshot.sequence,
            announced: snapshot.count,
            came: 0,
            after: None,
        };
        Ok(())
    }

    fn new_id(&mut self, owner: &NodeName) -> Result<OwnerId, RoutesError> {
        let too_many = RoutesError::TooManyOwners {
            owners_max: self.limits.owners_max,
        };
        if self.copies.len() >= self.limits.owners_max {
            return Err(too_many);
        }
        let free = self.owners.iter().position(Option::is_none);
        let at = free.unwrap_or(self.owners.len());
        let id = OwnerId::try_from(at).map_err(|_| too_many)?;
        match self.owners.get_mut(at) {
            Some(slot) => *slot = Some(owner.clone()),
            None => self.owners.push(Some(owner.clone())),
        }
        Ok(id)
    }

    fn rows(
        &mut self,
        owner: &NodeName,
        chunk: RoutesRows,
    ) -> Result<Option<RoutesPosition>, RoutesError> {
        let copy = self.copies.get_mut(owner).ok_or(RoutesError::NoSnapshot)?;
        let State::Reading {
            sequence,
            announced,
            came,
            after,
        } = &mut copy.state
        else {
            return Err(RoutesError::NoSnapshot);
        };
        let (sequence, announced) = (*sequence, *announced);
        let came = came.saturating_add(chunk.rows.len() as u64);
        let after = after.take();
        // Whatever fails from here on ends the snapshot.
        copy.state = State::Incomplete;
        check_order(after.as_ref(), &chunk.rows)?;
        if came > announced || (chunk.last && came != announced) {
            return Err(RoutesError::Count { announced, came });
        }
        let end = chunk.rows.last().cloned();
        // What the snapshot does not have on the way to the chunk's end is gone, and behind the
        // last one whatever there is.
        if copy.rows > 0 && (chunk.last || end.is_some()) {
            let until = if chunk.last { None } else { end.as_ref() };
            copy.rows -= self
                .table
                .sweep(copy.id, after.as_ref(), until, &chunk.rows);
        }
        for row in chunk.rows {
            if self.table.len() >= self.limits.rows_max && !self.table.contains(copy.id, &row) {
                return Err(RoutesError::TooMany {
                    rows_max: self.limits.rows_max,
                });
            }
            copy.rows += usize::from(self.table.insert(copy.id, row));
        }
        if chunk.last {
            copy.state = State::Complete { sequence };
            let epoch = copy.epoch;
            return Ok(Some(RoutesPosition { epoch, sequence }));
        }
        copy.state = State::Reading {
            sequence,
            announced,
            came,
            after: end.or(after),
        };
        Ok(None)
    }

    fn delta(
        &mut self,
        owner: &NodeName,
        delta: RoutesDelta,
    ) -> Result<RoutesPosition, RoutesError> {
        let from = RoutesPosition {
            epoch: delta.epoch,
            sequence: delta.from,
        };
        let copy = self
            .copies
            .get_mut(owner)
            .ok_or(RoutesError::Gap { have: None, from })?;
        copy.check_epoch(delta.epoch)?;
        let have = copy.head().map(Head::position);
        if have != Some(from) {
            return Err(RoutesError::Gap { have, from });
        }
        if delta.to <= delta.from {
            return Err(RoutesError::NotForward {
                from: delta.from,
                to: delta.to,
            });
        }
        check_order(None, &delta.added)?;
        check_order(None, &delta.removed)?;
        if let Some(held) = delta
            .added
            .iter()
            .find(|row| self.table.contains(copy.id, row))
        {
            copy.state = State::Incomplete;
            let agent = held.agent.clone();
            return Err(RoutesError::RowHeld { agent });
        }
        if let Some(unknown) = delta
            .removed
            .iter()
            .find(|row| !self.table.contains(copy.id, row))
        {
            copy.state = State::Incomplete;
            let agent = unknown.agent.clone();
            return Err(RoutesError::RowUnknown { agent });
        }
        // All of `removed` are there, so these do not go below zero.
        let after = |rows: usize| rows - delta.removed.len() + delta.added.len();
        let rows_per_owner_max = self.limits.rows_per_owner_max;
        let rows = after(copy.rows);
        if rows > rows_per_owner_max {
            return Err(RoutesError::TooManyOfOwner {
                rows: rows as u64,
                rows_per_owner_max,
            });
        }
        let rows_max = self.limits.rows_max;
        if after(self.table.len()) > rows_max {
            return Err(RoutesError::TooMany { rows_max });
        }
        for row in &delta.removed {
            self.table.remove(copy.id, row);
        }
        for row in delta.added {
            self.table.insert(copy.id, row);
        }
        copy.rows = rows;
        copy.state = State::Complete { sequence: delta.to };
        Ok(RoutesPosition {
            epoch: delta.epoch,
            sequence: delta.to,
        })
    }

    /// The owners that claim the agent, each once.
    pub fn holders(&self, agent: &AgentName) -> impl Iterator<Item = &NodeName> {
        self.table
            .holders(agent.as_str())
            .filter_map(|id| self.owner(id))
    }

    /// Who claims which instance of the agent, instance by instance. Several instances are clones,
    /// or one that has just started anew.
    pub fn instances(&self, agent: &AgentName) -> impl Iterator<Item = (&NodeName, &[u8; 16])> {
        self.table
            .instances(agent.as_str())
            .filter_map(|(id, instance)| Some((self.owner(id)?, instance)))
    }

    fn owner(&self, id: OwnerId) -> Option<&NodeName> {
        self.owners.get(usize::from(id))?.as_ref()
    }

    /// The state of the owner's copy, if it is complete.
    #[must_use]
    pub fn have(&self, owner: &NodeName) -> Option<Head> {
        self.copies.get(owner)?.head()
    }

    /// Whether the copy lacks what a head, heard by gossip, says that there is: it is not complete,
    /// or of an earlier state, or of the same and yet of another size. What was heard may be older
    /// than the copy; that is not behind.
    #[must_use]
    pub fn is_behind(&self, owner: &NodeName, head: Head) -> bool {
        let Some(copy) = self.copies.get(owner) else {
            return true;
        };
        match copy.head() {
            Some(have) => {
                have.position() < head.position()
                    || (have.position() == head.position() && have.count != head.count)
            }
            None => head.epoch >= copy.epoch,
        }
    }

    /// The owner is a member no more: its rows are gone at once. Looks at every agent.
    pub fn forget(&mut self, owner: &NodeName) {
        let Some(copy) = self.copies.remove(owner) else {
            return;
        };
        if copy.rows > 0 {
            self.table.sweep(copy.id, None, None, &[]);
        }
        if let Some(slot) = self.owners.get_mut(usize::from(copy.id)) {
            *slot = None;
        }
    }

    /// How many rows there are, of all owners.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many agents there are.
    #[must_use]
    pub fn agents_len(&self) -> usize {
        self.table.agents_len()
    }

    /// Agents in order of their names, for status pages: at most `agents_max`, behind `after`.
    pub fn agents(
        &self,
        after: Option<&AgentName>,
        agents_max: usize,
    ) -> impl Iterator<Item = &AgentName> {
        self.table.agents(after).take(agents_max)
    }

    /// The owners in order of their names, how many rows of each there are, and the state of the
    /// copy if it is complete.
    pub fn owners(&self) -> impl Iterator<Item = (&NodeName, usize, Option<Head>)> {
        self.copies
            .iter()
            .map(|(owner, copy)| (owner, copy.rows, copy.head()))
    }
}

impl Copy {
    fn check_epoch(&self, came: u64) -> Result<(), RoutesError> {
        if came < self.epoch {
            let known = self.epoch;
            return Err(RoutesError::OldEpoch { known, came });
        }
        Ok(())
    }

    fn head(&self) -> Option<Head> {
        match self.state {
            State::Complete { sequence } => Some(Head {
                epoch: self.epoch,
                sequence,
                count: self.rows as u64,
            }),
            State::Incomplete | State::Reading { .. } => None,
        }
    }
}

/// Each row is behind the one before it, the first behind `after`.
fn check_order(after: Option<&Row>, rows: &[Row]) -> Result<(), RoutesError> {
    let before = after.into_iter().chain(rows);
    let next = rows.iter().skip(usize::from(after.is_none()));
    for (before, row) in before.zip(next) {
        if row <= before {
            let agent = row.agent.clone();
            return Err(RoutesError::Order { agent });
        }
    }
    Ok(())
}
