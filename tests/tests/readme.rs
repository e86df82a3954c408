//! The README and the other documents, run as they stand: commands, config files, the demo.
//!
//! Hosts, addresses and ports are replaced, by [`Machines::replaced`] alone. The two machines of
//! the README are directories here, each with an sshd whose sessions begin in it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use mesh_tests::Result;
use mesh_tests::binary::{self, Process, free_port};
use mesh_tests::installation::Site;
use mesh_tests::probe;
use mesh_tests::programs::{Daemon, Finished, command, find, run, run_fed};
use mesh_tests::sshd::Sshd;
use tempfile::TempDir;
use tokio::sync::Mutex;

/// The demo has fixed ports: one test of this file at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn document(path: &str) -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).context(path.to_owned())
}

/// The text under a heading, until the next one.
fn section<'t>(text: &'t str, heading: &str) -> Result<&'t str> {
    let start = text
        .find(&format!("\n{heading}\n"))
        .with_context(|| format!("no `{heading}`"))?;
    let body = &text[start + heading.len() + 2..];
    Ok(&body[..body.find("\n## ").unwrap_or(body.len())])
}

/// A fenced block and the paragraph before it.
#[derive(Debug)]
struct Block<'t> {
    before: String,
    language: &'t str,
    text: String,
}

impl Block<'_> {
    /// The commands: lines, with those that go on joined.
    fn commands(&self) -> Vec<String> {
        let joined = self.text.replace("\\\n", " ");
        let lines = joined
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty());
        lines.map(str::to_owned).collect()
    }
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let (mut blocks, mut before) = (Vec::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let body: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            let text = body.join("\n") + "\n";
            blocks.push(Block {
                before: std::mem::take(&mut before),
                language,
                text,
            });
        } else {
            before.push_str(line);
            before.push('\n');
        }
    }
    blocks
}

