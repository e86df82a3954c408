//! A program under strace, which writes a line for each system call of each of its threads. It needs
//! no privilege: strace starts the program itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_tests::Result;
use mesh_tests::binary::{self, Process};
use mesh_tests::probe::PATIENCE;

/// System calls by name.
pub(crate) type Calls = BTreeMap<String, u64>;

/// A running `node` under strace.
pub(crate) struct Traced {
    process: Process,
    trace: PathBuf,
}

impl Traced {
    /// Starts `node --config <name>.toml` in `dir`, and waits until it logs `ready`.
    pub(crate) fn start(dir: &Path, name: &str, ready: &str) -> Result<Self> {
        let trace = dir.join(format!("{name}.trace"));
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qq", "-e", "raw=all", "-e", "signal=none", "-o"])
            .arg(&trace)
            .arg(binary::path()?)
            .args(["--config", &format!("{name}.toml")])
            .current_dir(dir)
            .env_remove("RUST_LOG");
        let mut process = Process::spawn(command)
            .context("strace is needed (Debian's package `strace`; tests/run installs it)")?;
        process.wait_for_log(ready)?;
        Ok(Self { process, trace })
    }

    /// Waits until it has logged `text` so many times.
    pub(crate) fn wait_for_logs(&mut self, text: &str, times: usize) -> Result {
        let began = now();
        while self.process.log().matches(text).count() < times {
            ensure!(
                self.process.try_wait()?.is_none() && began.elapsed() < PATIENCE,
                "it did not log `{text}` {times} times:\n{}",
                self.process.log()
            );
            #[expect(clippy::disallowed_methods, reason = "between two looks")]
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Where the trace ends now.
    pub(crate) fn mark(&self) -> Result<u64> {
        Ok(fs::metadata(&self.trace)?.len())
    }

    /// The calls since then.
    pub(crate) fn since(&self, mark: u64) -> Result<Calls> {
        let mut file = File::open(&self.trace)?;
        file.seek(SeekFrom::Start(mark))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(calls(&text))
    }

    /// The program's process; strace is its parent.
    fn pid(&self) -> Result<u32> {
        let strace = self.process.id();
        let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children"))?;
        let pid = children.split_whitespace().next().context("no child")?;
        Ok(pid.parse()?)
    }
}

impl Drop for Traced {
    /// A program outlives the strace that is killed, and so ends first.
    fn drop(&mut self) {
        if let Ok(pid) = self.pid() {
            let _ = Command::new("kill")
                .args(["-s", "KILL", &pid.to_string()])
                .status();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "it bounds a hang")]
fn now() -> Instant {
    Instant::now()
}

/// Counts the lines of a trace. A call that another thread's interrupts has two, the second of which
/// says that it was resumed; the first line may be the rest of one.
fn calls(trace: &str) -> Calls {
    let mut calls = Calls::new();
    for line in trace.lines() {
        let Some((pid, call)) = line.split_once(' ') else {
            continue;
        };
        let Some((name, _)) = call.trim_start().split_once('(') else {
            continue;
        };
        if pid.bytes().all(|byte| byte.is_ascii_digit()) && !name.contains(['<', ' ']) {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

#[test]
fn each_call_counts_once() {
    let trace = "0x5) = 0x1\n\
        12 epoll_wait(0x3, 0x7f, 0x400, 0xffffffff <unfinished ...>\n\
        7 recvmmsg(0x9, 0x7f, 0x20, 0, NULL) = -1 EAGAIN (Resource temporarily unavailable)\n\
        7 sendmsg(0x9, 0x7ffe, 0)           = 0x3908\n\
        12 <... epoll_wait resumed>)        = 0x1\n\
        12 sendmsg(0x9, 0x7ffe, 0)          = 0x3908\n\
        12 +++ exited with 0 +++\n";
    let expected = [("epoll_wait", 1), ("recvmmsg", 1), ("sendmsg", 2)];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(calls(trace), Calls::from(expected));
}
