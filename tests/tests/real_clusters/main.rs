//! Two clusters of real processes in network namespaces: B is behind a NAT and dials out, and users of
//! A reach what is in B with real programs.
//!
//! | module | what |
//! |---|---|
//! | `across` | a tunnel comes with `node tunnel upsert`, carries curl, ssh and scp, and moves |
//! | `ends` | it goes with its time to live, and with `node tunnel del` |
//! | `outage` | etcd is killed and comes back |
//! | `faults` | tunnels that cannot be kept, trust that is taken away, a proxy that drains |

#![expect(clippy::disallowed_methods, reason = "real programs run in real time")]

mod across;
mod ends;
mod faults;
#[cfg(feature = "etcd")]
mod outage;
mod site;
mod support;
