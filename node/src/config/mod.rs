//! Configuration: files, environment and flags, checked whole, into the structs of [`model`].
//!
//! [`load`] is the one way in. Later layers override earlier ones, key by key:
//!
//! 1. the file (`--config FILE`), TOML;
//! 2. the environment: `MESH__QUIC__LISTEN` is `quic.listen`, `MESH__NAME` is `name`;
//! 3. `--set quic.listen=127.0.0.1:7443`;
//! 4. `--role`.
//!
//! Every error of all layers is reported at once, each with its place, its key, what is wrong
//! with it and what to do. Which module does what:
//!
//! | module | what |
//! |---|---|
//! | [`model`] | the validated configuration, what the rest of the crate works with |
//! | `file` | the shape of a file: known keys and the types of their values |
//! | `tree` | TOML with the place of every value; finds all that does not fit the shape |
//! | `misfit` | what does not fit, in words |
//! | `load` | the layers and their merging |
//! | `validate` | shape into model, and the rules between keys |
//! | `show` | the effective configuration as TOML |
//! | [`secret`] | tables of tokens |
//! | [`units`] | `"30s"` and `"4MiB"` |

mod errors;
mod file;
mod load;
mod misfit;
pub mod model;
pub mod secret;
mod show;
mod tree;
pub mod units;
mod validate;

#[cfg(test)]
mod tests;

pub use errors::{ConfigError, ConfigErrors, Place};
pub use load::{Loaded, Role, Sources, load};
pub use model::*;
pub use secret::TokenTable;
