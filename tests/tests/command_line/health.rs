//! `/healthz`, `/readyz`, `/metrics`, and who may ask.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::ensure;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use mesh_tests::binary::{self, free_port};
use mesh_tests::http::{self as client, Client};
use mesh_tests::{Result, probe, web};
use tokio::net::UnixStream;

use crate::support::{Site, exits, mode};

async fn status(listener: SocketAddr, path: &str) -> Result<u16> {
    Ok(client::get(listener, path).await?.status)
}

async fn until_status(listener: SocketAddr, path: &str, wanted: u16) -> Result {
    probe::eventually(&format!("{path} answers {wanted}"), || async {
        let found = status(listener, path).await?;
        ensure!(found == wanted, "it is {found}");
        Ok(())
    })
    .await
}

/// An agent is ready while it has a connection; a proxy until it begins to leave, though it goes
/// on serving for as long as a balancer needs to notice.
#[tokio::test]
async fn readiness_follows_the_node() -> Result {
    let site = Site::new()?;
    let echo = web::start().await?;
    let path = format!("/client/a1/http/{}/", echo.addr);
    let mut agent = site.start("agent", &site.agent_config(""))?;
    agent.wait_for_log("agent started")?;
    until_status(site.agent_metrics, "/healthz", 200).await?;
    ensure!(status(site.agent_metrics, "/readyz").await? == 503);
    agent.wait_for_log("cannot connect to a proxy")?;
    ensure!(status(site.agent_metrics, "/readyz").await? == 503);

    // Long enough to look around in; the second signal ends it.
    let mut proxy = site.start("proxy", &site.proxy_config("300s", "600s", ""))?;
    proxy.wait_for_log("proxy started")?;
    until_status(site.metrics, "/readyz", 200).await?;
    ensure!(status(site.metrics, "/healthz").await? == 200);
    until_status(site.agent_metrics, "/readyz", 200).await?;
    for (listener, series) in [
        (site.metrics, "mesh_proxy_agents"),
        (site.agent_metrics, "mesh_agent_connected_proxies"),
    ] {
        let answer = client::get(listener, "/metrics").await?;
        ensure!(answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8");
        let metrics = binary::metrics(listener).await?;
        ensure!(metrics.get(series)?.to_bits() == 1f64.to_bits());
        for name in [
            "mesh_draining",
            "mesh_streams_open",
            "process_resident_memory_bytes",
        ] {
            metrics.get(name)?;
        }
        ensure!(metrics.sum("mesh_build_info").to_bits() == 1f64.to_bits());
        ensure!(metrics.sum("mesh_cert_expiry_timestamp_seconds") > 1e9);
        // Nothing else is served here.
        for path in ["/", "/api/v1/agents", "/metrics/", "/debug"] {
            ensure!(status(listener, path).await? == 404, "{path}");
        }
    }
    ensure!(client::get(site.http, &path).await?.status == 200);

    proxy.signal("TERM")?;
    until_status(site.metrics, "/readyz", 503).await?;
    for _ in 0..3 {
        let answer = client::get(site.http, &path).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        ensure!(status(site.metrics, "/readyz").await? == 503);
        ensure!(status(site.metrics, "/healthz").await? == 200);
    }
    let draining = binary::metrics(site.metrics).await?.get("mesh_draining")?;
    ensure!(draining.to_bits() == 1f64.to_bits());
    ensure!(status(site.agent_metrics, "/readyz").await? == 200);
    proxy.signal("TERM")?;
    ensure!(proxy.wait()?.code() == Some(1));
    until_status(site.agent_metrics, "/readyz", 503).await?;
    ensure!(status(site.agent_metrics, "/healthz").await? == 200);
    agent.signal("TERM")?;
    ensure!(agent.wait()?.code() == Some(0), "{}", agent.log());
    Ok(())
}

/// The admin listener on a loopback address answers no page of another site; with tokens, nobody
/// without one.
#[tokio::test]
async fn the_admin_listener_looks_at_who_asks() -> Result {
    const TOKEN: &str = "an-admin-token-of-some-length";
    let site = Site::new()?;
    let admin = free_port()?;
    std::fs::write(site.path().join("tokens"), format!("root:{TOKEN}\n"))?;
    for auth in ["", "auth = { tokens_file = \"tokens\" }\n"] {
        let more = format!("[admin]\nlisten = \"{admin}\"\n{auth}");
        let mut proxy = site.start("proxy", &site.proxy_config("0s", "1s", &more))?;
        proxy.wait_for_log("proxy started")?;
        let bearer = format!("Bearer {TOKEN}");
        let open = auth.is_empty();
        for (headers, allowed) in [
            (vec![("host", "localhost")], open),
            (vec![("host", "127.0.0.1:1")], open),
            (
                vec![
                    ("host", "localhost"),
                    ("authorization", "Bearer wrong-token-of-some-length"),
                ],
                open,
            ),
            (
                vec![("host", "localhost"), ("authorization", &*bearer)],
                true,
            ),
            (
                vec![
                    ("host", "localhost"),
                    ("origin", "http://localhost"),
                    ("authorization", &bearer),
                ],
                true,
            ),
            (
                vec![("host", "rebound.example.com"), ("authorization", &bearer)],
                false,
            ),
            (
                vec![
                    ("host", "localhost"),
                    ("origin", "https://evil.example.com"),
                    ("authorization", &bearer),
                ],
                false,
            ),
            (
                vec![
                    ("host", "localhost"),
                    ("origin", "null"),
                    ("authorization", &bearer),
                ],
                false,
            ),
        ] {
            for path in ["/healthz", "/readyz", "/metrics"] {
                let mut request = Request::get(path);
                for (name, value) in &headers {
                    request = request.header(*name, *value);
                }
                let answer = Client::connect(admin)
                    .await?
                    .ask(request.body(Full::default())?)
                    .await?;
                let token_missing = !open && !headers.iter().any(|(_, value)| *value == bearer);
                let expected = if allowed {
                    200
                } else if token_missing {
                    401
                } else {
                    403
                };
                ensure!(
                    answer.status == expected,
                    "{headers:?} {path}: {} {}",
                    answer.status,
                    answer.text()
                );
            }
        }
        proxy.signal("TERM")?;
        ensure!(proxy.wait()?.code() == Some(0));
        ensure!(!proxy.log().contains(TOKEN));
    }
    Ok(())
}

async fn get_unix(socket: &Path, path: &str) -> Result<(u16, Bytes)> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", "anything")
        .body(Full::<Bytes>::default())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await?.to_bytes();
    drop(sender);
    connection.await??;
    Ok((status, body))
}

