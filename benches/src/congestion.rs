//! `congestion`: which congestion controller holds on which link, alone and beside another.
//!
//! The kernel's TCP is measured by a plain relay over the same link.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use comfy_table::{Table, presets};

use crate::compare::phases::LINK;
use crate::compare::times::Times;
use crate::link::LinkConfig;
use crate::link::tun::TunLink;
use crate::loads::bulk::{Bulk, Direction};
use crate::loads::over_link::{Over, between};
use crate::machine::Machine;
use crate::service::Service;
use crate::subjects::node::{self, Node};
use crate::subjects::relay::Relay;
use crate::subjects::{Running, Subject};

/// How long two downloads share a link before it counts, and while it does: a controller may take
/// ten seconds from one probe to the next.
const SHARED_HEAD_START: Duration = Duration::from_secs(1);
const SHARED_WARM_UP: Duration = Duration::from_secs(4);
const SHARED: Duration = Duration::from_secs(12);

/// What `congestion` measures.
#[derive(Debug, Args)]
pub(crate) struct CongestionArgs {
    /// Only links whose name contains this.
    #[arg(long, value_name = "TEXT")]
    link: Option<String>,
    /// A setting of `node`, proxy and agent alike, as for its own --set.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Downloads beside the small requests.
    #[arg(long, value_name = "N", default_value_t = 1)]
    streams: usize,
    /// Does not measure two downloads on one link.
    #[arg(long)]
    alone: bool,
}

/// Kinds of links.
fn links() -> Vec<(&'static str, LinkConfig)> {
    let megabit = 1_000_000;
    vec![
        ("no loss", LINK),
        ("1 % loss", LinkConfig { loss: 0.01, ..LINK }),
        ("3 % loss", LinkConfig { loss: 0.03, ..LINK }),
        ("2 % arrive 10 ms late", LinkConfig { late: 0.02, ..LINK }),
        (
            "queue of 50 kB",
            LinkConfig {
                queue_bytes: 50_000,
                ..LINK
            },
        ),
        (
            "queue of 10 kB",
            LinkConfig {
                queue_bytes: 10_000,
                ..LINK
            },
        ),
        (
            "5 Mbit/s, 80 ms, queue of 64 kB",
            LinkConfig {
                delay: Duration::from_millis(40),
                bits_per_s: 5 * megabit,
                queue_bytes: 64_000,
                ..LINK
            },
        ),
        (
            "500 Mbit/s, 4 ms, queue of 250 kB",
            LinkConfig {
                delay: Duration::from_millis(2),
                bits_per_s: 500 * megabit,
                queue_bytes: 250_000,
                ..LINK
            },
        ),
    ]
}

/// Measures, and prints the tables.
pub(crate) fn run(args: &CongestionArgs) -> anyhow::Result<()> {
    ensure!(
        Machine::is_root(),
        "congestion controllers are compared over TUN devices between network namespaces: run it as root"
    );
    node::build()?;
    // Before there is any thread: a thread would stay outside of the namespace.
    Machine::prepare(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(args))
}

/// A subject, what it is called, and the kernel's controller while it runs.
struct Candidate {
    name: &'static str,
    subject: Box<dyn Subject>,
    kernel: &'static str,
}

fn candidates(args: &CongestionArgs) -> Vec<Candidate> {
    let candidate = |name, subject, kernel| Candidate {
        name,
        subject,
        kernel,
    };
    let node = |congestion| Box::new(Node::mtu_1500(&args.set).congestion(congestion));
    vec![
        candidate("kernel CUBIC", Box::new(Relay::Plain), "cubic"),
        candidate("kernel BBR", Box::new(Relay::Plain), "bbr"),
        candidate("node, tolerant", node("tolerant"), "cubic"),
        candidate("node, cubic", node("cubic"), "cubic"),
        candidate("node, bbr", node("bbr"), "cubic"),
    ]
}

async fn measure(args: &CongestionArgs) -> anyhow::Result<()> {
    let service = Service::start(tokio::runtime::Handle::current())?;
    let times = Times::new(false);
    let candidates = candidates(args);
    let wanted = |name: &str| args.link.as_ref().is_none_or(|text| name.contains(text));
    let links: Vec<_> = links()
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .collect();
    let mut alone = table("bulk Mbit/s, p50/p99 of small requests in ms", &candidates);
    let mut shared = table("Mbit/s of each, beside kernel CUBIC", &candidates);
    for (name, config) in &links {
        let mut row = vec![(*name).to_owned()];
        for candidate in &candidates {
            let over = Over {
                config: *config,
                congestion: candidate.kernel,
                streams: args.streams,
                udp: None,
            };
            let measured = over.measure(&*candidate.subject, &service, &times).await;
            row.push(match measured {
                Ok([(_, bulk), (_, p50), (_, p99)]) => format!("{bulk:.1}, {p50:.0}/{p99:.0}"),
                Err(error) => failed(&error),
            });
            eprintln!("  {name:<36} {:<14} {}", candidate.name, row[row.len() - 1]);
        }
        alone.add_row(row);
        if args.alone {
            continue;
        }
        let mut row = vec![(*name).to_owned()];
        for candidate in &candidates {
            let measured = beside_cubic(&*candidate.subject, candidate.kernel, *config, &service);
            row.push(match measured.await {
                Ok([it, cubic]) => format!("{it:.1} : {cubic:.1}"),
                Err(error) => failed(&error),
            });
            eprintln!(
                "  {name:<36} {:<14} beside CUBIC {}",
                candidate.name,
                row[row.len() - 1]
            );
        }
        shared.add_row(row);
    }
    println!("{alone}\n");
    if !args.alone {
        println!("{shared}");
    }
    Ok(())
}

/// Two downloads on one link: `subject`'s and that of a relay over the kernel's CUBIC, in Mbit/s.
async fn beside_cubic(
    subject: &dyn Subject,
    kernel: &str,
    config: LinkConfig,
    service: &Service,
) -> anyhow::Result<[f64; 2]> {
    let link = TunLink::new(config, kernel)?;
    let place = between(&link, service)?;
    let it = Running::start(subject, &place).await?;
    let mut it_bulk = Bulk::start(it.entry(), Direction::Down, 1, service.counters()).await?;
    // Connections keep the controller that they began with, and this one has begun by then.
    tokio::time::sleep(SHARED_HEAD_START).await;
    link.set_congestion("cubic")?;
    let cubic = Running::start(&Relay::Plain, &place).await?;
    let mut cubic_bulk = Bulk::start(cubic.entry(), Direction::Down, 1, service.counters()).await?;
    tokio::time::sleep(SHARED_WARM_UP).await;
    let (it_pids, cubic_pids) = (it.pids(), cubic.pids());
    let (it_moved, cubic_moved) = tokio::try_join!(
        it_bulk.during(&it_pids, tokio::time::sleep(SHARED)),
        cubic_bulk.during(&cubic_pids, tokio::time::sleep(SHARED)),
    )
    .context("two downloads")?;
    it_bulk.end().await;
    cubic_bulk.end().await;
    Ok([it_moved.0, cubic_moved.0].map(|moved| moved.gbit_per_s() * 1e3))
}

fn table(heading: &str, candidates: &[Candidate]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let names = candidates.iter().map(|candidate| candidate.name);
    table.set_header(std::iter::once(heading).chain(names));
    table
}

fn failed(error: &anyhow::Error) -> String {
    eprintln!("  {error:#}");
    "failed".into()
}
