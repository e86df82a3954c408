//! Views of the mesh that cannot be true.

use anyhow::ensure;
use mesh_proto::name::Generation;
use mesh_proto::wire::Member;
use mesh_tests::sim::liar::{greet, member, view};
use mesh_tests::sim::{World, run};
use mesh_tests::{Result, logs};

use crate::support::{HOUR, SECOND, Stage, attempts, connects, gauge, ignored, renamed, warnings};

/// A member of a group of its own, at an address where nobody is.
fn stranger(index: usize) -> Result<Member> {
    let address = format!("10.97.{}.{}:7443", index / 250, index % 250 + 1);
    member(&format!("stranger-{index}"), &[address])
}

/// What is told beside what is true, and as what it counts.
#[test]
fn odd_members_are_counted_and_said_once() -> Result {
    type Case = (&'static str, &'static str, fn(&mut Vec<Member>));
    let cases: [Case; 7] = [
        ("no-ttl", "ttl", |it| it[0].ttl_ms = 0),
        ("years", "ttl", |it| it[0].ttl_ms = u64::MAX),
        ("nowhere", "address", |it| {
            it[0].addresses = vec!["0.0.0.0:7443".into(), "255.255.255.255:7443".into()];
        }),
        ("group-of-hosts", "address", |it| {
            it[0].addresses = vec!["224.0.0.251:5353".into(), "[ff02::1]:7443".into()];
        }),
        ("twice", "duplicate", |it| it.push(it[0].clone())),
        ("back-in-generation", "stale", |it| {
            let mut older = it[0].clone();
            it[0].generation = Generation(9);
            older.generation = Generation(8);
            it.push(older);
        }),
        ("back-in-epoch", "stale", |it| {
            let mut former = it[0].clone();
            it[0].epoch = 9;
            former.epoch = 8;
            former.addresses = vec!["10.96.0.1:7443".into()];
            it.push(former);
        }),
    ];
    let logs = logs::capture();
    for (teller, reason, change) in cases {
        run("odd_members_are_counted_and_said_once", 1, async |world| {
            let mut odd_ones = vec![stranger(1)?];
            change(&mut odd_ones);
            let stage = Stage::new(world, teller, odd_ones).await?;
            let dials = stage.hour(world).await?;
            ensure!(dials < 1000, "{teller}: {dials} dials in an hour");
            let counted = ignored(world, stage.agent, reason)?;
            // Told once a minute.
            ensure!((50..=300).contains(&counted), "{teller}: {counted}");
            let lines = warnings(&logs, &format!("\"proxy\":\"{teller}\""));
            let about = |line: &&String| {
                line.contains("ignoring part") && line.contains(&format!("\"reason\":\"{reason}\""))
            };
            let said = lines.iter().filter(about).count();
            ensure!(
                (1..=1 + counted / 20).contains(&said),
                "{teller}: said {said} times: {lines:?}"
            );
            // Nobody is told to dial where nobody can be.
            if reason == "address" {
                let again = connects(world, stage.agent, "duplicate")?;
                let made = connects(world, stage.agent, "ok")?;
                let all = attempts(world, stage.agent)?;
                ensure!(
                    all == again + made,
                    "{teller}: {all} dials, {again} of the teller"
                );
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Ten thousand strangers: remembered up to a bound, dialled a few at a time, and never in the way of
/// the one that it has.
#[test]
fn ten_thousand_members() -> Result {
    let logs = logs::capture();
    run("ten_thousand_members", 1, async |world| {
        let strangers = (0..10_500).map(stranger).collect::<Result<Vec<_>>>()?;
        let teller = world.tell("knows-thousands", strangers)?;
        let address = teller.address.to_string();
        let agent = world
            .start_agents_with(1, |_, plan| {
                plan.config.proxies = vec![address.clone()];
                Ok(())
            })
            .await?[0];
        world
            .within(10 * SECOND, "the agent has met one", |w| {
                w.connections(agent) == 1
            })
            .await?;
        world.run_for(SECOND).await;
        let desired = |world: &World| gauge(world, agent, "mesh_agent_desired_proxies");
        ensure!(
            (1000..=2500).contains(&desired(world)?),
            "{}",
            desired(world)?
        );
        let before = attempts(world, agent)?;
        for _ in 0..100 {
            world.run_for(6 * SECOND).await;
            ensure!(world.connections(agent) == 1, "it has lost whom it had");
            let leases = gauge(world, agent, "mesh_agent_inflight_leases")?;
            ensure!(leases <= 4, "{leases} dials at once");
        }
        // Four at a time, and each waits ten seconds for an answer.
        let dials = attempts(world, agent)? - before;
        ensure!((20..=500).contains(&dials), "{dials} dials in ten minutes");
        ensure!(ignored(world, agent, "over_limit")? >= 500);
        let lines = warnings(&logs, "\"proxy\":\"knows-thousands\"");
        let said = lines.iter().filter(|line| line.contains("over_limit"));
        let said = said.count();
        ensure!((1..=3).contains(&said), "{lines:?}");
        // Nobody tells of them any more.
        teller.stop();
        world.run_for(HOUR / 6).await;
        ensure!(desired(world)? == 1, "{} are desired", desired(world)?);
        Ok(())
    })
}

/// A view that is no view: the connection is closed, and made anew with growing waits, and the log
/// says once what it is.
#[test]
fn malformed_views() -> Result {
    let logs = logs::capture();
    let name = "malformed-view";
    let good = view(vec![member(name, &[])?])?;
    let overlong = "x".repeat(64);
    let cases: [(&'static str, Vec<u8>); 6] = [
        ("empty-name", renamed(&good, name, b"")),
        ("overlong-name", renamed(&good, name, overlong.as_bytes())),
        ("upper-case", renamed(&good, name, b"Malformed-View")),
        ("no-label", renamed(&good, name, b"a.b")),
        ("no-text", renamed(&good, name, &[0xff, 0xfe])),
        ("cut-short", {
            let mut cut = good.clone();
            cut.truncate(good.len() - 2);
            let body = u32::try_from(cut.len() - mesh_proto::wire::FRAME_HEADER_BYTES)?;
            cut[..4].copy_from_slice(&body.to_be_bytes());
            cut
        }),
    ];
    for (liar, bytes) in cases {
        let teller = format!("tells-of-{liar}");
        run("malformed_views", 1, async |world| {
            let own = liar.to_owned();
            let liar = world.lie(liar, move |connection| {
                let (own, bytes) = (own.clone(), bytes.clone());
                async move {
                    let (mut send, _recv) = greet(&connection, &own).await?;
                    send.write_all(&bytes).await?;
                    connection.closed().await;
                    Ok(())
                }
            })?;
            let stage = Stage::new(world, &teller, vec![liar.member()?]).await?;
            let dials = stage.hour(world).await?;
            ensure!(
                (20..=1200).contains(&dials) && liar.met() >= 20,
                "{}: {dials} dials, {} arrived",
                liar.name,
                liar.met()
            );
            // Each was made, and counts as such.
            ensure!(connects(world, stage.agent, "ok")? >= liar.met());
            let lines = warnings(&logs, &format!("\"proxy\":\"{}\"", liar.name));
            // The same is said again after twenty times.
            ensure!(
                !lines.is_empty() && lines.len() <= dials / 20 + 2,
                "{}: {} lines for {dials} dials: {:?}",
                liar.name,
                lines.len(),
                lines.first()
            );
            ensure!(
                lines.iter().all(|line| line.contains("broke the protocol")),
                "{lines:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}
