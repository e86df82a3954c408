//! QUIC as the mesh uses it: endpoints and their limits, the keys that outlive a restart, frames
//! on streams, and streams whose every ending reaches the other side.

mod congestion;
mod connection_id;
pub mod endpoint;
pub mod frames;
pub mod identity;
pub mod keys;
pub mod stall;
pub mod stream;
pub mod transport;

pub use stream::{StreamError, TunnelRecv, TunnelSend, TunnelStream};
