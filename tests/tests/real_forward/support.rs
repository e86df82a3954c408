//! Two proxies, an agent on both, and a user: all of the real binary.

#![expect(
    clippy::disallowed_methods,
    reason = "it waits for a process in real time"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use mesh_tests::binary::{self, Process, free_port};
use mesh_tests::{Result, probe};
use serde_json::Value;
use tempfile::TempDir;

/// The cluster of these tests.
const CLUSTER: &str = "test.example.com";

/// Certificates in a directory of their own: two proxies, the agent `a1`, the user `alice`.
pub(super) fn certificates() -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("mesh-forward-").tempdir()?;
    certs(dir.path(), &["init", "--cluster", CLUSTER])?;
    for (kind, name) in [
        ("proxy", "proxy-1"),
        ("proxy", "proxy-2"),
        ("agent", "a1"),
        ("user", "alice"),
    ] {
        certs(dir.path(), &["issue", kind, name])?;
    }
    Ok(dir)
}

pub(super) fn certs(dir: &Path, args: &[&str]) -> Result {
    let args = [&["certs"], args, &["--dir", "certs"]].concat();
    binary::must(dir, &args).map(drop)
}

/// A running mesh.
pub(super) struct Mesh {
    // Dropped in this order: the agent before the proxies, the files last.
    agent: Process,
    proxies: Vec<Option<Process>>,
    quic: Vec<SocketAddr>,
    metrics: Vec<SocketAddr>,
    drain_deadline: &'static str,
    dir: TempDir,
}

impl Mesh {
    /// Starts `count` proxies, and an agent on all of them that allows `allow`.
    pub(super) fn start(count: usize, allow: &[String]) -> Result<Self> {
        Self::start_with(count, allow, "10s")
    }

    pub(super) fn start_with(
        count: usize,
        allow: &[String],
        drain_deadline: &'static str,
    ) -> Result<Self> {
        let dir = certificates()?;
        let (mut proxies, mut quic, mut metrics) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            quic.push(free_port()?);
            metrics.push(free_port()?);
        }
        for index in 0..count {
            proxies.push(Some(start_proxy(
                dir.path(),
                index,
                &quic,
                &metrics,
                drain_deadline,
            )?));
        }
        let listed: Vec<String> = quic.iter().map(ToString::to_string).collect();
        let agent = format!(
            "role = \"agent\"\n\n\
             [tls]\nca = \"certs/ca.pem\"\ncert = \"certs/a1.pem\"\nkey = \"certs/a1.key\"\n\n\
             [agent]\nproxies = {listed:?}\nallow = {allow:?}\ndrain_deadline = \"10s\"\n"
        );
        fs::write(dir.path().join("agent.toml"), agent)?;
        let agent = Process::start(dir.path(), &["--role", "agent", "--config", "agent.toml"])?;
        let mut mesh = Self {
            agent,
            proxies,
            quic,
            metrics,
            drain_deadline,
            dir,
        };
        for proxy in mesh.proxies.iter_mut().flatten() {
            proxy.wait_for_log("agent connected")?;
        }
        Ok(mesh)
    }

    /// Where the certificates are, under `certs`.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the agent has logged.
    pub(super) fn log(&self) -> String {
        self.agent.log()
    }

    pub(super) fn quic(&self, proxy: usize) -> SocketAddr {
        self.quic[proxy]
    }

    pub(super) fn proxy(&mut self, proxy: usize) -> Result<&mut Process> {
        self.proxies[proxy].as_mut().context("it does not run")
    }

    /// Ends a proxy without a word.
    pub(super) fn kill_proxy(&mut self, proxy: usize) -> Result {
        let mut process = self.proxies[proxy].take().context("it does not run")?;
        process.signal("KILL")?;
        process.wait().map(drop)
    }

    /// Starts a proxy again that was killed, and waits for the agent.
    pub(super) fn restart_proxy(&mut self, proxy: usize) -> Result {
        let mut process = start_proxy(
            self.dir.path(),
            proxy,
            &self.quic,
            &self.metrics,
            self.drain_deadline,
        )?;
        process.wait_for_log("agent connected")?;
        self.proxies[proxy] = Some(process);
        Ok(())
    }

    /// Streams that are open at a proxy.
    pub(super) async fn streams(&self, proxy: usize) -> Result<f64> {
        binary::metrics(self.metrics[proxy])
            .await?
            .get("mesh_streams_open")
    }

    /// Waits until a proxy has no stream.
    pub(super) async fn no_streams(&self, proxy: usize) -> Result {
        probe::eventually("no stream is left", || async {
            let open = self.streams(proxy).await?;
            ensure!(open.to_bits() == 0f64.to_bits(), "{open} streams");
            Ok(())
        })
        .await
    }

    /// `node forward` as alice, through all proxies in their order, with JSON lines.
    pub(super) fn forward(&self, forwards: &[&str]) -> Result<Forward> {
        self.forward_with(&[], forwards)
    }

    /// As [`Mesh::forward`], with more options.
    pub(super) fn forward_with(&self, options: &[&str], forwards: &[&str]) -> Result<Forward> {
        let listed: Vec<String> = self.quic.iter().map(ToString::to_string).collect();
        let listed = listed.join(",");
        let args = [
            &["forward", "--json", "--identity", "certs/alice.pem"][..],
            &["--proxy", &listed],
            options,
            forwards,
        ]
        .concat();
        let mut forward = Forward(Process::start(self.dir(), &args)?);
        forward.until(|events| count(events, "ready") == forwards.len())?;
        Ok(forward)
    }
}

