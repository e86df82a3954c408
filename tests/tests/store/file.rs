//! The file of a store: what is refused, and stays as it is; who else wants it; what goes by itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use mesh_tests::Result;
use mesh_tests::store::virtual_clock;
use node::store::{
    Clock, Listing, RedbLimits, RedbStore, Revision, Store as _, StoreError, StoreUrl,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use redb::{Database, TableDefinition};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::Answer;

const NONE: Revision = Revision::NONE;

fn place() -> Result<(TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("store.redb");
    Ok((dir, path))
}

async fn open(path: &Path) -> Answer<RedbStore> {
    RedbStore::open(path, Clock::system()).await
}

/// A store with something of everything in it.
async fn filled(path: &Path) -> Result<Listing> {
    let store = open(path).await?;
    for number in 0..60_u32 {
        let ttl = (number % 3 == 0).then_some(Duration::from_secs(1_000_000));
        let value = format!("{number} ").repeat(50 + number as usize * 7);
        store
            .put(&format!("k/{number}"), value.into(), NONE, ttl)
            .await?;
    }
    for number in 0..20_u32 {
        store.delete(&format!("k/{}", number * 3), None).await?;
    }
    let listing = store.list("").await?;
    store.close().await;
    Ok(listing)
}

/// Refused, and left byte for byte as it is.
async fn refused(path: &Path) -> Result<StoreError> {
    let before = std::fs::read(path)?;
    let error = match open(path).await {
        Ok(_) => anyhow::bail!("it was opened"),
        Err(error) => error,
    };
    ensure!(std::fs::read(path)? == before, "it was changed: {error}");
    ensure!(
        std::fs::read_dir(path.parent().context("a directory")?)?.count() == 1,
        "something was left beside it"
    );
    Ok(error)
}

fn is_foreign(error: &StoreError) -> bool {
    matches!(error, StoreError::Foreign { .. })
}

fn is_corrupt(error: &StoreError) -> bool {
    matches!(error, StoreError::Corrupt { .. })
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() -> Result {
    let (dir, path) = place()?;
    let listing = filled(&path).await?;
    assert_eq!(listing.entries.len(), 40);
    for _ in 0..3 {
        let store = open(&path).await?;
        assert_eq!(store.list("").await?, listing);
        store.close().await;
    }
    let names: Vec<_> = std::fs::read_dir(dir.path())?.collect::<std::io::Result<_>>()?;
    assert_eq!(names.len(), 1, "{names:?}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata()?.permissions());
    assert_eq!(mode & 0o777, 0o600);
    Ok(())
}

#[tokio::test]
async fn files_of_something_else_are_refused() -> Result {
    let (_dir, path) = place()?;
    for content in [
        "# a text\n".repeat(1000).into_bytes(),
        b"SQLite format 3\0".repeat(300),
        b"redb".to_vec(),
        vec![0; 8192],
    ] {
        std::fs::write(&path, content)?;
        let error = refused(&path).await?;
        assert!(is_foreign(&error), "{error}");
        assert!(error.to_string().contains("choose another path"), "{error}");
    }

    // Another program's, of the same make.
    std::fs::remove_file(&path)?;
    let other: TableDefinition<'_, &str, u64> = TableDefinition::new("entries");
    let database = Database::create(&path)?;
    let tx = database.begin_write()?;
    tx.open_table(other)?.insert("a", 1)?;
    tx.commit()?;
    drop(database);
    let error = refused(&path).await?;
    assert!(
        is_foreign(&error) && error.to_string().contains("another program"),
        "{error}"
    );

    // Of a later version of this one.
    std::fs::remove_file(&path)?;
    filled(&path).await?;
    let meta: TableDefinition<'_, &str, u64> = TableDefinition::new("mesh-store");
    let database = Database::create(&path)?;
    let tx = database.begin_write()?;
    tx.open_table(meta)?.insert("format", 2)?;
    tx.commit()?;
    drop(database);
    let error = refused(&path).await?;
    assert!(
        is_foreign(&error) && error.to_string().contains("format 2"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn files_that_were_cut_are_refused() -> Result {
    let (_dir, path) = place()?;
    filled(&path).await?;
    let whole = std::fs::read(&path)?;
    for length in [0, 9, 64, 320, 4096, 4097, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length])?;
        let error = refused(&path)
            .await
            .with_context(|| format!("{length} bytes"))?;
        assert!(is_corrupt(&error), "{length} bytes: {error}");
        assert!(
            error.to_string().contains("restore it from a backup"),
            "{error}"
        );
    }
    Ok(())
}

/// Whatever is written over a file: it is refused as it is, or nothing was lost.
#[tokio::test]
async fn damaged_files_are_refused_or_whole() -> Result {
    let (_dir, path) = place()?;
    let listing = filled(&path).await?;
    let whole = std::fs::read(&path)?;
    let mut random = StdRng::seed_from_u64(3);
    let mut refusals = 0;
    for round in 0..150 {
        let mut bytes = whole.clone();
        // Most of a file is free space. Of what is not, most is at the beginning.
        let bound = if round % 2 == 0 {
            24_000.min(bytes.len())
        } else {
            bytes.len()
        };
        let at = random.random_range(9..bound);
        let length = *rand::seq::IndexedRandom::choose(&[1, 1, 8, 600][..], &mut random)
            .context("a length")?;
        for byte in bytes.iter_mut().skip(at).take(length) {
            *byte ^= random.random_range(1..=255_u8);
        }
        std::fs::write(&path, &bytes)?;
        match open(&path).await {
            Ok(store) => {
                assert_eq!(store.list("").await?, listing, "{length} bytes at {at}");
                store.close().await;
            }
            Err(error) => {
                refusals += 1;
                assert!(is_corrupt(&error) || is_foreign(&error), "{at}: {error}");
                ensure!(
                    std::fs::read(&path)? == bytes,
                    "{length} bytes at {at} and more"
                );
            }
        }
    }
    ensure!(refusals > 20, "only {refusals} of 150 were refused");
    Ok(())
}

#[tokio::test]
async fn a_file_has_one_user() -> Result {
    let (_dir, path) = place()?;
    let store = open(&path).await?;
    let error = open(&path).await.expect_err("it is in use");
    assert_eq!(error, StoreError::InUse { path: path.clone() });
    assert!(error.to_string().contains("use etcd"), "{error}");
    store.put("a", "1".into(), NONE, None).await?;
    // A watch does not keep it.
    let watch = store.watch("", NONE).await?;
    store.close().await;
    let store = open(&path).await?;
    assert_eq!(store.list("").await?.entries.len(), 1);
    drop(watch);
    Ok(())
}

/// Several begin at once where there is no file: one gets it, and the others hear why not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_many_makes_the_file() -> Result {
    for _ in 0..20 {
        let (dir, path) = place()?;
        let openers = (0..6).map(|_| {
            let path = path.clone();
            tokio::spawn(async move { open(&path).await })
        });
        let mut opened = Vec::new();
        for result in futures_util::future::join_all(openers).await {
            match result? {
                Ok(store) => opened.push(store),
                Err(StoreError::InUse { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        assert_eq!(opened.len(), 1);
        opened[0].put("a", "1".into(), NONE, None).await?;
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
    }
    Ok(())
}

#[tokio::test]
async fn what_was_left_half_made_is_no_hindrance() -> Result {
    let (dir, path) = place()?;
    std::fs::write(
        dir.path().join("store.redb.new"),
        b"redb\x1a\x0a\xa9 and no more",
    )?;
    let store = open(&path).await?;
    store.put("a", "1".into(), NONE, None).await?;
    store.close().await;
    assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
    Ok(())
}

#[tokio::test]
async fn places_that_cannot_be_used_are_named() -> Result {
    let (dir, path) = place()?;
    for path in [dir.path().to_owned(), dir.path().join("none/store.redb")] {
        let error = open(&path).await.expect_err("it cannot be opened");
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
        assert!(
            error.to_string().contains(&path.display().to_string()),
            "{error}"
        );
    }
    let url: StoreUrl = format!("redb:{}", path.display()).parse()?;
    let store = node::store::open(&url, Clock::system()).await?;
    store.put("a", "1".into(), NONE, None).await?;
    Ok(())
}

/// Nobody asks: the store itself sees to it, by the clock that it was given.
#[tokio::test(start_paused = true)]
async fn lives_end_by_themselves() -> Result {
    let (_dir, path) = place()?;
    let clock = virtual_clock();
    let store = RedbStore::open(&path, clock.clone()).await?;
    let start = Instant::now();
    let mut watch = store.watch("", NONE).await?;
    for (key, seconds) in [("c", 900), ("a", 600), ("b", 600)] {
        let ttl = Some(Duration::from_secs(seconds));
        store.put(key, Bytes::new(), NONE, ttl).await?;
    }
    store.put("d", Bytes::new(), NONE, None).await?;
    let mut gone = Vec::new();
    while gone.len() < 3 {
        for event in watch.next().await? {
            if let node::store::Event::Delete { key, .. } = event {
                gone.push((key, start.elapsed().as_secs()));
            }
        }
    }
    let expected = [("a", 600), ("b", 600), ("c", 900)];
    assert_eq!(gone, expected.map(|(key, at)| (key.to_owned(), at)));

    // What was over while nobody was there is over at once.
    let ttl = Some(Duration::from_secs(60));
    store.put("e", Bytes::new(), NONE, ttl).await?;
    let before = store.list("").await?.revision;
    store.close().await;
    drop(store);
    tokio::time::advance(Duration::from_secs(3600)).await;
    let store = RedbStore::open(&path, clock).await?;
    let listing = store.list("").await?;
    assert_eq!(listing.entries.len(), 1);
    assert_eq!(listing.revision, Revision(before.0 + 1));
    // A watch that comes back hears of it.
    let mut watch = store.watch("", before).await?;
    assert_eq!(watch.next().await?[0].key(), "e");
    Ok(())
}

/// Whoever asked for a change has gone before it was made: it is told, and its life ends, all the same.
#[tokio::test(start_paused = true)]
async fn a_change_that_nobody_waits_for_is_told() -> Result {
    let (_dir, path) = place()?;
    let store = RedbStore::open(&path, virtual_clock()).await?;
    let mut watch = store.watch("", NONE).await?;
    // Waits before the change, and hears of it from nowhere else.
    let mut heard = tokio::spawn(async move {
        let first = watch.next().await?;
        let second = watch.next().await?;
        Ok::<_, StoreError>([first, second].concat())
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    let mut put = store.put("a", "1".into(), NONE, Some(Duration::from_secs(600)));
    let polled = futures_util::poll!(&mut put);
    ensure!(polled.is_pending(), "it was done at once: {polled:?}");
    drop(put);
    // Virtual time goes on to here only if neither comes.
    let heard = tokio::time::timeout(Duration::from_secs(3600), &mut heard)
        .await
        .context("nobody was told")???;
    let keys: Vec<_> = heard.iter().map(|event| event.key()).collect();
    assert_eq!(keys, ["a", "a"], "{heard:?}");
    ensure!(
        matches!(heard[1], node::store::Event::Delete { .. }),
        "{heard:?}"
    );
    assert_eq!(start.elapsed().as_secs(), 600);
    Ok(())
}

#[tokio::test]
async fn what_it_keeps_is_bounded() -> Result {
    let (_dir, path) = place()?;
    let limits = RedbLimits {
        entries_max: 20,
        history_events_max: 50,
        history_bytes_max: 40_000,
    };
    let store = RedbStore::open_with(&path, Clock::system(), limits).await?;
    for number in 0..20 {
        store
            .put(&format!("{number}"), Bytes::new(), NONE, None)
            .await?;
    }
    let full = store.put("more", Bytes::new(), NONE, None).await;
    assert!(
        matches!(full, Err(StoreError::TooLarge { max: 20, .. })),
        "{full:?}"
    );
    // What is there can still be changed, and what goes makes room.
    let mut revision = store.get("0").await?.context("there")?.modified;
    for _ in 0..60 {
        revision = store.put("0", Bytes::new(), revision, None).await?;
    }
    let known = |after: Revision| store.watch("", after);
    assert!(known(Revision(revision.0 - 50)).await.is_ok());
    assert_eq!(
        known(Revision(revision.0 - 51)).await.err(),
        Some(StoreError::Compacted)
    );
    let large = Bytes::from(vec![0; 10_000]);
    for _ in 0..4 {
        revision = store.put("0", large.clone(), revision, None).await?;
    }
    assert!(known(Revision(revision.0 - 3)).await.is_ok());
    assert_eq!(
        known(Revision(revision.0 - 4)).await.err(),
        Some(StoreError::Compacted)
    );
    store.delete("0", None).await?;
    store.put("more", Bytes::new(), NONE, None).await?;
    Ok(())
}
