//! Measurements of the whole path: real processes, real sockets, real time.
//!
//! ```sh
//! cargo run --release -p mesh-benches -- compare            # under ten minutes
//! cargo run --release -p mesh-benches -- compare --quick    # under two
//! cargo run --release -p mesh-benches -- cpu_when_idle
//! cargo run --release -p mesh-benches -- scale
//! ```
//!
//! How `compare` measures, and what came out of it, is in `docs/PERFORMANCE.md`.
//!
//! | module | what |
//! |---|---|
//! | [`compare`] | the rounds: every load, every subject in turn |
//! | [`congestion`] | which congestion controller holds on which link |
//! | [`subjects`] | what is measured: relays of our own, `node`, peers |
//! | [`service`] | what the tunnels lead to |
//! | [`loads`] | what is done to a subject |
//! | [`link`] | a link with delay, a rate, a queue and loss |
//! | [`report`] | medians and ratios, as JSON and as Markdown |
//! | [`machine`] | the machine, its limits, a network namespace of our own |
//! | [`process`] | child processes, and what they use |
//! | [`cpu_when_idle`] | what an agent costs that has nothing to do |
//! | [`scale`] | agents, streams, proxies, routes: what one more costs |
//!
//! `cargo bench -p mesh-benches` runs the benchmarks of single functions:
//!
//! | bench | what |
//! |---|---|
//! | `forward` | the forwarding loop between sockets, messages of 64 B to 1 MiB on 1 to 64 streams |
//! | `codec` | frames of a stream and of the control stream, encoded and decoded |
//! | `pool` | a step of the agent's pool, with 3 to 10,000 known proxies |
//! | `routes` | who holds which agent: lookups, deltas, snapshots, with 10 to 100,000 agents at 10 proxies |
//! | `tracker` | the lease tracker, with 10 to 100,000 proxies |

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "measurements of real processes in real time, for people to read"
)]

mod compare;
mod congestion;
mod cpu_when_idle;
mod link;
mod loads;
mod machine;
mod process;
mod report;
mod scale;
mod service;
mod subjects;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Measures tunnels.
#[derive(Debug, Parser)]
#[command(name = "mesh-benches")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures `node` beside a plain relay, a TLS relay and other tunnels, in one run.
    Compare(compare::CompareArgs),
    /// Measures congestion controllers on links of several kinds, alone and beside each other. As
    /// root, under ten minutes.
    Congestion(congestion::CongestionArgs),
    /// Measures what an agent costs that holds three connections and has nothing to do. Exits with
    /// 1 when that is more than 0.1 % of a core.
    #[command(name = "cpu_when_idle")]
    CpuWhenIdle {
        /// How long to look.
        #[arg(default_value_t = 60)]
        seconds: u64,
    },
    /// Measures what one more agent, stream, proxy or route costs, when there are few and when there
    /// are many.
    Scale(scale::ScaleArgs),
    /// One hop of a relay.
    #[command(hide = true)]
    Relay(subjects::relay::HopArgs),
    /// Many agents in one process.
    #[command(hide = true)]
    Agents(subjects::agents::AgentsArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    let within = match Cli::parse().command {
        Command::Compare(args) => {
            compare::run(&args)?;
            true
        }
        Command::Congestion(args) => {
            congestion::run(&args)?;
            true
        }
        Command::CpuWhenIdle { seconds } => cpu_when_idle::measure(Duration::from_secs(seconds))?,
        Command::Scale(args) => {
            scale::run(&args)?;
            true
        }
        Command::Relay(args) => {
            subjects::relay::serve(&args)?;
            true
        }
        Command::Agents(args) => {
            subjects::agents::serve(&args)?;
            true
        }
    };
    Ok(if within {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
