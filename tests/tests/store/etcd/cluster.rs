//! Three members, of which some stop while operations run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use mesh_tests::Result;
use mesh_tests::probe::until;
use node::store::{Event, Freshness, Revision, Store, StoreError, Watched};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::support::Etcd;
use crate::support::next;

const NONE: Revision = Revision::NONE;

/// Counts up in one key, each time from what is there, until told to stop. Returns what was written
/// at which revision.
#[expect(
    clippy::print_stdout,
    reason = "how much it has been through, for --nocapture"
)]
async fn count_up(
    store: Arc<dyn Store>,
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Result<Vec<(u64, Revision)>> {
    let mut written = Vec::new();
    let mut current = NONE;
    let mut unknown = 0;
    while !stop.load(Ordering::SeqCst) {
        let number = written.len() as u64;
        let value = Bytes::from(number.to_string());
        match store.put("t/n", value.clone(), current, None).await {
            Ok(revision) => {
                ensure!(revision > current, "{revision} after {current}");
                current = revision;
                written.push((number, revision));
                done.fetch_add(1, Ordering::SeqCst);
            }
            // Nobody else writes: a conflict would be a write of its own that it was not told of.
            Err(StoreError::Unreachable { maybe_done, .. }) => {
                unknown += u64::from(maybe_done);
                let entry = loop {
                    match store.get("t/n").await {
                        Ok(entry) => break entry,
                        Err(StoreError::Unreachable { .. }) if !stop.load(Ordering::SeqCst) => {}
                        Err(error) => return Err(error.into()),
                    }
                };
                if let Some(entry) = entry
                    && entry.modified != current
                {
                    ensure!(
                        maybe_done,
                        "it said that nothing was done, and {entry:?} is there"
                    );
                    ensure!(entry.value == value, "{entry:?} instead of {number}");
                    current = entry.modified;
                    written.push((number, current));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    println!(
        "{} writes, {unknown} whose end was not known at first",
        written.len()
    );
    Ok(written)
}

#[tokio::test]
async fn members_stop_while_operations_run() -> Result {
    let mut etcd = Etcd::start(3)?;
    let store = etcd.store("/mesh").await?;
    let start = store.list("").await?.revision;
    let done = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(count_up(store.clone(), done.clone(), stop.clone()));
    // Reads through a connection of its own, so that both stand at a member that stops.
    let watching = etcd.store("/mesh").await?;
    let mut watch = watching.watch("", start).await?;
    let told = Arc::new(AtomicU64::new(0));
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let reader = {
        let (told, last) = (told.clone(), last.clone());
        tokio::spawn(async move {
            let mut events: Vec<Event> = Vec::new();
            let mut breaks = 0;
            while events.last().map_or(0, |event| event.revision().0) < last.load(Ordering::SeqCst)
            {
                // A limit, so that the end is seen.
                match tokio::time::timeout(std::time::Duration::from_secs(1), watch.next()).await {
                    Ok(Ok(more)) => {
                        events.extend(more);
                        told.store(events.len() as u64, Ordering::SeqCst);
                    }
                    Ok(Err(StoreError::Unreachable { .. })) => breaks += 1,
                    Ok(Err(error)) => return Err(error.into()),
                    Err(_) => {}
                }
            }
            println!("{} events, {breaks} times unreachable", events.len());
            Ok::<_, anyhow::Error>(events)
        })
    };
    let mut view = Watched::new(watching.clone(), "t/", StdRng::seed_from_u64(2));
    // Things go on: more is written, and more is told.
    let go_on = async |what: &str| -> Result {
        let (written, heard) = (done.load(Ordering::SeqCst), told.load(Ordering::SeqCst));
        until(what, || {
            done.load(Ordering::SeqCst) > written + 20 && told.load(Ordering::SeqCst) > heard + 20
        })
        .await
    };
    go_on("all is well").await?;
    // Each in turn, so that the one that is asked, and the leader, are among them.
    for index in 0..3 {
        etcd.signal(index, "STOP")?;
        go_on(&format!("member {index} stands still")).await?;
        etcd.signal(index, "CONT")?;
        go_on(&format!("member {index} goes on")).await?;
        etcd.kill(index);
        go_on(&format!("member {index} is dead")).await?;
        etcd.restart(index)?;
        go_on(&format!("member {index} is back")).await?;
    }
    stop.store(true, Ordering::SeqCst);
    let written = writer.await??;
    let (number, revision) = *written.last().context("something was written")?;
    last.store(revision.0, Ordering::SeqCst);
    let events = reader.await??;
    // Every write was told, once and in order, and nothing else.
    let heard: Vec<(u64, Revision)> = events
        .iter()
        .map(|event| match event {
            Event::Put(entry) => {
                let number = std::str::from_utf8(&entry.value)?.parse()?;
                Ok((number, entry.modified))
            }
            Event::Delete { .. } => anyhow::bail!("{event:?}"),
        })
        .collect::<Result<_>>()?;
    assert_eq!(heard, written);
    let entry = store.get("t/n").await?.context("it is there")?;
    assert_eq!(
        (entry.value, entry.modified),
        (number.to_string().into(), revision)
    );
    while view.entries().get("t/n").map(|entry| entry.modified) != Some(revision) {
        view.next().await;
    }
    Ok(())
}

/// Without a majority nothing is changed and nothing is known; with it, all goes on.
#[tokio::test]
async fn without_a_majority_it_is_unreachable() -> Result {
    let mut etcd = Etcd::start(3)?;
    let store = etcd.store("/mesh").await?;
    let revision = store.put("t/a", "1".into(), NONE, None).await?;
    let mut view = Watched::new(store.clone(), "t/", StdRng::seed_from_u64(3));
    view.next().await;
    let known = view.entries().clone();
    // The one that is asked is left, and does not notice by a broken connection.
    etcd.kill(1);
    etcd.kill(2);
    let update = view.next().await;
    assert_eq!(update.changes, []);
    ensure!(
        matches!(update.freshness, Freshness::Stale { error: Some(_), .. }),
        "{update:?}"
    );
    for result in [
        store.get("t/a").await.map(drop),
        store.list("").await.map(drop),
        store.put("t/a", "2".into(), revision, None).await.map(drop),
    ] {
        assert!(
            matches!(result, Err(StoreError::Unreachable { .. })),
            "{result:?}"
        );
    }
    assert_eq!(view.entries(), &known);
    etcd.kill(0);
    etcd.restart_all()?;
    while *view.freshness() != Freshness::UpToDate {
        view.next().await;
    }
    // What was not known may have happened, or not.
    let entry = store.get("t/a").await?.context("it is there")?;
    let mut watch = store.watch("", entry.modified).await?;
    let revision = store.put("t/a", "3".into(), entry.modified, None).await?;
    assert_eq!(next(&mut *watch).await?[0].revision(), revision);
    Ok(())
}
