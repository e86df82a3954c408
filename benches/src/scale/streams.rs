//! Idle streams of one agent, each of which has moved a byte.

use super::Grown;
use crate::loads::idle;
use crate::process::cpu_of;
use crate::service::Service;
use crate::subjects::node::Node;
use crate::subjects::{Place, Running};

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

/// Descriptors of this process beside those of the streams.
const DESCRIPTORS_ELSE: u64 = 1_000;

pub(super) async fn measure(service: &Service, descriptors: u64) -> anyhow::Result<Grown> {
    let mut grown = Grown::new(
        "Idle streams of one agent",
        &[
            "streams",
            "KiB each, proxy",
            "KiB each, agent",
            "opening: CPU ms each, both",
        ],
    );
    for wanted in SIZES {
        // Both ends of each are in this process.
        let room = usize::try_from(descriptors.saturating_sub(DESCRIPTORS_ELSE) / 2)?;
        let streams = wanted.min(room);
        eprintln!("{streams} streams");
        let room = streams.max(idle::BEFORE) * 2;
        let subject = Node::new(&[]).streams_max(room);
        let mut running = Running::start(&subject, &Place::loopback(service.addr())).await?;
        let cpu = cpu_of(&running.pids())?;
        let measured = idle::memory(running.entry(), running.pids(), streams).await;
        let [near, far] = running.explain(measured, "node", "idle streams")?;
        let opening = cpu_of(&running.pids())?.saturating_sub(cpu);
        // So few find room in what those before them have left.
        let each = |bytes: f64| {
            if streams > idle::BEFORE {
                bytes / 1024.0
            } else {
                f64::NAN
            }
        };
        grown.rows.push(vec![
            streams as f64,
            each(near),
            each(far),
            opening.as_secs_f64() * 1e3 / (streams + idle::BEFORE) as f64,
        ]);
    }
    Ok(grown)
}
