//! Many agents of the library in one process, and the proxy that they connect to.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use certs::{Authority, Credentials, Kind, Request, Validity};
use clap::Args;
use node::Agent;
use node::config::AgentConfig;

use super::Place;
use super::node::{PROXY_TLS, binary, certificates};
use crate::process::Process;

/// Agents that connect at one time.
const AT_ONCE: usize = 32;

/// What the process writes when all are connected.
const READY: &str = "all connected";

/// How long the proxy may take to start, and each thousand agents to connect.
const PATIENCE: Duration = Duration::from_secs(180);

/// Arguments of the process with the agents.
#[derive(Debug, Args)]
pub(crate) struct AgentsArgs {
    #[arg(long)]
    count: usize,
    #[arg(long)]
    proxy: SocketAddr,
}

/// Runs the agents, in the directory of their authority, until it is killed.
pub(crate) fn serve(args: &AgentsArgs) -> anyhow::Result<()> {
    let authority = Authority::load(Path::new("."))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut agents = Vec::new();
        while agents.len() < args.count {
            let first = agents.len();
            for number in first..args.count.min(first + AT_ONCE) {
                let request = Request::new(
                    Kind::Agent,
                    format!("idle-{number}").parse()?,
                    Validity::days(1)?,
                );
                let issued = authority.issue(&request)?;
                let credentials = Credentials::from_pem(
                    authority.ca_pem().as_bytes(),
                    issued.cert_pem.as_bytes(),
                    issued.key_pem.as_bytes(),
                )?;
                let proxies = vec![args.proxy.to_string()];
                agents.push(Agent::start(AgentConfig::new(Arc::new(credentials), proxies)).await?);
            }
            for agent in &agents[first..] {
                agent
                    .connected()
                    .wait_for(|connected| *connected > 0)
                    .await?;
            }
        }
        println!("{READY}");
        std::future::pending().await
    })
}

/// A proxy, alone at first.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) proxy: Process,
    quic: SocketAddr,
    agents: Option<Process>,
    // Dropped after the processes that write into it.
    dir: tempfile::TempDir,
}

impl Fleet {
    /// Starts the proxy.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("mesh-benches-").tempdir()?;
        certificates(dir.path())?;
        // The target is of no use: nobody dials.
        let place = Place::loopback((Ipv4Addr::LOCALHOST, 1).into());
        let quic = SocketAddr::new(place.near, place.port()?);
        fs::write(
            dir.path().join("proxy.toml"),
            format!("role = \"proxy\"\n{PROXY_TLS}[quic]\nlisten = \"{quic}\"\n"),
        )?;
        let mut command = Command::new(binary()?);
        command.args(["--config", "proxy.toml"]);
        let mut proxy = Process::start(command, dir.path(), "proxy")?;
        let started = Instant::now();
        while !proxy.log().contains("proxy started") {
            proxy.must_run()?;
            if started.elapsed() > PATIENCE {
                bail!("the proxy does not start:\n{}", proxy.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            proxy,
            quic,
            agents: None,
            dir,
        })
    }

    /// Connects agents; how long that took.
    pub(crate) async fn connect(&mut self, count: usize) -> anyhow::Result<Duration> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["agents", "--count", &count.to_string()])
            .args(["--proxy", &self.quic.to_string()]);
        let started = Instant::now();
        let patience = PATIENCE * u32::try_from(count.div_ceil(1_000))?;
        let agents = self
            .agents
            .insert(Process::start(command, self.dir.path(), "agents")?);
        while !agents.log().contains(READY) {
            agents.must_run()?;
            self.proxy.must_run()?;
            if started.elapsed() > patience {
                bail!("the agents do not connect:\n{}", agents.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(started.elapsed())
    }

    /// The process with the agents.
    pub(crate) fn agents(&self) -> anyhow::Result<u32> {
        Ok(self.agents.as_ref().context("no agents")?.id())
    }
}
