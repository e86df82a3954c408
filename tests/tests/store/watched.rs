//! A view that is kept up to date, whatever the store does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use mesh_tests::Result;
use mesh_tests::probe::PATIENCE;
use mesh_tests::store::{Outages, virtual_clock};
use node::store::{
    Change, Entry, Freshness, RedbLimits, RedbStore, Revision, Store, StoreError, Update, Watched,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::over_engines;
use crate::support::Engine;

over_engines! {
    a_view_follows_the_store;
    a_view_is_listed_again_when_the_past_was_forgotten;
}

const NONE: Revision = Revision::NONE;

fn generator(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

async fn next(view: &mut Watched) -> Result<Update> {
    tokio::time::timeout(PATIENCE, view.next())
        .await
        .context("nothing happened")
}

/// Applies what a view says to a map of the test's own: changes must be all there is to know.
fn apply(mirror: &mut BTreeMap<String, Entry>, changes: Vec<Change>) {
    for Change { key, before, after } in changes {
        assert_ne!(before, after, "{key}");
        let was = match after {
            Some(entry) => mirror.insert(key.clone(), entry),
            None => mirror.remove(&key),
        };
        assert_eq!(was, before, "{key}");
    }
}

async fn listed(store: &Arc<dyn Store>, prefix: &str) -> Result<BTreeMap<String, Entry>> {
    let listing = store.list(prefix).await?;
    let keyed = |entry: Entry| (entry.key.clone(), entry);
    Ok(listing.entries.into_iter().map(keyed).collect())
}

/// Changes something at random, without regard to what is there.
async fn change(store: &Arc<dyn Store>, random: &mut StdRng) -> Result {
    let key = format!("t/{}", random.random_range(0..20));
    let current = store.get(&key).await?.map_or(NONE, |entry| entry.modified);
    if random.random_bool(0.3) {
        store.delete(&key, None).await?;
    } else {
        let value = Bytes::from(random.random::<u64>().to_string());
        store.put(&key, value, current, None).await?;
    }
    Ok(())
}

async fn a_view_follows_the_store<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let mut random = generator(1);
    for _ in 0..10 {
        change(store, &mut random).await?;
    }
    let mut view = Watched::new(store.clone(), "t/", generator(2));
    ensure!(matches!(
        view.freshness(),
        Freshness::Stale { error: None, .. }
    ));
    assert!(view.entries().is_empty());
    let mut mirror = BTreeMap::new();
    let update = next(&mut view).await?;
    assert_eq!(update.freshness, Freshness::UpToDate);
    apply(&mut mirror, update.changes);
    assert_eq!(mirror, listed(store, "t/").await?);
    for round in 0..60 {
        store
            .put(&format!("u/{round}"), Bytes::new(), NONE, None)
            .await?;
        change(store, &mut random).await?;
        // Now and then, several changes are waiting; and now and then, nobody waits any more.
        if random.random_bool(0.5) {
            tokio::select! {
                biased;
                update = view.next() => apply(&mut mirror, update.changes),
                () = tokio::task::yield_now() => {}
            }
        }
        if random.random_bool(0.2) {
            let held = listed(store, "t/").await?;
            while mirror != held {
                apply(&mut mirror, next(&mut view).await?.changes);
            }
            assert_eq!(view.entries(), &mirror);
        }
    }
    Ok(())
}

async fn a_view_is_listed_again_when_the_past_was_forgotten<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let cut = Outages::new(store.clone());
    let mut random = generator(3);
    let mut view = Watched::new(cut.clone(), "t/", generator(4));
    let mut mirror = BTreeMap::new();
    for _ in 0..3 {
        let held = loop {
            let held = listed(store, "t/").await?;
            if mirror == held && *view.freshness() == Freshness::UpToDate {
                break held;
            }
            apply(&mut mirror, next(&mut view).await?.changes);
        };
        cut.set_down(true);
        while *view.freshness() == Freshness::UpToDate {
            let update = next(&mut view).await?;
            assert_eq!(update.changes, []);
        }
        for _ in 0..10 {
            change(store, &mut random).await?;
        }
        engine.compact().await?;
        assert_eq!(view.entries(), &held);
        cut.set_down(false);
        while *view.freshness() != Freshness::UpToDate {
            apply(&mut mirror, next(&mut view).await?.changes);
        }
        assert_eq!(mirror, listed(store, "t/").await?);
    }
    Ok(())
}

struct Site {
    store: Arc<dyn Store>,
    cut: Arc<Outages>,
    view: Watched,
    _dir: TempDir,
}

async fn site(limits: RedbLimits) -> Result<Site> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("store.redb");
    let store: Arc<dyn Store> =
        Arc::new(RedbStore::open_with(&path, virtual_clock(), limits).await?);
    let cut = Outages::new(store.clone());
    Ok(Site {
        view: Watched::new(cut.clone(), "t/", generator(5)),
        store,
        cut,
        _dir: dir,
    })
}

