//! Users who connect by QUIC with an identity of their own.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::close::ResetCode;
use mesh_proto::name::NodeName;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Answer, Open, Opened, Refused, WireError};
use quinn::{Connection, RecvStream, SendStream};

use super::Shared;
use super::router::{self, DialRequest};
use crate::forward;
use crate::metrics::StreamMeter;
use crate::quic::frames::{self, FrameError, FrameReader};
use crate::quic::{TunnelStream, transport};
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
                    let (shared, principal) = (shared.clone(), Principal::User(user.clone()));
                    tasks.spawn(async move {
                        let cut = shared.cut.clone();
                        cut.run_until_cancelled(serve_stream(shared, principal, send, recv)).await;
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

/// Serves a stream that `principal` has opened: a dial, from its request to its end.
pub(super) async fn serve_stream(
    shared: Arc<Shared>,
    principal: Principal,
    send: SendStream,
    mut recv: RecvStream,
) {
    let meter = StreamMeter::open(&shared.node_metrics);
    let mut send = crate::quic::TunnelSend::new(send, meter.clone());
    let timeout = shared.config.common.quic.handshake_timeout;
    let mut reader = FrameReader::default();
    let asked = match tokio::time::timeout(timeout, reader.next::<Open>(&mut recv)).await {
        Ok(Ok(Open::Dial(dial))) => Ok(dial),
        Ok(Ok(Open::Control(_))) => Err(Refused::new(
            Reason::Unsupported,
            match &principal {
                Principal::User(_) => "a user has no control stream",
                Principal::Agent(_)
                | Principal::Cluster(_)
                | Principal::Token(_)
                | Principal::Ingress(_) => "this connection has a control stream already",
            },
        )),
        Ok(Err(FrameError::Wire(error @ WireError::UnknownFrame { .. }))) => Err(Refused::new(
            Reason::Unsupported,
            &format!(
                "this proxy does not know that request ({error}); it may be older than the program that asks"
            ),
        )),
        Ok(Err(FrameError::Wire(error))) => {
            tracing::info!(%principal, %error, "a malformed request");
            Err(Refused::new(
                Reason::Internal,
                &format!("the request is malformed: {error}"),
            ))
        }
        Ok(Err(FrameError::Ended | FrameError::Truncated | FrameError::Read(_))) => return,
        Err(_) => Err(Refused::new(
            Reason::Timeout,
            "no request came on the stream",
        )),
    };
    let opened = match asked {
        Ok(dial) => {
            let request = DialRequest {
                agent: dial.agent,
                target: dial.target,
                // Who it is, is in the certificate; what the frame claims is of no interest.
                principal: principal.clone(),
                deadline: Duration::from_millis(dial.deadline_ms).min(shared.config.dial_deadline),
                trace: dial.trace,
            };
            router::dial(&shared, &request, None)
                .await
                .map_err(|error| Refused::new(error.reason, &error.message))
        }
        Err(refused) => Err(refused),
    };
    match opened {
        Ok(tunnel) => {
            let Ok(answer) = frames::encode(&Answer::Opened(Opened::default())) else {
                return;
            };
            if send.write_frame(&answer).await.is_err() {
                return;
            }
            let recv = crate::quic::TunnelRecv::new(recv, meter, &shared.budget);
            if let Err(error) = forward::tunnels(TunnelStream::of(send, recv), tunnel).await {
                tracing::debug!(%principal, %error, "a stream broke");
            }
        }
        Err(refused) => {
            if let Ok(answer) = frames::encode(&Answer::Refused(refused))
                && send.write_frame(&answer).await.is_ok()
            {
                send.finish();
            }
            let _ = recv.stop(ResetCode::Refused.code().into());
        }
    }
}
