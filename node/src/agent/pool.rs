//! Which connections the agent keeps: one through each configured address, each with a backoff
//! of its own.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::connect::{self, ConnectError};
use super::{Shared, session};
use crate::tasks::Tasks;

/// After how many like failures the log says again that a proxy cannot be reached.
const REPEAT_WARNING: u32 = 20;

/// Starts keeping the connections, spread over the shards.
pub(super) fn start(shared: &Arc<Shared>, tasks: &mut Tasks, shards: &[Handle]) {
    let wanted = match shared.config.connection_count {
        Some(count) if count > 0 => count as usize,
        _ => usize::MAX,
    };
    let addresses: Vec<_> = shared.config.proxies.iter().take(wanted).cloned().collect();
    shared.metrics.desired_proxies.set(i64::try_from(addresses.len()).unwrap_or(i64::MAX));
    for (address, shard) in addresses.into_iter().zip(shards.iter().cycle()) {
        tasks.spawn_on(keep(shared.clone(), address), shard);
    }
}

/// Keeps one connection through `address` until the agent has left.
async fn keep(shared: Arc<Shared>, address: String) {
    let mut backoff = Backoff::default();
    let mut failing = Failing::default();
    let mut rng = shared.random.generator();
    let mut leaving = shared.leaving.subscribe();
    while leaving.borrow_and_update().is_none() {
        let attempt = tokio::select! {
            biased;
            _ = leaving.changed() => break,
            () = shared.cut.cancelled() => break,
            attempt = connect::connect(&shared, &address) => attempt,
        };
        match attempt {
            Ok(connected) => {
                backoff.reset();
                failing = Failing::default();
                session::run(&shared, connected).await;
            }
            Err(error) => {
                shared.metrics.connect(error.result());
                failing.log(&address, &error);
            }
        }
        // Also after a connection that stood: a proxy that died takes all of its agents with it,
        // and they must not all be back in the same moment.
        let wait = backoff.next(&mut rng);
        tracing::debug!(address, ?wait, "will connect again");
        tokio::select! {
            biased;
            _ = leaving.changed() => break,
            () = shared.cut.cancelled() => break,
            () = tokio::time::sleep_until(Instant::now() + wait) => {}
        }
    }
}

/// Keeps a proxy that cannot be reached from filling the log.
#[derive(Debug, Default)]
struct Failing {
    gist: String,
    times: u32,
}

impl Failing {
    fn log(&mut self, address: &str, error: &ConnectError) {
        let gist = error.gist();
        if self.gist != gist || self.times >= REPEAT_WARNING {
            tracing::warn!(address, "cannot connect to a proxy, and will go on trying: {error}");
            (self.gist, self.times) = (gist, 0);
        } else {
            tracing::debug!(address, "cannot connect to a proxy: {error}");
        }
        self.times += 1;
    }
}
