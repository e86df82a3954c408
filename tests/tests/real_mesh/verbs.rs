//! `node status`, `peers`, `routes` and `drain`, and the two-server example.

use anyhow::{Context as _, ensure};
use mesh_tests::{Result, http, web};
use node::report::{Peer, Route, Status};

use crate::site::Site;

/// The agent is connected to the first proxy alone, and reached through the second.
#[tokio::test]
async fn the_second_server_reaches_the_agent_of_the_first() -> Result {
    let mut site = Site::new(2, 1)?;
    site.start_proxy(0, 1, "")?;
    site.start_proxy(1, 1, "")?;
    site.start_agent(1, &[0], 1)?;
    site.until_ok(0)?;
    site.until_ok(1)?;
    let target = web::start().await?;
    for proxy in &site.proxies {
        let path = format!("/client/a1/http/{}/source/100000", target.addr);
        let answer = http::get(proxy.http, &path).await?;
        ensure!(answer.status == 200, "{}: {}", proxy.name, answer.text());
        ensure!(answer.body.len() == 100_000);
    }

    let urls: Vec<String> = site.proxies.iter().map(crate::site::Proxy::url).collect();
    let (status, _) = site.node(&["status", "--admin", &urls[1], "--json"], 0)?;
    let status: Status = serde_json::from_str(&status)?;
    let proxy = status.proxy.context("a proxy")?;
    ensure!(status.problems.is_empty() && status.state == "serving");
    ensure!((proxy.agents, proxy.peers_connected, proxy.peers_known) == (0, 1, 1));

    let (peers, _) = site.node(&["peers", "--admin", &urls[1], "--json"], 0)?;
    let peers: Vec<Peer> = serde_json::from_str(&peers)?;
    ensure!(peers.len() == 1 && peers[0].name == "proxy-1" && peers[0].state == "alive");
    ensure!(
        peers[0].connection.is_some() && peers[0].routes == Some(1),
        "{peers:?}"
    );
    let (table, _) = site.node(&["peers", "--admin", &urls[1]], 0)?;
    ensure!(
        table.starts_with("NAME ") && table.contains("\nproxy-1  alive"),
        "{table}"
    );

    for (url, here) in urls.iter().zip([true, false]) {
        let (route, _) = site.node(&["routes", "a1", "--admin", url, "--json"], 0)?;
        let route: Route = serde_json::from_str(&route)?;
        ensure!(route.holders.len() == 1, "{route:?}");
        let holder = &route.holders[0];
        ensure!(holder.proxy == "proxy-1" && holder.here == here && holder.reachable);
        ensure!(holder.sessions.len() == usize::from(here), "{holder:?}");
    }
    let (_, error) = site.node(&["routes", "nobody", "--admin", &urls[0]], 1)?;
    ensure!(error.contains("no proxy holds the agent nobody"), "{error}");
    Ok(())
}

/// What goes wrong is said, with what to do.
#[tokio::test]
async fn problems_are_named() -> Result {
    let mut site = Site::new(2, 0)?;
    site.start_proxy(0, 1, "")?;
    site.start_proxy(1, 1, "")?;
    site.until_ok(0)?;
    let mut second = site.proxies[1].process.take().context("it runs")?;
    second.signal("KILL")?;
    second.wait()?;
    site.until_status(0, |status| {
        status.starts_with("2 problems") && status.contains("the proxy proxy-2 is down")
    })?;

    let (_, error) = site.node(&["status", "--admin", "http://127.0.0.1:9"], 1)?;
    ensure!(
        error.contains("no node answers at http://127.0.0.1:9"),
        "{error}"
    );
    for wrong in ["127.0.0.1:7480", "https://localhost", "http://"] {
        let (_, error) = site.node(&["status", "--admin", wrong], 2)?;
        ensure!(error.contains("--admin"), "{wrong}: {error}");
    }
    let (_, error) = site.node(&["routes", "not/a/name"], 2)?;
    ensure!(error.contains("not/a/name"), "{error}");
    Ok(())
}

/// A drain that is asked for can be taken back in its notice, and ends the process after it.
#[tokio::test]
async fn drains_are_asked_for_and_taken_back() -> Result {
    let mut site = Site::new(1, 0)?;
    site.start_proxy(0, 1, "drain_notice = \"20s\"\ndrain_deadline = \"30s\"\n")?;
    let proxy = &site.proxies[0];
    let (url, admin) = (proxy.url(), proxy.admin);
    let ready = async || -> Result<u16> { Ok(http::get(admin, "/readyz").await?.status) };

    let (_, error) = site.node(&["drain", "--cancel", "--admin", &url], 1)?;
    ensure!(error.contains("no drain that can be cancelled"), "{error}");
    site.node(&["drain", "--admin", &url], 0)?;
    site.until_status(0, |status| status.contains(" is notice"))?;
    ensure!(ready().await? == 503);
    let (_, error) = site.node(&["drain", "--admin", &url], 1)?;
    ensure!(error.contains("drains already"), "{error}");
    site.node(&["drain", "--cancel", "--admin", &url], 0)?;
    site.until_status(0, |status| status.contains(" is serving"))?;
    // No peer was ever there: it is as ready as before.
    ensure!(ready().await? == 200);

    // The deadline bounds the notice, too.
    site.node(&["drain", "--wait", "--deadline", "1s", "--admin", &url], 0)?;
    let mut process = site.proxies[0].process.take().context("it ran")?;
    ensure!(process.wait()?.code() == Some(0), "{}", process.log());
    ensure!(
        process.log().contains("as asked over the admin API"),
        "{}",
        process.log()
    );
    Ok(())
}

/// An agent tells of itself, and has no peers.
#[tokio::test]
async fn agents_have_a_status_too() -> Result {
    let mut site = Site::new(1, 1)?;
    site.start_proxy(0, 1, "")?;
    let admin = mesh_tests::binary::free_port()?;
    let config = format!(
        "role = \"agent\"\n[tls]\nca = \"ca.pem\"\ncert = \"a1.pem\"\nkey = \"a1.key\"\n\
         [agent]\nproxies = [\"{}\"]\n[admin]\nlisten = \"{admin}\"\n",
        site.proxies[0].quic
    );
    std::fs::write(site.path().join("a1.toml"), config)?;
    let mut agent = mesh_tests::binary::Process::start(site.path(), &["--config", "a1.toml"])?;
    agent.wait_for_log("connected to a proxy")?;
    let url = format!("http://{admin}");
    let (status, _) = site.node(&["status", "--admin", &url], 0)?;
    ensure!(
        status.starts_with("ok: agent a1 of test.example.com is connected"),
        "{status}"
    );
    let (_, error) = site.node(&["peers", "--admin", &url], 1)?;
    ensure!(error.contains("this node is an agent"), "{error}");
    Ok(())
}
