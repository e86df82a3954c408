//! Into which cluster the connections lead, and who answers the dials that come through them.

use std::fmt;
use std::sync::Arc;

use certs::{ForeignAuthority, TrustedClusters as _};
use mesh_proto::name::{Cluster, NodeName};
use quinn::{Connection, RecvStream, SendStream};

use crate::net::BoxFuture;
use crate::trust::{Side, Trust};

/// Where a pool of connections leads.
#[derive(Debug)]
pub(crate) enum Realm {
    /// To proxies of the agent's own cluster, for the targets of the agent.
    Own,
    /// To proxies of another cluster, which dial into this one.
    Other(Other),
}

/// Another cluster.
#[derive(Debug)]
pub(crate) struct Other {
    pub(crate) cluster: Cluster,
    /// Who vouches for its proxies, now.
    pub(crate) trust: Arc<Trust>,
    pub(crate) answers: Arc<dyn Answers>,
}

/// Answers what proxies of another cluster ask for.
pub(crate) trait Answers: fmt::Debug + Send + Sync {
    /// Serves one stream that `proxy` has opened, to its end; refuses it when the connection is being
    /// left.
    fn answer(
        &self,
        proxy: &NodeName,
        leaving: bool,
        send: SendStream,
        recv: RecvStream,
    ) -> BoxFuture<'static, ()>;
}

impl Other {
    /// Who vouches for its proxies, if it is trusted.
    pub(crate) fn authority(&self) -> Option<ForeignAuthority> {
        self.trust.authority(&self.cluster)
    }

    /// Whether a connection that stands leads to somebody who is trusted still.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn judge(&self, connection: &Connection) -> Result<(), String> {
        self.trust.judge(&self.cluster, connection, Side::Server)
    }
}