fn start_proxy(
    dir: &Path,
    index: usize,
    quic: &[SocketAddr],
    metrics: &[SocketAddr],
    drain_deadline: &str,
) -> Result<Process> {
    let name = format!("proxy-{}", index + 1);
    let peers: Vec<String> = quic[..index].iter().map(ToString::to_string).collect();
    let config = format!(
        "role = \"proxy\"\n\n\
         [tls]\nca = \"certs/ca.pem\"\ncert = \"certs/{name}.pem\"\nkey = \"certs/{name}.key\"\n\n\
         [quic]\nlisten = \"{listen}\"\nadvertise = \"{listen}\"\n\n\
         [proxy]\ngroup = \"test\"\nstate_dir = \"state-{name}\"\npeers = {peers:?}\n\
         drain_notice = \"0s\"\ndrain_deadline = \"{drain_deadline}\"\n\n\
         [metrics]\nlisten = \"{metrics}\"\n",
        listen = quic[index],
        metrics = metrics[index],
    );
    let file = format!("{name}.toml");
    fs::write(dir.join(&file), config)?;
    let mut proxy = Process::start(dir, &["--role", "proxy", "--config", &file])?;
    proxy.wait_for_log("proxy started")?;
    Ok(proxy)
}

fn count(events: &[Value], name: &str) -> usize {
    events.iter().filter(|event| event["event"] == name).count()
}

/// A running `node forward --json`.
pub(super) struct Forward(pub(super) Process);

impl Forward {
    /// What it has told so far.
    pub(super) fn events(&self) -> Result<Vec<Value>> {
        self.0
            .log()
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}")))
            .collect()
    }

    /// What it has told of this kind.
    pub(super) fn told(&self, name: &str) -> Result<Vec<Value>> {
        let mut events = self.events()?;
        events.retain(|event| event["event"] == name);
        Ok(events)
    }

    /// Waits until what it has told is as wanted.
    pub(super) fn until(&mut self, wanted: impl Fn(&[Value]) -> bool) -> Result {
        let started = std::time::Instant::now();
        while !wanted(&self.events()?) {
            if let Some(status) = self.0.try_wait()? {
                bail!("it ended ({status}):\n{}", self.0.log());
            }
            if started.elapsed() > probe::PATIENCE {
                bail!("it did not tell what was waited for:\n{}", self.0.log());
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits for an event of this kind and returns the newest one.
    pub(super) fn wait_for(&mut self, name: &str) -> Result<Value> {
        self.until(|events| count(events, name) > 0)?;
        self.told(name)?.pop().context("it was there")
    }

    /// Where forward number `index` listens.
    pub(super) fn local(&self, index: usize) -> Result<SocketAddr> {
        let ready = self.told("ready")?;
        let local = ready.get(index).context("no such forward")?["local"]
            .as_str()
            .context("no text")?;
        Ok(local.parse()?)
    }

    /// Ends it as Ctrl-C does, which must be in order.
    pub(super) fn stop(mut self) -> Result {
        self.0.signal("INT")?;
        let status = self.0.wait()?;
        ensure!(status.success(), "{status}:\n{}", self.0.log());
        ensure!(
            self.told("ended")?.len() == 1,
            "it did not say so:\n{}",
            self.0.log()
        );
        Ok(())
    }
}
