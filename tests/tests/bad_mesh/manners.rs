//! Proxies that lie about their name, are late, say nothing, or hang up.

use std::future::pending;

use anyhow::ensure;
use certs::Kind;
use mesh_proto::wire::{Answer, Opened};
use mesh_tests::Result;
use mesh_tests::quic;
use mesh_tests::rogue::{Rogue, Serve, greeted, hello, serve, tells, welcome};

use crate::support::{MINUTE, Mesh, SECOND, scenario};

/// What comes of a name that is not the certificate's: nothing, and a wait.
#[test]
fn liars_are_refused_and_left_alone() -> Result {
    scenario("liars_are_refused_and_left_alone", async |world, log| {
        let cluster = world.cluster();
        // One that says that it is a good one, one of another cluster, and one where another is.
        let rogues = vec![
            Rogue::start(world, "liar", &tells(cluster, "proxy-1", Vec::new()))?,
            Rogue::start(
                world,
                "stray",
                &tells("other.example.com", "stray", Vec::new()),
            )?,
            Rogue::start_as(
                world,
                "masked",
                &*world.pki().issue(Kind::Proxy, "somebody")?,
                &tells(cluster, "masked", Vec::new()),
            )?,
        ];
        let mesh = Mesh::start(world, rogues).await?;
        mesh.tell_of_rogues(world)?;
        mesh.live(world, 4 * MINUTE).await?;
        assert_eq!(world.connections(mesh.agent), 3);
        assert_eq!(mesh.gauge(world, "mesh_agent_connected_proxies")?, 3);
        assert_eq!(mesh.gauge(world, "mesh_agent_desired_proxies")?, 6);
        assert_eq!(mesh.connects(world, "ok")?, 3);
        let failed = mesh.connects(world, "failed")?;
        let dials: usize = mesh.rogues.iter().map(Rogue::accepted).sum();
        ensure!((6..=80).contains(&failed), "{failed} failed");
        ensure!(failed <= dials, "{failed} of {dials}");
        // The handshake with the masked one ends before it is one.
        let untrusted = mesh.connects(world, "untrusted")?;
        ensure!((3..=40).contains(&untrusted), "{untrusted} untrusted");
        log.says_once(&["\"address\":\"liar\""], "it calls itself proxy-1")?;
        log.says_once(&["\"address\":\"stray\""], "stray of other.example.com")?;
        log.says_once(&["\"address\":\"masked\""], "do not trust each other")?;
        assert_eq!(log.warnings(&[]).len(), 3);
        let mut cooling = 0;
        for _ in 0..60 {
            world.run_for(SECOND).await;
            cooling = cooling.max(mesh.gauge(world, "mesh_agent_cooling_proxies")?);
        }
        assert_eq!(cooling, 3);
        Ok(())
    })
}

/// An hour with proxies of bad manners: each is tried at the pace of its backoff, and none is
/// taken for connected.
#[test]
fn bad_manners_are_met_with_patience() -> Result {
    scenario("bad_manners_are_met_with_patience", async |world, log| {
        let cluster = world.cluster();
        let late = serve(move |connection| async move {
            let (mut send, _recv) = greeted(&connection).await?;
            tokio::time::sleep(30 * SECOND).await;
            quic::write(&mut send, &Answer::Opened(Opened::default())).await?;
            quic::write(&mut send, &hello(cluster, "late")?).await?;
            connection.closed().await;
            Ok(())
        });
        let never = serve(|connection| async move {
            let _streams = greeted(&connection).await?;
            connection.closed().await;
            Ok(())
        });
        let opened = serve(|connection| async move {
            let (mut send, _recv) = greeted(&connection).await?;
            quic::write(&mut send, &Answer::Opened(Opened::default())).await?;
            connection.closed().await;
            Ok(())
        });
        let deaf = serve(|connection| async move {
            let _kept = connection;
            pending().await
        });
        let shut = serve(|connection| async move {
            connection.close(77u32.into(), b"not today");
            Ok(())
        });
        // Words that never repeat.
        let moody = serve(|connection| async move {
            let why = format!("not at {:?}", tokio::time::Instant::now());
            connection.close(77u32.into(), why.as_bytes());
            Ok(())
        });
        let fickle = serve(move |connection| async move {
            let _streams = welcome(&connection, cluster, "fickle").await?;
            // A close that comes with the hello would go before it.
            tokio::time::sleep(SECOND / 10).await;
            connection.close(77u32.into(), b"after all, no");
            Ok(())
        });
        // Slow ones: 10 s each, and then the wait. The others: the wait alone, 15 s in the mean.
        let cases: Vec<(&str, Serve, usize, &str)> = vec![
            ("late", late, 260, "said no hello"),
            ("never", never, 260, "said no hello"),
            ("opened", opened, 260, "said no hello"),
            ("deaf", deaf, 260, "said no hello"),
            ("shut", shut, 400, "not today"),
            ("moody", moody, 400, "not at"),
            ("fickle", fickle, 400, "after all, no"),
        ];
        let rogues = cases
            .iter()
            .map(|(name, serve, ..)| (*name, serve.clone()))
            .collect();
        let mesh = Mesh::with(world, rogues).await?;
        mesh.live(world, 4 * MINUTE).await?;
        for (name, _, _, why) in &cases {
            let parts = match *name {
                "fickle" => format!("\"proxy\":\"{name}\""),
                _ => format!("\"address\":\"{name}\""),
            };
            if *name == "moody" {
                let lines = log.warnings(&[&parts]).len();
                ensure!((1..=4).contains(&lines), "{lines} lines");
            } else {
                log.says_once(&[&parts], why)?;
            }
        }
        mesh.live(world, 56 * MINUTE).await?;
        for ((name, _, most, _), rogue) in cases.iter().zip(&mesh.rogues) {
            let dials = rogue.accepted();
            ensure!((60..=*most).contains(&dials), "{name}: {dials} dials");
            // Again at every 20th, and not within 5 minutes.
            let parts = [
                format!("\"address\":\"{name}\""),
                format!("\"proxy\":\"{name}\""),
            ];
            let lines: usize = parts.iter().map(|part| log.warnings(&[part]).len()).sum();
            ensure!((2..=16).contains(&lines), "{name}: {lines} lines");
        }
        let accepted = |index: usize| mesh.rogues[index].accepted();
        assert_eq!(mesh.connects(world, "ok")?, 3 + accepted(6));
        let hung_up = mesh.disconnects(world, "closed_by_proxy")?;
        ensure!(hung_up == accepted(6), "{hung_up} of {}", accepted(6));
        let timeouts = mesh.connects(world, "timeout")?;
        let slow: usize = (0..4).map(accepted).sum();
        ensure!(
            timeouts + 4 >= slow && timeouts <= slow,
            "{timeouts} of {slow}"
        );
        assert_eq!(world.connections(mesh.agent), 3);
        Ok(())
    })
}
