//! A tunnel comes, carries what users send, and moves.

use std::fs;

use anyhow::{Context as _, ensure};
use mesh_tests::Result;
use mesh_tests::programs::{Sha256, run};
use mesh_tests::services::pattern;

use crate::site::{A, ADDRESSES, B, Place, Site, StoreKind};
use crate::support::until;

/// Both proxies of B hear of one upsert, which etcd keeps.
#[cfg(feature = "etcd")]
#[test]
fn tunnel_upsert_is_watched() -> Result {
    across(StoreKind::Etcd)
}

/// Each proxy of B keeps tunnels in a file of its own.
#[test]
fn tunnel_upsert_is_watched_in_files() -> Result {
    across(StoreKind::File)
}

fn across(kind: StoreKind) -> Result {
    let site = Site::start(kind)?;
    site.until_no_agent()?;
    (0..2).try_for_each(|index| site.agrees(index, &[]))?;

    let created = site.tunnel(&["upsert", A, ADDRESSES, "--ttl", "10m"])?;
    ensure!(
        created == "tunnel to a.example.com created; it has a time to live\n",
        "{created}"
    );
    site.until_connected()?;
    site.list_has(&[A, "connected 2 of 2", "9m ", ADDRESSES])?;
    let status = site.must(B, 1, &["status"])?;
    ensure!(status.contains("tunnels: 1 connected"), "{status}");
    site.reaches_all()?;
    copies(&site, Place::Inside, 0)?;
    copies(&site, Place::Hidden, 1)?;
    refusals(&site)?;
    moves(&site)
}

/// The commands of docs/OPERATIONS.md, as they stand there.
#[test]
fn commands_of_operations() -> Result {
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md");
    let manual = fs::read_to_string(manual)?;
    let section = manual.split("## Connecting two clusters\n").nth(1);
    let section = section
        .and_then(|rest| rest.split("\n## ").next())
        .context("the section")?;
    let lines: Vec<&str> = section.lines().map(str::trim).collect();
    let site = Site::start(StoreKind::File)?;
    let (mut tunnels, mut curls) = (0, 0);
    for (index, line) in lines.iter().enumerate() {
        if let Some(command) = line.strip_prefix("$ node tunnel ") {
            let told = site.shell(B, &format!("node tunnel {command}"))?;
            if command.starts_with("ls") {
                until("it stands", || {
                    site.list_has(&["a.example.com", "connected 2 of 2", "9m "])
                })?;
            } else {
                ensure!(told.trim_end() == lines[index + 1], "{told}");
            }
            tunnels += 1;
        } else if line.starts_with("curl ") {
            let answer = site.shell(
                A,
                &line.replace("curl ", "curl -q -sS --fail --noproxy '*' "),
            )?;
            ensure!(answer == ["inside", "hidden"][curls], "{line}: {answer}");
            curls += 1;
        }
    }
    ensure!((tunnels, curls) == (2, 2), "other commands: {section}");
    Ok(())
}

/// scp carries a file there and back.
fn copies(site: &Site, place: Place, index: usize) -> Result {
    let (sshd, ingress) = site.sshd(place, index)?;
    let bytes = pattern(3, 5 << 20);
    let sent = sshd.path("sent");
    fs::write(&sent, &bytes)?;
    let (there, back) = (sshd.path("there"), sshd.path("back"));
    let sent = sent.to_str().context("a path")?.to_owned();
    let remote = sshd.remote(ingress, &there);
    let local = back.to_str().context("a path")?.to_owned();
    for (from, to) in [(&sent, &remote), (&remote, &local)] {
        let mut scp = sshd.client("scp", ingress)?;
        scp.args([from, to]);
        run(&mut site.as_user(&scp))?.must()?;
    }
    ensure!(Sha256::of(&fs::read(there)?) == Sha256::of(&bytes), "there");
    ensure!(Sha256::of(&fs::read(back)?) == Sha256::of(&bytes), "back");
    Ok(())
}

/// What B does not allow is refused, and A's users read why.
fn refusals(site: &Site) -> Result {
    for (path, expected, why) in [
        (
            format!("{B}/http/127.0.0.1:8081/"),
            "403 not_allowed",
            "does not allow",
        ),
        (
            format!("db.{B}/http/127.0.0.1:8081/"),
            "403 not_allowed",
            "127.0.0.1:8081",
        ),
        (
            format!("other.{B}/http/127.0.0.1:8080/"),
            "403 not_allowed",
            "cluster:a.example.com may not",
        ),
        (
            "c.example.com/http/127.0.0.1:8080/".to_owned(),
            "502 no_agent",
            "c.example.com",
        ),
    ] {
        let (reason, text) = site.refusal(0, &path)?;
        ensure!(
            reason == expected && text.contains(why),
            "{path}: {reason}: {text}"
        );
    }
    Ok(())
}

/// Sessions stay open while the tunnel gets other addresses, and the former connections go when
/// nobody needs them any more.
fn moves(site: &Site) -> Result {
    let mut sessions = [site.ssh(Place::Inside, 0)?, site.ssh(Place::Hidden, 1)?];
    let moved = site.tunnel(&["upsert", A, "10.0.0.5:2033"])?;
    let expected = format!(
        "tunnel to a.example.com changed; addresses {ADDRESSES} -> 10.0.0.5:2033; it stays\n"
    );
    ensure!(moved == expected, "{moved}");
    // Each of B's proxies has connected anew, and left what carries no session.
    until("the tunnel has moved", || {
        let connected = "a proxy of another cluster connected";
        for (index, proxy) in site.a.iter().enumerate() {
            let count = proxy.log().matches(connected).count();
            ensure!(count == 4, "a{}: {count} connections", index + 1);
        }
        let held = site.held()?;
        ensure!(held == 6.0, "{held} sessions");
        Ok(())
    })?;
    for session in &mut sessions {
        session.say("after the move")?;
    }
    site.reaches_all()?;
    for session in sessions {
        session.end()?;
    }
    site.until_connected()?;
    ensure!(site.tunnel_to_a(0)?.addresses == ["10.0.0.5:2033"]);
    ensure!(site.tunnel_to_a(0)?.left_seconds.is_none());
    Ok(())
}
