//! A port bound to one agent's target.

use std::sync::Arc;

use mesh_proto::name::AgentRef;
use mesh_proto::principal::Principal;
use mesh_proto::target::Target;
use tokio::task::JoinSet;

use super::{Ingress, ServeConnection};
use crate::forward::{self, ForwardError};
use crate::net::Socket;
use crate::proxy::Shared;
use crate::proxy::Stream;
use crate::proxy::router::{self, DialRequest, EarlyBytes, Reach};

pub(super) struct Server {
    shared: Arc<Shared>,
    ingress: Ingress,
    agent: AgentRef,
    target: Target,
}

impl Server {
    pub(super) fn new(
        shared: Arc<Shared>,
        ingress: Ingress,
        agent: AgentRef,
        target: Target,
    ) -> Self {
        Self {
            shared,
            ingress,
            agent,
            target,
        }
    }
}

impl Server {
    /// Forwards on the shard that owns the tunnel's connection; with one shard, that is here.
    async fn forward(&self, socket: Box<dyn Socket>, stream: Stream) -> Result<(), ForwardError> {
        let tunnel = match stream {
            Stream::Tunnel(tunnel) => tunnel,
            Stream::Direct(target) => return forward::sockets(socket, Box::new(target)).await,
        };
        let home = match &tunnel.home {
            Some(home) if self.shared.shards > 1 => home.clone(),
            Some(_) | None => return forward::socket(socket, tunnel).await,
        };
        let mut elsewhere = JoinSet::new();
        elsewhere.spawn_on(
            async move {
                let socket = socket.rehome().map_err(ForwardError::Socket)?;
                forward::socket(socket, tunnel).await
            },
            &home,
        );
        match elsewhere.join_next().await {
            Some(Ok(result)) => result,
            // A panic there is reported as one of this task.
            Some(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Ok(()),
            },
            None => Ok(()),
        }
    }
}

impl ServeConnection for Server {
    async fn serve(self: Arc<Self>, mut socket: Box<dyn Socket>) {
        let peer = socket.peer_addr();
        let mut principal = Principal::Ingress(self.ingress.address.to_string());
        if let Some(tls) = &self.ingress.tls {
            match tls.accept(socket).await {
                Ok((tls_socket, identity)) => {
                    socket = tls_socket;
                    if let Some(user) = identity {
                        principal = user;
                    }
                }
                Err(error) => {
                    tracing::info!(listen = %self.ingress.address, peer = ?peer, %error, "TLS with a user failed");
                    return;
                }
            }
        }
        // Whatever goes wrong until the tunnel stands, the user sees a reset and not an empty
        // reply that looks whole.
        socket.set_reset_on_close(true);
        let request = DialRequest::new(
            self.agent.clone(),
            self.target.clone(),
            principal,
            self.shared.config.dial_deadline,
        );
        let early = EarlyBytes::of(&mut *socket);
        let dialled = router::dial(&self.shared, &request, Reach::Mesh, Some(early)).await;
        self.shared
            .metrics
            .tcp_connection(dialled.as_ref().map(drop).map_err(|error| error.reason));
        match dialled {
            Ok(tunnel) => {
                if let Err(error) = self.forward(socket, tunnel).await {
                    tracing::debug!(listen = %self.ingress.address, peer = ?peer, %error, "a connection broke");
                }
            }
            Err(error) => {
                tracing::info!(listen = %self.ingress.address, peer = ?peer, %error, "refused a connection");
            }
        }
    }

    async fn background(self: Arc<Self>) {}

    async fn finish(self: Arc<Self>) {}
}
