//! Identities that are off, attempts that must be refused, dials.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use certs::{Kind, Validity};
use mesh_proto::refusal::Reason;
use mesh_proto::target::Target;
use mesh_proto::wire::{ALPN_AGENT, Dial, Open};
use mesh_tests::fleet::{Bystander, Node, agent_config};
use mesh_tests::hostile;
use mesh_tests::logs::Logs;
use mesh_tests::pki::Pki;
use mesh_tests::{Result, probe};
use node::proxy::DialerError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) const CLUSTER: &str = "test.example.com";
pub(crate) const SERVER_NAME: &str = "proxy.test.example.com";

/// Seconds since 1970.
pub(crate) fn now() -> Result<i64> {
    let now = certs::system_time().current_time().context("no clock")?;
    Ok(i64::try_from(now.as_secs())?)
}

pub(crate) fn expired() -> Result<Validity> {
    Ok(Validity::between(now()? - 3000, now()? - 600)?)
}

pub(crate) fn not_yet_valid() -> Result<Validity> {
    Ok(Validity::between(now()? + 3600, now()? + 7200)?)
}

/// Whom an agent was asked to reach, and what came of it.
pub(crate) async fn dial(
    proxy: &Node,
    agent: &str,
    target: &str,
) -> Result<std::result::Result<(), Reason>> {
    let dialer = proxy.as_proxy()?.dialer(agent)?;
    match dialer.dial(target).await {
        Ok(mut stream) => {
            stream.write_all(b"there").await?;
            stream.shutdown().await?;
            let mut back = Vec::new();
            stream.read_to_end(&mut back).await?;
            ensure!(back == b"there", "{target}: it is not the echo: {back:?}");
            Ok(Ok(()))
        }
        Err(DialerError::Dial(error)) => Ok(Err(error.reason)),
        Err(DialerError::Target(error)) => bail!("{target}: {error}"),
    }
}

/// A refused attempt, which was counted once, under `reason`, and left the bystander alone.
pub(crate) async fn refused(
    bystander: &Bystander,
    tls: rustls::ClientConfig,
    reason: &str,
) -> Result<hostile::Refused> {
    let family = "mesh_proxy_handshakes_refused_total";
    let series = format!("{family}{{reason=\"{reason}\"}}");
    let proxy = &bystander.pair.proxy;
    let before = proxy.metrics()?;
    let refused = hostile::refused(bystander.quic_addr()?, tls, SERVER_NAME).await?;
    probe::eventually(&format!("{series} rises"), || {
        let metrics = proxy.metrics();
        let (before, series, error) = (&before, &series, &refused.error);
        async move {
            let metrics = metrics?;
            let (one, all) = (
                metrics.get(series)? - before.get(series)?,
                metrics.sum(family) - before.sum(family),
            );
            ensure!(
                (one, all) == (1.0, 1.0),
                "+{one} of +{all}; the client saw: {error}"
            );
            Ok(())
        }
    })
    .await?;
    bystander.check().await?;
    Ok(refused)
}

/// The one line that tells of a refused attempt.
pub(crate) async fn refusal_line(logs: &Logs, client: SocketAddr) -> Result<serde_json::Value> {
    let remote = format!("\"remote\":\"{client}\"");
    let lines = || logs.lines_with(&["refused a connection", &remote]);
    probe::until(&format!("a log line about {client}"), || {
        !lines().is_empty()
    })
    .await?;
    match &lines()[..] {
        [line] => Ok(line.clone()),
        lines => bail!("{} lines about {client}: {lines:?}", lines.len()),
    }
}

/// A server that takes every client, and bears `identity` or one of its own cluster.
pub(crate) fn server_tls(
    pki: &Pki,
    identity: Option<Arc<rustls::sign::SingleCertAndKey>>,
) -> Result<rustls::ServerConfig> {
    let own = pki.issue(Kind::Proxy, "p1")?;
    let mut tls = certs::proxy_server_config(&own, &[ALPN_AGENT], certs::system_time())?;
    if let Some(identity) = identity {
        tls.cert_resolver = identity;
    }
    Ok(tls)
}

pub(crate) fn lure(tls: rustls::ServerConfig) -> Result<hostile::Server> {
    hostile::Server::start(tls, |connection| async move {
        connection.closed().await;
        Ok(())
    })
}

/// An agent that is told to dial one of `servers` does not trust it, says so once, with the remedy,
/// and goes on trying.
pub(crate) async fn lured(
    logs: &Logs,
    bystander: &Bystander,
    pki: &Pki,
    name: &str,
    servers: &[hostile::Server],
) -> Result {
    let mut agents = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        let config = agent_config(pki, &format!("{name}-{index}"), &[server.addr], &[])?;
        agents.push((server, Node::agent(config).await?));
    }
    for (server, agent) in agents {
        // Twice at least, so that the log had the occasion to repeat itself.
        let untrusted = "mesh_agent_connects_total{result=\"untrusted\"}";
        probe::eventually("the agent tries again", || {
            let metrics = agent.metrics();
            async move {
                let tried = metrics?.get(untrusted)?;
                ensure!(tried >= 2.0, "{tried} attempts");
                Ok(())
            }
        })
        .await?;
        let address = format!("\"address\":\"{}\"", server.addr);
        let lines = logs.lines_with(&["\"WARN\"", "cannot connect to a proxy", &address]);
        let [line] = &lines[..] else {
            bail!("{}: {} lines: {lines:?}", server.addr, lines.len())
        };
        let text = line.to_string();
        ensure!(
            text.contains("do not trust each other") && text.contains("node certs show"),
            "{line}"
        );
        let metrics = agent.metrics()?;
        ensure!(
            (
                metrics.get("mesh_agent_connections")?,
                metrics.sum("mesh_agent_connects_total") - metrics.get(untrusted)?
            ) == (0.0, 0.0)
        );
        agent.stop().await;
    }
    bystander.check().await
}

/// A dial as a user sends it, with a principal that is a lie.
pub(crate) fn dial_frame(target: Target, agent: &str) -> Result<Open> {
    Ok(Open::Dial(Dial {
        target,
        agent: agent.parse()?,
        principal: "user:somebody-else".parse()?,
        hops_left: 0,
        deadline_ms: 30_000,
        trace: None,
        ext: Vec::new(),
    }))
}
