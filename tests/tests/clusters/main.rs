//! Cluster to cluster: who may connect and as what, dials across, tunnels, and trust that changes.
//!
//! | module | what |
//! |---|---|
//! | `dials` | from one cluster into another: its proxies themselves, and agents behind them |
//! | `itself` | what a proxy dials itself |
//! | `identities` | every kind, protocol and cluster at the door |
//! | `changes` | trust that is taken away, given back, and replaced, live |
//! | `moves` | a tunnel that moves while not all can be reached, in virtual time |
//! | `tunnels` | pools that start, move and end |
//! | `binary` | the real binary reads its config anew |
//! | `fleet` | many tunnels that change, in virtual time |
//! | `stored` | the same through a store that fails |

mod binary;
mod changes;
mod dials;
mod fleet;
mod identities;
mod itself;
mod moves;
mod stored;
mod support;
mod tunnels;
