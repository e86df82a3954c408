//! The lease tracker against the vectors under `tests/vectors/tracker/`, and against the file or
//! folder that the environment variable `MESH_TRACKER_VECTORS` names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_proto::time::Time;
use mesh_proto::tracker::{DEFAULT_TTL, LeaseId, Sighting, Tracker};
use serde_json::Value;

#[test]
fn tracker_vectors() {
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/tracker");
    let further = std::env::var_os("MESH_TRACKER_VECTORS").map(PathBuf::from);
    let mut ran = 0;
    let mut failures = Vec::new();
    for place in std::iter::once(published).chain(further) {
        for file in files(&place) {
            let text = std::fs::read_to_string(&file).unwrap();
            let vectors: Vec<Value> = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            for vector in vectors {
                let id = vector["id"].as_str().unwrap_or("without an id").to_owned();
                if let Err(why) = run(&vector) {
                    failures.push(format!("{}: {id}: {why}", file.display()));
                }
                ran += 1;
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(ran >= 32, "only {ran} vectors were found");
}

fn files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(place)
        .unwrap_or_else(|error| panic!("{}: {error}", place.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    files.sort();
    files
}

fn run(vector: &Value) -> Result<(), String> {
    let ttl = vector["ttl_ms"]
        .as_u64()
        .map_or(DEFAULT_TTL, Duration::from_millis);
    let mut tracker = Tracker::new("test-cluster", ttl);
    let mut now = Time::ZERO;
    let mut leases: BTreeMap<String, LeaseId> = BTreeMap::new();
    for (index, step) in vector["steps"]
        .as_array()
        .ok_or("no steps")?
        .iter()
        .enumerate()
    {
        apply(&mut tracker, &mut now, &mut leases, step)
            .map_err(|why| format!("step {index} {step}: {why}"))?;
    }
    Ok(())
}

fn apply(
    tracker: &mut Tracker,
    now: &mut Time,
    leases: &mut BTreeMap<String, LeaseId>,
    step: &Value,
) -> Result<(), String> {
    let equal = |what: &str, actual: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
        let (actual, expected) = (format!("{actual:?}"), format!("{expected:?}"));
        if actual == expected {
            Ok(())
        } else {
            Err(format!("{what} is {actual}, expected {expected}"))
        }
    };
    let lease_of = |leases: &BTreeMap<String, LeaseId>| {
        leases
            .get(step[1].as_str().unwrap_or(""))
            .copied()
            .ok_or("no such lease")
    };
    match step[0].as_str().ok_or("no operation")? {
        "count" => {
            let count = step[1].as_i64().ok_or("no count")?;
            tracker.set_connection_count(u32::try_from(count.max(0)).map_err(|e| e.to_string())?);
        }
        "track" => {
            let entries = step[1].as_array().ok_or("no entries")?;
            tracker.track(*now, entries.iter().map(sighting));
        }
        "advance" => *now = *now + Duration::from_millis(step[1].as_u64().ok_or("no time")?),
        "acquire" => {
            let granted = tracker.acquire(*now);
            equal("granted", &granted.is_some(), &!step[1].is_null())?;
            if let (Some(lease), Some(name)) = (granted, step[1].as_str()) {
                leases.insert(name.to_owned(), lease);
                if let Some(id) = step.get(2).and_then(Value::as_u64) {
                    equal("the lease's id", &lease.get(), &id)?;
                }
            }
        }
        "claim" => {
            let lease = lease_of(leases)?;
            let claimed = tracker.claim(lease, &strings(&step[2]));
            equal("claimed", &claimed, &step[3].as_bool().ok_or("no result")?)?;
            if let Some(held) = step.get(4).and_then(Value::as_str) {
                equal(
                    "held",
                    &tracker.claimed_by(lease).map(|name| &**name),
                    &Some(held),
                )?;
            }
        }
        "release" => tracker.release(lease_of(leases)?),
        "is_claimed" => {
            let claimed = tracker.is_claimed(&strings(&step[1]));
            equal("claimed", &claimed, &step[2].as_bool().ok_or("no result")?)?;
        }
        "state" => {
            let state = &step[1];
            equal(
                "inflight",
                &(tracker.inflight() as u64),
                &state["inflight"].as_u64().ok_or("no inflight")?,
            )?;
            let sets: [(&str, Vec<&str>); 3] = [
                ("claimed", tracker.claimed().map(|name| &**name).collect()),
                ("tracked", tracker.tracked().map(|name| &**name).collect()),
                ("desired", tracker.desired().map(|name| &**name).collect()),
            ];
            for (what, actual) in sets {
                if !state[what].is_null() {
                    equal(what, &actual, &strings(&state[what]))?;
                }
            }
        }
        other => return Err(format!("unknown operation {other}")),
    }
    Ok(())
}

fn sighting(entry: &Value) -> Sighting {
    Sighting {
        name: entry["name"].as_str().unwrap_or("").into(),
        group: entry["group"].as_str().unwrap_or("").into(),
        generation: entry["gen"].as_u64().unwrap_or(0),
        ttl: entry["ttl_ms"].as_u64().map(Duration::from_millis),
    }
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().map_or_else(Vec::new, |list| {
        list.iter().filter_map(Value::as_str).collect()
    })
}
