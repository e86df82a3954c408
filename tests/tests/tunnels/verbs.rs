//! `node tunnel` at the admin listener of a real proxy, whose store is a file.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use mesh_tests::Result;
use mesh_tests::probe::PATIENCE;
use node::report::{Status, TunnelChange, Tunnels};

use crate::support::Site;

const STORE: &str = "[store]\nurl = \"redb:store.redb\"\n";

fn list(site: &Site) -> Result<Tunnels> {
    let (list, _) = site.node(&["tunnel", "ls", "--json"], 0)?;
    Ok(serde_json::from_str(&list)?)
}

#[test]
fn tunnels_come_change_and_go() -> Result {
    let mut site = Site::new(&[])?;
    site.start(STORE)?;
    let (text, _) = site.node(&["tunnel", "ls"], 0)?;
    ensure!(text.contains("there are no tunnels"), "{text}");

    let upsert = [
        "tunnel",
        "upsert",
        "b.example.com",
        "10.0.0.4:2023,lb.b.example.com",
    ];
    let (text, _) = site.node(&upsert, 0)?;
    ensure!(
        text == "tunnel to b.example.com created; it stays\n",
        "{text}"
    );
    // What was answered is known at once.
    let (text, _) = site.node(&["tunnel", "ls"], 0)?;
    let mut lines = text.lines();
    ensure!(
        lines.next().is_some_and(|line| line.starts_with("CLUSTER")),
        "{text}"
    );
    let row = lines.next().context("a row")?;
    for cell in [
        "b.example.com",
        "stays",
        "all",
        "10.0.0.4:2023,lb.b.example.com:7443",
    ] {
        ensure!(row.contains(cell), "{row}");
    }
    let first = list(&site)?;
    ensure!(
        first.store.up_to_date && first.tunnels.len() == 1,
        "{first:?}"
    );
    ensure!(first.store.url.ends_with("state/store.redb"), "{first:?}");

    // The same again renews it; it has an end now.
    let (text, _) = site.node(&[&upsert[..], &["--ttl", "10m"]].concat(), 0)?;
    ensure!(
        text == "tunnel to b.example.com renewed; it has a time to live\n",
        "{text}"
    );
    let renewed = list(&site)?;
    let left = renewed.tunnels[0].left_seconds.context("an end")?;
    ensure!((500.0..=600.0).contains(&left), "{left}");
    ensure!(renewed.tunnels[0].revision > first.tunnels[0].revision);
    ensure!(renewed.tunnels[0].age_seconds >= first.tunnels[0].age_seconds);

    // A change says what it has replaced.
    let change = [
        "tunnel",
        "upsert",
        "b.example.com",
        "10.0.0.5",
        "--count",
        "3",
        "--label",
        "site=x",
        "--json",
    ];
    let (json, _) = site.node(&change, 0)?;
    let change: TunnelChange = serde_json::from_str(&json)?;
    ensure!(change.what == "changed");
    ensure!(
        change
            .before
            .is_some_and(|before| before.addresses.len() == 2)
    );
    ensure!(
        change
            .after
            .is_some_and(|after| after.connections == 3 && after.expires_ms.is_none())
    );
    let (text, _) = site.node(&upsert, 0)?;
    ensure!(
        text.contains("addresses 10.0.0.5:7443 -> 10.0.0.4:2023,lb.b.example.com:7443; count 3 -> 0; labels changed"),
        "{text}"
    );

    // It outlives the proxy.
    site.stop()?;
    site.start(STORE)?;
    site.node(&["tunnel", "upsert", "c.example.com", "10.0.0.6"], 0)?;
    ensure!(list(&site)?.tunnels.len() == 2);
    let (status, _) = site.node(&["status"], 0)?;
    ensure!(status.contains("kept in redb:"), "{status}");

    // Several are removed at once, and who is not there is named.
    let (text, error) = site.node(
        &[
            "tunnel",
            "del",
            "b.example.com",
            "d.example.com",
            "c.example.com",
        ],
        1,
    )?;
    ensure!(
        text.lines().count() == 2 && text.contains("tunnel to c.example.com deleted"),
        "{text}"
    );
    ensure!(
        error.contains("there is no tunnel to d.example.com"),
        "{error}"
    );
    ensure!(list(&site)?.tunnels.is_empty());
    let (_, error) = site.node(&["tunnel", "rm", "b.example.com"], 1)?;
    ensure!(
        error.contains("there is no tunnel to b.example.com"),
        "{error}"
    );

    // Each change is a line of the log: who, what, before, after.
    let log = site.log();
    let line = log
        .lines()
        .find(|line| {
            line.contains("a tunnel was changed")
                && line.contains("delete")
                && line.contains("c.example.com")
        })
        .context("it is logged")?;
    for part in ["audit", "admin listener", "10.0.0.6:7443", "after=\"-\""] {
        ensure!(line.contains(part), "{line}");
    }
    site.stop()
}

