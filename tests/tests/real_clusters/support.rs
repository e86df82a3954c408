//! What operators and users see.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use mesh_tests::Result;
use mesh_tests::probe::PATIENCE;
use node::report::{Route, Status, TunnelReport, Tunnels};

use crate::site::{A, B, FAR_WEB, NEAR_WEB, Place, Site};

/// Waits until something is so; returns how long it took.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> Result) -> Result<Duration> {
    let started = Instant::now();
    loop {
        match is_so() {
            Ok(()) => return Ok(started.elapsed()),
            Err(error) if started.elapsed() > PATIENCE => {
                return Err(error.context(format!("waited {PATIENCE:?} for: {what}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

impl Site {
    /// What a proxy of B says of its tunnels.
    pub(crate) fn list(&self, index: usize) -> Result<Tunnels> {
        let text = self.must(B, index, &["tunnel", "ls", "--json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// `node tunnel ls` at the first proxy of B has all of this.
    pub(crate) fn list_has(&self, texts: &[&str]) -> Result {
        let listed = self.must(B, 0, &["tunnel", "ls"])?;
        ensure!(texts.iter().all(|text| listed.contains(text)), "{listed}");
        Ok(())
    }

    /// What a proxy of B says of the tunnel to A.
    pub(crate) fn tunnel_to_a(&self, index: usize) -> Result<TunnelReport> {
        let mut tunnels = self.list(index)?.tunnels;
        tunnels.retain(|tunnel| tunnel.cluster == A);
        tunnels.pop().context("there is no tunnel to A")
    }

    pub(crate) fn status(&self, cluster: &str, index: usize) -> Result<Status> {
        let text = self.must(cluster, index, &["status", "--json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The sessions of B that A dials through, as `a1<b2`.
    pub(crate) fn sessions(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for index in 0..self.a.len() {
            // Its exit code says whether there is one.
            let told = self.node(A, index, &["routes", B, "--json"])?;
            let route: Route = serde_json::from_str(&told.text()).context(told.stderr)?;
            for holder in route.holders.iter().filter(|holder| holder.here) {
                for session in &holder.sessions {
                    let other = session.proxy.as_deref().context("it is of a cluster")?;
                    found.push(format!("{}<{other}", holder.proxy));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// How many sessions of B there are at A, those that are being left too.
    pub(crate) fn held(&self) -> Result<f64> {
        let of = |index| self.metrics(A, index)?.get("mesh_proxy_agents");
        Ok(of(0)? + of(1)?)
    }

    /// Waits until A has these sessions of B, and no others.
    pub(crate) fn until_sessions(&self, expected: &[&str]) -> Result<Duration> {
        until("sessions of B at A", || {
            let (sessions, held) = (self.sessions()?, self.held()?);
            ensure!(
                sessions == expected && held == expected.len() as f64,
                "{sessions:?} and {held} in all, not {expected:?}"
            );
            Ok(())
        })
    }

    /// Waits until each proxy of B holds a connection to each of A, and everybody says so.
    pub(crate) fn until_connected(&self) -> Result {
        until("the tunnel stands", || {
            for index in 0..self.b.len() {
                let tunnel = self.tunnel_to_a(index)?;
                ensure!(
                    (tunnel.connected, tunnel.wanted) == (Some(2), Some(2)),
                    "b{}: {tunnel:?}",
                    index + 1
                );
            }
            Ok(())
        })?;
        self.until_sessions(&["a1<b1", "a1<b2", "a2<b1", "a2<b2"])?;
        (0..self.b.len()).try_for_each(|index| self.agrees(index, &[("connected", 1)]))
    }

    /// `node tunnel ls`, `node status` and `/metrics` of a proxy of B all count so, and nothing else.
    pub(crate) fn agrees(&self, index: usize, expected: &[(&str, usize)]) -> Result {
        let (list, status, metrics) = (
            self.list(index)?,
            self.status(B, index)?.proxy.context("a proxy")?,
            self.metrics(B, index)?,
        );
        for state in ["connecting", "connected", "failing", "invalid"] {
            let wanted = expected.iter().find(|(name, _)| *name == state);
            let wanted = wanted.map_or(0, |(_, count)| *count);
            let listed = list.tunnels.iter().filter(|tunnel| tunnel.state == state);
            let told = (
                listed.count(),
                status.tunnels.get(state).copied(),
                metrics
                    .get(&format!("mesh_tunnel_resources{{state=\"{state}\"}}"))?
                    .to_string(),
            );
            ensure!(
                told == (wanted, Some(wanted), wanted.to_string()),
                "{state}: ls, status and metrics of b{} say {told:?}, not {wanted}",
                index + 1
            );
        }
        let connected = metrics.get("mesh_store_connected")? == 1.0;
        let up_to_date = status.store.context("a store")?.up_to_date;
        ensure!(
            (connected, up_to_date) == (list.store.up_to_date, list.store.up_to_date),
            "the store: {connected}, {up_to_date}, {:?}",
            list.store
        );
        Ok(())
    }

    /// What a GET through a proxy of A brings, which must be a success.
    pub(crate) fn get(&self, index: usize, path: &str) -> Result<String> {
        let finished = self.curl(index, &["--fail-with-body"], path)?;
        Ok(finished.must()?.text())
    }

    /// The status and the reason with which a GET through a proxy of A is refused, and the text.
    pub(crate) fn refusal(&self, index: usize, path: &str) -> Result<(String, String)> {
        let form = ["--write-out", "\n%{http_code} %header{x-mesh-error}"];
        let answer = self.curl(index, &form, path)?.must()?.text();
        let (text, reason) = answer.rsplit_once('\n').context("an answer")?;
        Ok((reason.to_owned(), text.to_owned()))
    }

    /// Both of A's proxies reach both places of B.
    pub(crate) fn reaches_all(&self) -> Result {
        for index in 0..self.a.len() {
            let near = self.get(index, &format!("{B}/http/{NEAR_WEB}/"))?;
            let far = self.get(index, &format!("db.{B}/http/{FAR_WEB}/"))?;
            ensure!(
                (near.as_str(), far.as_str()) == ("inside", "hidden"),
                "{near:?} {far:?}"
            );
        }
        Ok(())
    }

    /// Waits until neither of A's proxies reaches anything of B, since nobody of B is connected.
    pub(crate) fn until_no_agent(&self) -> Result<Duration> {
        self.until_refused(&["502 no_agent"])
    }

    /// Waits until both of A's proxies refuse whatever is of B with one of these.
    pub(crate) fn until_refused(&self, expected: &[&str]) -> Result<Duration> {
        until("nothing of B is reached", || {
            for index in 0..self.a.len() {
                for path in [
                    format!("{B}/http/{NEAR_WEB}/"),
                    format!("db.{B}/http/{FAR_WEB}/"),
                ] {
                    let (reason, text) = self.refusal(index, &path)?;
                    ensure!(expected.contains(&reason.as_str()), "{reason}: {text}");
                }
            }
            Ok(())
        })
    }

    /// A session of ssh from A to a place in B.
    pub(crate) fn ssh(&self, place: Place, index: usize) -> Result<Ssh> {
        let (sshd, ingress) = self.sshd(place, index)?;
        let mut ssh = sshd.ssh(ingress)?;
        ssh.arg("while read line; do echo \"got $line\"; done");
        let mut child = self
            .as_user(&ssh)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ssh = Ssh {
            input: Some(child.stdin.take().context("stdin")?),
            output: BufReader::new(child.stdout.take().context("stdout")?).lines(),
            child,
        };
        ssh.say("hello")?;
        Ok(ssh)
    }
}

/// A session of ssh that answers what it is told.
pub(crate) struct Ssh {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Ssh {
    /// One exchange.
    pub(crate) fn say(&mut self, word: &str) -> Result {
        let input = self.input.as_mut().context("it was ended")?;
        writeln!(input, "{word}")?;
        let answer = self.output.next().context("the session has ended")??;
        ensure!(answer == format!("got {word}"), "{answer}");
        Ok(())
    }

    /// Ends it as its user does.
    pub(crate) fn end(mut self) -> Result {
        self.input = None;
        let ended = self.child.wait()?;
        if !ended.success() {
            bail!("ssh: {ended}");
        }
        Ok(())
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // It holds a process of the host that is to go.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
