//! What goes wrong between nodes that live.

use std::time::Duration;

use super::world::{Happening, World};

impl World {
    pub(crate) fn freeze(&mut self, index: usize, duration: Duration) {
        let until = self.now + duration;
        self.nodes[index].frozen_until = until;
        for peer in self.peers(index) {
            self.idle(index, peer);
        }
        self.later(duration, Happening::Wake(index));
    }

    pub(crate) fn is_frozen(&self, index: usize) -> bool {
        self.nodes[index].frozen_until > self.now
    }

    /// Shuts the way from one to another.
    pub(crate) fn shut(&mut self, from: usize, to: usize) {
        if self.shut.insert((from, to)) {
            self.idle(from, to);
        }
    }

    pub(crate) fn split(&mut self, left: &[usize], right: &[usize]) {
        for &one in left {
            for &other in right {
                self.shut(one, other);
                self.shut(other, one);
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.shut.clear();
    }

    pub(crate) fn passes(&self, one: usize, other: usize) -> bool {
        !self.shut.contains(&(one, other))
    }
}
