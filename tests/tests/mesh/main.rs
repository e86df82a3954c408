//! The proxies as a mesh: whichever one a user asks, every agent is reached.

mod addresses;
mod drain;
mod joining;
mod membership;
mod routes;
mod silence;
mod support;
mod versions;
