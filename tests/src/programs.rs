//! Real programs around the mesh: ssh, nginx and the like, as they are installed here.

#![expect(
    clippy::disallowed_methods,
    reason = "they run in real time, and their pipes need threads"
)]

use std::fmt::Write as _;
use std::io::{self, Read as _, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use aws_lc_rs::digest;

use crate::Result;
use crate::binary::Process;
use crate::probe::PATIENCE;

/// How long a program may run. It bounds a hang and is no claim about speed.
pub const RUN_PATIENCE: Duration = Duration::from_secs(300);

/// How long a daemon may take to end in order before it is killed.
const TERM_PATIENCE: Duration = Duration::from_secs(5);

/// Variables that would lead a program past the test: proxies, and certificates to trust.
const MISLEADING: [&str; 13] = [
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "CURL_CA_BUNDLE",
    "CURL_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SSH_AUTH_SOCK",
    "RUST_LOG",
];

/// The path of an installed program.
///
/// # Errors
/// When there is none; the error says what installs it.
pub fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where Debian has sshd and nginx; not in everybody's PATH.
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")])
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("`{program}` is not installed: run tests/run, which installs it"))
}

/// A command for an installed program, which does not heed this shell's proxies and certificates.
///
/// # Errors
/// As [`find`].
pub fn command(program: &str) -> Result<Command> {
    let mut command = Command::new(find(program)?);
    command.env("LC_ALL", "C");
    for name in MISLEADING {
        command.env_remove(name);
    }
    Ok(command)
}

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// The command line.
    pub command: String,
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Its exit code; `None` after a signal.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Its standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Insists on success.
    ///
    /// # Errors
    /// When it failed, with what it wrote.
    pub fn must(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let start = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4096)]);
        bail!(
            "{}: {}\n{start}\n{}",
            self.command,
            self.status,
            self.stderr
        )
    }
}

/// Runs a program to its end, with nothing to read.
///
/// # Errors
/// When it cannot be started, or does not end within [`RUN_PATIENCE`].
pub fn run(command: &mut Command) -> Result<Finished> {
    run_fed(command, |_| Ok(()))
}

/// Runs a program to its end; `feed` writes what it reads.
///
/// # Errors
/// As [`run`].
pub fn run_fed(
    command: &mut Command,
    feed: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send,
) -> Result<Finished> {
    let mut stdout = Vec::new();
    let finished = run_piped(command, feed, |bytes| stdout.extend_from_slice(bytes))?;
    Ok(Finished { stdout, ..finished })
}

/// Runs a program to its end; `feed` writes what it reads, `take` gets what it writes, piece by
/// piece.
///
/// # Errors
/// As [`run`].
pub fn run_piped(
    command: &mut Command,
    feed: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send,
    mut take: impl FnMut(&[u8]) + Send,
) -> Result<Finished> {
    let line = command_line(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {line}"))?;
    let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        bail!("{line}: no pipes")
    };
    thread::scope(|scope| {
        let writer = scope.spawn(move || feed(&mut stdin));
        let errors = scope.spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let reader = scope.spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                take(&buffer[..read]);
            }
        });
        let ended = wait(&mut child, RUN_PATIENCE);
        if !matches!(ended, Ok(Some(_))) {
            // The pipes end with it, and with them the threads.
            let _ = child.kill();
            let _ = child.wait();
        }
        let stderr = errors.join().unwrap_or_default();
        let read = reader.join();
        let written = writer.join();
        let Some(status) = ended? else {
            bail!("{line}: did not end within {RUN_PATIENCE:?}\n{stderr}")
        };
        if read.is_err() {
            bail!("{line}: its output could not be taken");
        }
        match written {
            Ok(Ok(())) => {}
            // A program need not read all; what it made of it is for the test to judge.
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Ok(Err(error)) => bail!("{line}: cannot write its input: {error}\n{stderr}"),
            Err(_) => bail!("{line}: its input could not be made\n{stderr}"),
        }
        Ok(Finished {
            command: line.clone(),
            status,
            stdout: Vec::new(),
            stderr,
        })
    })
}

fn wait(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > patience {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// A server in the background; dropping it ends it.
pub struct Daemon {
    process: Process,
    name: String,
}

impl Daemon {
    /// Starts it and waits until it listens on `address`, of IPv4.
    ///
    /// # Errors
    /// When it cannot be started, ends at once or does not listen; with what it wrote.
    pub fn start(command: Command, address: SocketAddr) -> Result<Self> {
        let name = command_line(&command);
        let mut daemon = Self {
            process: Process::spawn(command)?,
            name,
        };
        let started = Instant::now();
        while !is_listening(address)? {
            if let Some(status) = daemon.process.try_wait()? {
                bail!("{}: ended ({status}):\n{}", daemon.name, daemon.log());
            }
            if started.elapsed() > PATIENCE {
                bail!(
                    "{}: does not listen on {address}:\n{}",
                    daemon.name,
                    daemon.log()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    /// Starts it and waits until it has written `ready`.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_when(command: Command, ready: &str) -> Result<Self> {
        let name = command_line(&command);
        let mut process = Process::spawn(command)?;
        process.wait_for_log(ready)?;
        Ok(Self { process, name })
    }

    /// What it has written.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Killed, it could not end its own children; nginx does when asked to.
        if matches!(self.process.try_wait(), Ok(None)) && self.process.signal("TERM").is_ok() {
            let started = Instant::now();
            while matches!(self.process.try_wait(), Ok(None)) && started.elapsed() < TERM_PATIENCE {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Whether a TCP socket listens there. It is not asked: iperf3 would take that for its one client.
fn is_listening(address: SocketAddr) -> Result<bool> {
    const LISTEN: &str = "0A";
    let IpAddr::V4(ip) = address.ip() else {
        bail!("{address} is not of IPv4")
    };
    // The address as the kernel prints it: in the byte order of this machine.
    let local = format!(
        "{:08X}:{:04X}",
        u32::from_ne_bytes(ip.octets()),
        address.port()
    );
    let sockets = std::fs::read_to_string("/proc/net/tcp")?;
    Ok(sockets.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().take(4).collect();
        matches!(fields[..], [_, at, _, state] if at == local && state == LISTEN)
    }))
}

/// SHA-256, as sha256sum(1) writes it.
#[derive(Clone)]
pub struct Sha256(digest::Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Sha256 {
    /// Of one piece.
    #[must_use]
    pub fn of(bytes: &[u8]) -> String {
        let mut sha256 = Self::default();
        sha256.update(bytes);
        sha256.finish()
    }

    /// Adds a piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest in hexadecimal digits.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
            .finish()
            .as_ref()
            .iter()
            .fold(String::new(), |mut text, byte| {
                // Writing to a String cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
    }
}

/// The most memory that a process has had resident so far (`VmHWM`), in bytes.
///
/// # Errors
/// When there is no such process.
pub fn peak_resident_bytes(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    let kib: u64 = line
        .trim()
        .strip_suffix("kB")
        .context("not in kB")?
        .trim()
        .parse()?;
    Ok(kib << 10)
}
