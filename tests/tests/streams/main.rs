//! Streams and back-pressure: what one stream may hold, how it ends, what a refused dial says,
//! and what a node leaves behind.

mod abandoned;
mod cut;
mod drain;
mod duplex;
mod early;
mod pool;
mod pressure;
mod refusals;
mod shards;
mod support;
