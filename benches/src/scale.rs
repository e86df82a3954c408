//! `scale`: what one more costs, when there are few and when there are many.
//!
//! ```sh
//! cargo run --release -p mesh-benches -- scale                      # a quarter of an hour
//! cargo run --release -p mesh-benches -- scale --curves routes,proxies
//! ```
//!
//! | curve | what |
//! |---|---|
//! | `agents` | agents at one proxy, real processes: memory and CPU of each |
//! | `streams` | idle streams of one agent, real processes: memory and CPU of each |
//! | `proxies` | proxies in one mesh, gossip alone in virtual time: packets, bytes and CPU of each |
//! | `routes` | rows of who holds which agent: bytes, memory and time of each |

mod agents;
mod proxies;
mod routes;
mod streams;

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::machine::Machine;
use crate::service::Service;
use crate::subjects::node;

/// What `scale` measures.
#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Measures these curves alone.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "CURVE,…")]
    curves: Vec<Curve>,
    /// Sizes of the curve of agents.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000], value_name = "N,…")]
    agents: Vec<usize>,
    /// Sizes of the curve of proxies.
    #[arg(long, value_delimiter = ',', default_values_t = [3, 10, 50, 100, 200], value_name = "N,…")]
    proxies: Vec<usize>,
    /// Writes every value there, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Curve {
    /// Agents at one proxy.
    Agents,
    /// Streams of one agent.
    Streams,
    /// Proxies in one mesh.
    Proxies,
    /// Rows of routes.
    Routes,
}

/// Numbers by size.
#[derive(Debug, Serialize)]
struct Curves {
    machine: Machine,
    curves: Vec<Grown>,
}

/// One curve. The first column is the size.
#[derive(Debug, Serialize)]
struct Grown {
    title: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<Vec<f64>>,
}

impl Grown {
    fn new(title: &'static str, columns: &[&'static str]) -> Self {
        Self {
            title,
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    fn markdown(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(&self.columns);
        for row in &self.rows {
            let (size, values) = row.split_first().unwrap_or((&0.0, &[]));
            let values = values.iter().map(|value| shown(*value));
            table.add_row(std::iter::once(format!("{size:.0}")).chain(values));
        }
        format!("**{}**\n\n{table}\n", self.title)
    }
}

/// With so many digits as mean something.
fn shown(value: f64) -> String {
    match value.abs() {
        not_measured if not_measured.is_nan() => "–".to_owned(),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.0995.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Measures, and prints the tables.
pub(crate) fn run(args: &ScaleArgs) -> anyhow::Result<()> {
    let wants = |curve| args.curves.is_empty() || args.curves.contains(&curve);
    if wants(Curve::Agents) || wants(Curve::Streams) {
        node::build()?;
    }
    // Before there is any thread: a thread would stay outside of the namespace.
    let machine = Machine::prepare(true)?;
    let mut curves = Vec::new();
    let mut add = |curve: Grown| {
        println!("{}", curve.markdown());
        curves.push(curve);
    };
    if wants(Curve::Routes) {
        add(routes::measure()?);
    }
    if wants(Curve::Proxies) {
        add(proxies::measure(&args.proxies)?);
    }
    if wants(Curve::Agents) || wants(Curve::Streams) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            if wants(Curve::Agents) {
                add(agents::measure(&args.agents).await?);
            }
            if wants(Curve::Streams) {
                let service = Service::start(tokio::runtime::Handle::current())?;
                add(streams::measure(&service, machine.descriptors).await?);
            }
            anyhow::Ok(())
        })?;
        runtime.shutdown_background();
    }
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&Curves { machine, curves })?;
        fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}
