//! Real processes in network namespaces: behind a NAT, behind a load balancer, and restarted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod balancer;
mod nat;
mod restart;
mod support;
