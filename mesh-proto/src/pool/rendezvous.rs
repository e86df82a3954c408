//! Rendezvous hashing (Thaler and Ravishankar, 1998): every agent ranks all proxies by a hash of
//! both names, so that agents spread evenly without knowing of each other, and a proxy that comes
//! or goes changes the choice of few.

use crate::name::NodeName;

/// How much `agent` prefers `proxy`; the same on every machine and in every version.
pub(super) fn score(agent: &NodeName, proxy: &NodeName) -> u64 {
    // FNV-1a, then the finalizer of SplitMix64, since FNV alone leaves like names near each other.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in agent.as_str().bytes().chain([0]).chain(proxy.as_str().bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
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
            let best = (0..10).max_by_key(|proxy| score(&agent, &name("proxy", *proxy))).unwrap();
            firsts[best] += 1;
        }
        assert!(firsts.iter().all(|count| (900..1100).contains(count)), "{firsts:?}");
    }

    #[test]
    fn a_proxy_that_goes_moves_its_own_agents_only() {
        for agent in 0..1000 {
            let agent = name("agent", agent);
            let best = |proxies: std::ops::Range<usize>| {
                proxies.max_by_key(|proxy| score(&agent, &name("proxy", *proxy))).unwrap()
            };
            let (before, after) = (best(0..10), best(0..9));
            assert!(before == 9 || before == after);
        }
    }

    #[test]
    fn scores_are_pinned() {
        assert_eq!(score(&name("a", 1), &name("p", 1)), score(&name("a", 1), &name("p", 1)));
        assert_ne!(score(&name("a", 1), &name("p", 1)), score(&name("p", 1), &name("a", 1)));
    }
}
