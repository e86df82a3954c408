//! A directory with certificates and config files, and nodes that run from it.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, ensure};
use mesh_tests::Result;
use mesh_tests::binary::{self, Process, free_port};
use tempfile::TempDir;

pub(crate) const CLUSTER: &str = "test.example.com";

/// Certificates of `proxy-1` and `a1`, and where the nodes listen.
pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) quic: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) agent_metrics: SocketAddr,
}

impl Site {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        for args in [
            &["certs", "init", "--cluster", CLUSTER, "--dir", "."][..],
            &["certs", "issue", "proxy", "proxy-1", "--dir", "."],
            &["certs", "issue", "agent", "a1", "--dir", "."],
        ] {
            binary::must(dir.path(), args)?;
        }
        Ok(Self {
            dir,
            quic: free_port()?,
            http: free_port()?,
            metrics: free_port()?,
            agent_metrics: free_port()?,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The proxy's config: quick to drain, one `http` ingress, and what else is given.
    pub(crate) fn proxy_config(&self, notice: &str, deadline: &str, more: &str) -> String {
        let Self {
            quic,
            http,
            metrics,
            ..
        } = self;
        format!(
            "role = \"proxy\"\n\
             [tls]\nca = \"ca.pem\"\ncert = \"proxy-1.pem\"\nkey = \"proxy-1.key\"\n\
             [quic]\nlisten = \"{quic}\"\n\
             [proxy]\ndrain_notice = \"{notice}\"\ndrain_deadline = \"{deadline}\"\n\
             [metrics]\nlisten = \"{metrics}\"\n\
             [[ingress]]\nkind = \"http\"\nlisten = \"{http}\"\n{more}"
        )
    }

    /// The agent's config: it may reach this host, and what else is given.
    pub(crate) fn agent_config(&self, more: &str) -> String {
        let Self {
            quic,
            agent_metrics,
            ..
        } = self;
        format!(
            "role = \"agent\"\n\
             [tls]\nca = \"ca.pem\"\ncert = \"a1.pem\"\nkey = \"a1.key\"\n\
             [agent]\nproxies = [\"{quic}\"]\nallow = [\"127.0.0.1:*\"]\ndrain_deadline = \"5s\"\n\
             [metrics]\nlisten = \"{agent_metrics}\"\n{more}"
        )
    }

    /// Starts a node from `config`, written to `NAME.toml`.
    pub(crate) fn start(&self, name: &str, config: &str) -> Result<Process> {
        let file = format!("{name}.toml");
        std::fs::write(self.path().join(&file), config)?;
        Process::start(self.path(), &["--config", &file])
    }

    /// Starts a proxy that is quick to drain and an agent; connected when this returns.
    pub(crate) fn start_both(&self, notice: &str, deadline: &str) -> Result<(Process, Process)> {
        let mut proxy = self.start("proxy", &self.proxy_config(notice, deadline, ""))?;
        proxy.wait_for_log("proxy started")?;
        let agent = self.start("agent", &self.agent_config(""))?;
        proxy.wait_for_log("agent connected")?;
        Ok((proxy, agent))
    }
}

/// Runs the binary, which must exit with `code`; what it wrote, on standard output and error.
pub(crate) fn exits(dir: &Path, args: &[&str], code: i32) -> Result<(String, String)> {
    let output = binary::run(dir, args)?;
    judged(&output, code).with_context(|| format!("node {args:?}"))
}

/// What a program wrote that must have exited with `code`.
pub(crate) fn judged(output: &Output, code: i32) -> Result<(String, String)> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(code),
        "{}: {stdout}{stderr}",
        output.status
    );
    ensure!(!stderr.contains("panicked"), "{stderr}");
    Ok((stdout, stderr))
}

/// The permissions of a file.
pub(crate) fn mode(path: impl AsRef<Path>) -> Result<u32> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o777)
}
