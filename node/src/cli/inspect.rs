//! `node status`, `node peers`, `node routes`: what a running node tells of itself.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use mesh_proto::name::AgentName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CliError;
use super::client::{self, AdminArgs};
use super::table::{millis, span, table};
use crate::report::{Peer, Route, Status};

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// How it is printed.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
    /// Print anew every two seconds, until Ctrl-C.
    #[arg(long)]
    watch: bool,
}

/// Arguments of `node status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `node peers`.
#[derive(Debug, Args)]
pub struct PeersArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `node routes`.
#[derive(Debug, Args)]
pub struct RoutesArgs {
    /// The agent, or a connected cluster.
    #[arg(value_name = "AGENT")]
    agent: AgentName,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// `node status`
///
/// # Errors
/// When the node does not answer.
pub fn status(args: &StatusArgs) -> Result<(), CliError> {
    show(&args.admin, &args.output, "/api/v1/status", status_text)
}

/// `node peers`
///
/// # Errors
/// When the node does not answer, or is an agent.
pub fn peers(args: &PeersArgs) -> Result<(), CliError> {
    show(
        &args.admin,
        &args.output,
        "/api/v1/peers",
        |peers: &Vec<Peer>| peers_text(peers),
    )
}

/// `node routes AGENT`
///
/// # Errors
/// When the node does not answer or is an agent, or nobody holds the agent.
pub fn routes(args: &RoutesArgs) -> Result<(), CliError> {
    let path = format!("/api/v1/routes/{}", args.agent);
    let mut is_missing = false;
    show(&args.admin, &args.output, &path, |route: &Route| {
        is_missing = route.holders.is_empty();
        route_text(route)
    })?;
    if is_missing {
        let agent = &args.agent;
        return Err(CliError::Failed(if agent.is_cluster() {
            format!("no proxy holds a connection of {agent}: see `node tunnel ls` at a proxy of it")
        } else {
            format!("no proxy holds the agent {agent}: see that it runs, and that it is spelled so")
        }));
    }
    Ok(())
}

/// Asks once, or again and again, and prints.
pub(super) fn show<T: DeserializeOwned + Serialize>(
    admin: &AdminArgs,
    output: &OutputArgs,
    path: &str,
    mut text: impl FnMut(&T) -> String,
) -> Result<(), CliError> {
    client::ask(admin, async |client| {
        loop {
            let answer = client.get::<T>(path).await;
            let printed = match &answer {
                Ok(report) if output.json => serde_json::to_string(report)
                    .map(|json| json + "\n")
                    .map_err(|error| CliError::Failed(error.to_string()))?,
                Ok(report) => text(report),
                Err(error) if output.watch && !output.json => format!("{error}\n"),
                Err(_) => String::new(),
            };
            if !output.watch {
                answer?;
            }
            print(&printed, output.watch && !output.json)?;
            if !output.watch {
                return Ok(());
            }
            tokio::select! {
                _ = tokio::signal::ctrl_c() => return Ok(()),
                () = tokio::time::sleep(WATCH_INTERVAL) => {}
            }
        }
    })
}

fn print(text: &str, anew: bool) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    // Clears a terminal; a file gets one report after the other.
    let clear = if anew && io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    out.write_all(clear.as_bytes())
        .and_then(|()| out.write_all(text.as_bytes()))
        .and_then(|()| out.flush())
        .map_err(|error| CliError::Failed(format!("cannot write to standard output: {error}")))
}

fn status_text(status: &Status) -> String {
    let mut text = String::new();
    let verdict = match status.problems.len() {
        0 => "ok".to_owned(),
        1 => "1 problem".to_owned(),
        count => format!("{count} problems"),
    };
    let _ = writeln!(
        text,
        "{verdict}: {} {} of {} is {}, for {}, version {}",
        status.role,
        status.name,
        status.cluster,
        status.state,
        span(status.uptime_seconds),
        status.version
    );
    for problem in &status.problems {
        let _ = writeln!(text, "  {}\n    -> {}", problem.what, problem.remedy);
    }
    if let Some(proxy) = &status.proxy {
        let _ = writeln!(
            text,
            "group {} generation {} epoch {}\nagents {} in {} sessions, peers {} of {} connected, streams {}",
            proxy.group,
            proxy.generation,
            proxy.epoch,
            proxy.agents,
            proxy.sessions,
            proxy.peers_connected,
            proxy.peers_known,
            proxy.streams
        );
        for ingress in &proxy.ingresses {
            let _ = writeln!(text, "users on {ingress}");
        }
        if let Some(store) = &proxy.store {
            let counted: Vec<String> = proxy
                .tunnels
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(|(state, count)| format!("{count} {state}"))
                .collect();
            let counted = match counted.is_empty() {
                true => "none".to_owned(),
                false => counted.join(", "),
            };
            let _ = writeln!(text, "tunnels: {counted}, kept in {}", store.url);
        }
    }
    if let Some(agent) = &status.agent {
        let _ = writeln!(
            text,
            "connected to {} of {} proxies, {} connections, {} dials under way, streams {}",
            agent.connected, agent.desired, agent.held, agent.dialling, agent.streams
        );
    }
    text
}

fn peers_text(peers: &[Peer]) -> String {
    if peers.is_empty() {
        return "no other proxy is known; proxy.peers names those to join\n".to_owned();
    }
    let rows =
        peers.iter().map(|peer| {
            let connection = peer.connection.as_ref();
            let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
            [
                peer.name.clone(),
                peer.state.clone(),
                span(peer.state_seconds),
                peer.group.clone(),
                peer.generation.to_string(),
                peer.epoch.to_string(),
                or_none(connection.map(|connection| connection.remote.clone())),
                or_none(connection.map(|connection| span(connection.age_seconds))),
                or_none(connection.map(|connection| millis(connection.rtt_seconds))),
                or_none(peer.routes.map(|routes| routes.to_string())),
                or_none(peer.last_error.as_ref().map(|failure| {
                    format!("{} ({} ago)", failure.what, span(failure.ago_seconds))
                })),
            ]
        });
    table(
        [
            "NAME",
            "STATE",
            "FOR",
            "GROUP",
            "GEN",
            "EPOCH",
            "CONNECTED",
            "AGE",
            "RTT",
            "AGENTS",
            "LAST ERROR",
        ],
        rows,
    )
}

fn route_text(route: &Route) -> String {
    let rows = route.holders.iter().map(|holder| {
        [
            holder.proxy.clone(),
            match (holder.here, holder.reachable) {
                (true, _) => "here",
                (false, true) => "one hop",
                (false, false) => "not connected",
            }
            .to_owned(),
            holder.sessions.first().map_or_else(
                || "-".to_owned(),
                |session| {
                    format!(
                        "{} for {}, rtt {}",
                        session.remote,
                        span(session.age_seconds),
                        millis(session.rtt_seconds)
                    )
                },
            ),
            holder.instances.join(" "),
        ]
    });
    table(["PROXY", "WAY", "NEWEST SESSION", "PROCESSES"], rows)
}
