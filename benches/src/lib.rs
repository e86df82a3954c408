//! Benchmarks of the mesh. `cargo bench -p mesh-benches` runs those of single functions:
//!
//! | bench | what |
//! |---|---|
//! | `codec` | frames of a stream and of the control stream, encoded and decoded |
//! | `pool` | a step of the agent's pool, with 3 to 1,000 known proxies |
//! | `routes` | who holds which agent: lookups, deltas, snapshots, with 10 to 100,000 agents at 10 proxies |
//! | `tracker` | the lease tracker, with 10 to 100,000 proxies |
