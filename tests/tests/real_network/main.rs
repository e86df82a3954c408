//! Real processes in network namespaces: behind a NAT, behind a load balancer, and restarted.

#![expect(clippy::disallowed_methods, reason = "real programs run in real time")]

mod balancer;
mod nat;
mod restart;
mod support;
