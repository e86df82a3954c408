//! Agents at one proxy: real handshakes, and then silence.

use std::time::{Duration, Instant};

use super::Grown;
use crate::process::{cpu_of, resident_bytes};
use crate::subjects::agents::Fleet;

/// From when all are connected until they are idle.
const SETTLE: Duration = Duration::from_secs(5);

/// How long they are looked at: two periods of a keepalive.
const IDLE: Duration = Duration::from_secs(10);

pub(super) async fn measure(sizes: &[usize]) -> anyhow::Result<Grown> {
    let mut grown = Grown::new(
        "Agents at one proxy",
        &[
            "agents",
            "KiB each, proxy",
            "KiB each, agent",
            "connecting: CPU ms each, proxy",
            "all connected, s",
            "idle: CPU of the proxy, ms per agent and minute",
        ],
    );
    for count in sizes.iter().copied() {
        eprintln!("{count} agents");
        let mut fleet = Fleet::start()?;
        let proxy = fleet.proxy.id();
        let (memory, cpu) = (resident_bytes(proxy)?, cpu_of(&[proxy])?);
        let time = fleet.connect(count).await?;
        let connecting = cpu_of(&[proxy])?.saturating_sub(cpu);
        tokio::time::sleep(SETTLE).await;
        let near = resident_bytes(proxy)?.saturating_sub(memory);
        let far = resident_bytes(fleet.agents()?)?;
        let (cpu, began) = (cpu_of(&[proxy])?, Instant::now());
        tokio::time::sleep(IDLE).await;
        let idle = cpu_of(&[proxy])?.saturating_sub(cpu);
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        let each = 1.0 / count as f64;
        grown.rows.push(vec![
            count as f64,
            near as f64 / 1024.0 * each,
            far as f64 / 1024.0 * each,
            connecting.as_secs_f64() * 1e3 * each,
            time.as_secs_f64(),
            idle.as_secs_f64() * 1e3 * each / minutes,
        ]);
    }
    Ok(grown)
}
