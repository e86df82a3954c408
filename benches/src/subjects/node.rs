//! Ours: the real binary, a proxy with a `tcp` ingress and an agent.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::{Place, Subject, Tunnel};
use crate::link::udp::UdpLink;
use crate::process::{Process, run};

/// UDP payload of a packet that fits into 1500 bytes, with IPv6 headers to spare.
const MTU_1500: u16 = 1452;

/// A proxy and an agent.
#[derive(Debug, Default, Clone)]
pub(crate) struct Node {
    name: String,
    /// Lines of `[quic]`, for both.
    quic: String,
    /// `--set` of both.
    settings: Vec<String>,
    /// Another binary than the one beside this program.
    binary: Option<PathBuf>,
}

impl Node {
    /// As it is configured by default: it finds large packets on loopback.
    pub(crate) fn new(settings: &[String]) -> Self {
        Self {
            name: "node".into(),
            quic: String::new(),
            settings: settings.to_vec(),
            binary: None,
        }
    }

    /// With packets as on a path whose MTU is 1500.
    pub(crate) fn mtu_1500(settings: &[String]) -> Self {
        let mut node = Self::new(settings).called("node, MTU 1500");
        let _ = writeln!(node.quic, "mtu_max = {MTU_1500}");
        node
    }

    /// Another build, with packets as on a path whose MTU is 1500.
    pub(crate) fn other(binary: PathBuf, settings: &[String]) -> Self {
        Self {
            binary: Some(binary),
            ..Self::mtu_1500(settings).called("other node, MTU 1500")
        }
    }

    /// With another congestion controller.
    pub(crate) fn congestion(mut self, name: &str) -> Self {
        let _ = writeln!(self.quic, "congestion = {name:?}");
        self.called(&format!("node, {name}"))
    }

    /// With room for more streams than by default.
    pub(crate) fn streams_max(mut self, streams: usize) -> Self {
        let _ = writeln!(self.quic, "streams_max = {streams}");
        self
    }

    fn called(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }
}

impl Subject for Node {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(&self, place: &Place, dir: &Path) -> anyhow::Result<Tunnel> {
        certificates(dir)?;
        let entry = SocketAddr::new(place.entry, place.port()?);
        let quic = SocketAddr::new(place.near, place.port()?);
        let link = place
            .udp_link
            .map(|config| UdpLink::new(config, quic))
            .transpose()?;
        // Where the agent dials, and is told to dial.
        let dialled = link.as_ref().map_or(quic, UdpLink::addr);
        let target = place.target;
        let limits = &self.quic;
        // Users come from another namespace when there are some.
        let open = if entry.ip().is_loopback() {
            ""
        } else {
            "open = true\n"
        };
        fs::write(
            dir.join("proxy.toml"),
            format!(
                "role = \"proxy\"\n{PROXY_TLS}[quic]\nlisten = \"{quic}\"\n\
                 advertise = [\"{dialled}\"]\n{limits}\
                 [[ingress]]\nkind = \"tcp\"\nlisten = \"{entry}\"\nconnections_max = 20000\n{open}\
                 agent = \"a1\"\ntarget = \"{target}\"\n"
            ),
        )?;
        fs::write(
            dir.join("agent.toml"),
            format!(
                "role = \"agent\"\n{AGENT_TLS}[quic]\n{limits}\
                 [agent]\nproxies = [\"{dialled}\"]\nallow = [\"{target}\"]\n"
            ),
        )?;
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            None => binary()?,
        };
        let start = |mut command: Command, name: &str| {
            command.args(["--config", &format!("{name}.toml")]);
            for setting in &self.settings {
                command.args(["--set", setting]);
            }
            Process::start(command, dir, name)
        };
        Ok(Tunnel {
            entry,
            processes: [
                start(place.near_command(&binary), "proxy")?,
                start(place.far_command(&binary), "agent")?,
            ],
            _link: link,
        })
    }
}

pub(crate) const PROXY_TLS: &str =
    "[tls]\nca = \"ca.pem\"\ncert = \"proxy-1.pem\"\nkey = \"proxy-1.key\"\n";
const AGENT_TLS: &str = "[tls]\nca = \"ca.pem\"\ncert = \"a1.pem\"\nkey = \"a1.key\"\n";

/// An authority, a proxy `proxy-1` and an agent `a1`.
pub(crate) fn certificates(dir: &Path) -> anyhow::Result<()> {
    let binary = binary()?;
    let certs = |args: &[&str]| {
        let mut command = Command::new(&binary);
        command.arg("certs").args(args).args(["--dir", "."]);
        run(command.current_dir(dir))
    };
    certs(&["init", "--cluster", "bench.example.com"])?;
    certs(&["issue", "proxy", "proxy-1"])?;
    certs(&["issue", "agent", "a1"])
}

/// The binary beside this one.
pub(crate) fn binary() -> anyhow::Result<PathBuf> {
    let node = env::current_exe()?.with_file_name("node");
    ensure!(
        node.exists(),
        "{} is not there: build it in the same profile",
        node.display()
    );
    Ok(node)
}

/// Builds the binary as this one was built. Under `cargo run` only: else it is what it is.
pub(crate) fn build() -> anyhow::Result<()> {
    let Some(cargo) = env::var_os("CARGO") else {
        return binary().map(drop);
    };
    let mut command = Command::new(cargo);
    command
        // Both packages, as this one was built with what it depends on: else all would be built anew,
        // with other features.
        .args(["build", "--locked", "-p", "node", "-p", "mesh-benches"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command.status().context("cargo")?;
    ensure!(status.success(), "node cannot be built: {status}");
    binary().map(drop)
}
