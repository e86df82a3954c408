//! Users who connect by QUIC with an identity of their own.

use std::sync::Arc;

use mesh_proto::name::NodeName;
use mesh_proto::principal::Principal;
use quinn::Connection;

use super::Shared;
use super::inbound::Inbound;
use crate::quic::transport;
use crate::tasks::Tasks;

/// Serves a user's connection until it ends.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection, user: NodeName) {
    let quic = &shared.config.common.quic;
    transport::admit(&connection, quic, quic.streams_max);
    tracing::debug!(%user, remote = %connection.remote_address(), "user connected");
    let mut tasks = Tasks::new("stream of a user");
    loop {
        tokio::select! {
            biased;
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    let (shared, user) = (shared.clone(), user.clone());
                    let inbound = Inbound::new(&shared, format!("user:{user}"), send, recv);
                    tasks.spawn(async move {
                        let cut = shared.cut.clone();
                        // Who it is, is in the certificate; what the frame claims is of no interest.
                        let served = inbound.serve_dial(&shared, Principal::User(user));
                        cut.run_until_cancelled(served).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(%user, %error, "user disconnected");
                    break;
                }
            },
            () = tasks.reap() => {}
        }
    }
    // Their streams have ended with the connection.
    tasks.join_all().await;
}
