//! Tunnel resources: a stored wish that this cluster's proxies keep connections to another cluster.
//!
//! A [`Draft`] is what somebody asks for, with nothing checked; [`Draft::check`] makes it a
//! [`Tunnel`], or says everything that is wrong with it at once. A tunnel is stored under
//! [`Tunnel::key`] as one line of JSON, which an operator can read where it lies:
//!
//! ```json
//! {"version":1,"cluster":"a.example.com","addresses":["10.0.0.4:2023"],"connections":0,"labels":{},"created_ms":1763700000000,"expires_ms":1763700600000}
//! ```
//!
//! **How the stored form may change.** `version` is 1. A reader refuses another version, and
//! ignores fields that it does not know: what an older node may overlook is a new field, what it
//! must not is a new version. Storing a tunnel replaces the whole of it, unknown fields included.
//! What was written by hand is checked like any draft and need not be canonical.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::name::Cluster;
use crate::text::quote;

mod address;
mod invalid;

pub use address::{DEFAULT_PORT, DialAddress, InvalidAddress, split_addresses};
use invalid::Faults;
pub use invalid::{Fault, Field, InvalidTunnel};

/// The most addresses of one tunnel.
pub const ADDRESSES_MAX: usize = 64;
/// The highest connection count.
pub const CONNECTIONS_MAX: u64 = 1024;
/// The most labels of one tunnel.
pub const LABELS_MAX: usize = 32;
/// The longest key of a label, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 63;
/// The longest value of a label, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 253;
/// The longest time to live: a year.
pub const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The shortest time to live. Stores count in seconds, and etcd refuses to count below two.
pub const TTL_MIN: Duration = Duration::from_secs(2);
/// The longest stored form, in bytes.
pub const STORED_BYTES_MAX: usize = 64 << 10;
/// The most faults that an error lists.
pub const FAULTS_MAX: usize = 100;
/// What the keys of all tunnels begin with.
pub const KEY_PREFIX: &str = "tunnels/";

/// The version of the stored form.
const VERSION: u64 = 1;

/// What somebody asks for; nothing of it is checked yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Draft {
    /// The cluster at the other end.
    pub cluster: String,
    /// Where to dial it: `host`, `host:port`, `v4:port`, `[v6]:port`.
    pub addresses: Vec<String>,
    /// How many connections each proxy of this cluster keeps; 0 is one to every
    /// proxy of the other side.
    pub connections: u64,
    /// Free text for operators, by key.
    pub labels: BTreeMap<String, String>,
    /// When it was created: wall time in milliseconds since 1970.
    pub created_ms: u64,
    /// When it ends: wall time in milliseconds since 1970. `None` is never.
    pub expires_ms: Option<u64>,
}

/// A tunnel resource: checked, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    cluster: Cluster,
    addresses: Vec<DialAddress>,
    connections: u32,
    labels: BTreeMap<String, String>,
    created_ms: u64,
    expires_ms: Option<u64>,
    revision: u64,
}

impl Draft {
    /// Checks all of it.
    ///
    /// # Errors
    /// Everything that is wrong, at once: each address, each label.
    pub fn check(&self) -> Result<Tunnel, InvalidTunnel> {
        let mut faults = Faults::default();
        let checked = self.check_lasting(&mut faults);
        check_times(self.created_ms, self.expires_ms, &mut faults);
        match (checked, faults.is_empty()) {
            (Some(tunnel), true) => Ok(tunnel),
            _ => Err(faults.into()),
        }
    }

    /// Checks all but the times. They are of a moment: what is renewed for years ends years after it
    /// was created, and clocks of proxies differ.
    fn check_lasting(&self, faults: &mut Faults) -> Option<Tunnel> {
        let cluster = self
            .cluster
            .parse::<Cluster>()
            .map_err(|error| {
                let what = format!("\"{}\" is no cluster: {}", error.value, error.rule);
                faults.push(Field::Cluster, what);
            })
            .ok();
        let addresses = check_addresses(&self.addresses, faults);
        let connections = check_connections(self.connections, faults);
        check_labels(&self.labels, faults);
        Some(Tunnel {
            cluster: cluster?,
            addresses,
            connections,
            labels: self.labels.clone(),
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
            revision: 0,
        })
    }
}

