//! Stores of tunnel resources. `conformance` and `model` run over each engine; `tests/run` turns on
//! the feature `etcd`, with which etcd is one of them.

mod conformance;
#[cfg(feature = "etcd")]
mod etcd;
mod file;
mod killed;
mod model;
mod support;
mod watched;
