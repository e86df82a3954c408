//! Proxies that join each other, and agents, from config files of one directory.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{bail, ensure};
use mesh_tests::Result;
use mesh_tests::binary::{self, Process, free_port};
use mesh_tests::probe::PATIENCE;
use tempfile::TempDir;

pub(crate) struct Proxy {
    pub(crate) name: String,
    pub(crate) quic: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) process: Option<Process>,
}

impl Proxy {
    /// Its admin listener, for `--admin`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.admin)
    }
}

pub(crate) struct Site {
    dir: TempDir,
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) agents: Vec<Process>,
}

impl Site {
    /// Issues certificates for so many proxies and agents; nothing runs yet.
    pub(crate) fn new(proxies: usize, agents: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mesh-mesh-").tempdir()?;
        let certs = |args: &[&str]| {
            let args = [&["certs"], args, &["--dir", "."]].concat();
            binary::must(dir.path(), &args).map(drop)
        };
        certs(&["init", "--cluster", "test.example.com"])?;
        let mut all = Vec::new();
        for number in 1..=proxies {
            let name = format!("proxy-{number}");
            certs(&["issue", "proxy", &name])?;
            all.push(Proxy {
                name,
                quic: free_port()?,
                http: free_port()?,
                admin: free_port()?,
                process: None,
            });
        }
        for number in 1..=agents {
            certs(&["issue", "agent", &format!("a{number}")])?;
        }
        Ok(Self {
            dir,
            proxies: all,
            agents: Vec::new(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a proxy of this generation, and waits until it is ready.
    pub(crate) fn start_proxy(&mut self, index: usize, generation: u64, more: &str) -> Result {
        let peers: Vec<String> = self
            .proxies
            .iter()
            .map(|proxy| proxy.quic.to_string())
            .collect();
        let proxy = &self.proxies[index];
        let (name, quic, http, admin) = (&proxy.name, proxy.quic, proxy.http, proxy.admin);
        let config = format!(
            "role = \"proxy\"\n[tls]\nca = \"ca.pem\"\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n\
             [quic]\nlisten = \"{quic}\"\nkeepalive = \"1s\"\nidle_timeout = \"5s\"\n\
             [admin]\nlisten = \"{admin}\"\n\
             [[ingress]]\nkind = \"http\"\nlisten = \"{http}\"\n\
             [proxy]\npeers = {peers:?}\ngeneration = {generation}\nstate_dir = \"state-{name}\"\n{more}"
        );
        let file = format!("{name}.toml");
        std::fs::write(self.path().join(&file), config)?;
        let mut process = Process::start(self.path(), &["--config", &file])?;
        process.wait_for_log("proxy started")?;
        self.proxies[index].process = Some(process);
        Ok(())
    }

    /// Starts an agent at these proxies.
    pub(crate) fn start_agent(&mut self, number: usize, at: &[usize], count: u32) -> Result {
        let proxies: Vec<String> = at
            .iter()
            .map(|index| self.proxies[*index].quic.to_string())
            .collect();
        let config = format!(
            "role = \"agent\"\n[tls]\nca = \"ca.pem\"\ncert = \"a{number}.pem\"\nkey = \"a{number}.key\"\n\
             [quic]\nkeepalive = \"1s\"\nidle_timeout = \"5s\"\n\
             [agent]\nproxies = {proxies:?}\nallow = [\"127.0.0.1:*\"]\nconnection_count = {count}\n"
        );
        let file = format!("a{number}.toml");
        std::fs::write(self.path().join(&file), config)?;
        let mut process = Process::start(self.path(), &["--config", &file])?;
        process.wait_for_log("connected to a proxy")?;
        self.agents.push(process);
        Ok(())
    }

    /// Runs `node ARGS`, which must exit with `code`; what it wrote to standard output and error.
    pub(crate) fn node(&self, args: &[&str], code: i32) -> Result<(String, String)> {
        let output = binary::run(self.path(), args)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(code),
            "node {args:?}: {}: {stdout}{stderr}",
            output.status
        );
        Ok((stdout, stderr))
    }

    /// Waits until a proxy's status begins with `ok`.
    pub(crate) fn until_ok(&self, index: usize) -> Result {
        self.until_status(index, |status| {
            status.starts_with("ok") && status.contains(" is serving")
        })
    }

    /// Waits until what `node status` prints is so.
    pub(crate) fn until_status(&self, index: usize, is_so: impl Fn(&str) -> bool) -> Result {
        let started = Instant::now();
        loop {
            let (status, _) = self.node(&["status", "--admin", &self.proxies[index].url()], 0)?;
            if is_so(&status) {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                bail!("the status is still: {status}");
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
