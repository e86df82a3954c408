//! Rendezvous hashing (Thaler and Ravishankar, 1998): every agent ranks all proxies by a hash of
//! both names, so that agents spread evenly without knowing of each other, and a proxy that comes
//! or goes changes the choice of few.

use std::time::Duration;

use crate::name::NodeName;

/// How much `agent` prefers `proxy`; the same on every machine and in every version.
pub(super) fn score(agent: &NodeName, proxy: &NodeName) -> u64 {
    let proxy = proxy.as_str().bytes();
    hash(agent.as_str().bytes().chain([0]).chain(proxy))
}

/// With which of `count` addresses `agent` begins; 0 when there are none.
pub(super) fn first(agent: &NodeName, count: usize) -> usize {
    let Some(count) = u64::try_from(count).ok().filter(|count| *count > 0) else {
        return 0;
    };
    usize::try_from(hash(agent.as_str().bytes()) % count).unwrap_or_default()
}

/// Where from zero to `bound` the turn of `agent` is when all agents hear at once that `proxy` has
/// started for the `epoch`th time: even over the agents, and independent of [`score`].
pub(super) fn turn(agent: &NodeName, proxy: &NodeName, epoch: u64, bound: Duration) -> Duration {
    let hash = finalize(score(agent, proxy) ^ finalize(epoch.wrapping_add(0x9e37_79b9_7f4a_7c15)));
    // Thirty-two bits are fine enough, and exact in the multiplication below.
    let part = u32::try_from(hash >> 32).unwrap_or(u32::MAX);
    let nanoseconds = (bound.as_nanos() * u128::from(part)) >> 32;
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// FNV-1a, then the finalizer of SplitMix64, since FNV alone leaves like names near each other.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    finalize(hash)
}

fn finalize(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(prefix: &str, index: usize) -> NodeName {
        format!("{prefix}-{index}").parse().unwrap()
    }

    #[test]
    fn agents_spread_evenly() {
        let mut firsts = [0usize; 10];
        for agent in 0..10_000 {
            let agent = name("agent", agent);
            let best = (0..10)
                .max_by_key(|proxy| score(&agent, &name("proxy", *proxy)))
                .unwrap();
            firsts[best] += 1;
        }
        assert!(
            firsts.iter().all(|count| (900..1100).contains(count)),
            "{firsts:?}"
        );
    }

    #[test]
    fn agents_begin_with_different_addresses() {
        let mut firsts = [0usize; 3];
        for agent in 0..3000 {
            firsts[first(&name("agent", agent), 3)] += 1;
        }
        assert!(
            firsts.iter().all(|count| (900..1100).contains(count)),
            "{firsts:?}"
        );
        assert_eq!(first(&name("agent", 1), 0), 0);
        assert_eq!(first(&name("agent", 1), 1), 0);
    }

    #[test]
    fn a_proxy_that_goes_moves_its_own_agents_only() {
        for agent in 0..1000 {
            let agent = name("agent", agent);
            let best = |proxies: std::ops::Range<usize>| {
                proxies
                    .max_by_key(|proxy| score(&agent, &name("proxy", *proxy)))
                    .unwrap()
            };
            let (before, after) = (best(0..10), best(0..9));
            assert!(before == 9 || before == after);
        }
    }

    /// A change would move every agent of a fleet while it is upgraded.
    #[test]
    fn scores_are_pinned() {
        assert_eq!(score(&name("a", 1), &name("p", 1)), 0x7231_87e6_0599_bf83);
        assert_eq!(
            score(&name("agent", 42), &name("proxy", 7)),
            0x5c35_a46c_b83b_2d5f
        );
        assert_ne!(
            score(&name("a", 1), &name("p", 1)),
            score(&name("p", 1), &name("a", 1))
        );
    }

    #[test]
    fn turns_are_even_and_differ_from_start_to_start() {
        let bound = Duration::from_secs(50);
        let proxy = name("proxy", 1);
        let mut seconds = [0usize; 50];
        let mut earlier = 0;
        for agent in 0..10_000 {
            let agent = name("agent", agent);
            let turn_of = |epoch| turn(&agent, &proxy, epoch, bound);
            seconds[usize::try_from(turn_of(1).as_secs()).unwrap()] += 1;
            earlier += usize::from(turn_of(1) < turn_of(2));
        }
        assert!(
            seconds.iter().all(|count| (140..260).contains(count)),
            "{seconds:?}"
        );
        assert!((4800..5200).contains(&earlier), "{earlier}");
        assert_eq!(
            turn(&name("a", 1), &proxy, 1, Duration::ZERO),
            Duration::ZERO
        );
        assert!(turn(&name("a", 1), &proxy, u64::MAX, Duration::MAX) <= Duration::MAX);
    }
}
