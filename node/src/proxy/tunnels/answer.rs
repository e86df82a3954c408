//! What proxies of another cluster ask for through a tunnel: dials into this one.

use std::sync::Arc;

use mesh_proto::name::{Cluster, NodeName};
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Open, Refused};
use quinn::{RecvStream, SendStream};

use super::super::Shared;
use super::super::inbound::Inbound;
use super::super::router::Reach;
use crate::agent::realm::Answers;
use crate::net::BoxFuture;

/// Answers the proxies of one cluster.
#[derive(Debug)]
pub(super) struct Answerer {
    pub(super) shared: Arc<Shared>,
    pub(super) cluster: Cluster,
}

impl Answers for Answerer {
    fn answer(
        &self,
        proxy: &NodeName,
        leaving: bool,
        send: SendStream,
        recv: RecvStream,
    ) -> BoxFuture<'static, ()> {
        let (shared, cluster) = (self.shared.clone(), self.cluster.clone());
        let who = format!("proxy:{proxy} of {cluster}");
        Box::pin(async move {
            let inbound = Inbound::new(&shared, who, send, recv);
            let Some((inbound, open)) = inbound.open(&shared).await else {
                return;
            };
            if leaving {
                let why = "the tunnel is being left: this cluster does not keep it any more, or by other addresses";
                return inbound.refuse(Refused::new(Reason::Draining, why)).await;
            }
            match open {
                Open::Dial(dial) => {
                    // Who it is, is in the certificate. For whom it asks there is its own matter.
                    let principal = Principal::Cluster(cluster);
                    let reach = if dial.hops_left == 0 {
                        Reach::Here
                    } else {
                        Reach::Mesh
                    };
                    inbound.dial(&shared, dial, principal, reach).await;
                }
                Open::Control(_)
                | Open::Routes(_)
                | Open::Find(_)
                | Open::ClusterRoutes(_)
                | Open::Admin(_) => {
                    let what = "through a tunnel, another cluster may dial, and nothing else";
                    inbound
                        .refuse(Refused::new(Reason::Unsupported, what))
                        .await;
                }
            }
        })
    }
}
