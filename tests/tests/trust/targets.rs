//! What an agent may be asked to reach.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use mesh_proto::refusal::Reason;
use mesh_tests::Result;
use mesh_tests::fleet::{Node, agent_config, proxy_config, service};
use mesh_tests::pki::Pki;
use mesh_tests::scripted::ScriptedNetwork;
use mesh_tests::services::Service;
use node::app::Parts;
use node::config::{NodeConfig, ServiceConfig};
use node::proxy::DialerError;

use crate::support::{CLUSTER, dial};

/// A name, what it resolves to, a port; and the address that must be dialled, or the refusal.
type Case<'a> = (
    &'a str,
    &'a [&'a str],
    u16,
    std::result::Result<&'a str, Reason>,
);

/// What is asked of an agent is looked up once, every address is checked against the agent's own
/// list, and exactly the checked one is dialled.
#[tokio::test]
async fn arbitrary_address_refused() -> Result {
    let (allowed, forbidden) = (Service::echo().await?, Service::echo().await?);
    let (port, other) = (allowed.addr.port(), forbidden.addr.port());
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("a.sock");
    let unix = tokio::net::UnixListener::bind(&socket)?;
    let serve_unix = tokio::spawn(async move {
        while let Ok((mut stream, _)) = unix.accept().await {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
        }
        Ok::<_, std::io::Error>(())
    });
    let socket = socket.to_str().context("a path")?.to_owned();

    let network = ScriptedNetwork::default();
    let allow = [
        allowed.rule(),
        format!("unix:{socket}"),
        // Names that may resolve to anything but what needs a rule of its own.
        format!("*.svc.local:{port}"),
        format!("exact.example.com:{port}"),
    ];
    let pki = Pki::new(CLUSTER)?;
    let proxy = Node::proxy(proxy_config(&pki, "proxy-1")?).await?;
    let mut config = agent_config(&pki, "a1", &[proxy.quic_addr()?], &allow)?;
    let at = |name: &str, address: &str| -> Result<ServiceConfig> {
        Ok(ServiceConfig {
            address: address.parse()?,
            ..service(name, allowed.addr)?
        })
    };
    config.services = vec![
        service("good", allowed.addr)?,
        service("bad", forbidden.addr)?,
        at("bad-unix", "unix:/run/other.sock")?,
        at("metadata", &format!("meta.svc.local:{port}"))?,
    ];
    let parts = Parts {
        network: Arc::new(network.clone()),
        ..Parts::current()
    };
    let agent = Node::start(NodeConfig::Agent(Box::new(config)), parts).await?;
    proxy.sessions(1).await?;

    // Spelled as addresses and sockets: refused without a connection to anywhere.
    let not_allowed = [
        format!("127.0.0.1:{other}"),
        format!("127.0.0.2:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{other}"),
        format!("[::ffff:7f00:2]:{port}"),
        format!("[::]:{port}"),
        format!("0.0.0.0:{port}"),
        "169.254.169.254:80".into(),
        "10.0.0.1:22".into(),
        "255.255.255.255:80".into(),
        "unix:/run/other.sock".into(),
        format!("unix:{socket}x"),
        format!("unix:/{socket}"),
        "service:bad".into(),
        "service:bad-unix".into(),
    ];
    for target in not_allowed {
        let result = dial(&proxy, "a1", &target).await;
        // A second spelling of one path is no target at all.
        let spelled_twice = target.starts_with("unix://");
        match result {
            Ok(Err(Reason::NotAllowed)) => {}
            Err(_) if spelled_twice => {}
            other => bail!("{target}: {other:?}"),
        }
    }
    ensure!(dial(&proxy, "a1", "service:none").await? == Err(Reason::BadTarget));
    // Numbers that a C library would read as addresses are no targets.
    for odd in [
        "127.1",
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.1.",
        "1.2.3.4.5",
    ] {
        let dialer = proxy.as_proxy()?.dialer("a1")?;
        let result = dialer.dial(&format!("{odd}:{port}")).await.map(drop);
        ensure!(
            matches!(result, Err(DialerError::Target(_))),
            "{odd}: {result:?}"
        );
    }
    ensure!(
        network.dialled().is_empty(),
        "dialled {:?}",
        network.dialled()
    );
    ensure!(
        network.resolved().is_empty(),
        "resolved {:?}",
        network.resolved()
    );
    ensure!(forbidden.accepted() == 0);

    // What is allowed, in all its spellings.
    for target in [
        format!("127.0.0.1:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("unix:{socket}"),
        "service:good".into(),
    ] {
        let result = dial(&proxy, "a1", &target).await?;
        ensure!(result == Ok(()), "{target}: {result:?}");
    }

    // Names: what they resolve to, which port, and what must be dialled.
    let here = format!("127.0.0.1:{port}");
    let cases: &[Case<'_>] = &[
        // A name that no rule permits is judged by its addresses alone.
        ("plain.example.com", &["127.0.0.1"], port, Ok(&here)),
        (
            "plain.example.com",
            &["127.0.0.1"],
            other,
            Err(Reason::NotAllowed),
        ),
        (
            "plain.example.com",
            &["127.0.0.2"],
            port,
            Err(Reason::NotAllowed),
        ),
        ("plain.example.com", &["::1"], port, Err(Reason::NotAllowed)),
        (
            "plain.example.com",
            &["169.254.169.254"],
            port,
            Err(Reason::NotAllowed),
        ),
        // A permitted name may lead to this host, but never to the host's credentials.
        ("a.svc.local", &["127.0.0.1"], port, Ok(&here)),
        ("a.b.svc.local", &["::ffff:127.0.0.1"], port, Ok(&here)),
        ("A.SVC.local.", &["127.0.0.1"], port, Ok(&here)),
        (
            "a.svc.local",
            &["127.0.0.1"],
            other,
            Err(Reason::NotAllowed),
        ),
        (
            "a.svc.local",
            &["169.254.169.254"],
            port,
            Err(Reason::NotAllowed),
        ),
        (
            "a.svc.local",
            &["::ffff:169.254.169.254"],
            port,
            Err(Reason::NotAllowed),
        ),
        ("a.svc.local", &["fe80::1"], port, Err(Reason::NotAllowed)),
        (
            "a.svc.local",
            &["fd00:ec2::254"],
            port,
            Err(Reason::NotAllowed),
        ),
        ("a.svc.local", &["0.0.0.0"], port, Err(Reason::NotAllowed)),
        ("a.svc.local", &["::"], port, Err(Reason::NotAllowed)),
        ("a.svc.local", &["224.0.0.1"], port, Err(Reason::NotAllowed)),
        (
            "a.svc.local",
            &["255.255.255.255"],
            port,
            Err(Reason::NotAllowed),
        ),
        // The pattern is of what lies below it.
        ("svc.local", &["127.0.0.2"], port, Err(Reason::NotAllowed)),
        (
            "evil-svc.local",
            &["127.0.0.2"],
            port,
            Err(Reason::NotAllowed),
        ),
        (
            "a.svc.local.evil.example.com",
            &["127.0.0.2"],
            port,
            Err(Reason::NotAllowed),
        ),
        ("exact.example.com", &["127.0.0.1"], port, Ok(&here)),
        (
            "sub.exact.example.com",
            &["127.0.0.2"],
            port,
            Err(Reason::NotAllowed),
        ),
        // Of several addresses, the checked ones only, wherever they stand.
        (
            "mixed.example.com",
            &["169.254.169.254", "127.0.0.2", "127.0.0.1"],
            port,
            Ok(&here),
        ),
        (
            "mixed.svc.local",
            &["169.254.169.254", "127.0.0.1", "fe80::1"],
            port,
            Ok(&here),
        ),
        (
            "mixed.svc.local",
            &["169.254.169.254", "fe80::1"],
            port,
            Err(Reason::NotAllowed),
        ),
        ("nowhere.svc.local", &[], port, Err(Reason::ResolveFailed)),
    ];
    for (host, ips, port, expected) in cases {
        network.forget();
        let resolved = host.to_ascii_lowercase();
        let resolved = resolved.trim_end_matches('.');
        network.name(resolved, &[ips]);
        let target = format!("{host}:{port}");
        let result = dial(&proxy, "a1", &target).await?;
        ensure!(
            result == expected.map(drop),
            "{target} as {ips:?}: {result:?}"
        );
        ensure!(
            network.resolved() == [resolved],
            "{target}: asked for {:?}",
            network.resolved()
        );
        let wanted: Vec<SocketAddr> = expected
            .iter()
            .map(|addr| addr.parse())
            .collect::<std::result::Result<_, _>>()?;
        let dialled: Vec<SocketAddr> = network
            .dialled()
            .into_iter()
            .map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()))
            .collect();
        ensure!(
            dialled == wanted,
            "{target} as {ips:?}: dialled {dialled:?}"
        );
    }

    // A name that leads elsewhere the second time: what was checked is what is dialled.
    network.forget();
    network.name(
        "rebind.example.com",
        &[&["127.0.0.1"], &["127.0.0.2"], &["169.254.169.254"]],
    );
    network.name("rebind.svc.local", &[&["127.0.0.1"], &["169.254.169.254"]]);
    for (host, results) in [
        (
            "rebind.example.com",
            vec![Ok(()), Err(Reason::NotAllowed), Err(Reason::NotAllowed)],
        ),
        ("rebind.svc.local", vec![Ok(()), Err(Reason::NotAllowed)]),
    ] {
        for expected in results {
            let result = dial(&proxy, "a1", &format!("{host}:{port}")).await?;
            ensure!(result == expected, "{host}: {result:?}");
        }
    }
    let here: SocketAddr = here.parse()?;
    ensure!(
        network.dialled() == [here, here],
        "dialled {:?}",
        network.dialled()
    );
    ensure!(
        network.resolved().len() == 5,
        "asked for {:?}",
        network.resolved()
    );

    // A service is no way around it either.
    network.name("meta.svc.local", &[&["169.254.169.254"]]);
    ensure!(dial(&proxy, "a1", "service:metadata").await? == Err(Reason::NotAllowed));
    ensure!(
        network.dialled() == [here, here],
        "dialled {:?}",
        network.dialled()
    );
    ensure!(
        forbidden.accepted() == 0,
        "somebody reached what is forbidden"
    );

    agent.stop().await;
    proxy.stop().await;
    serve_unix.abort();
    Ok(())
}
