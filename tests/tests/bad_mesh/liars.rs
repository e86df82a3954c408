//! Proxies that answer late, or never, or go at once, or lie.

use anyhow::ensure;
use mesh_proto::close::CloseCode;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Answer, Opened, Refused};
use mesh_tests::sim::liar::{Liar, greet, hear, hello};
use mesh_tests::sim::{World, run};
use mesh_tests::{Result, logs, quic};

use crate::support::{HOUR, SECOND, Stage, attempts, connects, gauge, warnings};

/// A way to be no good.
pub(crate) type Manner = fn(&World, &str) -> Result<Liar>;

/// All ways, with what an attempt then counts as.
pub(crate) const MANNERS: [(&str, &str, Manner); 8] = [
    ("late", "timeout", |world, name| {
        let own = name.to_owned();
        world.lie(name, move |connection| {
            let own = own.clone();
            async move {
                tokio::time::sleep(30 * SECOND).await;
                greet(&connection, &own).await?;
                connection.closed().await;
                Ok(())
            }
        })
    }),
    ("never", "timeout", |world, name| {
        world.lie(name, |connection| async move {
            let _heard = hear(&connection).await?;
            connection.closed().await;
            Ok(())
        })
    }),
    ("half", "timeout", |world, name| {
        world.lie(name, |connection| async move {
            let (mut send, _recv) = hear(&connection).await?;
            quic::write(&mut send, &Answer::Opened(Opened::default())).await?;
            connection.closed().await;
            Ok(())
        })
    }),
    ("closes", "failed", |world, name| {
        world.lie(name, |connection| async move {
            connection.close(CloseCode::Internal.code().into(), b"no");
            Ok(())
        })
    }),
    ("refuses", "refused", |world, name| {
        world.lie(name, |connection| async move {
            let (mut send, _recv) = hear(&connection).await?;
            let refused = Refused::new(Reason::Overloaded, "not today");
            quic::write(&mut send, &Answer::Refused(refused)).await?;
            connection.closed().await;
            Ok(())
        })
    }),
    ("lies", "failed", |world, name| {
        world.lie(name, |connection| async move {
            let (mut send, _recv) = hear(&connection).await?;
            quic::write(&mut send, &Answer::Opened(Opened::default())).await?;
            quic::write(&mut send, &hello("somebody-else", "sim.example.com")?).await?;
            connection.closed().await;
            Ok(())
        })
    }),
    ("drops", "failed", |world, name| {
        let own = name.to_owned();
        world.lie(name, move |connection| {
            let own = own.clone();
            async move {
                let (mut send, _recv) = greet(&connection, &own).await?;
                let _ = send.finish();
                connection.close(CloseCode::Internal.code().into(), b"no");
                Ok(())
            }
        })
    }),
    ("vanishes", "ok", |world, name| {
        let own = name.to_owned();
        world.lie(name, move |connection| {
            let own = own.clone();
            async move {
                let _control = greet(&connection, &own).await?;
                tokio::time::sleep(2 * SECOND).await;
                connection.close(CloseCode::Internal.code().into(), b"gone");
                Ok(())
            }
        })
    }),
];

/// A proxy that is no good is tried again and again, with waits that grow, for as long as it is told
/// of; each attempt counts as what it was, and the log does not repeat it.
#[test]
fn liars_are_tried_within_bounds() -> Result {
    let logs = logs::capture();
    for (manner, result, start) in MANNERS {
        run("liars_are_tried_within_bounds", 1, async |world| {
            let liar = start(world, &format!("liar-{manner}"))?;
            let teller = format!("teller-{manner}");
            let stage = Stage::new(world, &teller, vec![liar.member()?]).await?;
            let counted = |world: &World| -> Result<(usize, usize)> {
                Ok((
                    connects(world, stage.agent, result)?,
                    connects(world, stage.agent, "duplicate")?,
                ))
            };
            let before = counted(world)?;
            let dials = stage.hour(world).await?;
            let after = counted(world)?;
            // Meanwhile it asks the configured address, too, which leads to the teller.
            let (counted, again) = (after.0 - before.0, after.1 - before.1);
            ensure!(
                (20..=600).contains(&counted) && liar.met() >= 20 && again <= 800,
                "{manner}: {counted} dials, {} arrived, {again} of the teller",
                liar.met()
            );
            ensure!(
                counted + again == dials,
                "{manner}: {counted} and {again} of {dials} counted"
            );
            let lines = warnings(&logs, &liar.name);
            // A connection that was kept and is lost is told of each time; what is the same is not.
            let most = if result == "ok" {
                dials + 1
            } else {
                dials / 20 + 2
            };
            ensure!(
                !lines.is_empty() && lines.len() <= most,
                "{manner}: {} lines for {dials} dials: {:?}",
                lines.len(),
                lines.first()
            );
            // It is gone, and nobody tells of it.
            stage.teller.stop();
            liar.stop();
            world.run_for(HOUR / 2).await;
            let before = attempts(world, stage.agent)?;
            world.run_for(HOUR / 2).await;
            let after = attempts(world, stage.agent)?;
            ensure!(
                after == before,
                "{manner}: {} dials of nobody",
                after - before
            );
            ensure!(gauge(world, stage.agent, "mesh_agent_inflight_leases")? == 0);
            ensure!(gauge(world, stage.agent, "mesh_agent_desired_proxies")? == 1);
            Ok(())
        })?;
    }
    Ok(())
}
