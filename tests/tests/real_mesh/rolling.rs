//! Proxies are replaced under load, and one is killed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use mesh_tests::{Result, http, probe, web};
use tokio::task::JoinSet;

use crate::site::Site;

const AGENTS: usize = 20;

/// What a long download takes: six seconds. `drain_deadline` is longer.
const DOWNLOAD_BYTES: usize = 60 * (16 << 10);

/// What has been sent, and what became of it.
#[derive(Default)]
struct Tally {
    over: AtomicBool,
    requests: AtomicUsize,
    downloads: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Tally {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn failures(&self) -> MutexGuard<'_, Vec<String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, what: String) {
        self.failures().push(what);
    }
}

/// A proxy, as a balancer sees it.
#[derive(Clone, Copy)]
struct Backend {
    http: SocketAddr,
    admin: SocketAddr,
}

impl Site {
    fn backends(&self) -> Vec<Backend> {
        self.proxies
            .iter()
            .map(|proxy| Backend {
                http: proxy.http,
                admin: proxy.admin,
            })
            .collect()
    }
}

impl Backend {
    async fn is_ready(&self) -> bool {
        http::get(self.admin, "/readyz")
            .await
            .is_ok_and(|answer| answer.status == 200)
    }

    /// Gets `bytes` bytes, which must all come; `None` when they did.
    async fn get(
        &self,
        agent: usize,
        target: SocketAddr,
        how: &str,
        bytes: usize,
    ) -> Option<String> {
        let path = format!("/client/a{agent}/http/{target}/{how}/{bytes}");
        let why = match http::get(self.http, &path).await {
            Ok(answer) if answer.status == 200 && answer.body.len() == bytes => return None,
            Ok(answer) => format!("{} {}", answer.status, answer.text()),
            Err(error) => format!("{error:#}"),
        };
        Some(format!("{how} of a{agent} through {}: {why}", self.http))
    }

