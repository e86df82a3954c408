//! Whoever keeps the connections, as the tests see it; and proxies of the real binary.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::ensure;
use mesh_proto::name::Cluster;
use mesh_proto::tunnel::{Draft, Tunnel};
use mesh_tests::Result;
use mesh_tests::binary::{self, Process, free_port};
use node::proxy::tunnels::{TunnelRunner, TunnelState};
use tempfile::TempDir;

/// Remembers what was wanted, and says of each tunnel what the test has told it.
#[derive(Debug, Default)]
pub(crate) struct Runner {
    applied: Mutex<Vec<Vec<Tunnel>>>,
    states: Mutex<BTreeMap<Cluster, TunnelState>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TunnelRunner for Runner {
    fn apply(&self, wanted: Vec<Tunnel>) {
        lock(&self.applied).push(wanted);
    }

    fn states(&self) -> Vec<(Cluster, TunnelState)> {
        let states = lock(&self.states);
        states
            .iter()
            .map(|(cluster, state)| (cluster.clone(), state.clone()))
            .collect()
    }
}

impl Runner {
    /// How often it was told what is wanted.
    pub(crate) fn times(&self) -> usize {
        lock(&self.applied).len()
    }

    /// What is wanted: clusters, each with its addresses and its count. `None`: nobody has said.
    pub(crate) fn wanted(&self) -> Option<Vec<String>> {
        let applied = lock(&self.applied);
        let wanted = applied.last()?;
        Some(wanted.iter().map(form).collect())
    }

    /// Decides what is told of a tunnel.
    pub(crate) fn set_state(&self, cluster: &str, state: TunnelState) -> Result {
        lock(&self.states).insert(cluster.parse()?, state);
        Ok(())
    }
}

/// A tunnel in short.
pub(crate) fn form(tunnel: &Tunnel) -> String {
    let addresses: Vec<String> = tunnel.addresses().iter().map(ToString::to_string).collect();
    format!(
        "{} {} {}",
        tunnel.cluster(),
        addresses.join(","),
        tunnel.connections()
    )
}

/// A tunnel without an end.
pub(crate) fn tunnel(cluster: &str, addresses: &[&str]) -> Result<Tunnel> {
    let draft = Draft {
        cluster: cluster.to_owned(),
        addresses: addresses
            .iter()
            .map(|&address| address.to_owned())
            .collect(),
        ..Draft::default()
    };
    Ok(draft.check()?)
}

/// A directory with an authority, a proxy and users, and the proxy when it runs.
pub(crate) struct Site {
    dir: TempDir,
    pub(crate) quic: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) process: Option<Process>,
}

impl Site {
    pub(crate) fn new(users: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mesh-tunnels-").tempdir()?;
        let certs = |args: &[&str]| {
            let args = [&["certs"], args, &["--dir", "."]].concat();
            binary::must(dir.path(), &args).map(drop)
        };
        certs(&["init", "--cluster", "a.example.com"])?;
        certs(&["issue", "proxy", "proxy-1"])?;
        for user in users {
            certs(&["issue", "user", user])?;
        }
        Ok(Self {
            dir,
            quic: free_port()?,
            admin: free_port()?,
            process: None,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes the proxy's config, `more` after its `[proxy]`.
    pub(crate) fn configure(&self, more: &str) -> Result {
        let (quic, admin) = (self.quic, self.admin);
        let config = format!(
            "role = \"proxy\"\n[tls]\nca = \"ca.pem\"\ncert = \"proxy-1.pem\"\nkey = \"proxy-1.key\"\n\
             [quic]\nlisten = \"{quic}\"\n[admin]\nlisten = \"{admin}\"\n\
             [proxy]\nstate_dir = \"state\"\n{more}"
        );
        std::fs::write(self.path().join("proxy-1.toml"), config)?;
        Ok(())
    }

    /// Starts the proxy with this config.
    pub(crate) fn start(&mut self, more: &str) -> Result {
        self.configure(more)?;
        let mut process = Process::start(self.path(), &["--config", "proxy-1.toml"])?;
        process.wait_for_log("proxy started")?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends the proxy in order.
    pub(crate) fn stop(&mut self) -> Result {
        if let Some(mut process) = self.process.take() {
            process.signal("TERM")?;
            let ended = process.wait()?;
            ensure!(ended.success(), "{ended}: {}", process.log());
        }
        Ok(())
    }

    /// The proxy's log so far.
    pub(crate) fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Runs `node ARGS` with the proxy's admin listener in the environment; it must exit with `code`.
    pub(crate) fn node(&self, args: &[&str], code: i32) -> Result<(String, String)> {
        let admin = format!("http://{}", self.admin);
        self.node_with(&[("MESH_ADMIN", &admin)], args, code)
    }

    /// Runs `node ARGS` as a user who is connected by QUIC.
    pub(crate) fn node_as(&self, user: &str, args: &[&str], code: i32) -> Result<(String, String)> {
        let (proxy, identity) = (self.quic.to_string(), format!("{user}.pem"));
        let more = ["--proxy", &proxy, "--identity", &identity];
        self.node_with(&[], &[args, &more].concat(), code)
    }

    /// Runs `node ARGS` in an environment of these variables.
    pub(crate) fn node_with(
        &self,
        env: &[(&str, &str)],
        args: &[&str],
        code: i32,
    ) -> Result<(String, String)> {
        let output = self.output(env, args)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(code),
            "node {args:?}: {}, not {code}: {stdout}{stderr}\n{}",
            output.status,
            self.log()
        );
        Ok((stdout, stderr))
    }

    pub(crate) fn output(&self, env: &[(&str, &str)], args: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary::path()?);
        command.args(args).current_dir(self.path());
        for unset in ["RUST_LOG", "MESH_ADMIN", "MESH_PROXY", "MESH_IDENTITY"] {
            command.env_remove(unset);
        }
        command.envs(env.iter().copied());
        Ok(command.output()?)
    }
}

/// Two handles on one runner: for the proxy's hooks, and for the test.
pub(crate) fn runner() -> (Arc<Runner>, Arc<dyn TunnelRunner>) {
    let runner = Arc::new(Runner::default());
    (runner.clone(), runner)
}
