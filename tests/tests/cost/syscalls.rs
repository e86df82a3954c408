//! System calls of the real binary, under strace: packets that are sent singly, small reads and
//! wake-ups for nothing show here first. strace makes each call dear, and bytes come in larger lots
//! than without it: the numbers are those of a busy machine, and so on each machine much the same.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certs::{Authority, Credentials, Kind, Request, Validity};
use mesh_tests::Result;
use mesh_tests::binary::{self, Process, free_port};
use mesh_tests::installation::{Site, tcp_ingress};
use node::Agent;
use node::config::AgentConfig;
use tokio::runtime::Runtime;

use crate::baseline::Measured;
use crate::load::{self, Client};
use crate::traced::{Calls, Traced};
use crate::{BULK_BYTES, DIALS, MIB, MTU, WARM_UP_BYTES, WARM_UP_DIALS};

/// How long idle nodes are looked at, at least: four periods of a keepalive.
const IDLE: Duration = Duration::from_secs(20);

/// Agents at the idle proxy.
const AGENTS: usize = 100;

/// Proxies that the idle agent holds.
const PROXIES: usize = 3;

const CONNECTED: &str = "connected to a proxy";

pub(crate) fn measure(measured: &mut Measured) -> Result {
    // What is idle starts first, and has nothing left to do when it is looked at.
    let agent = IdleAgent::start()?;
    let proxy = IdleProxy::start()?;
    forwarding(measured)?;

    let nodes = [
        (
            format!("idle agent with {PROXIES} connections"),
            &agent.agent,
        ),
        (format!("idle proxy with {AGENTS} agents"), &proxy.proxy),
    ];
    let began = now();
    let marks = nodes
        .iter()
        .map(|(_, node)| node.mark())
        .collect::<Result<Vec<_>>>()?;
    #[expect(clippy::disallowed_methods, reason = "idling takes time")]
    std::thread::sleep(IDLE);
    let calls = nodes
        .iter()
        .zip(marks)
        .map(|((_, node), mark)| node.since(mark))
        .collect::<Result<Vec<_>>>()?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    for ((what, _), calls) in nodes.iter().zip(calls) {
        // How many packets wake it at one time is chance; how many it sends is not.
        let sends = calls.get("sendmsg").copied().unwrap_or(0);
        measured.add(
            format!("{what}, sends per minute"),
            sends as f64 / minutes,
            "",
        );
        add(measured, &format!("{what}, per minute"), &calls, minutes);
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a rate over real time")]
fn now() -> Instant {
    Instant::now()
}

/// A number, and the calls that make most of it.
fn add(measured: &mut Measured, what: &str, calls: &Calls, units: f64) {
    let mut most: Vec<_> = calls.iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let detail: Vec<_> = most
        .iter()
        .take(6)
        .map(|(name, count)| format!("{name} {:.1}", **count as f64 / units))
        .collect();
    let total: u64 = calls.values().sum();
    measured.add(what, total as f64 / units, detail.join(", "));
}

/// A proxy and an agent, both traced, with a load.
fn forwarding(measured: &mut Measured) -> Result {
    let service = load::service()?;
    let site = Site::new()?;
    let (quic, entry) = (free_port()?, free_port()?);
    proxy_config(
        site.dir(),
        "proxy-1",
        quic,
        &format!(
            "mtu_max = {MTU}\n[[ingress]]\nlisten = \"{entry}\"\n{}\n",
            tcp_ingress(service)
        ),
    )?;
    agent_config(
        site.dir(),
        &[quic],
        &format!("allow = [\"{service}\"]\n[quic]\nmtu_max = {MTU}\n"),
    )?;
    let proxy = Traced::start(site.dir(), "proxy-1", "proxy started")?;
    let agent = Traced::start(site.dir(), "a1", CONNECTED)?;

    let mut count = |per: &str, units: f64, load: &mut dyn FnMut() -> Result| -> Result {
        let marks = [proxy.mark()?, agent.mark()?];
        load()?;
        add(
            measured,
            &format!("proxy, per {per}"),
            &proxy.since(marks[0])?,
            units,
        );
        add(
            measured,
            &format!("agent, per {per}"),
            &agent.since(marks[1])?,
            units,
        );
        Ok(())
    };
    let mut client = Client::connect(entry)?;
    let mib = (BULK_BYTES / MIB) as f64;
    client.down(WARM_UP_BYTES)?;
    count("MiB down", mib, &mut || client.down(BULK_BYTES))?;
    client.up(WARM_UP_BYTES)?;
    count("MiB up", mib, &mut || client.up(BULK_BYTES))?;
    load::dials(entry, WARM_UP_DIALS)?;
    count("dial", DIALS.into(), &mut || load::dials(entry, DIALS))
}

fn tls(name: &str) -> String {
    format!(
        "[tls]\nca = \"certs/ca.pem\"\ncert = \"certs/{name}.pem\"\nkey = \"certs/{name}.key\"\n"
    )
}

/// `rest` goes on in `[quic]`.
fn proxy_config(dir: &Path, name: &str, quic: SocketAddr, rest: &str) -> Result {
    let config = format!(
        "role = \"proxy\"\n{}[proxy]\nstate_dir = \"{name}\"\n[quic]\nlisten = \"{quic}\"\n{rest}",
        tls(name)
    );
    Ok(fs::write(dir.join(format!("{name}.toml")), config)?)
}

/// `rest` goes on in `[agent]`.
fn agent_config(dir: &Path, proxies: &[SocketAddr], rest: &str) -> Result {
    let proxies: Vec<_> = proxies.iter().map(ToString::to_string).collect();
    let config = format!(
        "role = \"agent\"\n{}[agent]\nproxies = {proxies:?}\n{rest}",
        tls("a1")
    );
    Ok(fs::write(dir.join("a1.toml"), config)?)
}

/// An agent, traced, and its proxies, which are not. Dropped in this order.
struct IdleAgent {
    agent: Traced,
    _proxies: Vec<Process>,
    _site: Site,
}

impl IdleAgent {
    fn start() -> Result<Self> {
        let site = Site::new()?;
        let dir = site.dir();
        let addresses = (0..PROXIES)
            .map(|_| free_port())
            .collect::<Result<Vec<_>>>()?;
        let peers: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let mut proxies = Vec::new();
        for (index, address) in addresses.iter().enumerate() {
            let name = format!("proxy-{}", index + 1);
            if index > 0 {
                binary::must(dir, &["certs", "issue", "proxy", &name, "--dir", "certs"])?;
            }
            proxy_config(dir, &name, *address, "")?;
            let peers = format!("proxy.peers={peers:?}");
            let config = format!("{name}.toml");
            let mut proxy = Process::start(dir, &["--config", &config, "--set", &peers])?;
            proxy.wait_for_log("proxy started")?;
            proxies.push(proxy);
        }
        agent_config(dir, &addresses, &format!("connection_count = {PROXIES}\n"))?;
        let mut agent = Traced::start(dir, "a1", CONNECTED)?;
        agent.wait_for_logs(CONNECTED, PROXIES)?;
        Ok(Self {
            agent,
            _proxies: proxies,
            _site: site,
        })
    }
}

/// A proxy, traced, and its agents in this process. Dropped in this order.
struct IdleProxy {
    proxy: Traced,
    _agents: (Vec<Agent>, Runtime),
    _site: Site,
}

impl IdleProxy {
    fn start() -> Result<Self> {
        let site = Site::new()?;
        let quic = free_port()?;
        proxy_config(site.dir(), "proxy-1", quic, "")?;
        let proxy = Traced::start(site.dir(), "proxy-1", "proxy started")?;
        let authority = Authority::load(&site.dir().join("certs"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let agents = runtime.block_on(async {
            let mut agents = Vec::new();
            for number in 0..AGENTS {
                let name = format!("idle-{number}").parse()?;
                let issued =
                    authority.issue(&Request::new(Kind::Agent, name, Validity::days(1)?))?;
                let credentials = Credentials::from_pem(
                    authority.ca_pem().as_bytes(),
                    issued.cert_pem.as_bytes(),
                    issued.key_pem.as_bytes(),
                )?;
                let config = AgentConfig::new(Arc::new(credentials), vec![quic.to_string()]);
                agents.push(Agent::start(config).await?);
            }
            for agent in &agents {
                agent
                    .connected()
                    .wait_for(|connected| *connected > 0)
                    .await?;
            }
            Result::Ok(agents)
        })?;
        Ok(Self {
            proxy,
            _agents: (agents, runtime),
            _site: site,
        })
    }
}