/// The admin listener on a Unix socket: for its owner alone, gone with the node, and no obstacle
/// to the next one when the node was killed.
#[tokio::test]
async fn the_admin_listener_on_a_unix_socket() -> Result {
    let site = Site::new()?;
    let socket = site.path().join("admin.sock");
    let more = format!("[admin]\nlisten = \"unix:{}\"\n", socket.display());
    let config = site.proxy_config("0s", "1s", &more);
    let mut proxy = site.start("proxy", &config)?;
    proxy.wait_for_log("proxy started")?;
    ensure!(mode(&socket)? == 0o600);
    ensure!(get_unix(&socket, "/readyz").await?.0 == 200);
    let (status, body) = get_unix(&socket, "/metrics").await?;
    ensure!(status == 200 && String::from_utf8_lossy(&body).contains("mesh_proxy_agents 0"));

    // Another node cannot take it over.
    let agent = site.agent_config(&more);
    std::fs::write(site.path().join("agent.toml"), agent)?;
    let (_, error) = exits(site.path(), &["--config", "agent.toml"], 1)?;
    ensure!(
        error.contains("admin.listen") && error.contains("admin.sock"),
        "{error}"
    );
    ensure!(get_unix(&socket, "/healthz").await?.0 == 200);

    // Killed, it leaves the file behind.
    proxy.signal("KILL")?;
    proxy.wait()?;
    ensure!(socket.exists());
    let mut proxy = site.start("proxy", &config)?;
    proxy.wait_for_log("proxy started")?;
    ensure!(get_unix(&socket, "/readyz").await?.0 == 200);
    proxy.signal("TERM")?;
    ensure!(proxy.wait()?.code() == Some(0), "{}", proxy.log());
    ensure!(!socket.exists());
    Ok(())
}
