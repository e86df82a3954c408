//! Which address to try next: the ones not tried lately first.

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Addresses of one round that are tried.
pub(super) const CANDIDATES_MAX: usize = 32;

/// Addresses that are remembered: names may lead elsewhere from one round to the next.
const REMEMBERED_MAX: usize = 4 * CANDIDATES_MAX;

/// Remembers when addresses were tried, and hands out those of a round, each once.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// The number of the last try.
    tries: u64,
    tried: BTreeMap<SocketAddr, u64>,
    /// Of this round: the position in which each was named.
    round: BTreeMap<SocketAddr, usize>,
    /// Of this round: not tried yet.
    waiting: Vec<SocketAddr>,
}

impl Candidates {
    /// A new round begins, with no candidates.
    pub(super) fn begin(&mut self) {
        self.round.clear();
        self.waiting.clear();
    }

    /// Adds addresses to this round, in the order of preference among those never tried.
    pub(super) fn add(&mut self, addresses: impl IntoIterator<Item = SocketAddr>) {
        for address in addresses {
            if self.round.len() < CANDIDATES_MAX && !self.round.contains_key(&address) {
                self.round.insert(address, self.round.len());
                self.waiting.push(address);
            }
        }
    }

    /// Whether some are left in this round.
    pub(super) fn has_next(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next to try, which counts as tried now: never tried ones in the order in which they were
    /// named, then by the time of their last try.
    pub(super) fn next(&mut self) -> Option<SocketAddr> {
        let (index, address) = self
            .waiting
            .iter()
            .copied()
            .enumerate()
            .min_by_key(|(_, address)| (self.tried.get(address), self.round.get(address)))?;
        self.waiting.swap_remove(index);
        self.tries += 1;
        self.tried.insert(address, self.tries);
        if self.tried.len() > REMEMBERED_MAX
            && let Some(oldest) = self
                .tried
                .iter()
                .min_by_key(|(_, tried)| **tried)
                .map(|(address, _)| *address)
        {
            self.tried.remove(&oldest);
        }
        Some(address)
    }

    /// The connection at this address was in use until now: it is the last to be tried again.
    pub(super) fn left(&mut self, address: SocketAddr) {
        self.tries += 1;
        self.tried.insert(address, self.tries);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn address(number: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], number))
    }

    fn all(candidates: &mut Candidates) -> Vec<u16> {
        std::iter::from_fn(|| candidates.next())
            .map(|address| address.port())
            .collect()
    }

    #[test]
    fn in_the_order_named_then_by_the_last_try() {
        let mut candidates = Candidates::default();
        candidates.add([3, 1, 2].map(address));
        assert_eq!(candidates.next(), Some(address(3)));
        candidates.begin();
        candidates.add([3, 1, 2].map(address));
        assert_eq!(all(&mut candidates), [1, 2, 3]);
        candidates.begin();
        candidates.add([1, 2, 3, 9].map(address));
        assert_eq!(all(&mut candidates), [9, 1, 2, 3]);
        // What was in use until now comes last, whenever it was connected to.
        candidates.left(address(1));
        candidates.begin();
        candidates.add([1, 2, 3, 9].map(address));
        assert_eq!(all(&mut candidates), [9, 2, 3, 1]);
    }

    proptest! {
        /// Over any rounds: each candidate once a round, and within a run of full rounds nobody is
        /// tried twice while another waits.
        #[test]
        fn each_once_a_round_and_nobody_starves(
            names in prop::collection::btree_set(1u16..60, 1..50),
            taken in prop::collection::vec(1usize..60, 1..20),
        ) {
            let mut candidates = Candidates::default();
            let considered: BTreeSet<u16> = names.iter().copied().take(CANDIDATES_MAX).collect();
            let mut counts = vec![0usize; 60];
            for take in taken {
                candidates.begin();
                candidates.add(names.iter().copied().map(address));
                candidates.add(names.iter().copied().map(address));
                let mut seen = BTreeSet::new();
                for _ in 0..take {
                    let Some(next) = candidates.next() else { break };
                    prop_assert!(seen.insert(next.port()), "twice in one round");
                    prop_assert!(considered.contains(&next.port()));
                    counts[usize::from(next.port())] += 1;
                }
                let tries: Vec<usize> =
                    considered.iter().map(|name| counts[usize::from(*name)]).collect();
                let (least, most) = (tries.iter().min().unwrap(), tries.iter().max().unwrap());
                prop_assert!(most - least <= 1, "{tries:?}");
                prop_assert!(candidates.tried.len() <= REMEMBERED_MAX);
            }
        }
    }
}
