//! `node tunnel`: tunnels to other clusters.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use clap::{Args, Subcommand};
use http::Method;
use mesh_proto::name::Cluster;
use mesh_proto::tunnel::{Draft, split_addresses};

use super::CliError;
use super::client::{self, AdminArgs, ClientError};
use super::inspect::{OutputArgs, show};
use super::table::{span, table};
use crate::report::{TunnelChange, TunnelReport, TunnelRequest, Tunnels};

/// Arguments of `node tunnel`.
#[derive(Debug, Args)]
pub struct TunnelArgs {
    #[command(subcommand)]
    verb: TunnelVerb,
}

#[derive(Debug, Subcommand)]
enum TunnelVerb {
    /// Which tunnels there are, and how each is.
    Ls(ListArgs),
    /// Store a tunnel, change it, or renew its time to live.
    Upsert(UpsertArgs),
    /// Remove tunnels.
    #[command(visible_alias = "rm")]
    Del(DeleteArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  node tunnel upsert b.example.com 10.0.0.4:7443,10.0.0.5:7443
  node tunnel upsert b.example.com lb.b.example.com --ttl 10m     (again before that, and it goes on)")]
struct UpsertArgs {
    /// The cluster at the other end.
    #[arg(value_name = "CLUSTER")]
    cluster: String,
    /// Where its proxies are dialled: HOST[:PORT], with commas between several. The port is 7443
    /// where none is written.
    #[arg(value_name = "ADDR,ADDR…", required = true)]
    addresses: Vec<String>,
    /// The tunnel goes after this time, unless it is stored again; without it, it stays.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// How many connections each proxy of this cluster keeps; 0: one to every proxy there.
    #[arg(long, value_name = "N", default_value_t = 0)]
    count: u64,
    /// Free text for operators; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Only if this is still its revision (`ls --json`); 0: only if there is none yet.
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DeleteArgs {
    /// The clusters at the other ends.
    #[arg(value_name = "CLUSTER", required = true)]
    clusters: Vec<String>,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print an object a line, for programs.
    #[arg(long)]
    json: bool,
}

/// Runs `node tunnel …`.
///
/// # Errors
/// What is no tunnel ([`CliError::Usage`]); a node that does not answer, or refuses.
pub fn run(args: &TunnelArgs) -> Result<(), CliError> {
    match &args.verb {
        TunnelVerb::Ls(args) => show(&args.admin, &args.output, "/api/v1/tunnels", list_text),
        TunnelVerb::Upsert(args) => upsert(args),
        TunnelVerb::Del(args) => delete(args),
    }
}

fn upsert(args: &UpsertArgs) -> Result<(), CliError> {
    let request = request(args)?;
    let body = serde_json::to_vec(&request).map_err(|error| CliError::Failed(error.to_string()))?;
    let path = path(&args.cluster);
    client::ask(&args.admin, async |client| {
        let answer = client.request(Method::PUT, &path, Some(body)).await?;
        report(&client.read(&answer)?, args.json)
    })
}

/// What is asked for, with everything that is wrong with it said at once, before anybody is asked.
fn request(args: &UpsertArgs) -> Result<TunnelRequest, CliError> {
    let mut faults = Vec::new();
    let mut request = TunnelRequest {
        // Lists with spaces behind the commas are several arguments.
        addresses: split_addresses(
            args.addresses
                .join(" ")
                .replace(", ", ",")
                .replace(' ', ",")
                .as_str(),
        ),
        connections: args.count,
        ttl_seconds: args.ttl.map(|ttl| ttl.as_secs_f64()),
        revision: args.revision,
        ..TunnelRequest::default()
    };
    for label in &args.label {
        match label.split_once('=') {
            Some((key, value)) => {
                if request
                    .labels
                    .insert(key.to_owned(), value.to_owned())
                    .is_some()
                {
                    faults.push(format!("label {key:?} is there twice"));
                }
            }
            None => faults.push(format!("label {label:?} has no '='; write KEY=VALUE")),
        }
    }
    let draft = Draft {
        cluster: args.cluster.clone(),
        addresses: request.addresses.clone(),
        connections: request.connections,
        labels: request.labels.clone(),
        created_ms: 0,
        expires_ms: args
            .ttl
            .map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
    };
    if let Err(error) = draft.check() {
        faults.extend(error.to_string().lines().map(str::to_owned));
    }
    if faults.is_empty() {
        Ok(request)
    } else {
        Err(CliError::Usage(faults.join("\nerror: ")))
    }
}

fn delete(args: &DeleteArgs) -> Result<(), CliError> {
    let wrong: Vec<String> = args
        .clusters
        .iter()
        .filter_map(|name| {
            let error = name.parse::<Cluster>().err()?;
            Some(format!("\"{}\" is no cluster: {}", error.value, error.rule))
        })
        .collect();
    if !wrong.is_empty() {
        return Err(CliError::Usage(wrong.join("\nerror: ")));
    }
    client::ask(&args.admin, async |client| {
        // Each is tried, whatever becomes of the others.
        let mut failed = Vec::new();
        for cluster in &args.clusters {
            match client.request(Method::DELETE, &path(cluster), None).await {
                Ok(answer) => report(&client.read(&answer)?, args.json)?,
                Err(ClientError::Refused { why, .. }) => failed.push(why),
                Err(error) => {
                    failed.push(error.to_string());
                    break;
                }
            }
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(CliError::Failed(failed.join("\nerror: ")))
        }
    })
}

fn path(cluster: &str) -> String {
    // A valid name of a cluster has nothing that a path would have to escape.
    format!("/api/v1/tunnels/{cluster}")
}

fn report(change: &TunnelChange, json: bool) -> Result<(), CliError> {
    let text = if json {
        serde_json::to_string(change).map_err(|error| CliError::Failed(error.to_string()))? + "\n"
    } else {
        change_text(change)
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| CliError::Failed(format!("cannot write to standard output: {error}")))
}

/// What it was, where it was another: nobody overwrites what he has not seen without hearing of it.
fn change_text(change: &TunnelChange) -> String {
    let mut text = format!("tunnel to {} {}", change.cluster, change.what);
    if let (Some(before), Some(after)) = (&change.before, &change.after) {
        if before.addresses != after.addresses {
            let _ = write!(
                text,
                "; addresses {} -> {}",
                before.addresses.join(","),
                after.addresses.join(",")
            );
        }
        if before.connections != after.connections {
            let _ = write!(
                text,
                "; count {} -> {}",
                before.connections, after.connections
            );
        }
        if before.labels != after.labels {
            text.push_str("; labels changed");
        }
    }
    if let Some(after) = &change.after {
        text.push_str(if after.expires_ms.is_some() {
            "; it has a time to live"
        } else {
            "; it stays"
        });
    }
    text + "\n"
}

fn list_text(list: &Tunnels) -> String {
    let mut text = String::new();
    if !list.store.up_to_date {
        let why = list.store.error.as_ref().map_or_else(
            || "it has not answered yet".to_owned(),
            |error| {
                format!(
                    "it has not been read for {}: {error}",
                    span(list.store.stale_seconds.unwrap_or_default())
                )
            },
        );
        let _ = writeln!(
            text,
            "the store {} is not up to date, {why}",
            list.store.url
        );
    }
    if list.tunnels.is_empty() {
        text.push_str("there are no tunnels; `node tunnel upsert CLUSTER ADDR` stores one\n");
        return text;
    }
    let rows = list.tunnels.iter().map(|tunnel| {
        [
            tunnel.cluster.clone(),
            state_text(tunnel),
            span(tunnel.age_seconds),
            tunnel.left_seconds.map_or_else(|| "stays".to_owned(), span),
            match tunnel.connections {
                0 => "all".to_owned(),
                count => count.to_string(),
            },
            tunnel.addresses.join(","),
        ]
    });
    text + &table(
        ["CLUSTER", "STATE", "AGE", "LEFT", "COUNT", "ADDRESSES"],
        rows,
    )
}

fn state_text(tunnel: &TunnelReport) -> String {
    match (tunnel.connected, tunnel.wanted, &tunnel.why) {
        (_, _, Some(why)) => {
            let since = tunnel.failing_seconds;
            let time = since.map_or_else(String::new, |since| format!(" for {}", span(since)));
            format!("{}{time}: {}", tunnel.state, why.replace('\n', "; "))
        }
        (Some(connected), Some(wanted), None) => {
            format!("{} {connected} of {wanted}", tunnel.state)
        }
        (Some(_) | None, _, None) => tunnel.state.clone(),
    }
}
