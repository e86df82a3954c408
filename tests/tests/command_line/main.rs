//! The real binary as an operator meets it: verbs, exit codes, files, signals, health, logs.
//!
//! | file | subject |
//! |---|---|
//! | `certs` | `node certs` |
//! | `config` | `node config`, `--set`, the environment |
//! | `startup` | nodes that cannot start, and the demo |
//! | `signals` | the end of a node |
//! | `health` | `/healthz`, `/readyz`, `/metrics`, and who may ask |
//! | `logs` | what is logged, and what never is |
//! | `support` | sites with config files |

mod certs;
mod config;
mod health;
mod logs;
mod signals;
mod startup;
mod support;
