//! Connections between the proxies of a cluster: one per pair. Gossip, routes and dials go over
//! them.
//!
//! | file | what |
//! |---|---|
//! | `links.rs` | the connections by name; which one of two is kept |
//! | `keep.rs` | dials: configured peers, and whoever gossip tells of |
//! | `hello.rs` | how a connection begins |
//! | `converse.rs` | what goes on for as long as it stands |
//! | `streams.rs` | what a peer asks for, a stream each |

mod converse;
mod hello;
mod keep;
pub(super) mod links;
mod streams;

use std::sync::Arc;

use mesh_proto::close::CloseCode;
use quinn::Connection;

pub(super) use self::hello::PeerError;
pub(super) use self::keep::run;
use super::Shared;

/// Serves a connection that a peer has dialled.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection) {
    let timeout = shared.config.common.quic.handshake_timeout;
    let greeted = tokio::time::timeout(timeout, hello::answer(&shared, &connection))
        .await
        .unwrap_or(Err(PeerError::Timeout(timeout)));
    let error = match greeted {
        Ok((control, peer)) => converse::converse(&shared, &connection, control, peer, false).await,
        Err(error) => error.or_end_of(&connection),
    };
    let remote = connection.remote_address();
    if error.is_end() {
        tracing::debug!(%remote, %error, "a peer has gone");
    } else {
        tracing::warn!(%remote, %error, "a peer's connection ended");
    }
    close(&shared, &connection, &error);
}

/// Tells the peer why; nothing when the connection is closed already.
fn close(shared: &Shared, connection: &Connection, error: &PeerError) {
    let code = if matches!(
        error,
        PeerError::Itself | PeerError::Superfluous | PeerError::Older { .. }
    ) {
        CloseCode::Superseded
    } else if matches!(error, PeerError::Left) || shared.cut.is_cancelled() {
        CloseCode::Draining
    } else {
        CloseCode::ProtocolError
    };
    connection.close(code.code().into(), error.to_string().as_bytes());
}
