//! One round of attempts: all candidates, a moment apart, until the first is connected.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use super::Shared;
use super::candidates::Candidates;
use super::connect::{self, ConnectError};
use super::event::Failure;
use super::held::Held;
use crate::net::resolve_address;

/// While an attempt has not failed, the next one begins this much later: a proxy that does not
/// answer costs so much, and not its whole handshake timeout.
const STAGGER: Duration = Duration::from_secs(1);

/// Attempts at one time.
const ATTEMPTS_MAX: usize = 4;

/// Connects to the first candidate that can be connected to; `next_id` numbers the attempts.
///
/// Dropped attempts close their sockets.
pub(super) async fn round(
    shared: &Arc<Shared>,
    candidates: &mut Candidates,
    next_id: &mut u64,
) -> Result<Held, Vec<Failure>> {
    candidates.begin();
    let mut names: FuturesUnordered<_> = shared
        .config
        .proxies
        .iter()
        .map(|address| resolve(shared, address))
        .collect();
    let mut attempts = FuturesUnordered::new();
    let mut failures = Vec::new();
    let mut next_at = Instant::now();
    loop {
        // What is known at once is sorted before the first attempt.
        while let Some(Some(resolved)) = names.next().now_or_never() {
            known(candidates, &mut failures, resolved);
        }
        if (attempts.is_empty() || Instant::now() >= next_at)
            && attempts.len() < ATTEMPTS_MAX
            && let Some(remote) = candidates.next()
        {
            *next_id += 1;
            let id = *next_id;
            attempts.push(
                async move { (remote, Box::pin(connect::attempt(shared, remote, id)).await) },
            );
            next_at = Instant::now() + STAGGER;
            continue;
        }
        let may_start = candidates.has_next() && attempts.len() < ATTEMPTS_MAX;
        let stagger = pin!(tokio::time::sleep_until(next_at));
        tokio::select! {
            biased;
            Some((remote, outcome)) = attempts.next() => match outcome {
                Ok(held) => return Ok(held),
                Err(error) => {
                    failures.push(failure(remote.to_string(), &error));
                    next_at = Instant::now();
                }
            },
            Some(resolved) = names.next() => known(candidates, &mut failures, resolved),
            () = stagger, if may_start => {}
            else => return Err(failures),
        }
    }
}

type Resolved = Result<Vec<SocketAddr>, (String, ConnectError)>;

async fn resolve(shared: &Shared, address: &str) -> Resolved {
    tokio::time::timeout(
        shared.config.quic.handshake_timeout,
        resolve_address(&*shared.network, address),
    )
    .await
    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    .map_err(|error| {
        let address = address.to_owned();
        (address.clone(), ConnectError::Resolve { address, error })
    })
}

fn known(candidates: &mut Candidates, failures: &mut Vec<Failure>, resolved: Resolved) {
    match resolved {
        Ok(addresses) => candidates.add(addresses),
        Err((address, error)) => failures.push(failure(address, &error)),
    }
}

fn failure(at: String, error: &ConnectError) -> Failure {
    Failure {
        at,
        kind: error.kind(),
        message: error.to_string(),
    }
}
