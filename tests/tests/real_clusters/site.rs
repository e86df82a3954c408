//! The hosts, their certificates, and what runs on them.
//!
//! ```text
//!  outside 10.0.0.4, 10.0.0.5          gateway          inside 192.168.9.2        hidden
//!  a1, a2, users of A     ◀── NAT, no way in ──      b1, b2, etcd, sshd, web ── db, sshd, web
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use mesh_tests::Result;
use mesh_tests::binary::{self, Process};
use mesh_tests::netns::Namespace;
use mesh_tests::probe::Metrics;
use mesh_tests::programs::{Daemon, Finished, run};
use mesh_tests::sshd::Sshd;
use tempfile::TempDir;

use crate::support::until;

pub(crate) const A: &str = "a.example.com";
pub(crate) const B: &str = "b.example.com";

/// Where the proxies of A are, as the tunnel says.
pub(crate) const ADDRESSES: &str = "10.0.0.4:2023,10.0.0.5:2033";

/// What B serves, as the manual has it.
pub(crate) const NEAR_WEB: &str = "10.0.0.9:80";
pub(crate) const FAR_WEB: &str = "10.0.0.7:8080";

/// How sshds are reached on their hosts.
const SSH: &str = "127.0.0.1:2200";

/// Where the proxies of B keep tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// A file of each proxy.
    File,
    /// One etcd.
    #[cfg(feature = "etcd")]
    Etcd,
}

/// A host with targets, each known by what it serves.
struct Targets {
    sshd: Sshd,
    _web: Daemon,
    _files: TempDir,
}

impl Targets {
    fn start(host: &Namespace, who: &str, web_at: &str) -> Result<Self> {
        let (address, port) = web_at.split_once(':').context("a port")?;
        host.ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"])?;
        let files = tempfile::tempdir()?;
        fs::write(files.path().join("index.html"), who)?;
        let mut web = host.command("python3")?;
        web.args(["-u", "-m", "http.server", port, "--bind", address])
            .current_dir(files.path());
        Ok(Self {
            sshd: Sshd::start_in(host)?,
            _web: Daemon::start_when(web, "Serving HTTP on")?,
            _files: files,
        })
    }
}

/// Both clusters. What is first here ends first: processes before their hosts.
pub(crate) struct Site {
    pub(crate) a: Vec<Process>,
    pub(crate) b: Vec<Process>,
    db: Option<Process>,
    #[cfg(feature = "etcd")]
    etcd: Option<Process>,
    near: Targets,
    far: Targets,
    outside: Namespace,
    _gateway: Namespace,
    inside: Namespace,
    hidden: Namespace,
    kind: StoreKind,
    dir: TempDir,
}

/// Packets leave under the gateway's address, and only answers to them come back.
fn nat(gateway: &Namespace, dir: &Path) -> Result {
    let rules = "table ip nat {\n\
                     chain post {\n\
                         type nat hook postrouting priority 100;\n\
                         oifname \"wan\" masquerade\n\
                     }\n\
                     chain in {\n\
                         type filter hook forward priority 0;\n\
                         iifname \"wan\" ct state new drop\n\
                     }\n\
                 }\n";
    let file = dir.join("nat.nft");
    fs::write(&file, rules)?;
    gateway.must("nft", &["-f", file.to_str().context("a path")?])?;
    gateway
        .must("sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"])
        .map(drop)
}

impl Site {
    /// Everything runs when this returns, and there is no tunnel.
    pub(crate) fn start(kind: StoreKind) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("mesh-clusters-")
            .tempdir()?;
        let (outside, gateway, inside, hidden) = (
            Namespace::new("out")?,
            Namespace::new("gw")?,
            Namespace::new("in")?,
            Namespace::new("db")?,
        );
        gateway.join("wan", "10.0.0.1/24", &outside, ("wan", "10.0.0.4/24"))?;
        outside.ip(&["addr", "add", "10.0.0.5/24", "dev", "wan"])?;
        gateway.join("lan", "192.168.9.1/24", &inside, ("lan", "192.168.9.2/24"))?;
        inside.ip(&["route", "add", "default", "via", "192.168.9.1"])?;
        inside.join("db", "10.20.0.1/24", &hidden, ("lan", "10.20.0.2/24"))?;
        nat(&gateway, dir.path())?;