/// Replaces whole numbers and words: what comes before and after is no letter, digit or `.` that
/// would make it another.
fn replace(text: &str, from: &str, to: &str) -> String {
    let part_of_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let (mut replaced, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(from) {
        let before = rest[..at]
            .chars()
            .next_back()
            .or(replaced.chars().next_back());
        let after = rest[at + from.len()..].chars().next();
        replaced.push_str(&rest[..at]);
        let whole = !part_of_word(before) && !part_of_word(after);
        replaced.push_str(if whole { to } else { from });
        rest = &rest[at + from.len()..];
    }
    replaced + rest
}

/// The machines of the README.
struct Machines {
    dir: TempDir,
    public: Sshd,
    private: Sshd,
    quic: SocketAddr,
    http: SocketAddr,
    tcp: SocketAddr,
    web: SocketAddr,
}

impl Machines {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mesh-readme-").tempdir()?;
        for name in ["own", "public", "private", "bin"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let machines = Self {
            public: Sshd::start(Some(&dir.path().join("public")))?,
            private: Sshd::start(Some(&dir.path().join("private")))?,
            quic: free_port()?,
            http: free_port()?,
            tcp: free_port()?,
            web: free_port()?,
            dir,
        };
        // ssh and scp know the hosts by these names, and first ask nobody.
        let mut config = String::new();
        for (host, sshd) in [
            ("203.0.113.10", &machines.public),
            ("private-machine", &machines.private),
        ] {
            config += &format!(
                "Host {host}\n  HostName 127.0.0.1\n  Port {}\n",
                sshd.addr().port()
            );
            config += &format!("  IdentityFile {}\n", sshd.key().display());
        }
        config += &format!(
            "Host 127.0.0.1\n  IdentityFile {}\n",
            machines.private.key().display()
        );
        config += &format!(
            "Host *\n  UserKnownHostsFile {}\n  StrictHostKeyChecking accept-new\n  BatchMode yes\n  \
             IdentitiesOnly yes\n  LogLevel ERROR\n",
            machines.at("known_hosts").display()
        );
        fs::write(machines.at("ssh_config"), config)?;
        for program in ["ssh", "scp"] {
            let (path, config) = (find(program)?, machines.at("ssh_config"));
            let wrapper = format!(
                "#!/bin/sh\nexec {} -F {} \"$@\"\n",
                path.display(),
                config.display()
            );
            let file = machines.at("bin").join(program);
            fs::write(&file, wrapper)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        }
        // Built once, and there under its name.
        std::os::unix::fs::symlink(binary::path()?, machines.at("bin").join("node"))?;
        Ok(machines)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the documents name, and what stands for it here.
    fn replaced(&self, text: &str) -> String {
        let port = |address: SocketAddr| address.port().to_string();
        let table = [
            // Who logs in at both machines.
            ("you", self.private.user().to_owned()),
            // The address of the proxy, for agents, and what it listens on.
            ("203.0.113.10:7443", self.quic.to_string()),
            ("0.0.0.0:7443", self.quic.to_string()),
            // The two ingresses.
            ("8123", port(self.http)),
            ("2222", port(self.tcp)),
            // The sshd and the web server on the private machine.
            ("127.0.0.1:22", self.private.addr().to_string()),
            ("8000", port(self.web)),
        ];
        table
            .iter()
            .fold(text.to_owned(), |text, (from, to)| replace(&text, from, to))
    }

    /// A shell command as on machine `name`.
    fn shell(&self, name: &str, line: &str) -> Result<Command> {
        let mut shell = command("sh")?;
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", self.at("bin").display());
        shell
            .env("PATH", path)
            .current_dir(self.at(name))
            .args(["-c", line]);
        Ok(shell)
    }

    fn must(&self, name: &str, line: &str) -> Result<Finished> {
        run(&mut self.shell(name, line)?)?.must()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_machines() -> Result {
    let _one = ONE_AT_A_TIME.lock().await;
    let readme = document("README.md")?;
    let section = section(&readme, "## First real use: two machines")?;
    let machines = Machines::new()?;
    let mut machine = "own";
    let (mut nodes, mut servers) = (Vec::new(), Vec::new());
    let (mut files, mut users) = (0, 0);
    for block in blocks(section) {
        // Bold words, and a way in from elsewhere, say where one is.
        for (sign, place) in [
            ("**Certificates**", "own"),
            ("**On the public host**", "public"),
            ("**On the private machine**", "private"),
            ("**As a user**, on the public host", "public"),
            ("From elsewhere", "own"),
        ] {
            if block.before.contains(sign) {
                machine = place;
            }
        }
        match block.language {
            "toml" => {
                // The file's name is the last that was quoted.
                let name = block
                    .before
                    .split('`')
                    .rev()
                    .nth(1)
                    .context("no name of a file")?;
                ensure!(name.ends_with(".toml"), "not a file: {name}");
                fs::write(
                    machines.at(machine).join(name),
                    machines.replaced(&block.text),
                )?;
                files += 1;
            }
            "sh" => {
                for line in block.commands() {
                    let line = machines.replaced(&line);
                    if line.starts_with("node --config ") {
                        let exec = machines.shell(machine, &format!("exec {line}"))?;
                        let mut node = Process::spawn(exec)?;
                        // The phrase for an agent is the README's.
                        ensure!(
                            section.contains("It logs `connected to a proxy`"),
                            "no such words"
                        );
                        let agent = machine == "private";
                        node.wait_for_log(if agent {
                            "connected to a proxy"
                        } else {
                            "proxy started"
                        })?;
                        nodes.push(node);
                    } else if let Some((server, _)) = line.split_once(" &") {
                        let exec = machines.shell(machine, &format!("exec {server}"))?;
                        servers.push(Daemon::start(exec, machines.web)?);
                    } else if line.starts_with("ssh ") && !line.contains("mkdir") {
                        // At its shell; the directory is the machine's.
                        let told = run_fed(&mut machines.shell(machine, &line)?, |stdin| {
                            stdin.write_all(b"pwd\nexit 7\n")
                        })?;
                        assert_eq!(told.code(), Some(7), "{line}: {}", told.stderr);
                        let there = machines.at("private");
                        assert_eq!(
                            told.text().trim(),
                            there.to_str().context("path")?,
                            "{line}"
                        );
                        users += 1;
                    } else {
                        let told = machines.must(machine, &line)?.text();
                        if line.starts_with("curl ") {
                            // The listing of the private machine.
                            assert!(told.contains("href=\"mesh/\""), "{line}: {told}");
                            users += 1;
                        }
                    }
                }
            }
            other => bail!("a block of `{other}`, which this test does not know how to run"),
        }
    }
    assert_eq!((files, nodes.len(), servers.len(), users), (2, 2, 1, 3));
    for mut node in nodes.into_iter().rev() {
        node.signal("TERM")?;
        assert!(node.wait()?.success(), "{}", node.log());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo() -> Result {
    let _one = ONE_AT_A_TIME.lock().await;
    let readme = document("README.md")?;
    let blocks = blocks(section(&readme, "## Try it")?);
    let commands: Vec<_> = blocks.iter().map(Block::commands).collect();
    let [demo, curls, tests] = &commands[..] else {
        bail!("other blocks: {blocks:?}")
    };
    // The two commands, word for word.
    assert_eq!(demo[..], ["cargo run --release -- demo"]);
    assert_eq!(tests[..], ["tests/run"]);

    // Somebody else's demo, on this machine, ends at some time.
    let dir = tempfile::tempdir()?;
    let start = || async {
        for port in 8123..=8125 {
            TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("port {port}"))?;
        }
        let mut demo = Process::start(dir.path(), &["demo"])?;
        demo.wait_for_log("Ctrl-C ends it.")?;
        Ok(demo)
    };
    let mut started = probe::eventually("the ports of the demo are free", start).await;
    for _ in 0..4 {
        if started.is_err() {
            started = probe::eventually("the ports of the demo are free", start).await;
        }
    }
    let mut demo = started?;
    let shown = demo.log();
    let printed: Vec<_> = shown
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("curl "))
        .collect();
    assert_eq!(
        printed[..],
        curls[..],
        "what the demo prints, and what the README has"
    );
    let curled = |line: &str| run(command("sh")?.current_dir(dir.path()).args(["-c", line]));
    let [index, hello, large, nobody] = printed[..] else {
        bail!("{printed:?}")
    };
    let index = curled(index)?.must()?.text();
    assert!(
        index.contains("This page is served by a file server"),
        "{index}"
    );
    assert_eq!(
        curled(hello)?.must()?.text(),
        "Hello from behind the agent.\n"
    );
    let size = " --write-out '%{http_code} %{size_download}'";
    assert_eq!(
        curled(&format!("{large}{size}"))?.must()?.text(),
        "200 8388608"
    );
    let nobody = curled(nobody)?.must()?.text().to_lowercase();
    assert!(nobody.starts_with("http/1.1 502 "), "{nobody}");
    assert!(
        nobody.contains("\r\nx-mesh-error: no_agent\r\n"),
        "{nobody}"
    );
    assert!(nobody.contains("\r\n\r\nno_agent: "), "{nobody}");

    demo.signal("INT")?;
    let status = demo.wait()?;
    assert!(status.success(), "{status}: {}", demo.log());
    // It leaves nothing behind.
    let files = shown
        .lines()
        .find_map(|line| line.trim().strip_prefix("files        "));
    let files = files
        .and_then(|line| line.split(' ').next())
        .context("no directory")?;
    assert!(!Path::new(files).exists(), "{files}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_checks_itself() -> Result {
    let _one = ONE_AT_A_TIME.lock().await;
    assert!(document("README.md")?.contains("`demo --check`"));
    let dir = tempfile::tempdir()?;
    let told = binary::must(dir.path(), &["demo", "--check"])?;
    assert!(
        told.lines().all(|line| line.starts_with("ok    ")),
        "{told}"
    );
    assert_eq!(told.lines().count(), 9, "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_operations() -> Result {
    let _one = ONE_AT_A_TIME.lock().await;
    let operations = document("docs/OPERATIONS.md")?;
    let machines = Machines::new()?;
    machines.must("own", "node certs init --cluster example.com --dir certs")?;
    machines.must("own", "node certs issue proxy proxy-1 --dir certs")?;
    let blocks = blocks(section(&operations, "## Certificates")?);
    let commands: Vec<_> = blocks.iter().flat_map(Block::commands).collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    for line in commands {
        let line = line.replace("/etc/mesh/", "certs/");
        let told = machines.must("own", &line)?.text();
        if line.starts_with("node certs show") {
            assert!(
                told.contains("proxy-1") && told.contains("example.com"),
                "{told}"
            );
        }
    }
    let told = machines
        .must("own", "node certs show --json certs/a1.pem")?
        .text();
    let told: serde_json::Value = serde_json::from_str(&told)?;
    assert_eq!(told[0]["uri"][0], "spiffe://example.com/agent/a1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_from_flags_alone() -> Result {
    let _one = ONE_AT_A_TIME.lock().await;
    let config = document("docs/CONFIG.md")?;
    let layers = section(&config, "## Layers")?;
    let [block] = &blocks(layers)[..] else {
        bail!("other blocks: {layers}")
    };
    let [line] = &block.commands()[..] else {
        bail!("other commands: {block:?}")
    };
    let mesh = Site::new()?.start(&["kind = \"http\"".into()], &[])?;
    let node = binary::path()?;
    let line = line
        .replace("node --role", &format!("exec {} --role", node.display()))
        .replace("proxy.example.com:7443", &mesh.quic().to_string());
    let mut shell = command("sh")?;
    shell.current_dir(mesh.dir()).args(["-c", &line]);
    // It is a second instance of the agent `a1`, of which the newest serves.
    let mut agent = Process::spawn(shell)?;
    agent.wait_for_log("connected to a proxy")?;
    agent.signal("TERM")?;
    assert!(agent.wait()?.success(), "{}", agent.log());
    Ok(())
}
