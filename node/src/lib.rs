//! A mesh of reverse tunnels over QUIC.
//!
//! An **agent** runs next to services that nobody can reach and dials out to **proxies**; a
//! **user** reaches those services through a proxy. This crate is both, as a library and as the
//! binary `node`. An application embeds a proxy with [`Proxy::start`] and reaches an agent's
//! targets with [`Proxy::dialer`]; `docs/LIBRARY.md` shows it whole.
//!
//! Where things are:
//!
//! | module | what |
//! |---|---|
//! | [`app`] | the composition root: `build(config) -> Bound`, ordered shutdown |
//! | [`config`] | files, environment and flags into validated structs |
//! | [`net`] | sockets and names, behind a trait, so that tests bring their own |
//! | [`random`] | where randomness comes from |
//! | [`hooks`] | where an embedding application has its say |
//! | [`metrics`] | what both roles measure |
//! | [`quic`] | endpoints, transport limits, streams with the mesh's endings |
//! | [`forward`] | bytes between a tunnel stream and a socket |
//! | [`proxy`] | sessions of agents, the router, ingress |
//! | [`agent`] | the pool of connections, sessions, dials of targets |
//! | [`trust`] | other clusters that are trusted now |
//! | [`user`] | a user's connection to a proxy, kept; local ports that lead to targets |
//! | [`admin`] | health, metrics and the admin API |
//! | [`report`] | what the admin API tells |
//! | [`store`] | where tunnel resources are kept |
//! | [`cli`] | the verbs of the binary |

pub mod admin;
pub mod agent;
pub mod app;
mod changes;
pub mod cli;
pub mod clock;
pub mod config;
pub mod forward;
pub mod hooks;
pub mod metrics;
pub mod net;
pub mod proxy;
pub mod quic;
pub mod random;
pub mod report;
pub mod store;
mod targets;
mod tasks;
pub mod trust;
pub mod user;
mod web;

pub use agent::Agent;
pub use proxy::Proxy;

#[cfg(doctest)]
#[doc = include_str!("../../docs/LIBRARY.md")]
struct LibraryDoc;
