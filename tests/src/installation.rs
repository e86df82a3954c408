//! A proxy and an agent as a user installs them: certificates by `node certs`, a config file each,
//! the real binary twice.

#![expect(
    clippy::print_stdout,
    reason = "how much memory a node needed is for people to read"
)]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{bail, ensure};
use tempfile::TempDir;

use crate::Result;
use crate::binary::{self, Process, free_port};
use crate::probe::{self, Metrics};
use crate::programs;

/// The most memory that a node of these tests may have had resident, in bytes.
pub const RESIDENT_BYTES_MAX: u64 = 200 << 20;

/// The cluster of these tests.
pub const CLUSTER: &str = "test.example.com";

/// Certificates in a directory of its own, and nothing running yet.
pub struct Site {
    dir: TempDir,
}

impl Site {
    /// Makes the directory and the certificates of `proxy-1` and `a1`.
    ///
    /// # Errors
    /// When the binary cannot do so.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mesh-site-").tempdir()?;
        let certs = |args: &[&str]| {
            let args = [&["certs"], args, &["--dir", "certs"]].concat();
            binary::must(dir.path(), &args).map(drop)
        };
        certs(&["init", "--cluster", CLUSTER])?;
        certs(&[
            "issue",
            "proxy",
            "proxy-1",
            "--dns",
            "localhost",
            "--ip",
            "127.0.0.1",
        ])?;
        certs(&["issue", "agent", "a1"])?;
        Ok(Self { dir })
    }

    /// Where the config files are; the certificates are under `certs`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the proxy with `ingresses`, each the lines of its table but for `listen`, and the
    /// agent with what it allows. Both are connected afterwards.
    ///
    /// # Errors
    /// When one does not start, with what it logged.
    pub fn start(self, ingresses: &[String], allow: &[String]) -> Result<Installation> {
        let (quic, proxy_metrics, agent_metrics) = (free_port()?, free_port()?, free_port()?);
        let mut proxy = format!(
            "role = \"proxy\"\n\n\
             [tls]\nca = \"certs/ca.pem\"\ncert = \"certs/proxy-1.pem\"\nkey = \"certs/proxy-1.key\"\n\n\
             [quic]\nlisten = \"{quic}\"\n\n\
             [proxy]\ngroup = \"test\"\nstate_dir = \"state\"\ndrain_notice = \"0s\"\ndrain_deadline = \"10s\"\n\n\
             [metrics]\nlisten = \"{proxy_metrics}\"\n"
        );
        let mut listeners = Vec::new();
        for lines in ingresses {
            let listen = free_port()?;
            listeners.push(listen);
            write!(proxy, "\n[[ingress]]\nlisten = \"{listen}\"\n{lines}\n")?;
        }
        let agent = format!(
            "role = \"agent\"\n\n\
             [tls]\nca = \"certs/ca.pem\"\ncert = \"certs/a1.pem\"\nkey = \"certs/a1.key\"\n\n\
             [agent]\nproxies = [\"{quic}\"]\nallow = {allow:?}\ndrain_deadline = \"10s\"\n\n\
             [metrics]\nlisten = \"{agent_metrics}\"\n"
        );
        fs::write(self.dir().join("proxy.toml"), proxy)?;
        fs::write(self.dir().join("agent.toml"), agent)?;
        let mut proxy = Process::start(self.dir(), &["--role", "proxy", "--config", "proxy.toml"])?;
        proxy.wait_for_log("proxy started")?;
        let mut agent = Process::start(self.dir(), &["--role", "agent", "--config", "agent.toml"])?;
        agent.wait_for_log("connected to a proxy")?;
        proxy.wait_for_log("agent connected")?;
        Ok(Installation {
            agent,
            proxy,
            quic,
            listeners,
            proxy_metrics,
            agent_metrics,
            site: self,
        })
    }
}

