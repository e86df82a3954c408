//! What each engine does, whatever it is made of.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use mesh_tests::Result;
use node::store::{Event, KEY_BYTES_MAX, Revision, StoreError, TTL_MAX, VALUE_BYTES_MAX};

use crate::over_engines;
use crate::support::{Engine, first_answer, next, next_many, pairs, said};

over_engines! {
    a_key_is_made_changed_and_deleted;
    what_was_not_seen_is_not_overwritten;
    one_of_many_writers_wins;
    lists_have_what_begins_so_and_a_revision_to_watch_from;
    a_list_of_many_is_of_one_revision;
    a_watch_tells_every_change_in_order;
    a_watch_that_is_dropped_while_it_waits_loses_nothing;
    what_was_forgotten_is_compacted;
    a_future_revision_is_compacted;
    what_has_a_time_to_live_goes;
    a_time_to_live_is_replaced_with_its_value;
    what_is_too_large_is_refused;
    a_closed_store_says_so;
}

const NONE: Revision = Revision::NONE;

async fn a_key_is_made_changed_and_deleted<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    assert_eq!(store.get("a").await?, None);
    let first = store.put("a", "1".into(), NONE, None).await?;
    let second = store.put("a", "2".into(), first, None).await?;
    ensure!(NONE < first && first < second);
    let entry = store.get("a").await?.context("it is there")?;
    assert_eq!((entry.key.as_str(), entry.value.as_ref()), ("a", &b"2"[..]));
    assert_eq!((entry.created, entry.modified), (first, second));

    let gone = store
        .delete("a", Some(second))
        .await?
        .context("it was there")?;
    ensure!(gone > second);
    assert_eq!(store.get("a").await?, None);
    assert_eq!(store.delete("a", None).await?, None);

    // A key that is made again begins anew.
    let again = store.put("a", Bytes::new(), NONE, None).await?;
    let entry = store.get("a").await?.context("it is there")?;
    assert_eq!((entry.created, entry.modified), (again, again));
    assert!(entry.value.is_empty());
    ensure!(store.delete("a", None).await? > Some(again));
    Ok(())
}

async fn what_was_not_seen_is_not_overwritten<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let conflict = |current| Err(StoreError::Conflict { current });
    assert_eq!(
        store.put("a", "1".into(), Revision(7), None).await,
        conflict(NONE)
    );
    assert_eq!(
        store.delete("a", Some(Revision(7))).await,
        Err(StoreError::Conflict { current: NONE })
    );
    let first = store.put("a", "1".into(), NONE, None).await?;
    assert_eq!(
        store.put("a", "2".into(), NONE, None).await,
        conflict(first)
    );
    let second = store.put("a", "2".into(), first, None).await?;
    // With a time to live, too: what was granted for it does no harm.
    let ttl = Some(Duration::from_secs(60));
    assert_eq!(
        store.put("a", "3".into(), first, ttl).await,
        conflict(second)
    );
    for wrong in [NONE, first, Revision(second.0 + 1)] {
        let current = second;
        assert_eq!(
            store.delete("a", Some(wrong)).await,
            Err(StoreError::Conflict { current })
        );
    }
    let entry = store.get("a").await?.context("it is there")?;
    assert_eq!((entry.value.as_ref(), entry.modified), (&b"2"[..], second));
    Ok(())
}

async fn one_of_many_writers_wins<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let mut last = NONE;
    for round in 0..5 {
        let writers = (0..8).map(|writer| {
            let value = Bytes::from(format!("{round} {writer}"));
            async move { (value.clone(), store.put("a", value, last, None).await) }
        });
        let mut won = Vec::new();
        let mut lost = 0;
        for (value, result) in join_all(writers).await {
            match result {
                Ok(revision) => won.push((value, revision)),
                Err(StoreError::Conflict { .. }) => lost += 1,
                Err(other) => return Err(other.into()),
            }
        }
        assert_eq!((won.len(), lost), (1, 7));
        let entry = store.get("a").await?.context("it is there")?;
        assert_eq!(won, [(entry.value, entry.modified)]);
        last = entry.modified;
    }
    Ok(())
}