        certificates(dir.path())?;
        let mut site = Self {
            near: Targets::start(&inside, "inside", NEAR_WEB)?,
            far: Targets::start(&hidden, "hidden", FAR_WEB)?,
            a: Vec::new(),
            b: Vec::new(),
            db: None,
            #[cfg(feature = "etcd")]
            etcd: None,
            outside,
            _gateway: gateway,
            inside,
            hidden,
            kind,
            dir,
        };
        #[cfg(feature = "etcd")]
        if kind == StoreKind::Etcd {
            site.start_etcd()?;
        }
        for index in 0..2 {
            let a = site.start_a(index)?;
            site.a.push(a);
            site.configure_b(index, &site.trust_a())?;
            let b = site.start_b(index)?;
            site.b.push(b);
        }
        site.db = Some(agent(site.path(), &site.hidden)?);
        until("each proxy of B knows the agent", || {
            (0..2).try_for_each(|index| site.must(B, index, &["routes", "db"]).map(drop))
        })?;
        Ok(site)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn start_a(&self, index: usize) -> Result<Process> {
        let (quic, peer) = match index {
            0 => ("10.0.0.4:2023", "10.0.0.5:2033"),
            _ => ("10.0.0.5:2033", "10.0.0.4:2023"),
        };
        let ports = Ports(index);
        let config = format!(
            "role = \"proxy\"\n[tls]\nca = \"ca.pem\"\ncert = \"a{n}.pem\"\nkey = \"a{n}.key\"\n\
             [quic]\nlisten = \"{quic}\"\n[proxy]\npeers = [\"{peer}\"]\ndrain_notice = \"0s\"\n\
             [admin]\nlisten = \"{}\"\n\
             [[trust]]\ncluster = \"{B}\"\nca = \"../b/ca.pem\"\n\
             [[ingress]]\nkind = \"http\"\nlisten = \"{}\"\n\
             [[ingress]]\nkind = \"tcp\"\nlisten = \"{}\"\nagent = \"{B}\"\ntarget = \"{SSH}\"\n\
             [[ingress]]\nkind = \"tcp\"\nlisten = \"{}\"\nagent = \"db.{B}\"\ntarget = \"{SSH}\"\n",
            ports.admin(),
            ports.http(),
            ports.ssh(Place::Inside),
            ports.ssh(Place::Hidden),
            n = index + 1,
        );
        start(
            &self.outside,
            &self.path().join("a"),
            &format!("a{}", index + 1),
            &config,
        )
    }

    /// The `[[trust]]` with which B trusts A.
    pub(crate) fn trust_a(&self) -> String {
        format!(
            "[[trust]]\ncluster = \"{A}\"\nca = \"../a/ca.pem\"\nallow = [\"{NEAR_WEB}\", \"{SSH}\"]\n"
        )
    }

    /// Writes the config of a proxy of B, which trusts so. Sessions of ssh may go on for longer than
    /// any test takes when a tunnel moves or ends.
    pub(crate) fn configure_b(&self, index: usize, trust: &str) -> Result {
        let n = index + 1;
        let store = match self.kind {
            StoreKind::File => "redb:store.redb",
            #[cfg(feature = "etcd")]
            StoreKind::Etcd => "etcd://127.0.0.1:2379/mesh",
        };
        let config = format!(
            "role = \"proxy\"\n[tls]\nca = \"ca.pem\"\ncert = \"b{n}.pem\"\nkey = \"b{n}.key\"\n\
             [quic]\nlisten = \"10.20.0.1:{n}7443\"\n\
             [proxy]\npeers = [\"10.20.0.1:17443\", \"10.20.0.1:27443\"]\nstate_dir = \"state-b{n}\"\n\
             drain_notice = \"0s\"\ndrain_deadline = \"5m\"\njoin_deadline = \"1s\"\n\
             [admin]\nlisten = \"{}\"\n[store]\nurl = \"{store}\"\n\
             [[grant]]\nwho = [\"cluster:{A}\"]\nmay = [\"dial\"]\nagents = [\"db\"]\n{trust}",
            Ports(index).admin(),
        );
        Ok(fs::write(self.path().join(format!("b/b{n}.toml")), config)?)
    }

    fn start_b(&self, index: usize) -> Result<Process> {
        let name = format!("b{}", index + 1);
        run_node(&self.inside, &self.path().join("b"), &name)
    }

    /// Ends a proxy of B at once, and starts it again.
    #[cfg(feature = "etcd")]
    pub(crate) fn restart_b(&mut self, index: usize) -> Result {
        self.b[index].signal("KILL")?;
        self.b[index].wait()?;
        self.b[index] = self.start_b(index)?;
        Ok(())
    }