/// A running proxy `proxy-1` and an agent `a1` that is connected to it.
pub struct Installation {
    // Dropped in this order: the agent before the proxy, the files last.
    agent: Process,
    proxy: Process,
    quic: SocketAddr,
    listeners: Vec<SocketAddr>,
    proxy_metrics: SocketAddr,
    agent_metrics: SocketAddr,
    site: Site,
}

impl Installation {
    /// One `http` ingress, and an agent that allows `allow`.
    ///
    /// # Errors
    /// As [`Site::start`].
    pub fn http(allow: &[String]) -> Result<Self> {
        Site::new()?.start(&["kind = \"http\"".into()], allow)
    }

    /// One `tcp` ingress that leads to `target`, the only one that the agent allows.
    ///
    /// # Errors
    /// As [`Site::start`].
    pub fn tcp(target: SocketAddr) -> Result<Self> {
        Site::new()?.start(&[tcp_ingress(target)], &[target.to_string()])
    }

    /// Where ingress number `index` listens.
    ///
    /// # Errors
    /// When there is none.
    pub fn ingress(&self, index: usize) -> Result<SocketAddr> {
        match self.listeners.get(index) {
            Some(listener) => Ok(*listener),
            None => bail!("no ingress {index}"),
        }
    }

    /// The UDP address of the proxy.
    #[must_use]
    pub fn quic(&self) -> SocketAddr {
        self.quic
    }

    /// The URL of `path` at a plain `http` target, through the first ingress.
    ///
    /// # Errors
    /// When there is no ingress.
    pub fn url(&self, target: SocketAddr, path: &str) -> Result<String> {
        Ok(format!(
            "http://{}/client/a1/http/{target}{path}",
            self.ingress(0)?
        ))
    }

    /// The directory with the config files; the certificates are under `certs`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.site.dir()
    }

    /// The metrics of the proxy and of the agent.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn metrics(&self) -> Result<[Metrics; 2]> {
        Ok([
            binary::metrics(self.proxy_metrics).await?,
            binary::metrics(self.agent_metrics).await?,
        ])
    }

    /// Waits until neither node has a stream.
    ///
    /// # Errors
    /// When one stays.
    pub async fn no_streams(&self) -> Result {
        probe::eventually("no stream is left", || async {
            let [proxy, agent] = self.metrics().await?;
            let open = [
                proxy.get("mesh_streams_open")?,
                agent.get("mesh_streams_open")?,
            ];
            ensure!(
                open == [0.0, 0.0],
                "streams open at proxy and agent: {open:?}"
            );
            Ok(())
        })
        .await
    }

    /// Insists that neither node has needed much memory.
    ///
    /// # Errors
    /// When one has.
    pub fn little_memory(&self) -> Result {
        for (name, process) in [("proxy", &self.proxy), ("agent", &self.agent)] {
            let peak = programs::peak_resident_bytes(process.id())?;
            ensure!(
                peak <= RESIDENT_BYTES_MAX,
                "the {name} has had {} MiB resident, over {} MiB",
                peak >> 20,
                RESIDENT_BYTES_MAX >> 20
            );
            println!("peak resident memory of the {name}: {} MiB", peak >> 20);
        }
        Ok(())
    }

    /// Ends both as an operator would, and insists that they end in order and had nothing to
    /// complain about.
    ///
    /// # Errors
    /// When one fails, logs an error or panics; with its log.
    pub fn stop(mut self) -> Result {
        for (name, process) in [("agent", &mut self.agent), ("proxy", &mut self.proxy)] {
            process.signal("TERM")?;
            let status = process.wait()?;
            let log = process.log();
            ensure!(status.success(), "the {name} ended with {status}:\n{log}");
            ensure!(
                !log.contains("ERROR") && !log.contains("panicked"),
                "the {name} logged an error:\n{log}"
            );
        }
        Ok(())
    }
}

/// The lines of a `tcp` ingress that leads to `target` of `a1`.
#[must_use]
pub fn tcp_ingress(target: SocketAddr) -> String {
    format!("kind = \"tcp\"\nagent = \"a1\"\ntarget = \"{target}\"")
}
