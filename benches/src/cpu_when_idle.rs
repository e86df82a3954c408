//! `cpu_when_idle`: what an agent costs that holds three connections and has nothing to do.
//!
//! ```sh
//! cargo run --release -p mesh-benches -- cpu_when_idle            # a minute; or cpu_when_idle 300
//! ```
//!
//! Three proxies and an agent, real processes on loopback with the default timers. Prints a line of
//! Markdown and one of JSON, and exits with 1 when the agent took more than 0.1 % of a core.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::process::{self, Process, used};
use crate::subjects;

/// The most of a core that the agent may take.
const SHARE_MAX: f64 = 0.001;

/// How long the agent may take to connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// From when it is connected until it is idle.
const SETTLE: Duration = Duration::from_secs(10);

const PROXIES: usize = 3;

fn certs(dir: &Path, args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(subjects::node::binary()?);
    process::run(
        command
            .arg("certs")
            .args(args)
            .args(["--dir", "."])
            .current_dir(dir),
    )
}

fn start(dir: &Path, name: &str, config: &str) -> anyhow::Result<Process> {
    let file = format!("{name}.toml");
    let tls = format!("[tls]\nca = \"ca.pem\"\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n");
    fs::write(dir.join(&file), format!("{config}{tls}"))?;
    let mut command = Command::new(subjects::node::binary()?);
    command.args(["--config", &file]);
    Process::start(command, dir, name)
}

/// Whether the agent stayed under the limit.
pub(crate) fn measure(time: Duration) -> anyhow::Result<bool> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    certs(dir, &["init", "--cluster", "idle.example.com"])?;
    certs(dir, &["issue", "agent", "a1"])?;
    // Ports that are free now, and told all at once so that they differ.
    let sockets: Vec<UdpSocket> = (0..PROXIES)
        .map(|_| UdpSocket::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let addresses: Vec<String> = sockets
        .iter()
        .map(|socket| Ok(socket.local_addr()?.to_string()))
        .collect::<anyhow::Result<_>>()?;
    drop(sockets);
    let mut proxies = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        let name = format!("proxy-{}", index + 1);
        certs(dir, &["issue", "proxy", &name])?;
        let config = format!(
            "role = \"proxy\"\n[quic]\nlisten = \"{address}\"\n[proxy]\npeers = {addresses:?}\n"
        );
        proxies.push(start(dir, &name, &config)?);
    }
    let config = format!("role = \"agent\"\n[agent]\nproxies = {addresses:?}\n");
    let agent = start(dir, "a1", &config)?;
    let started = Instant::now();
    while agent.log().matches("connected to a proxy").count() < PROXIES {
        if started.elapsed() > CONNECT_PATIENCE {
            bail!("{}", agent.log());
        }
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(SETTLE);

    let (before, began) = (used(agent.id())?, Instant::now());
    thread::sleep(time);
    let (after, time) = (used(agent.id())?, began.elapsed());
    let share = (after.cpu - before.cpu).as_secs_f64() / time.as_secs_f64();
    let switches = (after.switches - before.switches) as f64 / time.as_secs_f64();
    let resident = after.resident_bytes as f64 / f64::from(1 << 20);
    println!("| idle agent, {PROXIES} connections | CPU | wake-ups | resident |");
    println!("|---|---|---|---|");
    println!(
        "| {:.0} s | {:.3} % of a core | {switches:.1} per s | {resident:.1} MiB |",
        time.as_secs_f64(),
        share * 100.0
    );
    println!(
        "{{\"seconds\":{:.1},\"cpu_share\":{share:.6},\"wakeups_per_second\":{switches:.2},\"resident_bytes\":{}}}",
        time.as_secs_f64(),
        after.resident_bytes
    );
    Ok(share <= SHARE_MAX)
}
