//! Allocations of a proxy and of an agent, each on a thread of its own in this process: the counter is
//! one per thread.

use std::net::SocketAddr;
use std::thread::{self, JoinHandle};

use allocation_counter::AllocationInfo;
use anyhow::{Context as _, anyhow};
use mesh_tests::Result;
use mesh_tests::fleet::{agent_config, proxy_config, tcp_ingress};
use mesh_tests::pki::Pki;
use node::app::{self, Parts};
use node::config::NodeConfig;
use tokio::sync::{mpsc, oneshot};

use crate::baseline::Measured;
use crate::load::{self, Client};
use crate::{BULK_BYTES, DIALS, MIB, MTU, WARM_UP_BYTES, WARM_UP_DIALS};

/// Streams that are idle together.
const IDLE_STREAMS: u32 = 100;

/// What each of them has moved before, in each direction.
const IDLE_STREAM_BYTES: u64 = 1 << 20;

/// A time in which allocations are counted.
struct Window {
    began: oneshot::Sender<()>,
    end: oneshot::Receiver<()>,
    counted: oneshot::Sender<AllocationInfo>,
}

/// A window that is open.
struct Open {
    end: oneshot::Sender<()>,
    counted: oneshot::Receiver<AllocationInfo>,
}

/// A node on a thread of its own.
struct Hosted {
    quic: Option<SocketAddr>,
    ingress: Option<SocketAddr>,
    windows: mpsc::Sender<Window>,
    thread: JoinHandle<Result>,
}

impl Hosted {
    fn start(config: NodeConfig) -> Result<Self> {
        let (bound, addresses) = oneshot::channel();
        let (windows, mut asked) = mpsc::channel::<Window>(1);
        #[expect(clippy::disallowed_methods, reason = "the counter is one per thread")]
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let node =
                runtime.block_on(async { app::build_with(config, Parts::current()).await })?;
            let quic = node.proxy().map(node::Proxy::quic_addr);
            let ingress = node
                .proxy()
                .and_then(|proxy| proxy.ingress_addrs().first().copied());
            let _ = bound.send((quic, ingress));
            while let Some(window) = runtime.block_on(asked.recv()) {
                let info = allocation_counter::measure(|| {
                    let _ = window.began.send(());
                    // An error is the end, too.
                    let _ = runtime.block_on(window.end);
                });
                let _ = window.counted.send(info);
            }
            runtime.block_on(node.shutdown());
            Ok(())
        });
        match addresses.blocking_recv() {
            Ok((quic, ingress)) => Ok(Self {
                quic,
                ingress,
                windows,
                thread,
            }),
            Err(_) => Err(joined(thread).err().context("the node has ended")?),
        }
    }

    fn open(&self) -> Result<Open> {
        let (began, has_begun) = oneshot::channel();
        let (end, ends) = oneshot::channel();
        let (counted, count) = oneshot::channel();
        let window = Window {
            began,
            end: ends,
            counted,
        };
        self.windows
            .blocking_send(window)
            .map_err(|_| anyhow!("the node has ended"))?;
        has_begun.blocking_recv()?;
        Ok(Open {
            end,
            counted: count,
        })
    }

    fn stop(self) -> Result {
        drop(self.windows);
        joined(self.thread)
    }
}

fn joined(thread: JoinHandle<Result>) -> Result {
    thread.join().map_err(|_| anyhow!("a panic"))?
}

impl Open {
    fn close(self) -> Result<AllocationInfo> {
        let _ = self.end.send(());
        Ok(self.counted.blocking_recv()?)
    }
}

pub(crate) fn measure(measured: &mut Measured) -> Result {
    let service = load::service()?;
    let pki = Pki::new("test.example.com")?;
    let mut config = proxy_config(&pki, "proxy-1")?;
    config.common.quic.mtu_max = MTU;
    config.ingresses = vec![tcp_ingress("a1", &service.to_string())?];
    let proxy = Hosted::start(NodeConfig::Proxy(Box::new(config)))?;
    let quic = proxy.quic.context("a proxy has an address")?;
    let mut config = agent_config(&pki, "a1", &[quic], &[service.to_string()])?;
    config.common.quic.mtu_max = MTU;
    let agent = Hosted::start(NodeConfig::Agent(Box::new(config)))?;
    let entry = proxy.ingress.context("a proxy has an ingress")?;

    let mut count = |per: &str, units: f64, load: &mut dyn FnMut() -> Result| -> Result {
        let windows = [("proxy", proxy.open()?), ("agent", agent.open()?)];
        load()?;
        for (node, window) in windows {
            let info = window.close()?;
            for (what, total) in [
                ("allocations", info.count_total),
                ("bytes", info.bytes_total),
            ] {
                measured.add(
                    format!("{node}, {what} per {per}"),
                    total as f64 / units,
                    "",
                );
            }
        }
        Ok(())
    };
    let mut client = Client::connect(entry)?;
    let mib = (BULK_BYTES / MIB) as f64;
    client.down(WARM_UP_BYTES)?;
    count("MiB down", mib, &mut || client.down(BULK_BYTES))?;
    client.up(WARM_UP_BYTES)?;
    count("MiB up", mib, &mut || client.up(BULK_BYTES))?;
    load::dials(entry, WARM_UP_DIALS)?;
    count("dial", DIALS.into(), &mut || load::dials(entry, DIALS))?;

    // Held, and not freed again, by streams that have moved bytes and have nothing to do.
    let windows = [("proxy", proxy.open()?), ("agent", agent.open()?)];
    let mut idle = Vec::new();
    for _ in 0..IDLE_STREAMS {
        let mut client = Client::connect(entry)?;
        client.down(IDLE_STREAM_BYTES)?;
        client.up(IDLE_STREAM_BYTES)?;
        idle.push(client);
    }
    // What the last bytes of each have left is acknowledged by now.
    for client in &mut idle {
        client.up(1)?;
    }
    for (node, window) in windows {
        let held = window.close()?.bytes_current as f64 / f64::from(IDLE_STREAMS);
        measured.add(format!("{node}, bytes held by an idle stream"), held, "");
    }
    drop(idle);
    agent.stop()?;
    proxy.stop()
}
