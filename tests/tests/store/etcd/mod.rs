//! What is etcd's own: real processes, of one member and of three.

mod cluster;
mod one;
pub(crate) mod support;
