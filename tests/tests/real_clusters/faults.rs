//! What operators do wrong, and what attackers try; trust that is taken away; a proxy that ends.

use anyhow::{Context as _, ensure};
use mesh_tests::Result;

use crate::site::{A, ADDRESSES, B, Place, Site, StoreKind};
use crate::support::until;

/// Tunnels that cannot be kept are refused, or say why; and disturb no other one.
#[test]
fn what_cannot_be_kept_says_why() -> Result {
    let site = Site::start(StoreKind::File)?;
    let own = site.node(B, 0, &["tunnel", "upsert", B, ADDRESSES])?;
    ensure!(
        own.code() == Some(1) && own.stderr.contains("this cluster itself"),
        "{own:?}"
    );
    site.tunnel(&["upsert", A, ADDRESSES])?;
    site.until_connected()?;
    let mut session = site.ssh(Place::Inside, 0)?;

    // A cluster that is not trusted.
    site.tunnel(&["upsert", "c.example.com", ADDRESSES])?;
    // The addresses of A, while it is C that is meant.
    until("it is said to fail", || {
        site.agrees(0, &[("connected", 1), ("failing", 1)])?;
        let status = site.must(B, 0, &["status"])?;
        ensure!(
            status.contains("c.example.com is not trusted here: add a [[trust]]"),
            "{status}"
        );
        Ok(())
    })?;
    for index in 0..2 {
        let trust_c = "[[trust]]\ncluster = \"c.example.com\"\nca = \"../c/ca.pem\"\n";
        site.configure_b(index, &format!("{}{trust_c}", site.trust_a()))?;
        site.b[index].signal("HUP")?;
    }
    // The addresses of A, while it is C that is meant: nobody is taken for whom he is not.
    for index in 0..2 {
        until("another cluster answers there", || {
            let tunnels = site.list(index)?.tunnels;
            let c = tunnels
                .iter()
                .find(|tunnel| tunnel.cluster == "c.example.com");
            let c = c.context("it is stored")?;
            let why = c.why.as_deref().unwrap_or_default();
            ensure!(
                c.state == "failing" && why.contains("do not trust each other"),
                "{c:?}"
            );
            ensure!(c.failing_seconds.is_some());
            site.agrees(index, &[("connected", 1), ("failing", 1)])
        })?;
    }
    let listed = site.must(B, 0, &["tunnel", "ls"])?;
    ensure!(listed.contains("failing for "), "{listed}");
    // Deleted while it is being dialled.
    site.tunnel(&["del", "c.example.com"])?;
    site.until_connected()?;
    session.say("undisturbed")?;
    session.end()
}

/// Without trust there is no tunnel, though the store wishes for it; with trust it comes back.
#[test]
fn trust_that_is_taken_away_ends_the_tunnel() -> Result {
    let site = Site::start(StoreKind::File)?;
    site.tunnel(&["upsert", A, ADDRESSES])?;
    site.until_connected()?;
    for index in 0..2 {
        site.configure_b(index, "")?;
        site.b[index].signal("HUP")?;
    }
    site.until_sessions(&[])?;
    site.until_no_agent()?;
    for index in 0..2 {
        site.agrees(index, &[("failing", 1)])?;
        let tunnel = site.tunnel_to_a(index)?;
        let why = tunnel.why.context("a reason")?;
        ensure!(why.contains("a.example.com is not trusted here"), "{why}");
        site.configure_b(index, &site.trust_a())?;
        site.b[index].signal("HUP")?;
    }
    site.until_connected()?;
    site.reaches_all()
}

/// A proxy of B that ends lets its sessions end, and the other one takes what is new: users notice
/// nothing.
#[test]
fn a_proxy_that_ends_is_replaced() -> Result {
    let mut site = Site::start(StoreKind::File)?;
    site.tunnel(&["upsert", A, ADDRESSES])?;
    site.until_connected()?;
    // Sessions of one cluster serve in turn, so that the one that ends carries some of these.
    let mut sessions = (0..4)
        .map(|index| site.ssh(Place::Inside, index % 2))
        .collect::<Result<Vec<_>>>()?;
    let mut leaving = site.b.remove(0);
    leaving.signal("TERM")?;
    leaving.wait_for_log("leaving a tunnel")?;
    for round in 0..5 {
        site.reaches_all()?;
        for session in &mut sessions {
            session.say(&format!("round {round}"))?;
        }
    }
    for session in sessions {
        session.end()?;
    }
    let ended = leaving.wait()?;
    ensure!(ended.success(), "{ended}: {}", leaving.log());
    ensure!(
        leaving.log().contains("drained streams_cut=0"),
        "{}",
        leaving.log()
    );
    site.until_sessions(&["a1<b2", "a2<b2"])?;
    site.reaches_all()
}

/// Many changes at once: the last one holds, and nothing of the others is left.
#[test]
fn a_storm_of_changes() -> Result {
    let site = Site::start(StoreKind::File)?;
    let mut session = None;
    for round in 0..30 {
        // Some lead to nobody, who does not answer; some to one of A's proxies; some are deleted.
        let addresses = [
            "10.0.0.4:2023",
            "10.0.0.9:2023",
            "10.0.0.5:2033",
            "10.0.0.5:2023",
        ];
        site.tunnel(&["upsert", A, addresses[round % 4]])?;
        if round % 7 == 6 {
            site.tunnel(&["del", A])?;
        }
        if round == 9 {
            site.tunnel(&["upsert", A, ADDRESSES])?;
            site.until_connected()?;
            session = Some(site.ssh(Place::Hidden, 1)?);
        }
    }
    site.tunnel(&["upsert", A, ADDRESSES])?;
    let mut session = session.context("a session")?;
    session.say("after the storm")?;
    session.end()?;
    site.until_connected()?;
    site.reaches_all()
}
