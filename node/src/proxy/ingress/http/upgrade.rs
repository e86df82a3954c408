//! What follows `101 Switching Protocols`: bytes both ways, with the endings of a tunnel.

use std::io;
use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::access::Access;
use super::connection::{ConnectionState, UserIo};
use super::upstream::{Transport, UpstreamIo};
use crate::forward;
use crate::net::Socket as _;
use crate::proxy::Stream;

/// An upgrade on which user and target have agreed.
#[derive(Debug)]
pub(super) struct Upgrade {
    pub(super) user: OnUpgrade,
    pub(super) target: OnUpgrade,
    pub(super) access: Arc<Access>,
}

impl Upgrade {
    /// Forwards until both directions have ended, or one side breaks, which breaks the other.
    pub(super) async fn forward(self, state: &ConnectionState) {
        self.access.goes_on();
        let before = state.totals();
        let result = self.run(state).await;
        let after = state.totals();
        self.access.add_sent(after.0 - before.0);
        self.access.add_received(after.1 - before.1);
        match result {
            Ok(()) => self.access.response_ended(),
            Err(error) => tracing::debug!(%error, "an upgraded connection broke"),
        }
    }

    async fn run(&self, state: &ConnectionState) -> io::Result<()> {
        let target = self.target.clone().await.map_err(io::Error::other)?;
        let user = self.user.clone().await.map_err(io::Error::other)?;
        let mismatch = |_| io::Error::other("hyper hands out another stream than it was given");
        let target = target.downcast::<TokioIo<UpstreamIo>>().map_err(mismatch)?;
        let user = user.downcast::<TokioIo<UserIo>>().map_err(mismatch)?;
        state.upgraded();
        let mut socket = user.io.into_inner();
        // hyper may have read beyond the heads: that is the first of what is forwarded.
        socket.after_upgrade(user.read_buf, target.read_buf);
        match target.io.into_inner().transport {
            Transport::Plain(Stream::Tunnel(tunnel)) => forward::socket(Box::new(socket), tunnel)
                .await
                .map_err(io::Error::other),
            Transport::Plain(Stream::Direct(target)) => {
                forward::sockets(Box::new(socket), Box::new(target))
                    .await
                    .map_err(io::Error::other)
            }
            Transport::Tls(mut stream) => {
                socket.set_reset_on_close(true);
                tokio::io::copy_bidirectional(&mut socket, &mut stream).await?;
                socket.set_reset_on_close(false);
                Ok(())
            }
        }
    }
}
