//! Where randomness comes from: the system's for a real node, one seed for a simulated fleet.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};

/// A source of random number generators, one for whoever needs one.
#[derive(Clone)]
pub struct Random(Source);

#[derive(Clone)]
enum Source {
    System,
    Seeded(Arc<Mutex<StdRng>>),
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Source::System => "Random(system)",
            Source::Seeded(_) => "Random(seeded)",
        })
    }
}

impl Random {
    /// The operating system's randomness.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// The same numbers for the same seed, as long as generators are taken in the same order.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(
            seed,
        )))))
    }

    /// A new generator, which nobody else draws from.
    #[must_use]
    pub fn generator(&self) -> StdRng {
        match &self.0 {
            Source::System => StdRng::from_os_rng(),
            Source::Seeded(seeds) => {
                let mut seeds = seeds.lock().unwrap_or_else(PoisonError::into_inner);
                StdRng::from_rng(&mut *seeds)
            }
        }
    }

    /// Random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.generator().fill_bytes(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_generators_differ() {
        let draw = |random: &Random| [random.bytes::<8>(), random.bytes::<8>()];
        let (first, again) = (draw(&Random::seeded(7)), draw(&Random::seeded(7)));
        assert_eq!(first, again);
        assert_ne!(first[0], first[1]);
        assert_ne!(first, draw(&Random::seeded(8)));
    }
}
