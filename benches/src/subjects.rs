//! What is measured. A subject is two processes, one near the user and one near the service, and
//! what leads through them.

pub(crate) mod agents;
pub(crate) mod frp;
pub(crate) mod node;
pub(crate) mod rathole;
pub(crate) mod relay;

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::link::LinkConfig;
use crate::link::udp::UdpLink;
use crate::process::Process;
use crate::service::Mode;

/// How long a tunnel may take until something goes through it.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// How long one try may take.
const TRY_PATIENCE: Duration = Duration::from_secs(2);

/// A kind of tunnel.
pub(crate) trait Subject {
    /// What it is called in the tables.
    fn name(&self) -> &str;

    /// Starts its processes, the near one first. `dir` is theirs alone.
    fn start(&self, place: &Place, dir: &Path) -> anyhow::Result<Tunnel>;
}

/// Where the two processes of a subject run, and how they reach each other.
#[derive(Debug)]
pub(crate) struct Place {
    /// Where users enter, at the near process.
    pub(crate) entry: IpAddr,
    /// The near process as the far one reaches it.
    pub(crate) near: IpAddr,
    /// The far process as the near one reaches it.
    pub(crate) far: IpAddr,
    /// What the tunnel leads to, as the far process reaches it.
    pub(crate) target: SocketAddr,
    /// The network namespaces of the two, if they have some.
    pub(crate) namespaces: Option<[String; 2]>,
    /// A link between the two, for subjects that can be led over one by their address.
    pub(crate) udp_link: Option<LinkConfig>,
    /// The next port, where a namespace makes them all free.
    next_port: Cell<u16>,
}

impl Place {
    /// Both on loopback.
    pub(crate) fn loopback(target: SocketAddr) -> Self {
        let loopback = Ipv4Addr::LOCALHOST.into();
        Self {
            entry: loopback,
            near: loopback,
            far: loopback,
            target,
            namespaces: None,
            udp_link: None,
            next_port: Cell::new(20_000),
        }
    }

    /// Led over a link, for subjects that can be.
    pub(crate) fn over(mut self, link: LinkConfig) -> Self {
        self.udp_link = Some(link);
        self
    }

    /// Each in a namespace of its own: `entry`, `near` and `far` are addresses there.
    pub(crate) fn apart(
        [entry, near, far]: [Ipv4Addr; 3],
        target: SocketAddr,
        namespaces: [String; 2],
    ) -> Self {
        Self {
            entry: entry.into(),
            near: near.into(),
            far: far.into(),
            target,
            namespaces: Some(namespaces),
            udp_link: None,
            next_port: Cell::new(20_000),
        }
    }

    /// A port that is free for TCP and UDP.
    pub(crate) fn port(&self) -> anyhow::Result<u16> {
        if self.namespaces.is_some() {
            let port = self.next_port.get();
            self.next_port.set(port + 1);
            return Ok(port);
        }
        for _ in 0..100 {
            let port = TcpListener::bind((self.entry, 0))?.local_addr()?.port();
            if std::net::UdpSocket::bind((self.entry, port)).is_ok() {
                return Ok(port);
            }
        }
        bail!("no free port")
    }

    /// A command that runs near the user.
    pub(crate) fn near_command(&self, program: &Path) -> Command {
        self.command(0, program)
    }

    /// A command that runs near the service.
    pub(crate) fn far_command(&self, program: &Path) -> Command {
        self.command(1, program)
    }

    fn command(&self, side: usize, program: &Path) -> Command {
        match &self.namespaces {
            None => Command::new(program),
            Some(namespaces) => {
                // It becomes the program: the process that is started is the one that is measured.
                let mut command = Command::new("ip");
                command
                    .args(["netns", "exec", &namespaces[side]])
                    .arg(program);
                command
            }
        }
    }
}

/// The processes of a subject.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// Where users enter.
    pub(crate) entry: SocketAddr,
    /// Near the user, near the service.
    pub(crate) processes: [Process; 2],
    /// What is between them, if there is something.
    pub(crate) _link: Option<UdpLink>,
}

/// A tunnel that is known to lead to the service.
#[derive(Debug)]
pub(crate) struct Running {
    tunnel: Tunnel,
    // Dropped after the processes that write into it.
    _dir: TempDir,
}

impl Running {
    /// Starts a subject and waits until something goes through it.
    pub(crate) async fn start(subject: &dyn Subject, place: &Place) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("mesh-benches-").tempdir()?;
        let mut tunnel = subject
            .start(place, dir.path())
            .with_context(|| format!("cannot start {}", subject.name()))?;
        let started = Instant::now();
        loop {
            let tried = tokio::time::timeout(TRY_PATIENCE, echo(tunnel.entry)).await;
            if matches!(tried, Ok(Ok(()))) {
                break;
            }
            for process in &mut tunnel.processes {
                process.must_run().context(subject.name().to_owned())?;
            }
            if started.elapsed() > START_PATIENCE {
                let [near, far] = &tunnel.processes;
                bail!(
                    "nothing goes through {}:\n{}\n{}",
                    subject.name(),
                    near.log(),
                    far.log()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { tunnel, _dir: dir })
    }

    pub(crate) fn entry(&self) -> SocketAddr {
        self.tunnel.entry
    }

    /// Near the user, near the service.
    pub(crate) fn pids(&self) -> [u32; 2] {
        let [near, far] = &self.tunnel.processes;
        [near.id(), far.id()]
    }

    /// What was measured; or why not, which a process that has ended may know better.
    pub(crate) fn explain<T>(
        &mut self,
        measured: anyhow::Result<T>,
        subject: &str,
        load: &str,
    ) -> anyhow::Result<T> {
        let measured = measured.with_context(|| format!("{subject}, {load}"));
        if measured.is_err() {
            for process in &mut self.tunnel.processes {
                process.must_run().context(subject.to_owned())?;
            }
        }
        measured
    }
}

async fn echo(entry: SocketAddr) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(entry).await?;
    socket.write_u8(Mode::Echo as u8).await?;
    socket.read_u8().await?;
    Ok(())
}
