//! Where an application that embeds a node has its say.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_proto::name::{AgentRef, NodeName};
use mesh_proto::principal::Principal;
use mesh_proto::target::Target;
use mesh_proto::wire::{Frame, WireError};

use crate::net::BoxFuture;
use crate::proxy::tunnels::TunnelRunner;
use crate::quic::frames;
use crate::store::Store;

/// A dial that somebody asked for.
#[derive(Debug, Clone)]
pub struct DialInfo {
    /// Whose target.
    pub agent: AgentRef,
    /// What is to be reached.
    pub target: Target,
    /// On whose behalf.
    pub principal: Principal,
}

/// Decides about dials, beside the rules of the config: what either refuses is refused.
pub trait Authorizer: Send + Sync + 'static {
    /// `Err` refuses the dial as `not_allowed`; its text is what the user reads.
    fn authorize<'a>(&'a self, dial: &'a DialInfo) -> BoxFuture<'a, Result<(), String>>;
}

impl<F> Authorizer for F
where
    F: Fn(&DialInfo) -> Result<(), String> + Send + Sync + 'static,
{
    fn authorize<'a>(&'a self, dial: &'a DialInfo) -> BoxFuture<'a, Result<(), String>> {
        let answer = self(dial);
        Box::pin(async move { answer })
    }
}

/// A connection between an agent and a proxy that has just been made.
#[derive(Debug, Clone)]
pub struct Connected {
    /// The agent's name.
    pub agent: NodeName,
    /// The proxy's name.
    pub proxy: NodeName,
    /// The address of the other side.
    pub remote: SocketAddr,
}

/// Hears of each connection between an agent and a proxy. It is called on the node's own task
/// and must not block.
pub type OnConnect = Arc<dyn Fn(&Connected) + Send + Sync>;

/// Sees a frame that is about to be sent, and says what is sent instead: how tests make the node of
/// a later version.
pub type OnFrame = Arc<dyn Fn(Vec<u8>) -> Vec<u8> + Send + Sync>;

/// The hooks of a node; by default, none.
#[derive(Clone, Default)]
pub struct Hooks {
    /// Decides about dials.
    pub authorizer: Option<Arc<dyn Authorizer>>,
    /// Hears of connections.
    pub on_connect: Option<OnConnect>,
    /// Where tunnel resources are kept, instead of what `[store]` says. The proxy does not close it.
    pub store: Option<Arc<dyn Store>>,
    /// Keeps connections to other clusters, instead of the proxy itself.
    pub tunnels: Option<Arc<dyn TunnelRunner>>,
    /// Of all streams but those that carry a dial.
    #[doc(hidden)]
    pub on_frame: Option<OnFrame>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks")
            .field("authorizer", &self.authorizer.is_some())
            .field("on_connect", &self.on_connect.is_some())
            .field("store", &self.store)
            .field("tunnels", &self.tunnels)
            .field("on_frame", &self.on_frame.is_some())
            .finish()
    }
}

impl Hooks {
    /// Asks the authorizer, if there is one.
    ///
    /// # Errors
    /// Its refusal.
    pub async fn authorize(&self, dial: &DialInfo) -> Result<(), String> {
        match &self.authorizer {
            Some(authorizer) => authorizer.authorize(dial).await,
            None => Ok(()),
        }
    }

    /// The bytes that are sent for a frame.
    pub(crate) fn encode<F: Frame>(&self, frame: &F) -> Result<Vec<u8>, WireError> {
        let bytes = frames::encode(frame)?;
        Ok(match &self.on_frame {
            Some(on_frame) => on_frame(bytes),
            None => bytes,
        })
    }

    /// Tells of a connection.
    pub fn connected(&self, connected: &Connected) {
        if let Some(on_connect) = &self.on_connect {
            on_connect(connected);
        }
    }
}
