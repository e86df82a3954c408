//! Agents whose proxies, names and balancers do what they should not: whatever it is, it is bounded,
//! counted and explained, and the agent keeps to those that are in order.

mod leases;
mod liars;
mod names;
mod support;
mod views;
