//! A real sshd, and clients that know it.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::Result;
use crate::binary::free_port;
use crate::netns::Namespace;
use crate::programs::{Daemon, command, run};

/// Where Debian has the program that sshd runs for scp.
const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";

/// An sshd with a host key of its own that lets in one key of its own, as whoever runs the test.
pub struct Sshd {
    dir: TempDir,
    addr: SocketAddr,
    user: String,
    _daemon: Daemon,
}

impl Sshd {
    /// Starts it on a free port. With `home`, sessions begin there and not in the user's home
    /// directory.
    ///
    /// # Errors
    /// When it is not installed, or does not start.
    pub fn start(home: Option<&Path>) -> Result<Self> {
        Self::start_at(home, free_port()?, Daemon::start)
    }

    /// Starts it in a network namespace, on its loopback address.
    ///
    /// # Errors
    /// As [`Sshd::start`].
    pub fn start_in(namespace: &Namespace) -> Result<Self> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 2200));
        Self::start_at(None, addr, |sshd, _| {
            Daemon::start_when(namespace.moved(&sshd), "Server listening on")
        })
    }

    fn start_at(
        home: Option<&Path>,
        addr: SocketAddr,
        start: impl FnOnce(Command, SocketAddr) -> Result<Daemon>,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mesh-sshd-").tempdir()?;
        let at = |name: &str| dir.path().join(name);
        for key in ["host", "user"] {
            let mut keygen = command("ssh-keygen")?;
            run(keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(at(key)))?
            .must()?;
        }
        fs::copy(at("user.pub"), at("authorized_keys"))?;
        let user = run(command("id")?.arg("-un"))?
            .must()?
            .text()
            .trim()
            .to_owned();
        if user == "root" {
            // The directory for privilege separation, which Debian's service would make.
            fs::create_dir_all("/run/sshd")?;
        }
        let mut config = format!("Port {}\nListenAddress {}\n", addr.port(), addr.ip());
        for (key, value) in [
            ("HostKey", at("host")),
            ("PidFile", at("sshd.pid")),
            ("AuthorizedKeysFile", at("authorized_keys")),
        ] {
            writeln!(config, "{key} {}", value.display())?;
        }
        config.push_str(
            "UsePAM no\nStrictModes no\nPubkeyAuthentication yes\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nUseDNS no\n\
             PrintMotd no\nPrintLastLog no\nMaxStartups 100\n",
        );
        writeln!(config, "Subsystem sftp {SFTP_SERVER}")?;
        if let Some(home) = home {
            let session = at("session");
            let script = "if [ -n \"$SSH_ORIGINAL_COMMAND\" ]; then exec sh -c \"$SSH_ORIGINAL_COMMAND\"; fi\nexec sh\n";
            fs::write(
                &session,
                format!("cd {} || exit 1\n{script}", home.display()),
            )?;
            writeln!(config, "ForceCommand sh {}", session.display())?;
        }
        fs::write(at("sshd_config"), config)?;
        let mut sshd = command("sshd")?;
        sshd.args(["-D", "-e", "-f"]).arg(at("sshd_config"));
        let daemon = start(sshd, addr)?;
        Ok(Self {
            dir,
            addr,
            user,
            _daemon: daemon,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Who may log in.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The key that lets in.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.path("user")
    }

    /// A path in its directory, which goes with it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ssh` or `scp` that trusts this server alone; `ingress` is where it will connect.
    ///
    /// # Errors
    /// When the program is not installed.
    pub fn client(&self, program: &str, ingress: SocketAddr) -> Result<Command> {
        let host_key = fs::read_to_string(self.path("host.pub"))?;
        let known_hosts = self.path(&format!("known_hosts-{}", ingress.port()));
        fs::write(
            &known_hosts,
            format!("[{}]:{} {host_key}", ingress.ip(), ingress.port()),
        )?;
        let mut client = command(program)?;
        client
            .args(["-q", "-F", "/dev/null", "-i"])
            .arg(self.key())
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
            .arg("-o")
            .arg(format!("Port={}", ingress.port()));
        for option in [
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "LogLevel=ERROR",
            "ConnectTimeout=60",
        ] {
            client.args(["-o", option]);
        }
        Ok(client)
    }

    /// `ssh` that will connect to `ingress`; what it shall run there comes after.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn ssh(&self, ingress: SocketAddr) -> Result<Command> {
        let mut ssh = self.client("ssh", ingress)?;
        ssh.arg(format!("{}@{}", self.user, ingress.ip()));
        Ok(ssh)
    }

    /// A file here, as scp names it.
    #[must_use]
    pub fn remote(&self, ingress: SocketAddr, file: &Path) -> String {
        format!("{}@{}:{}", self.user, ingress.ip(), file.display())
    }
}
