//! The copies of all owners in one table by agent, as small as it goes.
//!
//! With every agent at every proxy, there are as many rows as agents times proxies. So an agent's
//! name is there once, each of its instances once (there is one, normally), and a row is no more
//! than the number of an owner in a list.

use std::collections::BTreeMap;
use std::mem;
use std::ops::Bound;

use crate::name::AgentName;
use crate::wire::Row;

/// An owner, as the table calls it.
pub(super) type OwnerId = u16;

#[derive(Debug, Default)]
pub(super) struct Table {
    agents: BTreeMap<AgentName, Claims>,
    rows: usize,
}

/// Who holds an agent, by instance; never empty in the table. A boxed slice has no spare room.
#[derive(Debug, Default)]
struct Claims(Box<[Claim]>);

#[derive(Debug)]
struct Claim {
    instance: [u8; 16],
    /// Ascending; never empty in the table.
    owners: Box<[OwnerId]>,
}

impl Table {
    /// How many rows there are, of all owners.
    pub(super) fn len(&self) -> usize {
        self.rows
    }

    pub(super) fn agents_len(&self) -> usize {
        self.agents.len()
    }

    pub(super) fn contains(&self, owner: OwnerId, row: &Row) -> bool {
        self.agents
            .get(&row.agent)
            .is_some_and(|claims| claims.contains(owner, &row.instance))
    }

    /// Whether the row is new.
    pub(super) fn insert(&mut self, owner: OwnerId, row: Row) -> bool {
        let claims = self.agents.entry(row.agent).or_default();
        let new = claims.insert(owner, row.instance);
        self.rows += usize::from(new);
        new
    }

    /// Whether the row was there.
    pub(super) fn remove(&mut self, owner: OwnerId, row: &Row) -> bool {
        let Some(claims) = self.agents.get_mut(&row.agent) else {
            return false;
        };
        let removed = claims.remove_if(owner, |instance| *instance == row.instance);
        if claims.0.is_empty() {
            self.agents.remove(&row.agent);
        }
        self.rows -= removed;
        removed > 0
    }

    /// Removes the owner's rows behind `after`, up to and with `until`, but for those in `keep`,
    /// which is ascending. Looks at every agent in that range, whoever holds it. Returns how many
    /// are gone.
    pub(super) fn sweep(
        &mut self,
        owner: OwnerId,
        after: Option<&Row>,
        until: Option<&Row>,
        keep: &[Row],
    ) -> usize {
        let range = (
            after.map_or(Bound::Unbounded, |row| Bound::Included(&row.agent)),
            until.map_or(Bound::Unbounded, |row| Bound::Included(&row.agent)),
        );
        let after = after.map(key);
        let until = until.map(key);
        let mut keep = keep.iter().map(key).peekable();
        let mut swept = 0;
        let emptied = self.agents.extract_if(range, |agent, claims| {
            swept += claims.remove_if(owner, |instance| {
                let row = (agent.as_str(), instance);
                if after.is_some_and(|after| row <= after) || until.is_some_and(|until| row > until)
                {
                    return false;
                }
                while keep.next_if(|kept| *kept < row).is_some() {}
                keep.peek() != Some(&row)
            });
            claims.0.is_empty()
        });
        emptied.for_each(drop);
        self.rows -= swept;
        swept
    }

    /// Each owner that claims the agent, once.
    pub(super) fn holders(&self, agent: &str) -> impl Iterator<Item = OwnerId> {
        let claims = self.agents.get(agent).map_or(&[][..], |claims| &claims.0);
        claims.iter().enumerate().flat_map(move |(at, claim)| {
            let before = claims.get(..at).unwrap_or_default();
            claim
                .owners
                .iter()
                .copied()
                .filter(move |owner| !before.iter().any(|claim| claim.has(*owner)))
        })
    }

    /// Every claim of the agent, instance by instance.
    pub(super) fn instances(&self, agent: &str) -> impl Iterator<Item = (OwnerId, &[u8; 16])> {
        let claims = self.agents.get(agent).map_or(&[][..], |claims| &claims.0);
        claims
            .iter()
            .flat_map(|claim| claim.owners.iter().map(|owner| (*owner, &claim.instance)))
    }

    /// Agents in order of their names.
    pub(super) fn agents(&self, after: Option<&AgentName>) -> impl Iterator<Item = &AgentName> {
        let range = (
            after.map_or(Bound::Unbounded, Bound::Excluded),
            Bound::Unbounded,
        );
        self.agents
            .range::<AgentName, _>(range)
            .map(|(agent, _)| agent)
    }
}

impl Claims {
    fn contains(&self, owner: OwnerId, instance: &[u8; 16]) -> bool {
        self.0
            .iter()
            .any(|claim| claim.instance == *instance && claim.has(owner))
    }

    fn insert(&mut self, owner: OwnerId, instance: [u8; 16]) -> bool {
        match self
            .0
            .binary_search_by_key(&&instance, |claim| &claim.instance)
        {
            Ok(at) => self.0.get_mut(at).is_some_and(|claim| claim.insert(owner)),
            Err(at) => {
                let owners: Box<[OwnerId]> = Box::new([owner]);
                insert_at(&mut self.0, at, Claim { instance, owners });
                true
            }
        }
    }

    /// Removes the owner from those claims that `gone` says, which is asked of the owner's own ones
    /// alone, in order. Returns how many.
    fn remove_if(&mut self, owner: OwnerId, mut gone: impl FnMut(&[u8; 16]) -> bool) -> usize {
        let mut removed = 0;
        let mut emptied = false;
        for claim in &mut self.0 {
            if let Ok(at) = claim.owners.binary_search(&owner)
                && gone(&claim.instance)
            {
                let mut owners = mem::take(&mut claim.owners).into_vec();
                owners.remove(at);
                claim.owners = owners.into_boxed_slice();
                removed += 1;
                emptied |= claim.owners.is_empty();
            }
        }
        if emptied {
            let mut claims = mem::take(&mut self.0).into_vec();
            claims.retain(|claim| !claim.owners.is_empty());
            self.0 = claims.into_boxed_slice();
        }
        removed
    }
}

impl Claim {
    fn has(&self, owner: OwnerId) -> bool {
        self.owners.binary_search(&owner).is_ok()
    }

    fn insert(&mut self, owner: OwnerId) -> bool {
        match self.owners.binary_search(&owner) {
            Ok(_) => false,
            Err(at) => {
                insert_at(&mut self.owners, at, owner);
                true
            }
        }
    }
}

/// Lists are short, so that a new one for each entry costs less than room kept in all of them.
fn insert_at<T>(list: &mut Box<[T]>, at: usize, entry: T) {
    let mut longer = mem::take(list).into_vec();
    longer.reserve_exact(1);
    longer.insert(at, entry);
    *list = longer.into_boxed_slice();
}

/// A row as it is ordered.
fn key(row: &Row) -> (&str, &[u8; 16]) {
    (row.agent.as_str(), &row.instance)
}
