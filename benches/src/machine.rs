//! The machine: what it is, what it allows, and a network namespace of our own.

use std::fs;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use crate::process::run;

/// The congestion control that loopback TCP is measured with. BBR paces, which halves it.
const LOOPBACK_CONGESTION: &str = "cubic";

/// Descriptors that 10,000 streams need in this process, which is both of their ends.
const DESCRIPTORS: u64 = 65_536;

/// What a table is worth nothing without.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    pub(crate) tcp_congestion: String,
    /// Whether everything ran in a network namespace of its own.
    pub(crate) namespace: bool,
    pub(crate) udp_rcvbuf_max_bytes: Option<u64>,
    pub(crate) descriptors: u64,
    /// Processes that were runnable when the run began, beside it.
    pub(crate) load_before: String,
}

impl Machine {
    /// Enters a namespace if that is allowed, raises limits, and looks around. No thread may have
    /// been started yet: it would stay outside.
    pub(crate) fn prepare(own_namespace: bool) -> anyhow::Result<Self> {
        let load_before = read("/proc/loadavg").unwrap_or_default();
        let udp_rcvbuf_max_bytes =
            read("/proc/sys/net/core/rmem_max").and_then(|text| text.parse().ok());
        let namespace = own_namespace && enter_namespace();
        let mut tcp_congestion =
            read("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
        // Where the kernel has no CUBIC, the table says what there was.
        if namespace && set_congestion(LOOPBACK_CONGESTION).is_ok() {
            LOOPBACK_CONGESTION.clone_into(&mut tcp_congestion);
        }
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let value = |text: &str, name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory_kib: u64 = value(&memory, "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        Ok(Self {
            cpu: value(&info, "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            cpus: std::thread::available_parallelism()?.get(),
            memory_gib: (memory_kib + (1 << 19)) >> 20,
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            tcp_congestion,
            namespace,
            udp_rcvbuf_max_bytes,
            descriptors: raise_descriptors()?,
            load_before: load_before
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
        })
    }

    /// Whether TUN devices and further namespaces can be made.
    pub(crate) fn is_root() -> bool {
        nix::unistd::geteuid().is_root()
    }
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// A loopback of our own: nobody else's ports, and settings that are ours to change.
fn enter_namespace() -> bool {
    if !Machine::is_root() || unshare(CloneFlags::CLONE_NEWNET).is_err() {
        return false;
    }
    if let Err(error) = run(Command::new("ip").args(["link", "set", "lo", "up"])) {
        // Nothing can be measured in a namespace without loopback, and there is no way back.
        eprintln!("no loopback in a network namespace of our own: {error}");
    }
    // New connections are counted in tens of thousands, and closed ones keep their port a while.
    let _ = fs::write("/proc/sys/net/ipv4/ip_local_port_range", "2048 65000");
    true
}

/// Has TCP over loopback use this congestion control. By the route: the setting of a namespace can
/// only be what the whole machine allows to everybody.
fn set_congestion(name: &str) -> anyhow::Result<()> {
    for local in ["127.0.0.0/8", "127.0.0.1"] {
        run(Command::new("ip")
            .args([
                "route", "replace", "local", local, "dev", "lo", "table", "local",
            ])
            .args(["proto", "kernel", "scope", "host", "src", "127.0.0.1"])
            .args(["congctl", name]))?;
    }
    Ok(())
}

/// As many descriptors as allowed, up to what is needed; child processes inherit the limit.
fn raise_descriptors() -> anyhow::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= DESCRIPTORS {
        return Ok(soft);
    }
    if hard < DESCRIPTORS {
        // Root may raise the hard limit too.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS);
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = DESCRIPTORS.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    Ok(wanted)
}
