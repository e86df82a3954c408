//! A proxy that is killed and starts again.

use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::netns::Namespace;

use crate::support::{Site, metrics, until};

/// An idle agent hears of the restart by the stateless reset that its next keepalive draws; the idle
/// timeout is out of reach. With a keepalive of 2 s that is within 3 s.
#[test]
fn restarted_proxy_is_noticed_by_an_idle_agent() -> Result {
    let host = Namespace::new("one")?;
    let site = Site::new(&["proxy-1"])?;
    let proxy_config = "[quic]\nlisten = \"127.0.0.1:7443\"\nkeepalive = \"2s\"\nidle_timeout = \"600s\"\n\
                        [proxy]\nstate_dir = \"state\"\n";
    let mut proxy = site.start(&host, "proxy", "proxy-1", proxy_config)?;
    let mut agent = site.start(
        &host,
        "agent",
        "a1",
        "[quic]\nkeepalive = \"2s\"\nidle_timeout = \"600s\"\n[agent]\nproxies = [\"127.0.0.1:7443\"]\n\
         [metrics]\nlisten = \"127.0.0.1:7481\"\n",
    )?;
    agent.wait_for_log("connected to a proxy")?;
    for round in 1..=3 {
        // Idle, and its last packets acknowledged.
        std::thread::sleep(Duration::from_millis(2500));
        proxy.signal("KILL")?;
        proxy.wait()?;
        proxy = site.start(&host, "proxy", "proxy-1", proxy_config)?;
        let took = until("the agent is connected again", || {
            let metrics = metrics(&host, "127.0.0.1:7481")?;
            Ok(metrics.get("mesh_agent_connects_total{result=\"ok\"}")? == f64::from(1 + round))
        })?;
        eprintln!("connected again {took:?} after the restart");
        let resets = metrics(&host, "127.0.0.1:7481")?
            .get("mesh_agent_disconnects_total{reason=\"reset\"}")?;
        ensure!(resets == f64::from(round), "{resets}: {}", agent.log());
    }
    Ok(())
}
