//! Nodes in namespaces.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use mesh_tests::Result;
use mesh_tests::binary::{self, Process};
use mesh_tests::netns::Namespace;
use mesh_tests::probe::{Metrics, PATIENCE};
use tempfile::TempDir;

/// A directory with the certificates of a cluster.
pub(crate) struct Site {
    dir: TempDir,
}

impl Site {
    pub(crate) fn new(proxies: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mesh-net-").tempdir()?;
        let certs = |args: &[&str]| {
            let args = [&["certs"], args, &["--dir", "."]].concat();
            binary::must(dir.path(), &args).map(drop)
        };
        certs(&["init", "--cluster", "test.example.com"])?;
        for proxy in proxies {
            certs(&["issue", "proxy", proxy])?;
        }
        certs(&["issue", "agent", "a1"])?;
        Ok(Self { dir })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a node with its certificate and the rest of its config.
    pub(crate) fn start(
        &self,
        namespace: &Namespace,
        role: &str,
        name: &str,
        config: &str,
    ) -> Result<Process> {
        let file = format!("{name}.toml");
        let config = format!(
            "role = \"{role}\"\n[tls]\nca = \"ca.pem\"\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n{config}"
        );
        fs::write(self.path().join(&file), config)?;
        let mut process = Process::start_in(namespace, self.path(), &["--config", &file])?;
        process.wait_for_log(&format!("{role} started"))?;
        Ok(process)
    }
}

/// What a node in a namespace measures.
pub(crate) fn metrics(namespace: &Namespace, listener: &str) -> Result<Metrics> {
    let url = format!("http://{listener}/metrics");
    Metrics::parse(&namespace.must("curl", &["-sS", "--fail", "--max-time", "20", &url])?)
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    while !is_so()? {
        if started.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} for: {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(started.elapsed())
}
