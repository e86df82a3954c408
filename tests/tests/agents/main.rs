//! Agents that find their proxies: behind load balancers, through losses, rollouts and herds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod balancers;
mod churn;
mod herd;
mod idle;
mod leases;
mod losses;
mod rollouts;
mod support;