    #[cfg(feature = "etcd")]
    pub(crate) fn start_etcd(&mut self) -> Result {
        let mut etcd = self.inside.command("etcd")?;
        etcd.args(["--name", "m1", "--data-dir"])
            .arg(self.path().join("etcd"));
        let peer = "http://127.0.0.1:2380";
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            etcd.args([flag, "http://127.0.0.1:2379"]);
        }
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            etcd.args([flag, peer]);
        }
        etcd.args(["--initial-cluster", &format!("m1={peer}")]);
        let mut process = Process::spawn(etcd)?;
        process.wait_for_log("ready to serve client requests")?;
        self.etcd = Some(process);
        Ok(())
    }

    /// SIGKILL.
    #[cfg(feature = "etcd")]
    pub(crate) fn kill_etcd(&mut self) {
        self.etcd = None;
    }

    /// Runs `node ARGS` on the host of A or of B, asking the proxy with that index there.
    pub(crate) fn node(&self, cluster: &str, index: usize, args: &[&str]) -> Result<Finished> {
        let (host, dir) = (self.host(cluster), &cluster[..1]);
        let node = binary::path()?;
        let mut command = host.command(node.to_str().context("a path")?)?;
        command
            .args(args)
            .current_dir(self.path().join(dir))
            .env("MESH_ADMIN", format!("http://{}", Ports(index).admin()));
        run(&mut command)
    }

    /// As [`Site::node`]; it must succeed. What it wrote.
    pub(crate) fn must(&self, cluster: &str, index: usize, args: &[&str]) -> Result<String> {
        Ok(self.node(cluster, index, args)?.must()?.text())
    }

    /// `node tunnel ARGS` as an operator of B types it: once, or at each proxy that has a file of its
    /// own. What it wrote at the first.
    pub(crate) fn tunnel(&self, args: &[&str]) -> Result<String> {
        let args = [&["tunnel"], args].concat();
        let text = self.must(B, 0, &args)?;
        if self.kind == StoreKind::File {
            let other = self.must(B, 1, &args)?;
            ensure!(other == text, "{other:?} is not {text:?}");
        }
        Ok(text)
    }

    /// Runs curl as a user of A does, through the proxy with that index.
    pub(crate) fn curl(&self, index: usize, args: &[&str], path: &str) -> Result<Finished> {
        let mut curl = self.outside.command("curl")?;
        curl.args([
            "-q",
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--max-time",
            "60",
        ])
        .args(args)
        .arg(format!("http://{}/client/{path}", Ports(index).http()));
        run(&mut curl)
    }

    /// What `/metrics` of a proxy says.
    pub(crate) fn metrics(&self, cluster: &str, index: usize) -> Result<Metrics> {
        let url = format!("http://{}/metrics", Ports(index).admin());
        let args = ["-sS", "--fail", "--max-time", "20", url.as_str()];
        Metrics::parse(&self.host(cluster).must("curl", &args)?)
    }

    fn host(&self, cluster: &str) -> &Namespace {
        if cluster == A {
            &self.outside
        } else {
            &self.inside
        }
    }

    /// The sshd at a place, and where users of A connect to reach it through the proxy with that index.
    pub(crate) fn sshd(&self, place: Place, index: usize) -> Result<(&Sshd, SocketAddr)> {
        let sshd = match place {
            Place::Inside => &self.near.sshd,
            Place::Hidden => &self.far.sshd,
        };
        Ok((sshd, Ports(index).ssh(place).parse()?))
    }

    /// Runs a line of the manual in a shell, on the host of A's first proxy or on that of B's.
    pub(crate) fn shell(&self, cluster: &str, line: &str) -> Result<String> {
        let host = self.host(cluster);
        let node = binary::path()?;
        let line = line.replace("node ", &format!("{} ", node.display()));
        host.must("sh", &["-c", &line])
    }

    /// The same command, on the host of A's users.
    pub(crate) fn as_user(&self, command: &std::process::Command) -> std::process::Command {
        self.outside.moved(command)
    }
}

/// Where targets are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Beside the proxies of B.
    Inside,
    /// Beside the agent.
    Hidden,
}

/// The ports of the proxy with this index on its host.
struct Ports(usize);

impl Ports {
    fn admin(&self) -> String {
        format!("127.0.0.1:748{}", self.0)
    }

    fn http(&self) -> String {
        format!("127.0.0.1:812{}", 3 + self.0)
    }

    fn ssh(&self, place: Place) -> String {
        let tens = if place == Place::Inside { 1 } else { 2 };
        format!("127.0.0.1:22{tens}{}", self.0)
    }
}

/// An authority and its identities for each cluster, made as an operator makes them. There is one more
/// cluster, C, which nobody runs.
fn certificates(dir: &Path) -> Result {
    for (place, cluster, who) in [
        ("a", A, &[("proxy", "a1"), ("proxy", "a2")][..]),
        ("b", B, &[("proxy", "b1"), ("proxy", "b2"), ("agent", "db")]),
        ("c", "c.example.com", &[]),
    ] {
        binary::must(
            dir,
            &["certs", "init", "--cluster", cluster, "--dir", place],
        )?;
        for (kind, name) in who {
            binary::must(dir, &["certs", "issue", kind, name, "--dir", place])?;
        }
    }
    Ok(())
}

/// The agent of B. It holds one connection, so that dials of one of B's proxies take a hop.
fn agent(dir: &Path, host: &Namespace) -> Result<Process> {
    let config = format!(
        "role = \"agent\"\n[tls]\nca = \"ca.pem\"\ncert = \"db.pem\"\nkey = \"db.key\"\n\
         [agent]\nproxies = [\"10.20.0.1:17443\", \"10.20.0.1:27443\"]\nconnection_count = 1\n\
         allow = [\"{FAR_WEB}\", \"{SSH}\"]\n"
    );
    start(host, &dir.join("b"), "db", &config)
}

/// Starts a node with this config.
fn start(host: &Namespace, dir: &Path, name: &str, config: &str) -> Result<Process> {
    fs::write(dir.join(format!("{name}.toml")), config)?;
    run_node(host, dir, name)
}

/// Starts a node whose config is there.
fn run_node(host: &Namespace, dir: &Path, name: &str) -> Result<Process> {
    let mut process = Process::start_in(host, dir, &["--config", &format!("{name}.toml")])?;
    process.wait_for_log(" started")?;
    Ok(process)
}
