//! The link between two network namespaces, as a pair of TUN devices whose packets pass through
//! this process. Root only.
//!
//! ```text
//!  this namespace ──veth── near ══TUN═[ wire ]═TUN══ far ──veth── this namespace
//! ```

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use tokio::runtime::Runtime;
use tokio_tun::Tun;

use super::{LinkConfig, Wire};
use crate::process::run;

/// Bytes of an IP packet on the link.
pub(crate) const MTU: usize = 1500;

/// Users enter the near namespace here.
pub(crate) const ENTRY: Ipv4Addr = Ipv4Addr::new(10, 98, 1, 2);
/// The ends of the link.
pub(crate) const NEAR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The service, as the far namespace reaches it.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 98, 2, 1);

/// Two namespaces and the link between them; both are gone when it is dropped.
#[derive(Debug)]
pub(crate) struct TunLink {
    namespaces: [Namespace; 2],
    runtime: Option<Runtime>,
}

impl TunLink {
    /// Makes it. `congestion` is that of TCP over it.
    pub(crate) fn new(config: LinkConfig, congestion: &str) -> anyhow::Result<Self> {
        let mut namespaces = [Namespace::new("near")?, Namespace::new("far")?];
        let [near, far] = &mut namespaces;
        near.join(Ipv4Addr::new(10, 98, 1, 1), ENTRY)?;
        far.join(SERVICE, Ipv4Addr::new(10, 98, 2, 2))?;
        // One thread: two directions of 20,000 packets a second are little work for it.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        {
            let _runtime = runtime.enter();
            let [a, b] = [
                near.tun(NEAR, FAR, congestion)?,
                far.tun(FAR, NEAR, congestion)?,
            ];
            let (a, b) = (std::sync::Arc::new(a), std::sync::Arc::new(b));
            runtime.spawn(carry(a.clone(), b.clone(), Wire::new(config, 1)));
            runtime.spawn(carry(b, a, Wire::new(config, 2)));
        }
        Ok(Self {
            namespaces,
            runtime: Some(runtime),
        })
    }

    /// Sets the congestion control of TCP connections that are opened over it from now on.
    pub(crate) fn set_congestion(&self, congestion: &str) -> anyhow::Result<()> {
        let [near, far] = &self.namespaces;
        near.route(NEAR, FAR, congestion)?;
        far.route(FAR, NEAR, congestion)
    }

    /// The names of the two.
    pub(crate) fn namespaces(&self) -> [String; 2] {
        [&self.namespaces[0], &self.namespaces[1]].map(|namespace| namespace.name.clone())
    }
}

impl Drop for TunLink {
    fn drop(&mut self) {
        // A runtime may not be dropped where another one runs.
        if let Some(runtime) = self.runtime.take() {
            let _ = thread::spawn(move || drop(runtime)).join();
        }
    }
}

async fn carry(from: std::sync::Arc<Tun>, to: std::sync::Arc<Tun>, mut wire: Wire) {
    let mut packet = [0; MTU];
    loop {
        let next_at = wire.next_at();
        let arrival = async {
            match next_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = arrival => {
                // A device that takes no packet loses it, as a wire would.
                while let Some(packet) = wire.pop(Instant::now()) {
                    let _ = to.try_send(&packet);
                }
            }
            received = from.recv(&mut packet) => match received {
                Ok(bytes) => wire.push(Instant::now(), &packet[..bytes]),
                Err(error) => {
                    eprintln!("the link has failed: {error}");
                    return;
                }
            },
        }
    }
}

/// A network namespace, deleted when it is dropped.
#[derive(Debug)]
struct Namespace {
    name: String,
    number: u32,
    /// This process's end of the pair that leads there.
    veth: Option<String>,
}

impl Namespace {
    fn new(role: &str) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mesh-benches-{}-{number}-{role}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self {
            name,
            number,
            veth: None,
        };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Joins it to the namespace of this process, with an address on either side.
    fn join(&mut self, here: Ipv4Addr, there: Ipv4Addr) -> anyhow::Result<()> {
        let veth = format!("mb{}v{}", std::process::id(), self.number);
        run(Command::new("ip")
            .args(["link", "add", &veth, "type", "veth", "peer", "name", "user"])
            .args(["netns", &self.name]))?;
        self.veth = Some(veth.clone());
        run(Command::new("ip").args(["addr", "add", &format!("{here}/24"), "dev", &veth]))?;
        run(Command::new("ip").args(["link", "set", &veth, "up"]))?;
        self.ip(&["addr", "add", &format!("{there}/24"), "dev", "user"])?;
        self.ip(&["link", "set", "user", "up"])
    }

    /// A TUN device in it, whose packets are read and written here.
    fn tun(&self, address: Ipv4Addr, peer: Ipv4Addr, congestion: &str) -> anyhow::Result<Tun> {
        let name = self.tun_name();
        let tun = Tun::builder()
            .name(&name)
            .mtu(i32::try_from(MTU)?)
            .build()
            .context("a TUN device")?
            .pop()
            .context("no TUN device")?;
        run(Command::new("ip").args(["link", "set", &name, "netns", &self.name]))?;
        let (from, to) = (address.to_string(), peer.to_string());
        self.ip(&["addr", "add", &from, "peer", &to, "dev", &name])?;
        self.ip(&["link", "set", &name, "mtu", &MTU.to_string()])?;
        self.ip(&["link", "set", &name, "txqueuelen", "10000", "up"])?;
        self.route(address, peer, congestion)?;
        Ok(tun)
    }

    /// How the other end is reached.
    fn route(&self, address: Ipv4Addr, peer: Ipv4Addr, congestion: &str) -> anyhow::Result<()> {
        let (address, peer) = (address.to_string(), peer.to_string());
        let name = self.tun_name();
        self.ip(&[
            "route", "replace", &peer, "dev", &name, "src", &address, "congctl", congestion,
        ])
    }

    fn tun_name(&self) -> String {
        format!("mb{}t{}", std::process::id(), self.number)
    }

    fn ip(&self, args: &[&str]) -> anyhow::Result<()> {
        run(Command::new("ip").args(["-n", &self.name]).args(args))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The kernel deletes what was in a namespace some time after it: until then, the address at
        // this end would lead nowhere.
        if let Some(veth) = self.veth.take()
            && let Err(error) = run(Command::new("ip").args(["link", "del", &veth]))
        {
            eprintln!("an interface is left behind: {error:#}");
        }
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("a network namespace is left behind: {error:#}");
        }
    }
}
