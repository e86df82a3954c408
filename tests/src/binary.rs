//! The real binary, started as an operator would.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::Result;
use crate::probe::{Metrics, PATIENCE};

/// The path of the binary `node` of this build.
///
/// # Errors
/// When it cannot be built.
pub fn path() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    // target/<profile>/deps/<this test>
    let test = std::env::current_exe()?;
    let profile = test.parent().and_then(Path::parent).context("not in a target directory")?;
    let release = profile.file_name().is_some_and(|name| name == "release");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "node", "--bin", "node"]);
    if release {
        command.arg("--release");
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
    Ok(Command::new(path()?).args(args).current_dir(dir).env_remove("RUST_LOG").output()?)
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

/// A TCP port and a UDP port of the loopback interface that are free now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<SocketAddr> {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = tcp.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
}

/// A running binary; dropping it kills it.
pub struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Process {
    /// Starts `node ARGS` in `dir`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(dir: &Path, args: &[&str]) -> Result<Self> {
        let mut child = Command::new(path()?)
            .args(args)
            .current_dir(dir)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().context("no standard error")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, log, reader: Some(reader) })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Waits for a line of the log that contains `text`.
    ///
    /// # Errors
    /// When it ends or takes too long; the error has the whole log.
    pub fn wait_for_log(&mut self, text: &str) -> Result {
        let started = Instant::now();
        while !self.log().contains(text) {
            if let Some(status) = self.child.try_wait()? {
                bail!("the node ended ({status}) before it logged `{text}`:\n{}", self.log());
            }
            if started.elapsed() > PATIENCE {
                bail!("the node did not log `{text}`:\n{}", self.log());
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
        let status = Command::new("kill").args(["-s", name, &self.id().to_string()]).status()?;
        if !status.success() {
            bail!("kill -s {name}: {status}");
        }
        Ok(())
    }

    /// Waits for it to end.
    ///
    /// # Errors
    /// When it takes too long; the error has the whole log.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                if let Some(reader) = self.reader.take() {
                    // It ends with the pipe.
                    let _ = reader.join();
                }
                return Ok(status);
            }
            if started.elapsed() > PATIENCE {
                bail!("the node did not end:\n{}", self.log());
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

/// The metrics of a running binary.
///
/// # Errors
/// When they cannot be fetched or read.
pub async fn metrics(listener: SocketAddr) -> Result<Metrics> {
    Metrics::parse(&crate::http::get(listener, "/metrics").await?.text())
}
