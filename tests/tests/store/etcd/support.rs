//! Real etcd processes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use etcd_client::Client;
use mesh_tests::binary::{Process, free_port};
use mesh_tests::programs::command;
use mesh_tests::{Result, probe};
use node::store::{Clock, Store, StoreUrl};
use tempfile::TempDir;

use crate::support::Engine;

/// What etcd writes when it serves.
const READY: &str = "ready to serve client requests";

/// One member of a cluster on loopback; dropping it kills it.
pub(crate) struct Member {
    name: String,
    pub(crate) client: SocketAddr,
    peer: SocketAddr,
    process: Option<Process>,
}

/// Members that know each other.
pub(crate) struct Etcd {
    pub(crate) members: Vec<Member>,
    scheme: &'static str,
    flags: Vec<String>,
    dir: TempDir,
}

impl Etcd {
    /// Starts so many members.
    pub(crate) fn start(count: usize) -> Result<Self> {
        Self::start_with("http", count, |_| Vec::new())
    }

    /// Starts them with further flags, which may name files in the directory.
    pub(crate) fn start_with(
        scheme: &'static str,
        count: usize,
        flags: impl FnOnce(&Path) -> Vec<String>,
    ) -> Result<Self> {
        // In memory: what is tested is not this machine's disk.
        let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new())?;
        let mut members = Vec::new();
        for index in 0..count {
            members.push(Member {
                name: format!("m{index}"),
                client: free_port()?,
                peer: free_port()?,
                process: None,
            });
        }
        let flags = flags(dir.path());
        let mut etcd = Self {
            members,
            scheme,
            flags,
            dir,
        };
        for index in 0..count {
            etcd.spawn(index)?;
        }
        for index in 0..count {
            etcd.wait_ready(index)?;
        }
        Ok(etcd)
    }

    fn spawn(&mut self, index: usize) -> Result {
        let all: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("{}=http://{}", member.name, member.peer))
            .collect();
        let member = &self.members[index];
        let (client, peer) = (
            format!("{}://{}", self.scheme, member.client),
            format!("http://{}", member.peer),
        );
        let mut command = command("etcd")?;
        command
            .args(["--name", &member.name, "--data-dir"])
            .arg(self.dir.path().join(&member.name))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &all.join(",")])
            .args(&self.flags);
        self.members[index].process = Some(Process::spawn(command)?);
        Ok(())
    }

    fn wait_ready(&mut self, index: usize) -> Result {
        let member = &mut self.members[index];
        let process = member.process.as_mut().context("it runs")?;
        process.wait_for_log(READY)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, index: usize) {
        self.members[index].process = None;
    }

    /// Starts a killed one again, on what it has on disk.
    pub(crate) fn restart(&mut self, index: usize) -> Result {
        self.spawn(index)?;
        self.wait_ready(index)
    }

    /// Starts all killed ones again, on what they have on disk.
    pub(crate) fn restart_all(&mut self) -> Result {
        for index in 0..self.members.len() {
            self.spawn(index)?;
        }
        (0..self.members.len()).try_for_each(|index| self.wait_ready(index))
    }

    /// SIGSTOP, SIGCONT.
    pub(crate) fn signal(&self, index: usize, name: &str) -> Result {
        let process = self.members[index].process.as_ref().context("it runs")?;
        process.signal(name)
    }

    /// The URL of all members, with this before and behind them.
    pub(crate) fn url(&self, user: &str, rest: &str) -> String {
        let members: Vec<String> = self.members.iter().map(|m| m.client.to_string()).collect();
        format!("etcd://{user}{}{rest}", members.join(","))
    }

    /// A store of this cluster.
    pub(crate) async fn store(&self, prefix: &str) -> Result<Arc<dyn Store>> {
        let url: StoreUrl = self.url("", prefix).parse()?;
        Ok(node::store::open(&url, Clock::system()).await?)
    }

    /// A client of the first member, without a store around it.
    pub(crate) async fn client(&self) -> Result<Client> {
        let endpoint = format!("{}://{}", self.scheme, self.members[0].client);
        Ok(Client::connect([endpoint], None).await?)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// A store in an etcd of its own.
pub(crate) struct OneEtcd {
    etcd: Etcd,
    store: Arc<dyn Store>,
}

impl Engine for OneEtcd {
    async fn start() -> Result<Self> {
        let etcd = Etcd::start(1)?;
        let store = etcd.store("/mesh").await?;
        Ok(Self { etcd, store })
    }

    fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Its time passes by itself.
    async fn pass(&self, _: Duration) -> Result {
        Ok(())
    }

    async fn compact(&self) -> Result {
        let revision = self.store.list("").await?.revision;
        let revision = i64::try_from(revision.0)?;
        let mut kv = self.etcd.client().await?.kv_client();
        kv.compact(revision, None).await?;
        // It is forgotten at once, or a moment later.
        probe::eventually("the past is forgotten", async || {
            let options = etcd_client::GetOptions::new().with_revision(revision - 1);
            match kv.clone().get("x", Some(options)).await {
                Ok(_) => anyhow::bail!("revision {} is known", revision - 1),
                Err(_) => Ok(()),
            }
        })
        .await
    }
}
