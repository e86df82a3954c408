//! Bytes through the mesh on a bad network.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use mesh_tests::Result;
use mesh_tests::services::pattern;
use mesh_tests::sim::{Action, Link, Service, Transport, World, echoes, run};
use node::config::{IngressConfig, IngressKind};

const MS: Duration = Duration::from_millis(1);

#[test]
fn dials_are_byte_exact_on_a_bad_network() -> Result {
    let name = "dials_are_byte_exact_on_a_bad_network";
    let trace = run(name, 1, by_all_ways)?;
    assert_eq!(
        trace,
        run(name, 1, by_all_ways)?,
        "the same seed, the same trace"
    );
    Ok(())
}

/// Through the dialler, a `tcp` and an `http` ingress; returns the trace's hash.
async fn by_all_ways(world: &mut World) -> Result<u64> {
    let link = Link::latency(20 * MS)
        .jittery(10 * MS)
        .lossy(0.03)
        .reordering(0.1)
        .duplicating(0.05);
    world.net().set_default_link(link);
    let proxies = world
        .start_proxies_with(1, |_, plan| {
            let tcp = IngressKind::Tcp {
                agent: "a-1".parse()?,
                target: "service:echo".parse()?,
            };
            let http = IngressKind::Http { upstream_ca: None };
            plan.config.ingresses = vec![
                IngressConfig::new("0.0.0.0:5000".parse()?, tcp),
                IngressConfig::new("0.0.0.0:8123".parse()?, http),
            ];
            Ok(())
        })
        .await?;
    let target_host = world.net().add_host("services");
    let user = world.net().add_host("user");
    let echo = world.serve(target_host, 7, Service::Echo)?;
    let web = world.serve(target_host, 80, Service::HttpEcho)?;
    let agents = world
        .start_agents_with(1, |_, plan| {
            plan.config
                .services
                .push(mesh_tests::fleet::service("echo", echo.address)?);
            plan.allow(&[echo.rule(), web.rule()])
        })
        .await?;
    world
        .until("the agent is connected", |w| w.all_hold(&agents, 1))
        .await?;
    let bytes = pattern(0, 600_000);

    let tunnel = world.dial(proxies[0], agents[0], &echo.rule()).await?;
    echoes(tunnel, &bytes).await?;

    let proxy = world.net().ip(proxies[0]);
    let socket = world.connect(user, SocketAddr::new(proxy, 5000)).await?;
    echoes(socket, &bytes).await?;

    let socket = world.connect(user, SocketAddr::new(proxy, 8123)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("/client/a-1/http/{}/echo", web.address))
        .header("host", format!("{proxy}:8123"))
        .body(Full::new(Bytes::from(bytes.clone())))?;
    let response = sender.send_request(request).await?;
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await?.to_bytes(), bytes);
    drop(sender);
    connection.await??;

    let net = world.net();
    assert!(net.count(Transport::Udp, Action::Lost) > 50);
    Ok(net.trace_hash())
}

#[test]
fn refusals_reach_the_caller() -> Result {
    run("refusals_reach_the_caller", 1, async |world| {
        let proxies = world.start_proxies(1).await?;
        let agents = world
            .start_agents_with(1, |_, plan| {
                plan.allow(&["nobody.example.com:*".into(), "10.0.0.0/8:*".into()])
            })
            .await?;
        let host = world.net().add_host("target");
        let ip = world.net().ip(host);
        world
            .until("the agent is connected", |w| w.all_hold(&agents, 1))
            .await?;
        for (target, reason) in [
            (format!("{ip}:9"), "refused"),
            ("192.0.2.1:9".into(), "not_allowed"),
            ("10.99.0.1:9".into(), "unreachable"),
            ("nobody.example.com:9".into(), "resolve_failed"),
        ] {
            let refused = world.dial(proxies[0], agents[0], &target).await;
            let text = refused.expect_err("refused").to_string();
            assert!(text.contains(&format!(": {reason}: ")), "{target}: {text}");
        }
        world.net().kill(host);
        let started = world.elapsed();
        let refused = world.dial(proxies[0], agents[0], &format!("{ip}:9")).await;
        let text = refused.expect_err("refused").to_string();
        assert!(text.contains(": timeout: "), "{text}");
        let took = world.elapsed() - started;
        assert!(took < Duration::from_secs(11), "{took:?}");
        Ok(())
    })
}
