//! `compare`: the rounds.

mod peers;
pub(crate) mod phases;
pub(crate) mod times;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use self::peers::Peer;
use self::phases::Bench;
use self::times::Times;
use crate::machine::Machine;
use crate::report::Report;
use crate::service::Service;
use crate::subjects::Subject;
use crate::subjects::node::{self, Node};
use crate::subjects::relay::Relay;

/// Threads of the load generator for bulk streams.
const WORKERS: usize = 2;

/// What `compare` measures, and beside what.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// One short round, under two minutes.
    #[arg(long)]
    quick: bool,
    /// At most so many rounds; fewer when the time is up.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Measures these loads alone.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LOAD,…")]
    loads: Vec<Load>,
    /// Another tunnel, by its binary: rathole=PATH, frp=PATH/frps, frp-quic=PATH/frps; or node=PATH,
    /// another build of this one.
    #[arg(long, value_name = "NAME=PATH")]
    peer: Vec<Peer>,
    /// Idle agents at one proxy: 1,000 (100 with --quick), or as many as said here.
    #[arg(long, value_name = "N")]
    agents: Option<usize>,
    /// A setting of `node`, proxy and agent alike, as for its own --set.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Writes every value there, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Stays in the network namespace of the caller, also as root.
    #[arg(long)]
    here: bool,
}

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Load {
    /// Streams that move as many bytes as they can.
    Bulk,
    /// Small requests, alone and beside a bulk stream.
    Latency,
    /// New connections.
    Connections,
    /// Small requests beside downloads that nobody reads.
    Stalled,
    /// Idle streams.
    Streams,
    /// Idle agents.
    Agents,
    /// A link with delay and loss.
    Link,
}

impl CompareArgs {
    fn wants(&self, load: Load) -> bool {
        self.loads.is_empty() || self.loads.contains(&load)
    }
}

/// Measures, and prints the tables.
pub(crate) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    node::build()?;
    // Before there is any thread: a thread would stay outside of the namespace.
    let machine = Machine::prepare(!args.here)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        // When it is dropped, processes are killed and namespaces deleted.
        tokio::select! {
            report = measure(args, machine) => report.map(Some),
            _ = terminate.recv() => Ok(None),
            _ = interrupt.recv() => Ok(None),
        }
    });
    runtime.shutdown_background();
    let report = outcome?.context("ended by a signal")?;
    if let Some(file) = &args.json {
        fs::write(file, report.json()?).with_context(|| file.display().to_string())?;
    }
    println!("{}", report.markdown());
    Ok(())
}

async fn measure(args: &CompareArgs, machine: Machine) -> anyhow::Result<Report> {
    let started = Instant::now();
    let times = Times::new(args.quick);
    let baseline = Relay::Plain.name().to_owned();
    let service = Service::start(tokio::runtime::Handle::current())?;
    let mut subjects: Vec<Box<dyn Subject>> = vec![
        Box::new(Relay::Plain),
        Box::new(Relay::Tls),
        Box::new(Node::mtu_1500(&args.set)),
        Box::new(Node::new(&args.set)),
    ];
    subjects.extend(args.peer.iter().map(|peer| peer.subject(&args.set)));
    let mut bench = Bench {
        report: Report::new(machine, &baseline, args.quick, &args.set),
        service,
        times,
    };

    bench.rounds(args, &subjects).await?;
    if args.wants(Load::Streams) {
        bench.idle_streams(args).await?;
    }
    if args.wants(Load::Agents) {
        bench.idle_agents(args).await?;
    }
    if args.wants(Load::Link) {
        bench.link(args).await?;
    }
    bench.report.seconds = started.elapsed().as_secs_f64();
    Ok(bench.report)
}
