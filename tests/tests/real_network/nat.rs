//! An agent behind a NAT that forgets it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use mesh_tests::Result;
use mesh_tests::netns::Namespace;
use mesh_tests::sshd::Sshd;
use node::report::Route;

use crate::support::{Site, metrics, until};

/// Packets of the local network leave with these source ports.
fn masquerade(gateway: &Namespace, ports: &str) -> Result {
    let rules = format!(
        "flush ruleset\n\
         table ip nat {{\n\
             chain post {{\n\
                 type nat hook postrouting priority 100;\n\
                 oifname \"wan\" meta l4proto udp masquerade to :{ports}\n\
             }}\n\
         }}\n"
    );
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("nat.nft");
    std::fs::write(&file, rules)?;
    let file = file.to_str().context("a path")?;
    gateway.must("nft", &["-f", file]).map(drop)
}

/// An ssh session through user, proxy, NAT and agent lives on when the NAT's table is flushed and
/// the agent appears under another address: its QUIC connection migrates.
#[test]
fn ssh_survives_a_flushed_nat() -> Result {
    let (outside, gateway, inside) = (
        Namespace::new("out")?,
        Namespace::new("gw")?,
        Namespace::new("in")?,
    );
    gateway.join("wan", "10.1.0.2/24", &outside, ("wan", "10.1.0.1/24"))?;
    gateway.join("lan", "192.168.9.1/24", &inside, ("lan", "192.168.9.2/24"))?;
    inside.ip(&["route", "add", "default", "via", "192.168.9.1"])?;
    gateway.must("sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"])?;
    masquerade(&gateway, "20000-29999")?;

    let sshd = Sshd::start_in(&inside)?;
    let site = Site::new(&["proxy-1"])?;
    let ingress = "127.0.0.1:2222".parse()?;
    let _proxy = site.start(
        &outside,
        "proxy",
        "proxy-1",
        &format!(
            "[quic]\nlisten = \"10.1.0.1:7443\"\nkeepalive = \"1s\"\n\
             [admin]\nlisten = \"127.0.0.1:7480\"\n\
             [[ingress]]\nkind = \"tcp\"\nlisten = \"{ingress}\"\nagent = \"a1\"\ntarget = \"{}\"\n",
            sshd.addr()
        ),
    )?;
    let mut agent = site.start(
        &inside,
        "agent",
        "a1",
        "[quic]\nkeepalive = \"1s\"\n[agent]\nproxies = [\"10.1.0.1:7443\"]\nallow = [\"127.0.0.1:*\"]\n\
         [metrics]\nlisten = \"127.0.0.1:7481\"\n",
    )?;
    agent.wait_for_log("connected to a proxy")?;
    let node = mesh_tests::binary::path()?;
    let node = node.to_str().context("a path")?;
    let remote = || -> Result<String> {
        let route: Route = serde_json::from_str(&outside.must(node, &["routes", "a1", "--json"])?)?;
        let session = route
            .holders
            .first()
            .and_then(|holder| holder.sessions.first());
        Ok(session.context("no session")?.remote.clone())
    };
    let before = remote()?;
    ensure!(
        before.starts_with("10.1.0.2:2"),
        "not behind the NAT: {before}"
    );

    let mut ssh = outside.moved(
        sshd.ssh(ingress)?
            .arg("while read line; do echo \"got $line\"; done"),
    );
    let mut session = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = session.stdin.take().context("stdin")?;
    let mut output = BufReader::new(session.stdout.take().context("stdout")?).lines();
    let mut say = |word: &str| -> Result {
        writeln!(input, "{word}")?;
        let answer = output.next().context("the session has ended")??;
        ensure!(answer == format!("got {word}"), "{answer}");
        Ok(())
    };
    say("one")?;

    for ports in ["30000-39999", "40000-49999"] {
        let before = remote()?;
        masquerade(&gateway, ports)?;
        gateway.must("conntrack", &["-F"])?;
        say(ports)?;
        until("the proxy sees the agent elsewhere", || {
            Ok(remote()? != before)
        })?;
        let (after, digit) = (remote()?, &ports[..1]);
        ensure!(after.starts_with(&format!("10.1.0.2:{digit}")), "{after}");
        say("again")?;
    }
    drop(input);
    ensure!(session.wait()?.success(), "ssh");
    let connects = metrics(&inside, "127.0.0.1:7481")?;
    ensure!(connects.get("mesh_agent_connects_total{result=\"ok\"}")? == 1.0);
    Ok(())
}
