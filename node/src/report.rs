//! What a node tells of itself over its admin API, and the verbs print.
//!
//! The fields are a contract for programs: they are added to, never renamed. Durations are in
//! seconds, with fractions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /api/v1/status`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `proxy` or `agent`.
    pub role: String,
    /// The node's name.
    pub name: String,
    /// Its cluster.
    pub cluster: String,
    /// The version of the program.
    pub version: String,
    /// A proxy: `joining`, `serving`, `notice` or `draining`. An agent: `connected`, `connecting` or
    /// `leaving`.
    pub state: String,
    /// Since when the node runs.
    pub uptime_seconds: f64,
    /// What is wrong, the worst first; empty when nothing is.
    pub problems: Vec<Problem>,
    /// Of a proxy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub proxy: Option<ProxyStatus>,
    /// Of an agent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub agent: Option<AgentStatus>,
}

/// Something that an operator should know of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What only a proxy has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Its group.
    pub group: String,
    /// The group's rollout number.
    pub generation: u64,
    /// How often it has started.
    pub epoch: u64,
    /// Names of agents that are connected here.
    pub agents: usize,
    /// Their sessions: an agent may have several.
    pub sessions: usize,
    /// Peers that are connected.
    pub peers_connected: usize,
    /// Peers that are known and not gone.
    pub peers_known: usize,
    /// Open streams.
    pub streams: i64,
    /// Where users arrive.
    pub ingresses: Vec<String>,
    /// Where tunnels are kept, if anywhere.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub store: Option<StoreReport>,
    /// Tunnels by their state, if there is a store.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub tunnels: BTreeMap<String, usize>,
}

/// What only an agent has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Connections that it wants.
    pub desired: usize,
    /// Connections that count towards them.
    pub connected: usize,
    /// All connections, those that are let go among them.
    pub held: usize,
    /// Dials under way.
    pub dialling: usize,
    /// Open streams.
    pub streams: i64,
}

/// An entry of `GET /api/v1/peers`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// The group's rollout number.
    pub generation: u64,
    /// How often it has started.
    pub epoch: u64,
    /// `alive`, `suspect`, `draining`, `left` or `down`.
    pub state: String,
    /// For how long it has been in that state.
    pub state_seconds: f64,
    /// Where it is dialled.
    pub addresses: Vec<String>,
    /// The connection to it, when one stands.
    pub connection: Option<PeerConnection>,
    /// Rows of its routes that are known here; `None` until its first snapshot is whole.
    pub routes: Option<u64>,
    /// Why there was no connection at the last attempt that failed.
    pub last_error: Option<Failure>,
}

/// A connection to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerConnection {
    /// The other end.
    pub remote: String,
    /// Since when it stands.
    pub age_seconds: f64,
    /// Its round-trip time.
    pub rtt_seconds: f64,
    /// Streams in use on it.
    pub streams: usize,
}

/// Something that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What and why.
    pub what: String,
    /// How long ago.
    pub ago_seconds: f64,
}

/// `GET /api/v1/routes/<agent>`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// The agent.
    pub agent: String,
    /// The proxies that hold it: this one first, then as they would be tried.
    pub holders: Vec<Holder>,
}

/// A proxy that holds an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    /// Its name.
    pub proxy: String,
    /// Whether it is the proxy that was asked.
    pub here: bool,
    /// Whether a dial can go there now.
    pub reachable: bool,
    /// The agent's processes there, by the random id of each.
    pub instances: Vec<String>,
    /// Sessions, of the proxy that was asked alone: the newest live one first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub sessions: Vec<SessionReport>,
}

/// A session of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionReport {
    /// Counts up with each session of the proxy.
    pub id: u64,
    /// The other end, as it was when it connected.
    pub remote: String,
    /// The agent's version.
    pub version: String,
    /// Of another cluster: which of its proxies that is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub proxy: Option<String>,
    /// Since when it stands.
    pub age_seconds: f64,
    /// Its round-trip time.
    pub rtt_seconds: f64,
}

/// The body of `POST /api/v1/drain`
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Bounds everything, the notice included; the config's when absent.
    pub deadline_seconds: Option<f64>,
}

/// An answer that is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What was wrong, and what to do.
    pub error: String,
}

/// `GET /api/v1/tunnels`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tunnels {
    /// Where they are kept.
    pub store: StoreReport,
    /// All of them, as far as they are known, in the order of their clusters' names.
    pub tunnels: Vec<TunnelReport>,
}

/// The store of tunnels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreReport {
    /// Its URL, a password masked.
    pub url: String,
    /// Whether what is known is what it holds.
    pub up_to_date: bool,
    /// For how long it has not been.
    pub stale_seconds: Option<f64>,
    /// Why not.
    pub error: Option<String>,
}

/// A tunnel to another cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TunnelReport {
    /// The cluster at the other end.
    pub cluster: String,
    /// Where it is dialled.
    pub addresses: Vec<String>,
    /// How many connections each proxy of this cluster keeps; 0: one to every proxy there.
    pub connections: u32,
    /// Free text by key.
    pub labels: BTreeMap<String, String>,
    /// `connecting`, `connected`, `failing`, or `invalid`: what is stored is no tunnel.
    pub state: String,
    /// Connections of the proxy that was asked, when it is connected.
    pub connected: Option<usize>,
    /// How many there should be.
    pub wanted: Option<usize>,
    /// Why it fails, or is invalid.
    pub why: Option<String>,
    /// For how long it has been failing.
    #[serde(default)]
    pub failing_seconds: Option<f64>,
    /// Since when it is stored.
    pub age_seconds: f64,
    /// What is left of its life; `None`: it stays.
    pub left_seconds: Option<f64>,
    /// The store's revision of it.
    pub revision: u64,
}

/// The body of `PUT /api/v1/tunnels/<cluster>`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelRequest {
    /// Where it is dialled: `host`, `host:port`, `v4:port`, `[v6]:port`.
    pub addresses: Vec<String>,
    /// How many connections; 0, the default: each proxy to every proxy.
    #[serde(default)]
    pub connections: u64,
    /// Free text by key.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How long it is to last; without it, it stays.
    #[serde(default)]
    pub ttl_seconds: Option<f64>,
    /// Only if this is its revision; 0: only if there is none yet.
    #[serde(default)]
    pub revision: Option<u64>,
}

/// The answer to a change of a tunnel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TunnelChange {
    /// The cluster at the other end.
    pub cluster: String,
    /// `created`, `changed`, `renewed` (only its times are new) or `deleted`.
    pub what: String,
    /// What there was; `None`: nothing, or nothing that was a tunnel.
    pub before: Option<TunnelForm>,
    /// What there is.
    pub after: Option<TunnelForm>,
}

/// A tunnel as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TunnelForm {
    /// Where it is dialled.
    pub addresses: Vec<String>,
    /// How many connections; 0: each proxy to every proxy.
    pub connections: u32,
    /// Free text by key.
    pub labels: BTreeMap<String, String>,
    /// When it was created: milliseconds since 1970.
    pub created_ms: u64,
    /// When it ends; `None`: it stays.
    pub expires_ms: Option<u64>,
    /// The store's revision of it.
    pub revision: u64,
}