async fn lists_have_what_begins_so_and_a_revision_to_watch_from<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let empty = store.list("t/").await?;
    assert!(empty.entries.is_empty());
    for key in ["t/b", "s/x", "t", "t/a", "t0", "t/ä", "t/\u{10ffff}"] {
        store.put(key, key.to_owned().into(), NONE, None).await?;
    }
    let listing = store.list("t/").await?;
    let expected = ["t/a", "t/b", "t/ä", "t/\u{10ffff}"];
    assert_eq!(pairs(&listing), expected.map(|key| (key, key.as_bytes())));
    ensure!(listing.revision >= Revision(empty.revision.0 + 7));
    assert_eq!(store.list("").await?.entries.len(), 7);
    assert_eq!(store.list("t").await?.entries.len(), 6);

    // What comes after the list, and nothing that is in it.
    let mut watch = store.watch("t/", listing.revision).await?;
    store.put("s/y", "no".into(), NONE, None).await?;
    let revision = store.put("t/c", "yes".into(), NONE, None).await?;
    let events = next(&mut *watch).await?;
    assert_eq!(said(&events), [("t/c", Some(&b"yes"[..]))]);
    assert_eq!(events[0].revision(), revision);
    // From before the list, all of it.
    let mut watch = store.watch("t/", empty.revision).await?;
    let events = next_many(&mut *watch, 5).await?;
    let keys: Vec<&str> = events.iter().map(Event::key).collect();
    assert_eq!(keys, ["t/b", "t/a", "t/ä", "t/\u{10ffff}", "t/c"]);
    Ok(())
}

/// Larger than one answer of any engine.
async fn a_list_of_many_is_of_one_revision<E: Engine>() -> Result {
    const COUNT: usize = 130;
    let engine = E::start().await?;
    let store = engine.store();
    let value = Bytes::from(vec![b'v'; VALUE_BYTES_MAX]);
    // Written by key, so that what a list has says how long it is.
    for number in 0..COUNT {
        store
            .put(&format!("k/{number:04}"), value.clone(), NONE, None)
            .await?;
    }
    let listing = store.list("k/").await?;
    assert_eq!(listing.entries.len(), COUNT);
    let lister = async {
        for _ in 0..5 {
            let listing = store.list("k/").await?;
            for (number, entry) in listing.entries.iter().enumerate() {
                assert_eq!(entry.key, format!("k/{number:04}"));
                assert!(entry.modified <= listing.revision);
            }
        }
        Ok::<(), anyhow::Error>(())
    };
    let writer = async {
        for number in COUNT..COUNT + 40 {
            let value = Bytes::from_static(b"v");
            store
                .put(&format!("k/{number:04}"), value, NONE, None)
                .await?;
        }
        Ok(())
    };
    tokio::try_join!(lister, writer)?;
    Ok(())
}

async fn a_watch_tells_every_change_in_order<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let start = store.list("").await?.revision;
    let mut early = store.watch("w/", start).await?;
    let mut expected = Vec::new();
    let mut revision = NONE;
    for number in 0..40 {
        let value = Bytes::from(format!("{number}"));
        if number % 5 == 4 {
            let gone = store
                .delete("w/a", Some(revision))
                .await?
                .context("there")?;
            expected.push((gone, None));
            revision = NONE;
        } else {
            revision = store.put("w/a", value.clone(), revision, None).await?;
            expected.push((revision, Some(value)));
        }
    }
    let mut late = store.watch("w/", start).await?;
    for watch in [&mut early, &mut late] {
        let events = next_many(&mut **watch, expected.len()).await?;
        for (event, (revision, value)) in events.iter().zip(&expected) {
            assert_eq!(event.revision(), *revision);
            let told = match event {
                Event::Put(entry) => Some(entry.value.clone()),
                Event::Delete { .. } => None,
            };
            assert_eq!(&told, value);
        }
    }
    // From the middle on.
    let (middle, _) = expected[20];
    let mut rest = store.watch("w/", middle).await?;
    let events = next_many(&mut *rest, expected.len() - 21).await?;
    assert_eq!(events[0].revision(), expected[21].0);
    Ok(())
}

async fn a_watch_that_is_dropped_while_it_waits_loses_nothing<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let mut watch = store.watch("", store.list("").await?.revision).await?;
    let mut told = Vec::new();
    for number in 0..30 {
        let key = format!("{number:02}");
        // Polled a few times, and dropped wherever it is then.
        let write = store.put(&key, Bytes::new(), NONE, None);
        tokio::select! {
            biased;
            events = watch.next() => told.extend(events?),
            revision = write => { revision?; }
        }
        // Whichever was first: the key is there in the end.
        if store.get(&key).await?.is_none() {
            match store.put(&key, Bytes::new(), NONE, None).await {
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    while told.len() < 30 {
        told.extend(next(&mut *watch).await?);
    }
    let keys: Vec<String> = told.iter().map(|event| event.key().to_owned()).collect();
    let expected: Vec<String> = (0..30).map(|number| format!("{number:02}")).collect();
    assert_eq!(keys, expected);
    Ok(())
}

async fn what_was_forgotten_is_compacted<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let start = store.list("").await?.revision;
    let revision = store.put("a", "0".into(), NONE, None).await?;
    store.put("a", "1".into(), revision, None).await?;
    engine.compact().await?;
    let first = first_answer(store.as_ref(), "", start).await?;
    assert_eq!(first, Err(StoreError::Compacted));
    // The entries are there, and a watch from the list goes on.
    let listing = store.list("").await?;
    assert_eq!(pairs(&listing), [("a", &b"1"[..])]);
    let mut watch = store.watch("", listing.revision).await?;
    store.delete("a", None).await?;
    assert_eq!(said(&next(&mut *watch).await?), [("a", None)]);
    Ok(())
}

/// As after a backup was restored.
async fn a_future_revision_is_compacted<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let now = store.put("a", "1".into(), NONE, None).await?;
    let first = first_answer(store.as_ref(), "", Revision(now.0 + 1000)).await?;
    assert_eq!(first, Err(StoreError::Compacted));
    Ok(())
}