impl Tunnel {
    /// The cluster at the other end.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Where to dial it, in the order in which that was written; never empty, each once.
    #[must_use]
    pub fn addresses(&self) -> &[DialAddress] {
        &self.addresses
    }

    /// How many connections each proxy of this cluster keeps; 0 is one to every
    /// proxy of the other side.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.connections
    }

    /// Free text for operators, by key.
    #[must_use]
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// When it was created: wall time in milliseconds since 1970.
    #[must_use]
    pub fn created_ms(&self) -> u64 {
        self.created_ms
    }

    /// When it ends: wall time in milliseconds since 1970. `None` is never. To be shown: it is the
    /// store that ends it, by its own clock.
    #[must_use]
    pub fn expires_ms(&self) -> Option<u64> {
        self.expires_ms
    }

    /// What is left of its life at `now_ms`; zero when it is over, `None` when it does not end.
    #[must_use]
    pub fn time_left(&self, now_ms: u64) -> Option<Duration> {
        self.expires_ms
            .map(|expires_ms| Duration::from_millis(expires_ms.saturating_sub(now_ms)))
    }

    /// The store's revision of this value; 0 when it is not stored.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The same tunnel as the store holds it at `revision`.
    #[must_use]
    pub fn at_revision(mut self, revision: u64) -> Self {
        self.revision = revision;
        self
    }

    /// The same tunnel, as one that was created earlier: it is renewed.
    #[must_use]
    pub fn created_at(mut self, created_ms: u64) -> Self {
        self.created_ms = created_ms;
        self
    }

    /// Whether both wish for the same, whatever their times.
    #[must_use]
    pub fn wishes_the_same(&self, other: &Self) -> bool {
        self.cluster == other.cluster
            && self.addresses == other.addresses
            && self.connections == other.connections
            && self.labels == other.labels
    }

    /// The key of a cluster's tunnel in the store.
    #[must_use]
    pub fn key(cluster: &Cluster) -> String {
        format!("{KEY_PREFIX}{cluster}")
    }

    /// The stored form: one line of JSON. The revision is the store's and not in it.
    #[must_use]
    pub fn encode(&self) -> String {
        let stored = Stored {
            version: VERSION,
            cluster: self.cluster.as_str().to_owned(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            connections: u64::from(self.connections),
            labels: self.labels.clone(),
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
        };
        // Texts and numbers under text keys: there is nothing that JSON could not hold.
        serde_json::to_string(&stored).unwrap_or_default()
    }

    /// Reads what is stored under `key` at `revision`.
    ///
    /// # Errors
    /// When it is not this JSON, of another version, not valid, or of another cluster than the key
    /// says.
    pub fn decode(key: &str, bytes: &[u8], revision: u64) -> Result<Self, InvalidTunnel> {
        let named = key.strip_prefix(KEY_PREFIX).unwrap_or(key);
        let stored = read(bytes).map_err(|what| {
            let mut faults = Faults::default();
            faults.push(Field::Stored, what);
            InvalidTunnel::from(faults)
        })?;
        let mut faults = Faults::default();
        let tunnel = match (stored.check_lasting(&mut faults), faults.is_empty()) {
            (Some(tunnel), true) => tunnel,
            _ => return Err(faults.into()),
        };
        if tunnel.cluster.as_str() != named {
            let mut faults = Faults::default();
            faults.push(
                Field::Cluster,
                format!(
                    "it says \"{}\", and its key \"{}\"; store it under {}",
                    tunnel.cluster,
                    quote(key),
                    Self::key(&tunnel.cluster)
                ),
            );
            return Err(faults.into());
        }
        Ok(tunnel.at_revision(revision))
    }
}

/// The stored form. The order of the fields is part of the golden bytes.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u64,
    cluster: String,
    addresses: Vec<String>,
    #[serde(default)]
    connections: u64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
}

/// What is read first: another version may have other fields.
#[derive(Deserialize)]
struct Version {
    version: u64,
}

