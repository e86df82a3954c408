//! [frp](https://github.com/fatedier/frp), with TLS as by default. `--peer frp=PATH` and
//! `--peer frp-quic=PATH` name `frps`; `frpc` is beside it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Place, Subject, Tunnel};
use crate::process::Process;

/// A server and a client.
#[derive(Debug)]
pub(crate) struct Frp {
    /// `frps`.
    pub(crate) binary: PathBuf,
    pub(crate) quic: bool,
}

impl Subject for Frp {
    fn name(&self) -> &str {
        if self.quic { "frp, QUIC" } else { "frp, TCP" }
    }

    fn start(&self, place: &Place, dir: &Path) -> anyhow::Result<Tunnel> {
        let entry = SocketAddr::new(place.entry, place.port()?);
        let server = SocketAddr::new(place.near, place.port()?);
        let (ip, port) = (server.ip(), server.port());
        // The QUIC listener is one more, beside that for TCP.
        let quic = if self.quic {
            format!("quicBindPort = {port}\n")
        } else {
            String::new()
        };
        fs::write(
            dir.join("frps.toml"),
            format!(
                "bindAddr = \"{ip}\"\nbindPort = {port}\n{quic}proxyBindAddr = \"{}\"\n\
                 auth.token = \"bench\"\nlog.level = \"warn\"\n",
                entry.ip()
            ),
        )?;
        let protocol = if self.quic { "quic" } else { "tcp" };
        fs::write(
            dir.join("frpc.toml"),
            format!(
                "serverAddr = \"{ip}\"\nserverPort = {port}\nauth.token = \"bench\"\n\
                 log.level = \"warn\"\ntransport.protocol = \"{protocol}\"\nloginFailExit = false\n\
                 [[proxies]]\nname = \"bench\"\ntype = \"tcp\"\nlocalIP = \"{}\"\n\
                 localPort = {}\nremotePort = {}\n",
                place.target.ip(),
                place.target.port(),
                entry.port()
            ),
        )?;
        let start = |mut command: Command, name: &str| {
            command.args(["-c", &format!("{name}.toml")]);
            Process::start(command, dir, name)
        };
        let client = self.binary.with_file_name("frpc");
        Ok(Tunnel {
            entry,
            processes: [
                start(place.near_command(&self.binary), "frps")?,
                start(place.far_command(&client), "frpc")?,
            ],
            _link: None,
        })
    }
}
