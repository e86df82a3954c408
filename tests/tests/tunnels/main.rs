//! Tunnel resources at a proxy: the store is watched, verbs and the API change it, grants say who
//! may. Up to the seam to whoever keeps the connections.

#![expect(clippy::disallowed_methods, reason = "real programs run in real time")]

mod changes;
mod remote;
mod support;
mod verbs;
mod watch;
