//! Several shards: runtimes on threads of their own, one node.

use std::thread::JoinHandle;

use anyhow::{Context as _, ensure};
use mesh_tests::Result;
use mesh_tests::fleet::{Node, agent_config, http_ingress, proxy_config, tcp_ingress};
use mesh_tests::pki::Pki;
use mesh_tests::services::Service;
use mesh_tests::{http, probe};
use node::app::{Parts, Runtimes};
use node::config::NodeConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::{MIB, body, expect_broken, expect_whole, pages};

/// A single-threaded runtime on a thread of its own.
struct Shard {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Shard {
    fn start() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        #[expect(
            clippy::disallowed_methods,
            reason = "a test stands for main, which makes threads"
        )]
        let thread = std::thread::spawn(move || {
            // An error is the sender's end, which stops it too.
            let _ = runtime.block_on(stopped);
        });
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    fn tasks(&self) -> usize {
        self.handle.metrics().num_alive_tasks()
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn parts(shards: &[Shard]) -> Parts {
    let shards = shards.iter().map(|shard| shard.handle.clone()).collect();
    Parts {
        runtimes: Runtimes {
            shards,
            admin: Handle::current(),
        },
        ..Parts::current()
    }
}

/// Two shards on either side, agents on all of them: every byte arrives, and nothing stays.
#[tokio::test]
async fn shards_carry_traffic() -> Result {
    let proxy_shards = [Shard::start()?, Shard::start()?];
    let agent_shards = [Shard::start()?, Shard::start()?];
    let source = Service::source(2 * MIB as u64).await?;
    let echo = Service::echo().await?;
    let page = pages(|_| body(MIB).to_vec()).await?;
    let allow = [source.rule(), echo.rule(), page.rule()];

    let pki = Pki::new("test.example.com")?;
    let mut config = proxy_config(&pki, "proxy-1")?;
    config.common.quic.shards = 2;
    let names: Vec<_> = (0..6).map(|number| format!("a{number}")).collect();
    config.ingresses.push(http_ingress());
    for name in &names {
        config.ingresses.push(tcp_ingress(name, &source.rule())?);
        config.ingresses.push(tcp_ingress(name, &echo.rule())?);
    }
    let proxy = Node::start(NodeConfig::Proxy(Box::new(config)), parts(&proxy_shards)).await?;
    let quic = proxy.quic_addr()?;
    let mut agents = Vec::new();
    for name in &names {
        let mut config = agent_config(&pki, name, &[quic], &allow)?;
        config.common.quic.shards = 2;
        agents.push(Node::start(NodeConfig::Agent(Box::new(config)), parts(&agent_shards)).await?);
    }
    proxy.sessions(names.len()).await?;

    let mut users = JoinSet::new();
    for (index, name) in names.iter().enumerate() {
        let (download, both) = (proxy.ingress(1 + 2 * index)?, proxy.ingress(2 + 2 * index)?);
        users.spawn(async move {
            expect_whole(&mut TcpStream::connect(download).await?, body(2 * MIB)).await
        });
        users.spawn(async move {
            let (mut read, mut write) = TcpStream::connect(both).await?.into_split();
            let send = async {
                write.write_all(body(2 * MIB)).await?;
                Ok(write.shutdown().await?)
            };
            tokio::try_join!(send, expect_whole(&mut read, body(2 * MIB))).map(drop)
        });
        let dialer = proxy.as_proxy()?.dialer(name)?;
        let target = source.rule();
        users.spawn(
            async move { expect_whole(&mut dialer.dial(&target).await?, body(2 * MIB)).await },
        );
        let (http_ingress, path) = (
            proxy.ingress(0)?,
            format!("/client/{name}/http/{}/", page.addr),
        );
        users.spawn(async move {
            let answer = http::get(http_ingress, &path).await?;
            ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
            ensure!(answer.body == body(MIB), "wrong bytes");
            Ok(())
        });
    }
    while let Some(user) = users.join_next().await {
        user??;
    }

    // A cut stream is no whole one there either, and a drop leaves no task on any shard.
    let mut cut = TcpStream::connect(proxy.ingress(2)?).await?;
    cut.write_all(b"x").await?;
    tokio::io::AsyncReadExt::read_exact(&mut cut, &mut [0]).await?;
    drop(proxy);
    expect_broken(&mut cut)
        .await
        .context("the proxy was dropped")?;
    for agent in agents {
        ensure!(agent.stop().await == 0, "the agent had to cut streams");
    }
    for shard in proxy_shards.iter().chain(&agent_shards) {
        probe::until("the shard has no task left", || shard.tasks() == 0).await?;
    }
    Ok(())
}
