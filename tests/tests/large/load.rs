//! Dials from random proxies to random agents, all the time.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{NodeId, Running, World, echoes};
use node::proxy::{Dialer, DialerError};
use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fleet::SECOND;

/// The default of `proxy.dial_deadline`, and what tokio's timers and the last hop may add to it.
const DIAL_DEADLINE: Duration = Duration::from_millis(10_100);

/// How long the few bytes of a dial may take there and back, before the stream counts as broken.
const ECHO_DEADLINE: Duration = Duration::from_secs(20);

/// How a dial ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ended {
    /// Bytes came back.
    Reached,
    /// It was refused, for this reason.
    Refused(&'static str),
    /// It was connected, and broke under the user.
    Broke,
}

struct Dial {
    way: String,
    began_calm: bool,
    took: Duration,
    ended: Ended,
    why: String,
}

/// The dials that are under way, and what became of the others.
pub(crate) struct Load {
    rng: StdRng,
    running: JoinSet<Result<Dial>>,
    pub(crate) ended: BTreeMap<Ended, u64>,
    pub(crate) longest: Duration,
}

impl Load {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed ^ 0x6c6f_6164),
            running: JoinSet::new(),
            ended: BTreeMap::new(),
            longest: Duration::ZERO,
        }
    }

    /// Begins so many dials. When the fleet is `calm` at both ends of a dial, it must succeed.
    pub(crate) fn begin(
        &mut self,
        world: &World,
        (proxies, agents): (&[NodeId], &[(NodeId, Running)]),
        count: usize,
        calm: bool,
    ) -> Result {
        for _ in 0..count {
            let (Some(proxy), Some((agent, echo))) =
                (proxies.choose(&mut self.rng), agents.choose(&mut self.rng))
            else {
                continue;
            };
            let dialer = world.proxy(*proxy)?.dialer(world.name(*agent))?;
            let way = format!("{} through {}", world.name(*agent), world.name(*proxy));
            let wait = Duration::from_millis(self.rng.random_range(0..200));
            self.running
                .spawn(dial(dialer, echo.rule(), way, calm, wait));
        }
        Ok(())
    }

    /// Judges the dials that have ended.
    pub(crate) fn judge(&mut self, calm: bool) -> Result {
        while let Some(dial) = self.running.try_join_next() {
            self.count(dial??, calm)?;
        }
        Ok(())
    }

    /// Waits for those under way.
    pub(crate) async fn settle(&mut self) -> Result {
        while let Some(dial) = self.running.join_next().await {
            self.count(dial??, false)?;
        }
        Ok(())
    }

    fn count(&mut self, dial: Dial, calm: bool) -> Result {
        let Dial {
            way,
            began_calm,
            took,
            ended,
            why,
        } = dial;
        *self.ended.entry(ended).or_default() += 1;
        self.longest = self.longest.max(took);
        ensure!(took <= DIAL_DEADLINE, "the dial to {way} took {took:?}");
        ensure!(
            !(calm && began_calm) || ended == Ended::Reached,
            "nothing is wrong, and yet the dial to {way} ended as {ended:?}: {why}"
        );
        Ok(())
    }

    /// How many dials ended as `ended`, and how many there were.
    pub(crate) fn share(&self, ended: Ended) -> (u64, u64) {
        let all = self.ended.values().sum();
        (self.ended.get(&ended).copied().unwrap_or(0), all)
    }
}

async fn dial(
    dialer: Dialer,
    target: String,
    way: String,
    began_calm: bool,
    wait: Duration,
) -> Result<Dial> {
    tokio::time::sleep(wait).await;
    let started = Instant::now();
    // A dial that never ends would otherwise never be judged.
    let dialled = tokio::time::timeout(DIAL_DEADLINE + SECOND, dialer.dial(&target)).await;
    let took = started.elapsed();
    let (ended, why) = match dialled {
        Ok(Ok(tunnel)) => {
            let echo = tokio::time::timeout(ECHO_DEADLINE, echoes(tunnel, b"are you there?"));
            match echo.await {
                Ok(Ok(())) => (Ended::Reached, String::new()),
                Ok(Err(error)) => (Ended::Broke, error.to_string()),
                Err(_) => (Ended::Broke, format!("no echo within {ECHO_DEADLINE:?}")),
            }
        }
        Ok(Err(DialerError::Dial(refused))) => {
            (Ended::Refused(refused.reason.as_str()), refused.message)
        }
        Ok(Err(error @ DialerError::Target(_))) => return Err(error.into()),
        Err(_) => (Ended::Broke, "it had no end".into()),
    };
    Ok(Dial {
        way,
        began_calm,
        took,
        ended,
        why,
    })
}
