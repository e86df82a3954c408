//! A tunnel goes.

use anyhow::ensure;
use mesh_tests::Result;

use crate::site::{A, ADDRESSES, Place, Site, StoreKind};
use crate::support::until;

/// By its time to live and by `del`: a session that is open ends by itself, nothing new comes through,
/// and then nobody dials any more.
#[test]
fn tunnel_removed_stops() -> Result {
    removed(StoreKind::File)
}

/// The same by a lease of etcd.
#[cfg(feature = "etcd")]
#[test]
fn tunnel_removed_from_etcd_stops() -> Result {
    removed(StoreKind::Etcd)
}

fn removed(kind: StoreKind) -> Result {
    let site = Site::start(kind)?;
    for ends_by_itself in [true, false] {
        let ttl = if ends_by_itself { "4s" } else { "1h" };
        site.tunnel(&["upsert", A, ADDRESSES, "--ttl", "1h"])?;
        site.until_connected()?;
        site.reaches_all()?;
        let mut session = site.ssh(Place::Hidden, 0)?;
        if ends_by_itself {
            // A renewal with another end, and nobody connects anew.
            let renewed = site.tunnel(&["upsert", A, ADDRESSES, "--ttl", ttl])?;
            ensure!(
                renewed.contains("renewed; it has a time to live"),
                "{renewed}"
            );
        } else {
            let deleted = site.tunnel(&["del", A])?;
            ensure!(deleted == "tunnel to a.example.com deleted\n", "{deleted}");
        }
        // The one that carries the session is said to leave.
        site.until_refused(&["503 draining", "502 no_agent"])?;
        session.say("still there")?;
        for index in 0..2 {
            until("no tunnel is told of", || site.agrees(index, &[]))?;
            ensure!(site.list(index)?.tunnels.is_empty());
        }
        // The one connection that is needed stands.
        until("the rest is left", || {
            let held = site.held()?;
            ensure!(held == 1.0, "{held} sessions");
            Ok(())
        })?;
        session.end()?;
        site.until_sessions(&[])?;
        site.until_no_agent()?;
    }
    let connected = "a proxy of another cluster connected";
    for proxy in &site.a {
        let count = proxy.log().matches(connected).count();
        ensure!(count == 4, "{count} connections: {}", proxy.log());
    }
    // What is not there is said, with exit code 1.
    let gone = site.node(crate::site::B, 0, &["tunnel", "del", A])?;
    ensure!(
        gone.code() == Some(1) && gone.stderr.contains("there is no tunnel to"),
        "{gone:?}"
    );
    Ok(())
}
