//! Nodes of neighbouring versions in one fleet.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::ensure;
use mesh_proto::wire::{FRAME_HEADER_BYTES, FrameHeader};
use mesh_tests::Result;
use mesh_tests::sim::{Link, NodeId, Running, Service, World, run};
use node::hooks::Hooks;

use crate::support::{MS, SECOND, is_meshed, peers, reaches};

/// A frame that only the later version knows.
const LATER_KIND: u16 = 0x7e01;

/// An `ext` of one entry that only the later version knows: tag 0x7e02, three bytes.
const LATER_EXT: [u8; 8] = [1, 0xfb, 0x02, 0x7e, 3, 0xaa, 0xbb, 0xcc];

/// The version after this one: before each frame of a conversation it sends one that this version
/// does not know but may skip, and in each an entry more.
#[derive(Debug, Clone, Default)]
struct Later {
    /// Types of the frames that were sent so.
    sent: Arc<Mutex<BTreeSet<u16>>>,
}

impl Later {
    fn hooks(&self) -> Hooks {
        let sent = self.sent.clone();
        Hooks {
            on_frame: Some(Arc::new(move |frame| later(frame, &sent))),
            ..Hooks::default()
        }
    }

    fn sent(&self) -> BTreeSet<u16> {
        let sent = self.sent.lock();
        sent.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn later(frame: Vec<u8>, sent: &Mutex<BTreeSet<u16>>) -> Vec<u8> {
    let Some((header, body)) = frame.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return frame;
    };
    // Every body ends with its `ext`, and this version sends none: one byte, a count of 0. A frame
    // that ends otherwise goes as it is, and is missed at the end.
    let Some((0, rest)) = body.split_last() else {
        return frame;
    };
    let Ok(header) = FrameHeader::decode(*header, body.len()) else {
        return frame;
    };
    let body = [rest, &LATER_EXT].concat();
    let unknown = b"of a later version";
    let extra = FrameHeader {
        kind: LATER_KIND,
        optional: true,
        body_bytes: unknown.len() as u32,
    };
    let header = FrameHeader {
        body_bytes: body.len() as u32,
        ..header
    };
    sent.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(header.kind);
    [&extra.encode()[..], unknown, &header.encode(), &body].concat()
}

async fn all_reach_all(world: &World, proxies: &[NodeId], agents: &[(NodeId, Running)]) -> Result {
    for proxy in proxies {
        for (agent, echo) in agents {
            reaches(world, *proxy, *agent, echo).await?;
        }
    }
    Ok(())
}

/// Nobody broke a connection because of what it did not know.
fn nobody_minds(world: &World, proxies: &[NodeId]) -> Result {
    for proxy in proxies {
        let metrics = world.metrics(*proxy)?;
        for series in [
            "mesh_proxy_handshakes_refused_total{reason=\"protocol\"}",
            "mesh_proxy_agent_disconnects_total{reason=\"protocol_error\"}",
        ] {
            let count = metrics.get(series)?;
            ensure!(
                count == 0.0,
                "{series} of {} is {count}",
                world.name(*proxy)
            );
        }
    }
    Ok(())
}

#[test]
fn neighbouring_versions_interoperate() -> Result {
    run("neighbouring_versions_interoperate", 1, async |world| {
        world.net().set_default_link(Link::latency(10 * MS));
        let version = Later::default();
        let proxies = world
            .start_proxies_with(4, |index, plan| {
                if index % 2 == 1 {
                    plan.hooks = version.hooks();
                }
                plan.config.drain_notice = SECOND;
                plan.config.common.drain_deadline = 5 * SECOND;
                Ok(())
            })
            .await?;
        let mut agents = Vec::new();
        let started = world
            .start_agents_with(8, |index, plan| {
                if index % 2 == 1 {
                    plan.hooks = version.hooks();
                }
                plan.config.connection_count = Some(2);
                plan.allow(&["127.0.0.1:7".into()])
            })
            .await?;
        for agent in &started {
            agents.push((*agent, world.serve_loopback(*agent, 7, Service::Echo)?));
        }
        let whole = |w: &World| is_meshed(w, &proxies) && w.all_hold(&started, 2);
        world
            .within(20 * SECOND, "the fleet is whole", whole)
            .await?;
        all_reach_all(world, &proxies, &agents).await?;

        let dials = |world: &World| -> Result<Vec<f64>> {
            let each = started.iter();
            each.map(|agent| Ok(world.metrics(*agent)?.sum("mesh_agent_dials_total")))
                .collect()
        };
        let before = dials(world)?;
        // Longer than views are refreshed, and than peers that fail each other stay connected.
        world.run_for(120 * SECOND).await;
        for proxy in &proxies {
            for peer in peers(world, *proxy)? {
                let age = peer.connection.map_or(0.0, |held| held.age_seconds);
                ensure!(
                    age >= 120.0,
                    "the connection to {} is {age} s old",
                    peer.name
                );
            }
        }
        ensure!(dials(world)? == before, "nobody has connected anew");
        all_reach_all(world, &proxies, &agents).await?;
        nobody_minds(world, &proxies)?;

        // All ask all others for an agent that there is not.
        for proxy in &proxies {
            let nobody = world.proxy(*proxy)?.dialer("nobody")?;
            let refused = nobody.dial("127.0.0.1:7").await.err();
            let refused = refused.map(|error| error.to_string());
            ensure!(
                refused
                    .as_ref()
                    .is_some_and(|text| text.contains("no_agent")),
                "{refused:?}"
            );
        }

        // One proxy of each version leaves in order and comes back.
        for leaver in &proxies[..2] {
            let rest: Vec<NodeId> = proxies.iter().copied().filter(|p| p != leaver).collect();
            world.stop(*leaver).await?;
            ensure!(
                world.all_hold(&started, 2),
                "agents have replaced it before they left"
            );
            all_reach_all(world, &rest, &agents).await?;
            nobody_minds(world, &rest)?;
            world.restart(*leaver).await?;
            world.within(20 * SECOND, "it is back", whole).await?;
            all_reach_all(world, &proxies, &agents).await?;
        }

        // Each version takes the other for dead, and is told that it lives.
        for (a, b) in [(0, 1), (0, 3), (2, 1), (2, 3)] {
            world.cut(proxies[a], proxies[b]);
        }
        world
            .within(60 * SECOND, "the versions have lost each other", |w| {
                proxies.iter().all(|proxy| {
                    let peers = peers(w, *proxy).unwrap_or_default();
                    let lost = peers
                        .iter()
                        .filter(|peer| peer.state == "down" && peer.connection.is_none());
                    lost.count() == 2
                })
            })
            .await?;
        world.net().heal_all();
        world
            .within(10 * SECOND, "the proxies are a mesh again", |w| {
                is_meshed(w, &proxies)
            })
            .await?;
        all_reach_all(world, &proxies, &agents).await?;
        nobody_minds(world, &proxies)?;

        let sent = version.sent();
        let all = BTreeSet::from([
            0x0001, 0x0003, 0x0005, // Open: Control, Routes, Find
            0x0101, 0x0102, // Opened, Refused
            0x0201, 0x0203, // AgentHello, Leaving
            0x0301, 0x0302, 0x0303, 0x0304, // ProxyHello, Draining, Released, Members
            0x0401, 0x0402, 0x0403, // PeerHello, PeerChanged, PeerTakenForDead
            0x0501, 0x0502, 0x0503, 0x0581, // RoutesSnapshot, Rows, Delta, Applied
        ]);
        let kinds = |set: &BTreeSet<u16>| {
            set.iter()
                .map(|kind| format!("{kind:04x}"))
                .collect::<Vec<_>>()
        };
        ensure!(
            sent == all,
            "sent {:?}, not {:?}",
            kinds(&sent),
            kinds(&all)
        );
        Ok(())
    })
}
