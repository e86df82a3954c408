//! Child processes, and what they use.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts one that logs to `<dir>/<name>.log`.
    pub(crate) fn start(mut command: Command, dir: &Path, name: &str) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log)?;
        let child = command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Fails when it has ended, with the end of its log.
    pub(crate) fn must_run(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(10).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            bail!("{} has ended ({status}):\n{}", self.name, lines.join("\n"));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    pub(crate) switches: u64,
    pub(crate) resident_bytes: u64,
}

pub(crate) fn used(pid: u32) -> anyhow::Result<Used> {
    let mut used = Used {
        cpu: Duration::ZERO,
        switches: 0,
        resident_bytes: resident_bytes(pid)?,
    };
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // Nanoseconds on a CPU, where the ticks of `stat` are hundredths of a second. A thread may
        // have ended since it was listed.
        let Ok(run) = fs::read_to_string(task.join("schedstat")) else {
            continue;
        };
        let run = run
            .split_whitespace()
            .next()
            .context("schedstat")?
            .parse()?;
        used.cpu += Duration::from_nanos(run);
        used.switches += field(&task.join("status"), "voluntary_ctxt_switches").unwrap_or(0);
    }
    Ok(used)
}

/// CPU time of several processes together.
pub(crate) fn cpu_of(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| Ok(used(*pid)?.cpu)).sum()
}

/// What a process has in memory. The kernel's buffers for its sockets are not in it.
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    Ok(field(Path::new(&format!("/proc/{pid}/status")), "VmRSS")? * 1024)
}

fn field(file: &Path, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(file)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("{name} in {}", file.display()))?;
    let number = line.split_whitespace().next().context("a number")?;
    Ok(number.parse()?)
}

/// Runs a command to its end, which must be a success.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
