//! nginx as a balancer of UDP before three proxies, with the files of `deploy/nginx-balancer`.

use std::path::Path;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::binary::Process;
use mesh_tests::netns::Namespace;
use mesh_tests::programs::Daemon;

use crate::support::{Site, metrics, until};

const PROXIES: [&str; 3] = ["proxy-1", "proxy-2", "proxy-3"];

/// A host with the addresses of the files: the balancer's and the proxies'.
fn host() -> Result<Namespace> {
    let host = Namespace::new("lb")?;
    for last in 10..=13 {
        host.ip(&["addr", "add", &format!("10.0.0.{last}/32"), "dev", "lo"])?;
    }
    Ok(host)
}

fn nginx(host: &Namespace, file: &str) -> Result<(tempfile::TempDir, Daemon)> {
    let dir = tempfile::tempdir()?;
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nginx-balancer");
    let pid = dir.path().join("nginx.pid");
    let mut command = host.command("nginx")?;
    command
        .arg("-p")
        .arg(dir.path())
        .arg("-c")
        .arg(config.join(file).canonicalize()?)
        .args(["-e", "stderr", "-g"])
        .arg(format!(
            "daemon off; pid {}; error_log stderr notice;",
            pid.display()
        ));
    Ok((dir, Daemon::start_when(command, "start worker process")?))
}

/// A proxy behind the balancer. Agents are told to dial it at `advertise`.
fn proxy(site: &Site, host: &Namespace, index: usize, advertise: &str) -> Result<Process> {
    let name = PROXIES[index];
    let last = 11 + index;
    site.start(
        host,
        "proxy",
        name,
        &format!(
            "[quic]\nlisten = \"10.0.0.{last}:7443\"\nadvertise = [\"{advertise}\"]\n\
             peer_advertise = \"10.0.0.{last}:7443\"\nkeepalive = \"1s\"\nidle_timeout = \"4s\"\n\
             [proxy]\npeers = [\"10.0.0.11:7443\", \"10.0.0.12:7443\"]\nstate_dir = \"state-{name}\"\n\
             reconnects_per_second = 1000\n"
        ),
    )
}

fn agent(site: &Site, host: &Namespace) -> Result<Process> {
    site.start(
        host,
        "agent",
        "a1",
        "[quic]\nkeepalive = \"1s\"\nidle_timeout = \"4s\"\n[agent]\nproxies = [\"10.0.0.10:7443\"]\n\
         [metrics]\nlisten = \"127.0.0.1:7481\"\n",
    )
}

fn holds(host: &Namespace, count: f64) -> Result<bool> {
    let metrics = metrics(host, "127.0.0.1:7481")?;
    Ok(metrics.get("mesh_agent_connected_proxies")? == count
        && metrics.get("mesh_agent_desired_proxies")? == count)
}

/// The first dial goes through the balancer, the others to where the proxies say that they are.
fn reaches_all_directly(file: &str) -> Result {
    let (host, site) = (host()?, Site::new(&PROXIES)?);
    let _nginx = nginx(&host, file)?;
    let mut proxies = Vec::new();
    for index in 0..3 {
        proxies.push(proxy(
            &site,
            &host,
            index,
            &format!("10.0.0.{}:7443", 11 + index),
        )?);
    }
    let _agent = agent(&site, &host)?;
    until("the agent holds all three", || holds(&host, 3.0))?;
    let dials = metrics(&host, "127.0.0.1:7481")?.sum("mesh_agent_connects_total");
    ensure!(dials <= 4.0, "{dials} dials for three proxies");

    proxies[1].signal("KILL")?;
    proxies[1].wait()?;
    until("the agent holds two", || holds(&host, 2.0))?;
    proxies[1] = proxy(&site, &host, 1, "10.0.0.12:7443")?;
    until("the agent holds all three again", || holds(&host, 3.0))?;
    Ok(())
}

/// Where the proxies say that they are, nobody answers: each dial goes through the balancer, from a
/// port of its own.
fn reaches_all_through(file: &str) -> Result {
    let (host, site) = (host()?, Site::new(&PROXIES)?);
    let _nginx = nginx(&host, file)?;
    let mut proxies = Vec::new();
    for index in 0..3 {
        proxies.push(proxy(&site, &host, index, "127.9.9.9:9")?);
    }
    let _agent = agent(&site, &host)?;
    until("the agent holds all three", || holds(&host, 3.0))?;
    let metrics = metrics(&host, "127.0.0.1:7481")?;
    ensure!(metrics.get("mesh_agent_connects_total{result=\"ok\"}")? >= 3.0);
    Ok(())
}

#[test]
fn hash_directly() -> Result {
    reaches_all_directly("hash.conf")
}

#[test]
fn hash_through_the_balancer_alone() -> Result {
    reaches_all_through("hash.conf")
}

#[test]
fn round_robin_directly() -> Result {
    reaches_all_directly("round-robin.conf")
}

#[test]
fn round_robin_through_the_balancer_alone() -> Result {
    reaches_all_through("round-robin.conf")
}
