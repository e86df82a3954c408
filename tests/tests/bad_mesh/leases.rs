//! Whatever an attempt comes to, its lease comes back.

use anyhow::ensure;
use mesh_proto::wire::Member;
use mesh_tests::Result;
use mesh_tests::sim::liar::{Liar, member};
use mesh_tests::sim::{Answer, World, run};

use crate::liars::MANNERS;
use crate::support::{SECOND, Stage, gauge};

/// Attempts that fail at every stage, all at once: at the name, on the way, in the handshake, before,
/// in and behind the hello, and when the agent leaves in their midst.
#[test]
fn lease_is_never_leaked() -> Result {
    run("lease_is_never_leaked", 1, async |world| {
        let mut others = Vec::new();
        let mut liars = Vec::new();
        for (manner, _, start) in MANNERS {
            let liar = start(world, &format!("leak-{manner}"))?;
            others.push(liar.member()?);
            liars.push(liar);
        }
        let (other, more) = elsewhere(world)?;
        liars.push(other);
        others.extend(more);
        let count = others.len();
        let stage = Stage::new(world, "leak-teller", others).await?;
        let mut most = 0;
        for _ in 0..600 {
            world.run_for(3 * SECOND).await;
            let leases = gauge(world, stage.agent, "mesh_agent_inflight_leases")?;
            ensure!(leases <= 4, "{leases} leases");
            most = most.max(leases);
            ensure!(
                world.sessions(stage.proxy) == 1,
                "the proxy in order was lost"
            );
        }
        ensure!(
            most == 4,
            "at most {most} at once, of {count} to be dialled"
        );
        everybody_goes(world, &stage, liars).await?;

        // Proxies in order are found as ever.
        let more = world.start_proxies(4).await?;
        world
            .within(120 * SECOND, "the agent holds all that are in order", |w| {
                more.iter().all(|proxy| w.sessions(*proxy) == 1) && w.connections(stage.agent) == 5
            })
            .await?;
        ensure!(gauge(world, stage.agent, "mesh_agent_inflight_leases")? == 0);
        ensure!(gauge(world, stage.agent, "mesh_agent_connected_proxies")? == 5);
        Ok(())
    })
}

/// The same, and the agent leaves while dials are under way: it does not wait for them.
#[test]
fn dials_under_way_do_not_hold_up_a_leave() -> Result {
    run("dials_under_way_do_not_hold_up_a_leave", 1, async |world| {
        let mut others = Vec::new();
        let mut liars = Vec::new();
        for (manner, _, start) in MANNERS {
            let liar = start(world, &format!("leave-{manner}"))?;
            others.push(liar.member()?);
            liars.push(liar);
        }
        let (other, more) = elsewhere(world)?;
        liars.push(other);
        others.extend(more);
        let stage = Stage::new(world, "leave-teller", others).await?;
        while gauge(world, stage.agent, "mesh_agent_inflight_leases")? < 4 {
            world.run_for(SECOND / 4).await;
        }
        let started = world.elapsed();
        ensure!(world.stop(stage.agent).await? == 0);
        let took = world.elapsed() - started;
        ensure!(took < 5 * SECOND, "it took {took:?}");
        Ok(())
    })
}

/// Proxies that are not there: a name without an address, one that nobody answers for, hosts that are
/// not there, and a proxy with a certificate of another name.
fn elsewhere(world: &World) -> Result<(Liar, Vec<Member>)> {
    world
        .net()
        .set_name("leak-empty.example.com", Answer::Empty);
    world
        .net()
        .set_name("leak-silent.example.com", Answer::Silence);
    let other = world.tell("is-another", Vec::new())?;
    let members = vec![
        member("has-no-address", &["leak-empty.example.com:7443".into()])?,
        member("is-not-resolved", &["leak-silent.example.com:7443".into()])?,
        member("is-not-there", &["10.94.0.1:7443".into()])?,
        member("is-called-otherwise", &[other.address.to_string()])?,
        member("says-no-address", &[])?,
    ];
    Ok((other, members))
}

async fn everybody_goes(world: &World, stage: &Stage, liars: Vec<Liar>) -> Result {
    stage.teller.stop();
    for liar in &liars {
        liar.stop();
    }
    // What was told has expired by then, and what was under way has ended.
    world.run_for(600 * SECOND).await;
    ensure!(gauge(world, stage.agent, "mesh_agent_inflight_leases")? == 0);
    ensure!(gauge(world, stage.agent, "mesh_agent_desired_proxies")? == 1);
    ensure!(gauge(world, stage.agent, "mesh_agent_connected_proxies")? == 1);
    ensure!(gauge(world, stage.agent, "mesh_agent_connections")? == 1);
    Ok(())
}
