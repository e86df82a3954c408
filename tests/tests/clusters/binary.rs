//! The real binary reads `[[trust]]` of its config anew on SIGHUP.

use std::fs;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use certs::Kind;
use mesh_tests::binary::{Process, free_port, metrics};
use mesh_tests::pki::Pki;
use mesh_tests::services::Service;
use mesh_tests::{Result, probe};

use crate::support::{A, B, Site, trust, tunnel};

const RELOADED: &str = "mesh_config_last_reload_successful";

#[tokio::test]
async fn trust_is_reloaded_by_sighup() -> Result {
    let dir = tempfile::tempdir()?;
    let (a_pki, b_pki) = (Arc::new(Pki::new(A)?), Arc::new(Pki::new(B)?));
    a_pki.write(dir.path(), Kind::Proxy, "p1")?;
    fs::write(dir.path().join("b-ca.pem"), b_pki.authority().ca_pem())?;
    let (quic, metrics_at) = (free_port()?, free_port()?);
    let base = format!(
        "role = \"proxy\"\n[tls]\nca = \"ca.pem\"\ncert = \"p1.pem\"\nkey = \"p1.key\"\n\
         [quic]\nlisten = \"{quic}\"\n[proxy]\ndrain_notice = \"0s\"\n[metrics]\nlisten = \"{metrics_at}\"\n"
    );
    let trusting = format!("{base}[[trust]]\ncluster = \"{B}\"\nca = \"b-ca.pem\"\n");
    let path = dir.path().join("proxy.toml");
    fs::write(&path, &base)?;
    let mut process = Process::start(dir.path(), &["--config", "proxy.toml"])?;
    process.wait_for_log("proxy started")?;

    let echo = Service::echo().await?;
    let b = Site::start(&b_pki, 1, |_, config| {
        config.trust = vec![trust(&a_pki, &[echo.rule()])?];
        Ok(())
    })
    .await?;
    b.apply(&[tunnel(A, &[quic], 0)?])?;
    let sessions = |count: f64| async move {
        probe::eventually(&format!("{count} sessions"), || async move {
            let held = metrics(metrics_at).await?.get("mesh_proxy_agents")?;
            ensure!(held == count, "{held}");
            Ok(())
        })
        .await
    };
    fs::write(&path, &trusting)?;
    process.signal("HUP")?;
    process.wait_for_log("reloaded [[trust]]")?;
    sessions(1.0).await.context("trusted")?;

    // A bad file changes nothing, and says what is wrong with it.
    fs::write(
        &path,
        format!("{base}[[trust]]\ncluster = \"{B}\"\nca = \"nowhere.pem\"\n"),
    )?;
    process.signal("HUP")?;
    process.wait_for_log("nowhere.pem does not exist")?;
    ensure!(metrics(metrics_at).await?.get(RELOADED)? == 0.0);
    sessions(1.0).await.context("after a bad file")?;

    fs::write(&path, &base)?;
    process.signal("HUP")?;
    process.wait_for_log("ended a session of another cluster")?;
    sessions(0.0).await.context("not trusted")?;
    ensure!(metrics(metrics_at).await?.get(RELOADED)? == 1.0);
    process.signal("TERM")?;
    ensure!(process.wait()?.success(), "{}", process.log());
    b.stop().await;
    Ok(())
}
