//! The real binary, started as an operator would.

#![expect(
    clippy::disallowed_methods,
    reason = "it runs in real time, and its pipes need threads"
)]

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::Result;
use crate::netns::Namespace;
use crate::probe::{Metrics, PATIENCE};

/// The path of the binary `node` of this build.
///
/// # Errors
/// When it cannot be built.
pub fn path() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    // target/<profile>/deps/<this test>
    let test = std::env::current_exe()?;
    let profile = test
        .parent()
        .and_then(Path::parent)
        .context("not in a target directory")?;
    let release = profile.file_name().is_some_and(|name| name == "release");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "node", "--bin", "node"]);
    if release {
        command.arg("--release");
    }
    // As tests/run has built it.
    if cfg!(feature = "etcd") {
        command.args(["--features", "etcd"]);
    }
    let target_dir = profile.parent().context("not in a target directory")?;
    let status = command.arg("--target-dir").arg(target_dir).status()?;
    if !status.success() {
        bail!("cannot build the binary: {status}");
    }
    Ok(profile.join("node"))
}

/// Runs the binary to its end.
///
/// # Errors
/// When it cannot be started.
pub fn run(dir: &Path, args: &[&str]) -> Result<Output> {
    Ok(Command::new(path()?)
        .args(args)
        .current_dir(dir)
        .env_remove("RUST_LOG")
        .output()?)
}

/// Runs the binary to its end, which must be a success; returns its standard output.
///
/// # Errors
/// When it fails, with all that it wrote.
pub fn must(dir: &Path, args: &[&str]) -> Result<String> {
    let output = run(dir, args)?;
    if !output.status.success() {
        bail!(
            "node {}: {}\n{}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// A loopback address whose TCP and UDP ports are free now, and which no other test gets, in this
/// process or another, for as long as this process lives.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<SocketAddr> {
    // Bound names in the abstract namespace: as wide as the ports are, and gone with the process.
    static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    // Below what the system gives to clients (net.ipv4.ip_local_port_range), so that no connection
    // takes it before the test does; above the demo's.
    for port in 10_000..32_000 {
        let name = format!("mesh-tests/port/{port}");
        let Ok(reserved) =
            UnixListener::bind_addr(&unix::net::SocketAddr::from_abstract_name(name)?)
        else {
            continue;
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            RESERVED
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(reserved);
            return Ok(address);
        }
    }
    bail!("no port is free")
}

/// A running program, the binary `node` or another; dropping it kills it.
pub struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<thread::JoinHandle<()>>,
}

impl Process {
    /// Starts `node ARGS` in `dir`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(dir: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(path()?);
        command.args(args).current_dir(dir).env_remove("RUST_LOG");
        Self::spawn(command)
    }

    /// Starts `node ARGS` in `dir` and a network namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_in(namespace: &Namespace, dir: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(path()?);
        command.args(args).current_dir(dir).env_remove("RUST_LOG");
        Self::spawn(namespace.moved(&command))
    }

    /// Starts any program, with nothing to read.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null());
        Ok(Self::spawned(command)?.0)
    }

    /// Starts any program, and returns what it reads from.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_with_input(mut command: Command) -> Result<(Self, ChildStdin)> {
        command.stdin(Stdio::piped());
        let (process, stdin) = Self::spawned(command)?;
        Ok((process, stdin.context("no standard input")?))
    }

    fn spawned(mut command: Command) -> Result<(Self, Option<ChildStdin>)> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let readers = vec![collect(stdout, log.clone()), collect(stderr, log.clone())];
        Ok((
            Self {
                child,
                log,
                readers,
            },
            stdin,
        ))
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written, on standard output and standard error.
    #[must_use]
    pub fn log(&self) -> String {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .join("\n")
    }

    /// Waits for a line of the log that contains `text`.
    ///
    /// # Errors
    /// When it ends or takes too long; the error has the whole log.
    pub fn wait_for_log(&mut self, text: &str) -> Result {
        let started = Instant::now();
        while !self.log().contains(text) {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the process ended ({status}) before it logged `{text}`:\n{}",
                    self.log()
                );
            }
            if started.elapsed() > PATIENCE {
                bail!("the process did not log `{text}`:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends a signal, by its name as for kill(1).
    ///
    /// # Errors
    /// When there is no such process.
    pub fn signal(&self, name: &str) -> Result {
        let status = Command::new("kill")
            .args(["-s", name, &self.id().to_string()])
            .status()?;
        if !status.success() {
            bail!("kill -s {name}: {status}");
        }
        Ok(())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for it to end.
    ///
    /// # Errors
    /// When it takes too long; the error has the whole log.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                for reader in self.readers.drain(..) {
                    // It ends with the pipe.
                    let _ = reader.join();
                }
                return Ok(status);
            }
            if started.elapsed() > PATIENCE {
                bail!("the process did not end:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects lines until the pipe ends.
fn collect(
    pipe: impl std::io::Read + Send + 'static,
    log: Arc<Mutex<Vec<String>>>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe)
            .split(b'\n')
            .map_while(std::result::Result::ok)
        {
            let line = String::from_utf8_lossy(&line).into_owned();
            log.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    })
}

/// The metrics of a running binary.
///
/// # Errors
/// When they cannot be fetched or read.
pub async fn metrics(listener: SocketAddr) -> Result<Metrics> {
    Metrics::parse(&crate::http::get(listener, "/metrics").await?.text())
}
