//! A proxy that is asked to leave before it has joined.

use std::future::Future as _;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::fleet::proxy_config;
use mesh_tests::pki::Pki;
use node::Proxy;
use node::proxy::Phase;

/// Taken back, a drain leaves the proxy as it was: not ready while it knows no peer's agents.
#[tokio::test]
async fn a_cancelled_drain_does_not_make_a_fresh_proxy_ready() -> Result {
    let pki = Pki::new("test.example.com")?;
    let mut config = proxy_config(&pki, "proxy-1")?;
    // Nobody is there (RFC 5737).
    config.peers = vec!["192.0.2.1:7443".to_owned()];
    config.join_deadline = Duration::from_secs(3600);
    config.drain_notice = Duration::from_secs(3600);
    config.common.drain_deadline = Duration::from_secs(3600);
    let mut proxy = Proxy::start(config).await?;
    let phase = proxy.readiness();
    ensure!(*phase.borrow() == Phase::Joining);
    let begun = pin!(proxy.notice()).poll(&mut Context::from_waker(Waker::noop()));
    ensure!(begun.is_pending() && *phase.borrow() == Phase::Notice);
    proxy.cancel_notice();
    ensure!(*phase.borrow() == Phase::Joining, "{:?}", *phase.borrow());
    Ok(())
}