    /// Short requests to all agents, one after the other.
    async fn short_requests(self, target: SocketAddr, tally: Arc<Tally>) {
        while !tally.is_over() {
            if self.is_ready().await {
                for agent in 1..=AGENTS {
                    tally.requests.fetch_add(1, Ordering::AcqRel);
                    if let Some(failure) = self.get(agent, target, "source", 1000).await {
                        tally.fail(failure);
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Long downloads, one a second.
    async fn downloads(self, target: SocketAddr, tally: Arc<Tally>) {
        let mut running = JoinSet::new();
        for agent in (1..=AGENTS).cycle() {
            if tally.is_over() {
                break;
            }
            if self.is_ready().await {
                let tally = tally.clone();
                running.spawn(async move {
                    let outcome = self.get(agent, target, "slow", DOWNLOAD_BYTES).await;
                    tally.downloads.fetch_add(1, Ordering::AcqRel);
                    if let Some(failure) = outcome {
                        tally.fail(failure);
                    }
                });
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        running.join_all().await;
    }

    /// The highest number of agents' connections that the proxy has told.
    async fn most_sessions(self, tally: Arc<Tally>) -> Result<f64> {
        let mut most: f64 = 0.0;
        while !tally.is_over() {
            // While it is replaced, nobody answers.
            if let Ok(answer) = http::get(self.admin, "/metrics").await {
                let metrics = probe::Metrics::parse(&answer.text())?;
                most = most.max(metrics.get("mesh_proxy_agents")?);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(most)
    }
}

/// Every proxy of three is replaced by one of a new generation, one after the other, twice, under
/// short requests and long downloads through those that are ready, as through a balancer that heeds
/// `/readyz`: none fails, and no agent has more than one connection to a proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_upgrade_loses_nothing() -> Result {
    let mut site = Site::new(3, AGENTS)?;
    let drain = "drain_notice = \"1s\"\ndrain_deadline = \"30s\"\n";
    for index in 0..3 {
        site.start_proxy(index, 1, drain)?;
    }
    for number in 1..=AGENTS {
        site.start_agent(number, &[0, 1, 2], if number % 2 == 0 { 0 } else { 1 })?;
    }
    for index in 0..3 {
        site.until_ok(index)?;
    }
    let target = web::start().await?;
    let tally = Arc::new(Tally::default());
    let mut load = JoinSet::new();
    let mut sessions = JoinSet::new();
    for backend in site.backends() {
        load.spawn(backend.short_requests(target.addr, tally.clone()));
        load.spawn(backend.downloads(target.addr, tally.clone()));
        sessions.spawn(backend.most_sessions(tally.clone()));
    }
    for generation in 2..=3 {
        for index in 0..3 {
            let url = site.proxies[index].url();
            site.node(&["drain", "--wait", "--admin", &url], 0)?;
            let mut process = site.proxies[index].process.take().context("it ran")?;
            ensure!(process.wait()?.code() == Some(0), "{}", process.log());
            site.start_proxy(index, generation, drain)?;
            site.until_status(index, |status| status.contains(" is serving"))?;
        }
    }
    tally.over.store(true, Ordering::Release);
    load.join_all().await;
    let requests = tally.requests.load(Ordering::Acquire);
    let downloads = tally.downloads.load(Ordering::Acquire);
    let failed = tally.failures().clone();
    ensure!(
        failed.is_empty(),
        "{} of {requests} requests and {downloads} downloads failed: {failed:#?}",
        failed.len()
    );
    ensure!(
        requests > 500 && downloads > 30,
        "only {requests} requests and {downloads} downloads"
    );
    while let Some(most) = sessions.join_next().await {
        let most = most??;
        // Half of the agents hold every proxy.
        ensure!(
            most >= AGENTS as f64 / 2.0 && most <= AGENTS as f64,
            "a proxy had {most} connections of {AGENTS} agents"
        );
    }
    Ok(())
}

/// A download that was on its way when a proxy was killed.
struct Download {
    what: &'static str,
    /// Whether it is to come whole.
    survives: bool,
    outcome: Option<String>,
}

/// A proxy that is killed breaks what crosses it, and nothing else; the survivors serve at once what
/// they hold, and the rest within the idle timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn survivors_serve_on_when_a_proxy_is_killed() -> Result {
    let mut site = Site::new(3, 2)?;
    for index in 0..3 {
        site.start_proxy(index, 1, "")?;
    }
    site.start_agent(1, &[0, 1, 2], 0)?;
    site.start_agent(2, &[0], 1)?;
    for index in 0..3 {
        site.until_ok(index)?;
    }
    site.until_status(2, |status| status.contains("agents 1 in 1 sessions"))?;
    let target = web::start().await?;
    let backends = site.backends();
    let mut downloads = JoinSet::new();
    for (what, through, agent, survives) in [
        ("a survivor's own agent", 1, 1, true),
        ("another survivor's own agent", 2, 1, true),
        ("through the killed one", 0, 1, false),
        ("through the killed one, an agent of its own", 0, 2, false),
        (
            "through a survivor, an agent of the killed one",
            1,
            2,
            false,
        ),
    ] {
        let (backend, target) = (backends[through], target.addr);
        downloads.spawn(async move {
            Download {
                what,
                survives,
                outcome: backend.get(agent, target, "slow", DOWNLOAD_BYTES).await,
            }
        });
    }
    probe::until("the downloads run", || target.open() == 5).await?;
    let mut killed = site.proxies[0].process.take().context("it runs")?;
    killed.signal("KILL")?;
    killed.wait()?;
    // Held by the survivors.
    for backend in &backends[1..] {
        let failure = backend.get(1, target.addr, "source", 1000).await;
        ensure!(failure.is_none(), "{failure:?}");
    }
    // Was held by the dead one alone, and comes to another by what it was told.
    probe::eventually("the other agent is reached", || async {
        match backends[1].get(2, target.addr, "source", 1000).await {
            None => Ok(()),
            // Never anything but a typed refusal.
            Some(failure) => {
                ensure!(
                    failure.contains(": 502 ") || failure.contains(": 504 "),
                    "{failure}"
                );
                bail!("{failure}")
            }
        }
    })
    .await?;
    while let Some(download) = downloads.join_next().await {
        let Download {
            what,
            survives,
            outcome,
        } = download?;
        ensure!(outcome.is_none() == survives, "{what}: {outcome:?}");
    }
    // Its reader saw the connection break; why, is in the access log of the proxy that served it.
    let log = site.proxies[1].process.as_ref().context("it runs")?.log();
    // `proxy.peers` names the proxy itself, too.
    ensure!(!log.contains("this proxy itself"), "{log}");
    let why = log.lines().find(|line| {
        line.contains("kind=\"http\"") && line.contains("agent=\"a2\"") && line.contains("/slow/")
    });
    ensure!(
        why.is_some_and(|line| line.contains("cut=\"lost\"")),
        "{why:?} in {log}"
    );
    Ok(())
}
