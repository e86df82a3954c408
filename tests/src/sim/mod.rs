//! A fleet in virtual time: real proxies and agents on a network in memory.
//!
//! ```
//! use std::time::Duration;
//!
//! mesh_tests::sim::run("example", 1, async |world| {
//!     let proxies = world.start_proxies(2).await?;
//!     let agents = world.start_agents(3).await?;
//!     world.until("every agent holds every proxy", |w| w.all_hold(&agents, 2)).await?;
//!     world.net().cut(agents[0], proxies[1]);
//!     world.until("one connection is given up", |w| w.connections(agents[0]) == 1).await?;
//!     world.net().heal_all();
//!     world.until("it is back", |w| w.all_hold(&agents, 2)).await
//! })?;
//! # Ok::<(), mesh_tests::sim::Error>(())
//! ```
//!
//! Everything that is random comes from one seed. A scenario that fails prints it, and the command
//! that runs the same again: the same packets at the same virtual times, which
//! [`SimNet::trace_hash`] tells.
//!
//! | file | what |
//! |---|---|
//! | `run.rs` | a runtime whose time is virtual; seeds |
//! | `world.rs` | nodes: start, kill, restart, freeze; waiting for a condition |
//! | `world/traffic.rs` | services, connections, dials |
//! | `control.rs` | what a scenario does to the network |
//! | `network.rs` | the network as nodes see it |
//! | `state.rs` | hosts, routes, and what is under way |
//! | `link.rs` | latency, loss, order, bandwidth |
//! | `datagram.rs`, `tcp.rs`, `tcp/connect.rs` | what sockets do |
//! | `nat.rs`, `balancer.rs`, `dns.rs` | what stands between hosts |
//! | `clock.rs` | wall clocks, which may be wrong |
//! | `services.rs` | targets for agents |
//! | `trace.rs` | what happened |
//!
//! Virtual time moves in steps of a millisecond, tokio's. A frozen host is one whose packets stand
//! still both ways: its own timers run on, but nobody can tell.

mod balancer;
mod clock;
mod control;
mod datagram;
mod dns;
mod link;
mod nat;
mod network;
mod run;
mod services;
mod state;
mod tcp;
mod trace;
mod world;

pub use anyhow::Error;
pub use balancer::Balancing;
pub use dns::Answer;
pub use link::{Bandwidth, Link};
pub use nat::{Mapping, NatConfig};
pub use network::{Datagrams, HostNetwork, SimNet};
pub use run::{run, run_seeded};
pub use services::{Running, Service, Stats, echoes};
pub use state::{BalancerId, HostId, NatId};
pub use trace::{Action, Record, Transport};
pub use world::{AgentPlan, NodeId, ProxyPlan, World};
