//! The command line: one file per verb.

pub mod certs;
pub mod client;
pub mod config;
pub mod demo;
pub mod drain;
pub mod forward;
mod identity;
pub mod inspect;
pub mod run;
mod table;
pub mod tunnel;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Why a verb ended without success; the variant decides the exit code.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Wrong usage or configuration: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The work failed: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::from(1),
        }
    }
}

/// A mesh of reverse tunnels over QUIC: reach services that nobody can reach.
#[derive(Debug, Parser)]
#[command(
    name = "node",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: run::RunArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Two proxies, an agent and a file server in this process, to try the mesh.
    Demo(demo::DemoArgs),
    /// Create an authority, issue and inspect identities.
    Certs(certs::CertsArgs),
    /// Check a config file, or show the effective configuration.
    Config(config::ConfigArgs),
    /// How a running node is: its first line says whether anything is wrong, and what.
    Status(inspect::StatusArgs),
    /// The other proxies, as a running proxy knows them.
    Peers(inspect::PeersArgs),
    /// Which proxies hold an agent, as a running proxy knows it.
    Routes(inspect::RoutesArgs),
    /// Let a running node leave in order, as SIGTERM does.
    Drain(drain::DrainArgs),
    /// Tunnels to other clusters: list, store and remove them.
    Tunnel(tunnel::TunnelArgs),
    /// Local ports that lead to targets of agents, with a user's identity.
    Forward(forward::ForwardArgs),
}

/// Runs what the arguments ask for.
///
/// # Errors
/// A [`CliError`], whose text is for the person at the terminal.
pub fn run(cli: Cli) -> Result<(), CliError> {
    match cli.verb {
        Some(Verb::Demo(args)) => demo::run(&args),
        Some(Verb::Certs(args)) => certs::run(args),
        Some(Verb::Config(args)) => config::run(args),
        Some(Verb::Status(args)) => inspect::status(&args),
        Some(Verb::Peers(args)) => inspect::peers(&args),
        Some(Verb::Routes(args)) => inspect::routes(&args),
        Some(Verb::Drain(args)) => drain::run(&args),
        Some(Verb::Tunnel(args)) => tunnel::run(&args),
        Some(Verb::Forward(args)) => forward::run(&args),
        None => run::run(&cli.run),
    }
}
