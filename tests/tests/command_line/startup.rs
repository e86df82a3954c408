//! Nodes that cannot start, and the demo.

use std::net::{TcpListener, UdpSocket};

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::binary::free_port;

use crate::support::{Site, exits};

/// A port that is in use: exit code 1, and the key and the address of which it is.
#[test]
fn ports_in_use_are_named() -> Result {
    let site = Site::new()?;
    let admin = free_port()?;
    let more = format!("[admin]\nlisten = \"{admin}\"\n");
    std::fs::write(
        site.path().join("proxy.toml"),
        site.proxy_config("0s", "1s", &more),
    )?;
    let take = |address, is_udp| -> Result<Box<dyn Send>> {
        Ok(if is_udp {
            Box::new(UdpSocket::bind(address)?)
        } else {
            Box::new(TcpListener::bind(address)?)
        })
    };
    for (key, address, is_udp) in [
        ("quic.listen", site.quic, true),
        ("ingress[0].listen", site.http, false),
        ("metrics.listen", site.metrics, false),
        ("admin.listen", admin, false),
    ] {
        let taken = take(address, is_udp)?;
        let (_, error) = exits(site.path(), &["--config", "proxy.toml"], 1)?;
        let last = error.lines().last().unwrap_or_default();
        ensure!(
            last.starts_with("error: ")
                && last.contains(key)
                && last.contains(&address.to_string()),
            "{key}: {error}"
        );
        drop(taken);
    }
    Ok(())
}

/// A node that cannot use its files says which, and why.
#[test]
fn files_that_do_not_fit_are_named() -> Result {
    let site = Site::new()?;
    let blocked = site.path().join("blocked");
    std::fs::write(&blocked, "a file")?;
    let config = site
        .proxy_config("0s", "1s", "")
        .replace("[proxy]\n", "[proxy]\nstate_dir = \"blocked/state\"\n");
    std::fs::write(site.path().join("proxy.toml"), config)?;
    let (_, error) = exits(site.path(), &["--config", "proxy.toml"], 1)?;
    ensure!(
        error.contains("proxy.state_dir") && error.contains("blocked/state"),
        "{error}"
    );
    let config = site
        .proxy_config("0s", "1s", "")
        .replace("proxy-1.key", "a1.key");
    std::fs::write(site.path().join("proxy.toml"), config)?;
    let (_, error) = exits(site.path(), &["--config", "proxy.toml"], 2)?;
    ensure!(
        error.contains("proxy.toml:") && error.contains("a1.key"),
        "{error}"
    );
    let (_, error) = exits(site.path(), &["--config", "missing.toml"], 2)?;
    ensure!(error.contains("missing.toml"), "{error}");
    Ok(())
}

/// The demo's own check of itself, on free ports.
#[test]
fn demo_checks_itself() -> Result {
    let dir = tempfile::tempdir()?;
    let (said, _) = exits(dir.path(), &["demo", "--check"], 0)?;
    ensure!(
        said.lines().count() >= 9 && said.lines().all(|line| line.starts_with("ok ")),
        "{said}"
    );
    ensure!(
        std::fs::read_dir(dir.path())?.count() == 0,
        "it left files behind"
    );
    Ok(())
}