fn read(bytes: &[u8]) -> Result<Draft, String> {
    if bytes.len() > STORED_BYTES_MAX {
        return Err(format!(
            "it has {} bytes, over the limit of {STORED_BYTES_MAX}",
            bytes.len()
        ));
    }
    let not_json = |error: serde_json::Error| {
        format!(
            "it is not a tunnel's JSON: {}; store it with `node tunnel upsert`",
            quote(&error.to_string())
        )
    };
    let Version { version } = serde_json::from_slice(bytes).map_err(not_json)?;
    if version != VERSION {
        return Err(format!(
            "it is of version {version}, and this node reads version {VERSION}; upgrade the node"
        ));
    }
    let stored: Stored = serde_json::from_slice(bytes).map_err(not_json)?;
    Ok(Draft {
        cluster: stored.cluster,
        addresses: stored.addresses,
        connections: stored.connections,
        labels: stored.labels,
        created_ms: stored.created_ms,
        expires_ms: stored.expires_ms,
    })
}

fn check_addresses(texts: &[String], faults: &mut Faults) -> Vec<DialAddress> {
    if texts.is_empty() {
        faults.push(
            Field::Addresses,
            "there is none; name at least one, as in 10.0.0.4:7443".to_owned(),
        );
    }
    if texts.len() > ADDRESSES_MAX {
        faults.push(
            Field::Addresses,
            format!(
                "there are {}, over the limit of {ADDRESSES_MAX}; name a load balancer or a DNS name with several records instead",
                texts.len()
            ),
        );
    }
    let mut addresses = Vec::new();
    let mut first_at = BTreeMap::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse::<DialAddress>() {
            // Written twice is a slip, and the one that was meant is missing.
            Ok(address) => match first_at.get(&address) {
                Some(first) => faults.push(
                    Field::Address(index),
                    format!(
                        "\"{}\" is the same as address {} ({address}); write each once",
                        quote(text),
                        first + 1
                    ),
                ),
                None => {
                    first_at.insert(address.clone(), index);
                    addresses.push(address);
                }
            },
            Err(error) => faults.push(
                Field::Address(index),
                format!("\"{}\" cannot be dialled: {}", error.value, error.rule),
            ),
        }
    }
    addresses
}

fn check_connections(connections: u64, faults: &mut Faults) -> u32 {
    match u32::try_from(connections) {
        Ok(count) if connections <= CONNECTIONS_MAX => count,
        _ => {
            let what = format!(
                "{connections} is over the limit of {CONNECTIONS_MAX}; 0 is each proxy to every proxy"
            );
            faults.push(Field::Connections, what);
            0
        }
    }
}

fn check_labels(labels: &BTreeMap<String, String>, faults: &mut Faults) {
    if labels.len() > LABELS_MAX {
        faults.push(
            Field::Labels,
            format!(
                "there are {}, over the limit of {LABELS_MAX}; leave some out",
                labels.len()
            ),
        );
    }
    for (key, value) in labels {
        let good_key = (1..=LABEL_KEY_BYTES_MAX).contains(&key.len())
            && key
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/'));
        if !good_key {
            faults.push(
                Field::Labels,
                format!(
                    "\"{}\" is no key; use 1 to {LABEL_KEY_BYTES_MAX} of a-z, 0-9, '-', '_', '.' and '/'",
                    quote(key)
                ),
            );
        }
        if value.len() > LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            faults.push(
                Field::Labels,
                format!(
                    "the value of \"{}\" has {} bytes; use at most {LABEL_VALUE_BYTES_MAX}, and no control characters",
                    quote(key),
                    value.len()
                ),
            );
        }
    }
}

fn check_times(created_ms: u64, expires_ms: Option<u64>, faults: &mut Faults) {
    let Some(expires_ms) = expires_ms else {
        return;
    };
    let ttl = Duration::from_millis(expires_ms.saturating_sub(created_ms));
    if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
        faults.push(
            Field::Expiry,
            format!(
                "it would end {} ms after it was created; choose from {} seconds to {} days, or no end",
                ttl.as_millis(),
                TTL_MIN.as_secs(),
                TTL_MAX.as_secs() / 86_400
            ),
        );
    }
}

#[cfg(test)]
mod tests;
