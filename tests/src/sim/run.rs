//! Runs a scenario in virtual time, and says how to run it again when it fails.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::Context as _;

use super::world::World;
use crate::Result;

/// The seed of all scenarios of this process, in decimal or as `0x…`.
const SEED_VARIABLE: &str = "MESH_SIM_SEED";

/// What the nodes log, as a filter of `tracing`; nothing when it is not set.
const LOG_VARIABLE: &str = "MESH_SIM_LOG";

/// Runs a scenario on a thread and a runtime of its own whose time is virtual, with the seed of the
/// environment or else this one. `name` is the test's.
///
/// # Errors
/// Those of the scenario. What is needed to run it again is printed before.
///
/// # Panics
/// When the scenario does.
pub fn run<T, F>(name: &str, seed: u64, scenario: F) -> Result<T>
where
    T: Send,
    F: AsyncFnOnce(&mut World) -> Result<T> + Send,
{
    if let Ok(filter) = std::env::var(LOG_VARIABLE) {
        // Fails when it has been set by another scenario.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .without_time()
            .with_test_writer()
            .try_init();
    }
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(text) => parse(&text).with_context(|| format!("{SEED_VARIABLE}={text} is no seed"))?,
        Err(_) => seed,
    };
    run_seeded(name, seed, scenario)
}

/// As [`run`], with this seed whatever the environment says.
///
/// # Errors
/// As [`run`].
///
/// # Panics
/// As [`run`].
pub fn run_seeded<T, F>(name: &str, seed: u64, scenario: F) -> Result<T>
where
    T: Send,
    F: AsyncFnOnce(&mut World) -> Result<T> + Send,
{
    // What a former run has left in buffers of the thread would change how much is read at once.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let outcome = thread
            .spawn_scoped(scope, || simulate(name, seed, scenario))?
            .join();
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn simulate<T>(
    name: &str,
    seed: u64,
    scenario: impl AsyncFnOnce(&mut World) -> Result<T>,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let mut report = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let mut world = World::new(seed)?;
            let outcome = catch(Box::pin(scenario(&mut world))).await;
            if !matches!(outcome, Ok(Ok(_))) {
                report = Some(world.report());
            }
            world.end().await;
            outcome.unwrap_or_else(|panic| resume_unwind(panic))
        })
    }));
    if !matches!(outcome, Ok(Ok(_))) {
        tell(name, seed, report.as_deref().unwrap_or(""));
    }
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

/// A panic of the future as its outcome.
async fn catch<F: Future>(future: F) -> std::thread::Result<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => std::task::Poll::Ready(Err(panic)),
        },
    )
    .await
}

#[expect(clippy::print_stderr, reason = "what a failed test says")]
fn tell(name: &str, seed: u64, report: &str) {
    eprintln!(
        "{report}\nthis was the seed {seed}; to run it again:\n  {SEED_VARIABLE}={seed} cargo test -p mesh-tests --test {} {name}\n({LOG_VARIABLE}=node=debug shows what the nodes log)",
        binary()
    );
}

/// The name of the test binary, which is its file's without cargo's hash.
fn binary() -> String {
    std::env::current_exe()
        .ok()
        .and_then(|path| path.file_stem()?.to_str().map(str::to_owned))
        .and_then(|stem| Some(stem.rsplit_once('-')?.0.to_owned()))
        .unwrap_or_else(|| "sim".into())
}

fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}