/// Lets virtual time pass while the owner of the view does nothing else.
async fn idle(view: &mut Watched, time: Duration) -> Vec<Update> {
    let mut updates = Vec::new();
    let until = Instant::now() + time;
    while let Ok(update) = tokio::time::timeout_at(until, view.next()).await {
        updates.push(update);
    }
    updates
}

#[tokio::test(start_paused = true)]
async fn store_outage_changes_nothing() -> Result {
    let Site {
        store,
        cut,
        mut view,
        _dir,
    } = site(RedbLimits::default()).await?;
    let mut random = generator(6);
    for _ in 0..30 {
        change(&store, &mut random).await?;
    }
    let mut mirror = BTreeMap::new();
    for outage in 0..20 {
        // Up to date again, and everything that had changed is told.
        for update in idle(&mut view, Duration::from_secs(15)).await {
            apply(&mut mirror, update.changes);
        }
        assert_eq!(*view.freshness(), Freshness::UpToDate, "outage {outage}");
        assert_eq!(mirror, listed(&store, "t/").await?, "outage {outage}");
        assert_eq!(view.entries(), &mirror);

        let went = Instant::now();
        cut.set_down(true);
        let asked = cut.asked();
        // Others change the store meanwhile, and values end in it: nothing of that is known here.
        let ttl = Some(Duration::from_secs(30));
        let key = format!("t/ends-{outage}");
        store.put(&key, Bytes::new(), NONE, ttl).await?;
        for _ in 0..random.random_range(0..10) {
            change(&store, &mut random).await?;
        }
        let hours = random.random_range(0..3_u64);
        let length = Duration::from_secs(hours * 3600 + random.random_range(1..600));
        let updates = idle(&mut view, length).await;
        // It is said once, and since when.
        assert_eq!(updates.len(), 1, "{updates:?}");
        assert_eq!(updates[0].changes, []);
        match &updates[0].freshness {
            Freshness::Stale {
                since,
                error: Some(StoreError::Unreachable { .. }),
            } => assert_eq!(*since, went),
            other @ (Freshness::UpToDate | Freshness::Stale { .. }) => panic!("{other:?}"),
        }
        assert_eq!(view.freshness(), &updates[0].freshness);
        assert_eq!(view.entries(), &mirror, "outage {outage}");
        // It is asked again, but not all the time: on average every five seconds.
        let asked = cut.asked() - asked;
        let most = 20 + length.as_secs() / 3;
        ensure!(
            asked >= length.as_secs() / 10 && asked <= most,
            "{asked} in {length:?}"
        );
        cut.set_down(false);
    }
    Ok(())
}

/// A store that answers nothing from the start is stale from the start, and then is not.
#[tokio::test(start_paused = true)]
async fn a_view_may_begin_in_an_outage() -> Result {
    let Site {
        store,
        cut,
        mut view,
        _dir,
    } = site(RedbLimits::default()).await?;
    let start = Instant::now();
    cut.set_down(true);
    store.put("t/a", Bytes::new(), NONE, None).await?;
    let updates = idle(&mut view, Duration::from_secs(600)).await;
    assert_eq!(updates.len(), 1);
    assert!(view.entries().is_empty());
    ensure!(matches!(view.freshness(), Freshness::Stale { since, .. } if *since == start));
    cut.set_down(false);
    let update = view.next().await;
    assert_eq!(
        (update.changes.len(), update.freshness),
        (1, Freshness::UpToDate)
    );
    Ok(())
}

/// A store that forgets faster than is read is listed again; it does not come to a spin.
#[tokio::test(start_paused = true)]
async fn a_store_that_forgets_at_once_is_not_asked_all_the_time() -> Result {
    let limits = RedbLimits {
        history_events_max: 1,
        ..RedbLimits::default()
    };
    let Site {
        store,
        cut,
        mut view,
        _dir,
    } = site(limits).await?;
    view.next().await;
    let mut random = generator(8);
    let start = Instant::now();
    let mut mirror = view.entries().clone();
    while start.elapsed() < Duration::from_secs(300) {
        for _ in 0..5 {
            change(&store, &mut random).await?;
        }
        for update in idle(&mut view, Duration::from_secs(1)).await {
            apply(&mut mirror, update.changes);
        }
    }
    let asked = cut.asked();
    ensure!(asked < 400, "asked {asked} times");
    for update in idle(&mut view, Duration::from_secs(15)).await {
        apply(&mut mirror, update.changes);
    }
    assert_eq!(*view.freshness(), Freshness::UpToDate);
    assert_eq!(mirror, listed(&store, "t/").await?);
    Ok(())
}