#[test]
fn a_tunnel_ends_with_its_time() -> Result {
    let mut site = Site::new(&[])?;
    site.start(STORE)?;
    site.node(
        &[
            "tunnel",
            "upsert",
            "b.example.com",
            "10.0.0.4",
            "--ttl",
            "2s",
        ],
        0,
    )?;
    let started = Instant::now();
    while !list(&site)?.tunnels.is_empty() {
        if started.elapsed() > PATIENCE {
            bail!("it is still there");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn every_address_is_validated() -> Result {
    let mut site = Site::new(&[])?;
    site.start(STORE)?;
    let upsert =
        |addresses: &str| ["tunnel", "upsert", "b.example.com", addresses].map(str::to_owned);
    let args =
        upsert("10.0.0.4:2023,10.0.0.5:99999,good.example.com,,2001:db8::7,10.0.0.4:2023,0.0.0.0");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (_, error) = site.node(&args, 2)?;
    for (at, what) in [
        (2, "10.0.0.5:99999"),
        (4, "it is empty"),
        (5, "2001:db8::7"),
        (6, "same as address 1"),
        (7, "0.0.0.0"),
    ] {
        let named = error
            .lines()
            .any(|line| line.contains(&format!("address {at}: ")) && line.contains(what));
        ensure!(named, "address {at} ({what}): {error}");
    }
    ensure!(
        !error.contains("address 1: ") && !error.contains("address 3: "),
        "{error}"
    );

    // So does the proxy, whoever asks.
    for (path, body, parts) in [
        (
            "b.example.com",
            r#"{"addresses":["a:0","b","c:x"]}"#,
            &["address 1: ", "address 3: "][..],
        ),
        ("b", r#"{"addresses":[]}"#, &["cluster: ", "addresses: "]),
        (
            "a.example.com",
            r#"{"addresses":["x"]}"#,
            &["this cluster itself"],
        ),
        (
            "b.example.com",
            r#"{"addresses":["x"],"ttl_seconds":1.0}"#,
            &["expiry: "],
        ),
        (
            "b.example.com",
            r#"{"addresses":["x"],"ttl_seconds":-1.0}"#,
            &["ttl_seconds"],
        ),
        (
            "b.example.com",
            r#"{"addresses":["x"],"adresses":["y"]}"#,
            &["adresses"],
        ),
    ] {
        let url = format!("http://{}/api/v1/tunnels/{path}", site.admin);
        let output = std::process::Command::new("curl")
            .args([
                "-sS",
                "-X",
                "PUT",
                "-H",
                "Content-Type: application/json",
                "-w",
                "\n%{http_code}",
                "-d",
                body,
                &url,
            ])
            .output()?;
        let answer = String::from_utf8(output.stdout)?;
        ensure!(answer.ends_with("\n400"), "{path} {body}: {answer}");
        ensure!(
            parts.iter().all(|part| answer.contains(part)),
            "{path} {body}: {answer}"
        );
    }
    ensure!(list(&site)?.tunnels.is_empty());
    Ok(())
}

#[test]
fn wrong_usage_is_said_before_anybody_is_asked() -> Result {
    let site = Site::new(&[])?;
    for (args, what) in [
        (&["upsert", "b", "10.0.0.4"][..], "cluster"),
        (&["upsert", "b.example.com"], "ADDR"),
        (&["upsert", "b.example.com", "x", "--ttl", "1s"], "expiry"),
        (&["upsert", "b.example.com", "x", "--ttl", "soon"], "--ttl"),
        (
            &["upsert", "b.example.com", "x", "--count", "2000"],
            "connection count",
        ),
        (
            &["upsert", "b.example.com", "x", "--label", "y"],
            "KEY=VALUE",
        ),
        (&["del"], "CLUSTER"),
        (&["del", "b.example.com", "b"], "\"b\" is no cluster"),
        (
            &[
                "ls",
                "--admin",
                "http://127.0.0.1:1",
                "--proxy",
                "127.0.0.1",
            ],
            "--proxy",
        ),
        (&["ls", "--proxy", "127.0.0.1"], "no identity"),
        (&["ls", "--identity", "alice.pem"], "no proxy"),
    ] {
        let args = [&["tunnel"], args].concat();
        let (_, error) = site.node_with(&[], &args, 2)?;
        ensure!(error.contains(what), "{args:?}: {error}");
    }
    // Nobody is there to be asked.
    let (_, error) = site.node(&["tunnel", "ls"], 1)?;
    ensure!(error.contains("no node answers at"), "{error}");
    Ok(())
}

#[test]
fn without_a_store_there_is_a_remedy() -> Result {
    let mut site = Site::new(&[])?;
    site.start("")?;
    for args in [
        &["tunnel", "ls"][..],
        &["tunnel", "upsert", "b.example.com", "x"],
        &["tunnel", "del", "b.example.com"],
    ] {
        let (_, error) = site.node(args, 1)?;
        ensure!(error.contains("add [store] url = "), "{args:?}: {error}");
    }
    let (status, _) = site.node(&["status", "--json"], 0)?;
    let status: Status = serde_json::from_str(&status)?;
    ensure!(status.proxy.is_some_and(|proxy| proxy.store.is_none()));
    Ok(())
}

#[test]
fn a_damaged_store_is_a_clear_error() -> Result {
    let mut site = Site::new(&[])?;
    site.start(STORE)?;
    site.node(&["tunnel", "upsert", "b.example.com", "10.0.0.4"], 0)?;
    site.stop()?;
    let path = site.path().join("state").join("store.redb");
    let whole = std::fs::read(&path)?;
    for (bytes, what) in [
        (whole[..whole.len() / 2].to_vec(), "is damaged"),
        (
            b"SQLite format 3\0 and what else it may be".repeat(500),
            "is not a store of this program",
        ),
    ] {
        std::fs::write(&path, &bytes)?;
        let (_, error) = site.node_with(&[], &["--config", "proxy-1.toml"], 1)?;
        ensure!(
            error.contains("store.url: ")
                && error.contains(what)
                && error.contains("left as it is"),
            "{error}"
        );
        ensure!(std::fs::read(&path)? == bytes, "it was left as it was");
    }
    std::fs::write(&path, &whole)?;
    site.start(STORE)?;
    ensure!(list(&site)?.tunnels.len() == 1);
    // One file has one proxy.
    site.configure(&format!("[store]\nurl = \"redb:{}\"\n", path.display()))?;
    let other = std::fs::read_to_string(site.path().join("proxy-1.toml"))?
        .replace("state_dir = \"state\"", "state_dir = \"other\"")
        .replace(&site.admin.to_string(), "127.0.0.1:0")
        .replace(&site.quic.to_string(), "127.0.0.1:0");
    std::fs::write(site.path().join("other.toml"), other)?;
    let (_, error) = site.node_with(&[], &["--config", "other.toml"], 1)?;
    ensure!(error.contains("in use by another process"), "{error}");
    Ok(())
}
