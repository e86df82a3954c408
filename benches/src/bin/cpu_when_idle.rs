//! `cpu_when_idle`: what an agent costs that holds three connections and has nothing to do.
//!
//! ```sh
//! cargo build --release
//! cargo run --release -p mesh-benches --bin cpu_when_idle            # a minute; or --bin cpu_when_idle -- 300
//! ```
//!
//! Three proxies and an agent, real processes on loopback with the default timers. Prints a line of
//! Markdown and one of JSON, and exits with 1 when the agent took more than 0.1 % of a core.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a measurement of real processes in real time, for people to read"
)]

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// The most of a core that the agent may take.
const SHARE_MAX: f64 = 0.001;

/// How long the agent may take to connect.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// From when it is connected until it is idle.
const SETTLE: Duration = Duration::from_secs(10);

const PROXIES: usize = 3;

/// A process that is killed when it is dropped.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a process has used so far.
#[derive(Clone, Copy)]
struct Used {
    cpu: Duration,
    switches: u64,
    resident_bytes: u64,
}

fn used(pid: u32) -> anyhow::Result<Used> {
    let mut used = Used {
        cpu: Duration::ZERO,
        switches: 0,
        resident_bytes: 0,
    };
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // Nanoseconds on a CPU, where the ticks of `stat` are hundredths of a second.
        let run = fs::read_to_string(task.join("schedstat"))?;
        let run = run
            .split_whitespace()
            .next()
            .context("schedstat")?
            .parse()?;
        used.cpu += Duration::from_nanos(run);
        used.switches += field(&task.join("status"), "voluntary_ctxt_switches")?;
    }
    used.resident_bytes = field(Path::new(&format!("/proc/{pid}/status")), "VmRSS")? * 1024;
    Ok(used)
}

fn field(file: &Path, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(file)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("{name} in {}", file.display()))?;
    let number = line.split_whitespace().next().context("a number")?;
    Ok(number.parse()?)
}

fn node() -> anyhow::Result<PathBuf> {
    let node = std::env::current_exe()?.with_file_name("node");
    if !node.exists() {
        bail!(
            "{} is not there: build it in the same profile",
            node.display()
        );
    }
    Ok(node)
}

fn run(dir: &Path, args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(node()?)
        .args(args)
        .current_dir(dir)
        .stdout(Stdio::null())
        .status()?;
    anyhow::ensure!(status.success(), "node {args:?}: {status}");
    Ok(())
}

fn start(dir: &Path, name: &str, config: &str) -> anyhow::Result<Node> {
    let file = format!("{name}.toml");
    let tls = format!("[tls]\nca = \"ca.pem\"\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n");
    fs::write(dir.join(&file), format!("{config}{tls}"))?;
    let log = fs::File::create(dir.join(format!("{name}.log")))?;
    let child = Command::new(node()?)
        .args(["--config", &file])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(Node(child))
}

fn measure(time: Duration) -> anyhow::Result<bool> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    run(
        dir,
        &[
            "certs",
            "init",
            "--cluster",
            "idle.example.com",
            "--dir",
            ".",
        ],
    )?;
    run(dir, &["certs", "issue", "agent", "a1", "--dir", "."])?;
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
        run(dir, &["certs", "issue", "proxy", &name, "--dir", "."])?;
        let config = format!(
            "role = \"proxy\"\n[quic]\nlisten = \"{address}\"\n[proxy]\npeers = {addresses:?}\n"
        );
        proxies.push(start(dir, &name, &config)?);
    }
    let config = format!("role = \"agent\"\n[agent]\nproxies = {addresses:?}\n");
    let agent = start(dir, "a1", &config)?;
    let started = Instant::now();
    while fs::read_to_string(dir.join("a1.log"))?
        .matches("connected to a proxy")
        .count()
        < PROXIES
    {
        if started.elapsed() > CONNECT_PATIENCE {
            bail!("{}", fs::read_to_string(dir.join("a1.log"))?);
        }
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(SETTLE);

    let (before, began) = (used(agent.0.id())?, Instant::now());
    thread::sleep(time);
    let (after, time) = (used(agent.0.id())?, began.elapsed());
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

fn main() -> anyhow::Result<ExitCode> {
    let seconds = match std::env::args().nth(1) {
        None => 60,
        Some(text) => text.parse().context("how many seconds?")?,
    };
    Ok(if measure(Duration::from_secs(seconds))? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
