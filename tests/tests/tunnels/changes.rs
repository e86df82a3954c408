//! Several who change one tunnel at once.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use http::Request;
use mesh_tests::fleet::{Node, any_port, proxy_config};
use mesh_tests::http::{Answer, Client};
use mesh_tests::pki::Pki;
use mesh_tests::{Result, http as client};
use node::config::{AdminConfig, AdminListen, IngressAuth};
use node::report::{TunnelChange, TunnelRequest, Tunnels};
use node::store::StoreUrl;
use tempfile::TempDir;
use tokio::task::JoinSet;

/// A proxy with a store in a file, and its admin listener.
struct Site {
    proxy: Node,
    admin: SocketAddr,
    _dir: TempDir,
}

impl Site {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let pki = Pki::new("a.example.com")?;
        let mut config = proxy_config(&pki, "proxy-1")?;
        config.store = Some(StoreUrl::Redb(dir.path().join("store.redb")));
        config.common.admin = Some(AdminConfig {
            listen: AdminListen::Tcp(any_port()),
            auth: IngressAuth::Open,
        });
        let proxy = Node::proxy(config).await?;
        let admin = proxy.0.admin_addr().context("it listens")?;
        Ok(Self {
            proxy,
            admin,
            _dir: dir,
        })
    }

    /// All these at once; the answers in no order.
    async fn upserts(&self, requests: Vec<TunnelRequest>) -> Result<Vec<Answer>> {
        let mut tasks = JoinSet::new();
        for request in requests {
            tasks.spawn(upsert(self.admin, request));
        }
        let answers = tasks.join_all().await;
        answers.into_iter().collect()
    }

    async fn list(&self) -> Result<Tunnels> {
        let answer = client::get(self.admin, "/api/v1/tunnels").await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }
}

async fn upsert(admin: SocketAddr, request: TunnelRequest) -> Result<Answer> {
    let body = serde_json::to_vec(&request)?;
    let request = Request::put("/api/v1/tunnels/b.example.com")
        .header("Host", "localhost")
        .header("Content-Type", "application/json")
        .body(http_body_util::Full::new(body.into()))?;
    Client::connect(admin).await?.ask(request).await
}

fn request(number: usize, revision: Option<u64>) -> TunnelRequest {
    TunnelRequest {
        addresses: vec![format!("10.0.0.{number}")],
        revision,
        ..TunnelRequest::default()
    }
}

fn changes(answers: &[Answer]) -> Result<Vec<TunnelChange>> {
    let done = answers.iter().filter(|answer| answer.status == 200);
    done.map(|answer| Ok(serde_json::from_slice(&answer.body)?))
        .collect()
}

/// Every change has replaced what nobody else has replaced; who came too late was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_upsert_is_lost_in_silence() -> Result {
    let site = Site::start().await?;
    let mut conflicts = 0;
    let mut replaced = BTreeSet::new();
    for round in 0..10 {
        let requests = (1..=20).map(|number| request(number, None)).collect();
        let answers = site.upserts(requests).await?;
        let done = changes(&answers)?;
        ensure!(!done.is_empty(), "somebody is first");
        for answer in answers.iter().filter(|answer| answer.status != 200) {
            ensure!(
                answer.status == 409 && answer.text().contains("somebody else has just changed"),
                "round {round}: {} {}",
                answer.status,
                answer.text()
            );
            conflicts += 1;
        }
        for change in &done {
            let before = change.before.as_ref().map_or(0, |before| before.revision);
            ensure!(
                replaced.insert(before),
                "two have replaced revision {before}: {change:?}"
            );
        }
        // The last one of them is what there is.
        let last = done.iter().filter_map(|change| change.after.as_ref());
        let last = last.max_by_key(|after| after.revision).context("one")?;
        let list = site.list().await?;
        ensure!(list.tunnels.len() == 1 && list.tunnels[0].revision == last.revision);
        ensure!(list.tunnels[0].addresses == last.addresses);
    }
    ensure!(conflicts > 0, "they were not at once");
    site.proxy.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_who_expect_a_revision_one_changes_it() -> Result {
    let site = Site::start().await?;
    let mut expected = 0;
    for round in 0..10 {
        let requests = (1..=8)
            .map(|number| request(number, Some(expected)))
            .collect();
        let answers = site.upserts(requests).await?;
        let done = changes(&answers)?;
        ensure!(done.len() == 1, "round {round}: {done:?}");
        ensure!(answers.iter().filter(|answer| answer.status == 409).count() == 7);
        expected = done[0].after.as_ref().context("it is there")?.revision;
    }
    // A deletion may expect one, too.
    let ask = async |query: &str| {
        let request = Request::delete(format!("/api/v1/tunnels/b.example.com{query}"))
            .header("Host", "localhost")
            .body(http_body_util::Full::default())?;
        let answer = Client::connect(site.admin).await?.ask(request).await?;
        anyhow::Ok(answer.status)
    };
    ensure!(ask("?revision=1").await? == 409);
    ensure!(ask("?revison=1").await? == 400);
    ensure!(ask("?revision=").await? == 400);
    ensure!(ask(&format!("?revision={expected}")).await? == 200);
    ensure!(ask("").await? == 404);
    Ok(())
}

/// Those who want the same renew it, all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_do_not_disturb_each_other() -> Result {
    let site = Site::start().await?;
    for round in 0..10 {
        let mut wanted = request(7, None);
        wanted.ttl_seconds = Some(600.0);
        let answers = site.upserts(vec![wanted; 8]).await?;
        let created = changes(&answers)?
            .iter()
            .filter(|change| change.what == "created")
            .count();
        ensure!(
            created == usize::from(round == 0),
            "round {round}: {created}"
        );
        for answer in &answers {
            ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        }
    }
    Ok(())
}
