//! Random operations against a map in memory, and watches that replay them.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use mesh_tests::Result;
use node::store::{Entry, Event, Revision, StoreError};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::over_engines;
use crate::support::{Engine, next_many};

over_engines! {
    random_operations_do_what_a_map_does;
}

const OPERATIONS: usize = 300;
const KEYS: [&str; 8] = ["t/a", "t/b", "t/ab", "t/", "u/a", "u", "t", "t0"];
const PREFIXES: [&str; 6] = ["", "t/", "t/a", "u", "u/", "x"];

/// What a store is: a map, and the list of what has happened to it.
#[derive(Default)]
struct Model {
    entries: BTreeMap<String, Entry>,
    history: Vec<Event>,
    revision: Revision,
}

impl Model {
    fn current(&self, key: &str) -> Revision {
        self.entries
            .get(key)
            .map_or(Revision::NONE, |entry| entry.modified)
    }

    fn list(&self, prefix: &str) -> Vec<Entry> {
        let begins_so = |entry: &&Entry| entry.key.starts_with(prefix);
        self.entries.values().filter(begins_so).cloned().collect()
    }

    /// The next revision, which must be higher than all before.
    fn advance(&mut self, revision: Revision) -> Result {
        ensure!(
            revision > self.revision,
            "{revision} after {}",
            self.revision
        );
        self.revision = revision;
        Ok(())
    }

    fn put(&mut self, key: &str, value: Bytes, revision: Revision) -> Result {
        self.advance(revision)?;
        let created = self
            .entries
            .get(key)
            .map_or(revision, |entry| entry.created);
        let entry = Entry {
            key: key.to_owned(),
            value,
            created,
            modified: revision,
        };
        self.history.push(Event::Put(entry.clone()));
        self.entries.insert(key.to_owned(), entry);
        Ok(())
    }

    fn delete(&mut self, key: &str, revision: Revision) -> Result {
        self.advance(revision)?;
        self.entries.remove(key);
        self.history.push(Event::Delete {
            key: key.to_owned(),
            revision,
        });
        Ok(())
    }

    /// What a watch tells.
    fn after(&self, prefix: &str, after: Revision) -> Vec<Event> {
        let told = |event: &&Event| event.key().starts_with(prefix) && event.revision() > after;
        self.history.iter().filter(told).cloned().collect()
    }
}

async fn random_operations_do_what_a_map_does<E: Engine>() -> Result {
    for seed in 0..3 {
        life::<E>(seed)
            .await
            .with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

async fn life<E: Engine>(seed: u64) -> Result {
    let engine = E::start().await?;
    let store = engine.store();
    let mut random = StdRng::seed_from_u64(seed);
    let start = store.list("").await?.revision;
    let mut model = Model {
        revision: start,
        ..Model::default()
    };
    // Watches that were begun at some time, from then or from earlier.
    let mut watches = vec![("", start, store.watch("", start).await?)];
    let mut revisions = vec![start];
    for _ in 0..OPERATIONS {
        let key = *KEYS.choose(&mut random).context("a key")?;
        let current = model.current(key);
        let expected = match random.random_range(0..10) {
            0 => Revision::NONE,
            1 => *revisions.choose(&mut random).context("a revision")?,
            _ => current,
        };
        match random.random_range(0..100) {
            0..50 => {
                let length = *[0, 1, 30, 3000].choose(&mut random).context("a length")?;
                let value: Bytes = (0..length).map(|_| random.random::<u8>()).collect();
                let done = store.put(key, value.clone(), expected, None).await;
                match done {
                    Ok(revision) if expected == current => model.put(key, value, revision)?,
                    other => assert_eq!(other, Err(StoreError::Conflict { current })),
                }
            }
            50..70 => {
                let expected = random.random_bool(0.7).then_some(expected);
                match store.delete(key, expected).await {
                    Err(StoreError::Conflict { current: told }) => {
                        assert_eq!(told, current);
                        assert!(expected.is_some_and(|expected| expected != current));
                    }
                    Ok(None) => assert_eq!(current, Revision::NONE),
                    Ok(Some(revision)) => {
                        assert!(expected.is_none_or(|expected| expected == current));
                        assert_ne!(current, Revision::NONE);
                        model.delete(key, revision)?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            70..85 => assert_eq!(store.get(key).await?.as_ref(), model.entries.get(key)),
            85..96 => {
                let prefix = *PREFIXES.choose(&mut random).context("a prefix")?;
                let listing = store.list(prefix).await?;
                assert_eq!(listing.entries, model.list(prefix));
                assert_eq!(listing.revision, model.revision);
            }
            _ => {
                let prefix = *PREFIXES.choose(&mut random).context("a prefix")?;
                let after = *revisions.choose(&mut random).context("a revision")?;
                watches.push((prefix, after, store.watch(prefix, after).await?));
            }
        }
        revisions.push(model.revision);
    }
    assert_eq!(store.list("").await?.entries, model.list(""));
    for (prefix, after, mut watch) in watches {
        let expected = model.after(prefix, after);
        let told = next_many(&mut *watch, expected.len()).await?;
        assert_eq!(told, expected, "{prefix} after {after}");
        // What is told is what happened: played back from nothing, it gives what there is.
        if after == start {
            let mut replayed = BTreeMap::new();
            for event in told {
                match event {
                    Event::Put(entry) => replayed.insert(entry.key.clone(), entry),
                    Event::Delete { key, .. } => replayed.remove(&key),
                };
            }
            let replayed: Vec<Entry> = replayed.into_values().collect();
            assert_eq!(replayed, model.list(prefix));
        }
    }
    Ok(())
}
