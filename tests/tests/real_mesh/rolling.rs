//! Proxies are replaced under load, and one is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_tests::{Result, http, web};

use crate::site::Site;

const AGENTS: usize = 4;

/// Every proxy of three is replaced by one of a new generation, one after the other, while short
/// requests come through those that are ready, as through a balancer that heeds `/readyz`: none
/// fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_upgrade_loses_nothing() -> Result {
    let mut site = Site::new(3, AGENTS)?;
    let drain = "drain_notice = \"1s\"\ndrain_deadline = \"15s\"\n";
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
    let addresses: Vec<_> = site
        .proxies
        .iter()
        .map(|proxy| (proxy.http, proxy.admin))
        .collect();
    let over = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let load = {
        let (over, sent, target) = (over.clone(), sent.clone(), target.addr);
        tokio::spawn(async move {
            let mut failed = Vec::new();
            while !over.load(Ordering::Acquire) {
                for (ingress, admin) in &addresses {
                    if !http::get(*admin, "/readyz")
                        .await
                        .is_ok_and(|answer| answer.status == 200)
                    {
                        continue;
                    }
                    for agent in 1..=AGENTS {
                        let path = format!("/client/a{agent}/http/{target}/source/1000");
                        let number = sent.fetch_add(1, Ordering::AcqRel);
                        match http::get(*ingress, &path).await {
                            Ok(answer) if answer.status == 200 && answer.body.len() == 1000 => {}
                            Ok(answer) => failed.push(format!(
                                "{number}: a{agent} through {ingress}: {} {}",
                                answer.status,
                                answer.text()
                            )),
                            Err(error) => {
                                failed.push(format!(
                                    "{number}: a{agent} through {ingress}: {error:#}"
                                ));
                            }
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            failed
        })
    };
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
    over.store(true, Ordering::Release);
    let failed = load.await?;
    let sent = sent.load(Ordering::Acquire);
    ensure!(
        failed.is_empty(),
        "{} of {sent} failed: {failed:#?}",
        failed.len()
    );
    ensure!(sent > 100, "only {sent} requests were sent");
    Ok(())
}

/// A proxy that is killed breaks what crosses it; the survivors serve at once what they hold, and the
/// rest within the idle timeout.
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
    let mut killed = site.proxies[0].process.take().context("it runs")?;
    killed.signal("KILL")?;
    killed.wait()?;
    // Held by the survivors.
    for index in 1..3 {
        let path = format!("/client/a1/http/{}/source/1000", target.addr);
        let answer = http::get(site.proxies[index].http, &path).await?;
        ensure!(answer.status == 200, "{}", answer.text());
    }
    // Was held by the dead one alone, and comes to another by what it was told.
    let started = std::time::Instant::now();
    loop {
        let path = format!("/client/a2/http/{}/source/1000", target.addr);
        let answer = http::get(site.proxies[1].http, &path).await?;
        if answer.status == 200 {
            break;
        }
        ensure!(
            started.elapsed() < mesh_tests::probe::PATIENCE,
            "{}",
            answer.text()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
