//! What a peer asks for, a stream each: dials that it passes on, routes, and whether an agent is
//! here.

use std::sync::Arc;

use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Open, Refused};
use quinn::{RecvStream, SendStream};

use super::super::Shared;
use super::super::inbound::Inbound;
use super::super::router::Reach;
use super::super::routing::{self, Of};
use super::links::Link;

/// Serves one stream of a peer.
pub(super) async fn serve(
    shared: Arc<Shared>,
    link: Arc<Link>,
    send: SendStream,
    recv: RecvStream,
) {
    let cut = shared.cut.clone();
    cut.run_until_cancelled(answer(shared, link, send, recv))
        .await;
}

async fn answer(shared: Arc<Shared>, link: Arc<Link>, send: SendStream, recv: RecvStream) {
    let inbound = Inbound::new(&shared, format!("proxy:{}", link.name), send, recv);
    let Some((inbound, open)) = inbound.open(&shared).await else {
        return;
    };
    match open {
        Open::Dial(dial) => {
            let _in_use = link.hold();
            // The peer has judged the principal's certificate or token: a proxy of the cluster is
            // believed as to who asked, and this one decides whether he may.
            let principal = dial.principal.clone();
            inbound.dial(&shared, dial, principal, Reach::Here).await;
        }
        Open::Routes(routes) => {
            if let Some(halves) = inbound.opened().await {
                routing::tell(&shared, &link, Of::Agents, routes, halves).await;
            }
        }
        Open::ClusterRoutes(routes) => {
            if let Some(halves) = inbound.opened().await {
                routing::tell(&shared, &link, Of::Clusters, routes, halves).await;
            }
        }
        Open::Find(find) => {
            if shared.sessions.live(&find.agent).is_empty() {
                let message = format!(
                    "nobody is connected to the proxy {1} as `{0}`",
                    find.agent, shared.config.common.name
                );
                inbound
                    .refuse(Refused::new(Reason::NoAgent, &message))
                    .await;
            } else if let Some((mut send, _)) = inbound.opened().await {
                let _ = send.finish();
            }
        }
        Open::Admin(_) => {
            let what = "a proxy is administered by users, and not by other proxies";
            inbound
                .refuse(Refused::new(Reason::Unsupported, what))
                .await;
        }
        Open::Control(_) => {
            let what = "this connection has its control stream already";
            inbound
                .refuse(Refused::new(Reason::Unsupported, what))
                .await;
        }
    }
}
