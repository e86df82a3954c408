//! A writer of a file is killed in the middle of writes, again and again.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use mesh_tests::Result;
use node::store::{Clock, Event, RedbStore, Revision, Store as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Where the child writes; without it, it is no child.
const PATH: &str = "MESH_STORE_WRITER_PATH";
/// How many changes the store has had.
const DONE: &str = "MESH_STORE_WRITER_DONE";

/// How often the writer is killed; more with `MESH_STORE_KILLS`.
const KILLS: usize = 200;
/// In how many of them there is no file at first.
const KILLS_WHILE_MAKING: usize = 40;
const KEYS: u64 = 12;

/// What the n-th change is, from 1. It depends on nothing else, so that whoever knows how many there
/// were knows all that is in the store.
fn change(n: u64) -> (String, Option<Bytes>) {
    let key = format!("k/{}", n % KEYS);
    // A key is deleted only after it was written: every third time round.
    if (n / KEYS) % 3 == 2 {
        return (key, None);
    }
    let length = usize::try_from(n * 7919 % 5000).unwrap_or(0);
    let text = format!("{n};").repeat(1 + length / 5);
    (key, Some(text.into()))
}

/// Key, value and revision of all entries after so many changes.
fn state(done: u64) -> Vec<(String, Bytes, Revision)> {
    let mut entries = std::collections::BTreeMap::new();
    for n in 1..=done {
        match change(n) {
            // The store's first revision is 1, with nothing in it.
            (key, Some(value)) => entries.insert(key.clone(), (key, value, Revision(n + 1))),
            (key, None) => entries.remove(&key),
        };
    }
    entries.into_values().collect()
}

#[tokio::test]
async fn every_acknowledged_write_survives_a_kill() -> Result {
    let kills = match std::env::var("MESH_STORE_KILLS") {
        Ok(kills) => kills.parse()?,
        Err(_) => KILLS,
    };
    let mut random = StdRng::seed_from_u64(7);
    let mut killed_between = 0;
    let mut dir = tempfile::tempdir()?;
    let mut done = 0;
    for round in 0..kills {
        if round <= KILLS_WHILE_MAKING {
            dir = tempfile::tempdir()?;
            done = 0;
        }
        let path = dir.path().join("store.redb");
        // While it makes the file, or some changes later.
        let changes_max = if round < KILLS_WHILE_MAKING { 2 } else { 12 };
        let acknowledged = write_and_kill(&path, done, changes_max, &mut random)?;
        let store = RedbStore::open(&path, Clock::system())
            .await
            .with_context(|| format!("round {round} after {acknowledged}"))?;
        let listing = store.list("").await?;
        let now = listing.revision.0 - 1;
        // The one that was being written may be there or not, as a whole; nothing else.
        ensure!(
            now == acknowledged || now == acknowledged + 1,
            "round {round}: {acknowledged} acknowledged, {now} there"
        );
        killed_between += u64::from(now > acknowledged);
        let there: Vec<_> = listing
            .entries
            .into_iter()
            .map(|entry| (entry.key, entry.value, entry.modified))
            .collect();
        ensure!(there == state(now), "round {round} after {now}: {there:?}");
        if now > done {
            check_history(&store, done, now).await?;
        }
        done = now;
        store.close().await;
    }
    println!(
        "{kills} kills, {done} changes in the last file, {killed_between} kills between write and word"
    );
    ensure!(done > 100, "killed too early to say much: {done}");
    Ok(())
}

/// What the killed process wrote is told to watches like anything else.
async fn check_history(store: &RedbStore, done: u64, now: u64) -> Result {
    let mut watch = store.watch("", Revision(done + 1)).await?;
    let mut n = done;
    while n < now {
        for event in watch.next().await? {
            n += 1;
            let (key, value) = change(n);
            ensure!(
                event.key() == key && event.revision() == Revision(n + 1),
                "{event:?}"
            );
            let told = match event {
                Event::Put(entry) => Some(entry.value),
                Event::Delete { .. } => None,
            };
            ensure!(told == value, "change {n}");
        }
    }
    Ok(())
}

/// Runs a writer, and kills it at some moment. Returns how many changes it said were done.
fn write_and_kill(path: &Path, done: u64, changes_max: u32, random: &mut StdRng) -> Result<u64> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "killed::writer", "--nocapture", "--quiet"])
        .env(PATH, path)
        .env(DONE, done.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().context("a pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut acknowledged = done;
    let mut take = |line: String| -> Result<bool> {
        let Some(n) = line.strip_prefix("done ") else {
            return Ok(false);
        };
        let n: u64 = n.parse()?;
        ensure!(n == acknowledged + 1, "{n} after {acknowledged}");
        acknowledged = n;
        Ok(true)
    };
    // Some changes, or none: then it is still opening the file, or making it.
    let mut left = random.random_range(0..changes_max);
    if left == 0 {
        wait(Duration::from_micros(random.random_range(0..30_000)));
    }
    while left > 0 {
        match lines.next() {
            Some(line) => left -= u32::from(take(line?)?),
            None => {
                let output = child.wait_with_output()?;
                bail!(
                    "the writer ended: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
    }
    // And a moment, which falls anywhere in the next change.
    wait(Duration::from_micros(random.random_range(0..2_000)));
    child.kill()?;
    child.wait()?;
    // What it said before it died counts.
    for line in lines {
        take(line?)?;
    }
    Ok(acknowledged)
}

#[expect(clippy::disallowed_methods, reason = "a kill falls into real time")]
fn wait(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// The child: writes until it is killed, and says what is done.
#[tokio::test]
async fn writer() -> Result {
    let Some(path) = std::env::var_os(PATH) else {
        return Ok(());
    };
    let done: u64 = std::env::var(DONE)?.parse()?;
    let store = RedbStore::open(Path::new(&path), Clock::system()).await?;
    let mut revisions = std::collections::BTreeMap::new();
    for entry in store.list("").await?.entries {
        revisions.insert(entry.key, entry.modified);
    }
    for n in done + 1.. {
        let (key, value) = change(n);
        let expected = revisions.remove(&key).unwrap_or(Revision::NONE);
        match value {
            Some(value) => {
                let revision = store.put(&key, value, expected, None).await?;
                revisions.insert(key, revision);
            }
            None => {
                store.delete(&key, Some(expected)).await?;
            }
        }
        println!("done {n}");
    }
    Ok(())
}
