//! Agents in a mesh that tells and does what it should not: each oddity is bounded, counted, and said
//! in one line of the log, and the agent goes on with the proxies that are in order.
//!
//! | file | subject |
//! |---|---|
//! | `views` | what proxies tell of proxies: names, numbers, generations, epochs, times to live |
//! | `manners` | proxies that lie about their name, are late, say nothing, or hang up |
//! | `resolver` | names without an address, with too many, and addresses of nobody |
//! | `balancer` | a balancer that leads to one proxy, always |
//! | `support` | a mesh with rogues in it, and what its agent counts and logs |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod balancer;
mod manners;
mod resolver;
mod support;
mod views;
