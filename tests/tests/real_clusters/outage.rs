//! etcd is killed, and comes back.

use anyhow::{Context as _, ensure};
use mesh_tests::Result;

use crate::site::{A, ADDRESSES, B, Place, Site, StoreKind};
use crate::support::until;

/// What runs goes on, and so do its users; a proxy that starts meanwhile serves without tunnels; and
/// everything is as the store says once it is back.
#[test]
fn store_outage_changes_nothing() -> Result {
    let mut site = Site::start(StoreKind::Etcd)?;
    site.tunnel(&["upsert", A, ADDRESSES])?;
    site.until_connected()?;
    let mut session = site.ssh(Place::Hidden, 0)?;

    site.kill_etcd();
    until("the outage is told of", || {
        for index in 0..2 {
            let status = site.must(B, index, &["status"])?;
            ensure!(
                status.contains("the store of tunnels etcd://127.0.0.1:2379/mesh/ cannot be read"),
                "{status}"
            );
            site.agrees(index, &[("connected", 1)])?;
            ensure!(site.metrics(B, index)?.get("mesh_store_connected")? == 0.0);
        }
        Ok(())
    })?;
    let listed = site.must(B, 0, &["tunnel", "ls"])?;
    ensure!(
        listed.contains("is not up to date") && listed.contains("connected 2 of 2"),
        "{listed}"
    );
    for change in [
        &["tunnel", "upsert", A, "10.0.0.4:2023"][..],
        &["tunnel", "del", A],
    ] {
        let failed = site.node(B, 0, change)?;
        ensure!(
            failed.code() == Some(1) && !failed.stderr.is_empty(),
            "{failed:?}"
        );
    }
    session.say("without a store")?;
    session.end()?;
    site.reaches_all()?;
    site.until_connected()?;

    // One that starts now serves all but tunnels, of which it does not know; the other one carries on.
    site.restart_b(1)?;
    site.until_sessions(&["a1<b1", "a2<b1"])?;
    until("it is in the mesh", || site.reaches_all())?;
    ensure!(site.status(B, 1)?.state == "serving");
    ensure!(site.list(1)?.tunnels.is_empty());
    site.agrees(1, &[])?;
    let mut session = site.ssh(Place::Hidden, 0)?;

    site.start_etcd()?;
    site.until_connected()?;
    until("the store is read again", || {
        for index in 0..2 {
            let status = site.status(B, index)?;
            ensure!(status.problems.is_empty(), "{:?}", status.problems);
            ensure!(
                status
                    .proxy
                    .and_then(|proxy| proxy.store)
                    .context("a store")?
                    .up_to_date
            );
        }
        Ok(())
    })?;
    session.say("with a store again")?;
    session.end()?;
    site.tunnel(&["del", A])?;
    site.until_no_agent()?;
    site.until_sessions(&[]).map(drop)
}