async fn what_has_a_time_to_live_goes<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let start = store.list("").await?.revision;
    let mut watch = store.watch("", start).await?;
    let ttl = Some(Duration::from_millis(1500));
    let put = store.put("a", "1".into(), NONE, ttl).await?;
    store.put("b", "2".into(), NONE, None).await?;
    assert_eq!(next_many(&mut *watch, 2).await?.len(), 2);
    engine.pass(Duration::from_secs(2)).await?;
    let events = next(&mut *watch).await?;
    assert_eq!(said(&events), [("a", None)]);
    ensure!(events[0].revision() > put);
    assert_eq!(store.get("a").await?, None);
    assert_eq!(pairs(&store.list("").await?), [("b", &b"2"[..])]);
    // It can be made again as what never was.
    store.put("a", "3".into(), NONE, None).await?;
    Ok(())
}

async fn a_time_to_live_is_replaced_with_its_value<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let ttl = Some(Duration::from_secs(2));
    let first = store.put("stays", "1".into(), NONE, ttl).await?;
    store.put("stays", "2".into(), first, None).await?;
    let first = store.put("longer", "1".into(), NONE, ttl).await?;
    let hour = Some(Duration::from_secs(3600));
    store.put("longer", "2".into(), first, hour).await?;
    let first = store.put("again", "1".into(), NONE, ttl).await?;
    store.delete("again", Some(first)).await?;
    store.put("again", "2".into(), NONE, None).await?;
    // The last to go of those that go.
    let listing = store.list("").await?;
    let mut watch = store.watch("", listing.revision).await?;
    let first = store.put("marker", "1".into(), NONE, ttl).await?;
    assert_eq!(next(&mut *watch).await?[0].revision(), first);
    engine.pass(Duration::from_secs(3)).await?;
    assert_eq!(said(&next(&mut *watch).await?), [("marker", None)]);
    let keys: Vec<String> = store
        .list("")
        .await?
        .entries
        .into_iter()
        .map(|e| e.key)
        .collect();
    assert_eq!(keys, ["again", "longer", "stays"]);
    Ok(())
}

async fn what_is_too_large_is_refused<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let large = Bytes::from(vec![b'v'; VALUE_BYTES_MAX + 1]);
    let too_large = |result| matches!(result, Err(StoreError::TooLarge { .. }));
    let key = "k".repeat(KEY_BYTES_MAX);
    assert!(too_large(store.put("a", large.clone(), NONE, None).await));
    assert!(too_large(
        store
            .put(&format!("{key}k"), Bytes::new(), NONE, None)
            .await
    ));
    let long = Some(TTL_MAX + Duration::from_secs(1));
    assert!(too_large(store.put("a", Bytes::new(), NONE, long).await));
    store
        .put(&key, large.slice(..VALUE_BYTES_MAX), NONE, Some(TTL_MAX))
        .await?;
    for bad in ["", "a\nb", "\0"] {
        let result = store.put(bad, Bytes::new(), NONE, None).await;
        assert!(
            matches!(result, Err(StoreError::BadKey { .. })),
            "{result:?}"
        );
        assert!(matches!(
            store.get(bad).await,
            Err(StoreError::BadKey { .. })
        ));
    }
    assert_eq!(store.list("").await?.entries.len(), 1);
    Ok(())
}

async fn a_closed_store_says_so<E: Engine>() -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let mut watch = store.watch("", store.list("").await?.revision).await?;
    let waiting = async { tokio::time::timeout(mesh_tests::probe::PATIENCE, watch.next()).await };
    let (told, ()) = tokio::join!(waiting, store.close());
    let closed = |error: &StoreError| matches!(error, StoreError::Unreachable { maybe_done: false, what } if what.contains("closed"));
    assert!(told?.is_err_and(|error| closed(&error)));
    assert!(store.get("a").await.is_err_and(|error| closed(&error)));
    assert!(store.list("").await.is_err_and(|error| closed(&error)));
    let put = store.put("a", Bytes::new(), NONE, None).await;
    assert!(put.is_err_and(|error| closed(&error)));
    assert!(
        store
            .watch("", NONE)
            .await
            .is_err_and(|error| closed(&error))
    );
    store.close().await;
    Ok(())
}
