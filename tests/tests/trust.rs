//! Who is trusted with what: identities, handshakes, and what an agent may be asked to reach.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use certs::{Credentials, Kind, Validity};
use mesh_proto::allow::AllowList;
use mesh_proto::close::CloseCode;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::target::Target;
use mesh_proto::wire::{ALPN_AGENT, ALPN_PEER, ALPN_USER, Answer, Dial, Open};
use mesh_tests::fleet::{
    Bystander, Node, Pair, agent_config, http_ingress, proxy_config, service, tcp_ingress,
};
use mesh_tests::hostile::{self, careless_tls, identity};
use mesh_tests::logs::{self, Logs};
use mesh_tests::pki::Pki;
use mesh_tests::scripted::ScriptedNetwork;
use mesh_tests::services::{Service, echoes};
use mesh_tests::{Result, binary, http, probe, quic};
use node::app::Parts;
use node::config::{NodeConfig, ServiceConfig};
use node::hooks::{Connected, DialInfo, Hooks};
use node::proxy::{DialerError, Proxy};
use quinn::ConnectionError;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const CLUSTER: &str = "test.example.com";
const SERVER_NAME: &str = "proxy.test.example.com";

/// Seconds since 1970.
fn now() -> Result<i64> {
    let now = certs::system_time().current_time().context("no clock")?;
    Ok(i64::try_from(now.as_secs())?)
}

fn expired() -> Result<Validity> {
    Ok(Validity::between(now()? - 3000, now()? - 600)?)
}

fn not_yet_valid() -> Result<Validity> {
    Ok(Validity::between(now()? + 3600, now()? + 7200)?)
}

/// Names that break the rule, and a word of the rule that the refusal must tell.
fn odd_names() -> Vec<(String, &'static str)> {
    vec![
        ("a/b".into(), "not allowed"),
        ("../ca".into(), "not allowed"),
        ("a".repeat(64), "64 bytes"),
        ("a".repeat(100), "100 bytes"),
        ("a_b".into(), "not allowed"),
        ("a b".into(), "not allowed"),
        ("A1".into(), "upper case"),
        ("a1-".into(), "begins or ends with '-'"),
        ("a%2fb".into(), "not allowed"),
        ("a\u{e4}".into(), "not allowed"),
        ("a\n".into(), "not allowed"),
        (String::new(), "empty"),
    ]
}

/// A name is good everywhere or nowhere: for `certs`, in a handshake, in a config and in a path.
#[tokio::test]
async fn odd_agent_names() -> Result {
    let logs = logs::capture();
    let good = ["a", "0", "x--y", "123-abc", &"z".repeat(63)];
    let dir = tempfile::tempdir()?;
    binary::must(
        dir.path(),
        &["certs", "init", "--cluster", CLUSTER, "--dir", "."],
    )?;
    binary::must(dir.path(), &["certs", "issue", "proxy", "p1", "--dir", "."])?;
    let config_of = |agent: &str| {
        let agent = serde_json::Value::from(agent);
        format!(
            "role = \"proxy\"\nname = \"p1\"\ncluster = \"{CLUSTER}\"\n\
             [tls]\nca = \"ca.pem\"\ncert = \"p1.pem\"\nkey = \"p1.key\"\n\
             [[ingress]]\nkind = \"tcp\"\nlisten = \"127.0.0.1:0\"\ntarget = \"127.0.0.1:80\"\nagent = {agent}\n"
        )
    };
    let check = |agent: &str| {
        std::fs::write(dir.path().join("node.toml"), config_of(agent))?;
        binary::run(dir.path(), &["config", "check", "--config", "node.toml"])
    };

    let echo = Service::start(|mut stream, _| async move {
        stream.read_u8().await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
            .await
    })
    .await?;
    let bystander =
        Bystander::start_with(|config| config.ingresses.push(http_ingress()), |_| {}).await?;
    let proxy = &bystander.pair.proxy;
    let http = proxy.ingress(1)?;

    for (name, rule) in odd_names() {
        // `--` keeps a name from being read as a flag.
        let files = std::fs::read_dir(dir.path())?.count();
        let issue = ["certs", "issue", "--dir", ".", "--", "agent", &name];
        let output = binary::run(dir.path(), &issue)?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(2) && stderr.contains(rule),
            "issue {name:?}: {stderr}"
        );
        ensure!(
            std::fs::read_dir(dir.path())?.count() == files,
            "issue {name:?} wrote a file"
        );

        // A tcp ingress names an agent; a name with a dot would be one of another cluster.
        let output = check(&name)?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(2)
                && stderr.contains("node.toml:13: ingress[0].agent: ")
                && stderr.contains(rule),
            "config {name:?}: {stderr}"
        );

        // An authority's key in the hands of another tool.
        if name.is_ascii() {
            let uri = format!("spiffe://{CLUSTER}/agent/{name}");
            let minted = bystander.pair.pki.mint(&[&uri], &[])?;
            let (tls, _) = careless_tls(Some(minted), &[ALPN_AGENT])?;
            let refused = refused(&bystander, tls, "bad_certificate").await?;
            let line = refusal_line(&logs, refused.local).await?;
            // A slash makes a path of another shape.
            let rule = if name.contains('/') {
                "is not of the form"
            } else {
                rule
            };
            let rule = if name == "a/b" || name == "../ca" {
                ""
            } else {
                rule
            };
            ensure!(
                line["level"] == "WARN" && line.to_string().contains(rule),
                "handshake {name:?}: {line}"
            );
        }

        let escaped: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = http::get(http, &format!("/client/{escaped}/http/{}/", echo.addr)).await?;
        ensure!(
            answer.status == 400 && answer.mesh_error() == "bad_target",
            "path {name:?}: {} {}",
            answer.status,
            answer.text()
        );
    }
    // An empty name, unescaped.
    let answer = http::get(http, &format!("/client//http/{}/", echo.addr)).await?;
    ensure!(answer.status == 400, "{}", answer.text());
    // Nobody of those was taken for an agent.
    ensure!(
        proxy.as_proxy()?.sessions().len() == 1,
        "a session of an odd name"
    );

    for name in good {
        binary::must(dir.path(), &["certs", "issue", "agent", name, "--dir", "."])?;
        let output = check(name)?;
        ensure!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );

        let config = agent_config(
            &bystander.pair.pki,
            name,
            &[proxy.quic_addr()?],
            &[echo.rule()],
        )?;
        let agent = Node::agent(config).await?;
        proxy.sessions(2).await?;
        for written in [name.to_owned(), format!("{name}.{CLUSTER}")] {
            let answer = http::get(http, &format!("/client/{written}/http/{}/", echo.addr)).await?;
            ensure!(answer.status == 200, "{written}: {}", answer.text());
        }
        agent.stop().await;
        proxy.sessions(1).await?;
    }
    bystander.check().await?;
    bystander.stop().await;
    Ok(())
}

/// Whom an agent was asked to reach, and what came of it.
async fn dial(proxy: &Node, agent: &str, target: &str) -> Result<std::result::Result<(), Reason>> {
    let dialer = proxy.as_proxy()?.dialer(agent)?;
    match dialer.dial(target).await {
        Ok(mut stream) => {
            stream.write_all(b"there").await?;
            stream.shutdown().await?;
            let mut back = Vec::new();
            stream.read_to_end(&mut back).await?;
            ensure!(back == b"there", "{target}: it is not the echo: {back:?}");
            Ok(Ok(()))
        }
        Err(DialerError::Dial(error)) => Ok(Err(error.reason)),
        Err(DialerError::Target(error)) => bail!("{target}: {error}"),
    }
}

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
    let cases: &[(&str, &[&str], u16, std::result::Result<&str, Reason>)] = &[
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

/// A refused attempt, which was counted once, under `reason`, and left the bystander alone.
async fn refused(
    bystander: &Bystander,
    tls: rustls::ClientConfig,
    reason: &str,
) -> Result<hostile::Refused> {
    let family = "mesh_proxy_handshakes_refused_total";
    let series = format!("{family}{{reason=\"{reason}\"}}");
    let proxy = &bystander.pair.proxy;
    let before = proxy.metrics()?;
    let refused = hostile::refused(bystander.quic_addr()?, tls, SERVER_NAME).await?;
    probe::eventually(&format!("{series} rises"), || {
        let metrics = proxy.metrics();
        let (before, series, error) = (&before, &series, &refused.error);
        async move {
            let metrics = metrics?;
            let (one, all) = (
                metrics.get(series)? - before.get(series)?,
                metrics.sum(family) - before.sum(family),
            );
            ensure!(
                (one, all) == (1.0, 1.0),
                "+{one} of +{all}; the client saw: {error}"
            );
            Ok(())
        }
    })
    .await?;
    bystander.check().await?;
    Ok(refused)
}

/// The one line that tells of a refused attempt.
async fn refusal_line(logs: &Logs, client: SocketAddr) -> Result<serde_json::Value> {
    let remote = format!("\"remote\":\"{client}\"");
    let lines = || logs.lines_with(&["refused a connection", &remote]);
    probe::until(&format!("a log line about {client}"), || {
        !lines().is_empty()
    })
    .await?;
    match &lines()[..] {
        [line] => Ok(line.clone()),
        lines => bail!("{} lines about {client}: {lines:?}", lines.len()),
    }
}

fn is_crypto(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(close) if (0x100..0x200).contains(&u64::from(close.error_code)))
}

fn is_wrong_kind(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == CloseCode::WrongKind.code().into())
}

/// Whoever may not connect is refused, told so, counted and logged once, with what to look at.
#[tokio::test]
async fn refused_handshakes_say_why() -> Result {
    let logs = logs::capture();
    let bystander = Bystander::start().await?;
    let pki = bystander.pair.pki.clone();
    let other = Pki::new("other.example.com")?;
    let agent = identity(&*pki.issue(Kind::Agent, "m1")?)?;
    let expired = pki.issue_for(Kind::Agent, "m1", &expired()?)?;
    let future = pki.issue_for(Kind::Agent, "m1", &not_yet_valid()?)?;
    let stranger = other.issue(Kind::Agent, "m1")?;
    let user = identity(&*pki.issue(Kind::User, "eve")?)?;
    let proxy = identity(&*pki.issue(Kind::Proxy, "p9")?)?;
    let two_names: [&str; 2] = [
        "spiffe://test.example.com/agent/m1",
        "spiffe://test.example.com/agent/m2",
    ];

    // (what, whose certificate, protocols, counted as, level, the log line says)
    let cases: Vec<(&str, Option<_>, &[&[u8]], &str, &str, &str)> = vec![
        (
            "no certificate",
            None,
            &[ALPN_AGENT],
            "no_certificate",
            "INFO",
            "certificate",
        ),
        (
            "expired",
            Some(identity(&expired)?),
            &[ALPN_AGENT],
            "expired",
            "WARN",
            "expired",
        ),
        (
            "not yet valid",
            Some(identity(&future)?),
            &[ALPN_USER],
            "expired",
            "WARN",
            "not valid yet",
        ),
        (
            "another cluster",
            Some(identity(&stranger)?),
            &[ALPN_AGENT],
            "bad_certificate",
            "WARN",
            "other.example.com",
        ),
        (
            "no identity",
            Some(pki.mint(&[], &["a1.example.com"])? as _),
            &[ALPN_AGENT],
            "bad_certificate",
            "WARN",
            "no URI SAN",
        ),
        (
            "two identities",
            Some(pki.mint(&two_names, &[])? as _),
            &[ALPN_AGENT],
            "bad_certificate",
            "WARN",
            "2 URI SANs",
        ),
        (
            "unknown protocol",
            Some(agent.clone()),
            &[b"h3"],
            "wrong_protocol",
            "INFO",
            "remote",
        ),
        (
            "no protocol",
            Some(agent.clone()),
            &[],
            "wrong_protocol",
            "INFO",
            "remote",
        ),
        (
            "peers",
            Some(proxy.clone()),
            &[ALPN_PEER],
            "wrong_protocol",
            "INFO",
            "remote",
        ),
        (
            "agent as user",
            Some(agent),
            &[ALPN_USER],
            "wrong_kind",
            "WARN",
            "spiffe://test.example.com/agent/m1 may not connect as user",
        ),
        (
            "user as agent",
            Some(user),
            &[ALPN_AGENT],
            "wrong_kind",
            "WARN",
            "spiffe://test.example.com/user/eve may not connect as agent",
        ),
        (
            "proxy as agent",
            Some(proxy.clone()),
            &[ALPN_AGENT],
            "wrong_kind",
            "WARN",
            "spiffe://test.example.com/proxy/p9 may not connect as agent",
        ),
        (
            "proxy as user",
            Some(proxy),
            &[ALPN_USER],
            "wrong_kind",
            "WARN",
            "spiffe://test.example.com/proxy/p9 may not connect as user",
        ),
    ];
    let mut kept = Vec::new();
    for (what, identity, alpn, reason, level, says) in cases {
        let (tls, _) = careless_tls(identity, alpn)?;
        let refused = refused(&bystander, tls, reason).await.context(what)?;
        let told = if reason == "wrong_kind" {
            is_wrong_kind(&refused.error)
                && refused.error.to_string().contains("may not connect as")
        } else {
            is_crypto(&refused.error)
        };
        ensure!(told, "{what}: the client saw {:?}", refused.error);
        let line = refusal_line(&logs, refused.local).await.context(what)?;
        let text = line.to_string();
        ensure!(
            line["level"] == level && line["reason"] == reason && text.contains(says),
            "{what}: {line}"
        );
        ensure!(
            (level == "WARN") == text.contains("node certs show"),
            "{what}: {line}"
        );
        kept.push(refused);
    }
    ensure!(bystander.pair.proxy.as_proxy()?.sessions().len() == 1);
    for refused in &kept {
        refusal_line(&logs, refused.local).await?;
    }
    bystander.stop().await;
    Ok(())
}

/// An authority of another cluster that issues certificates with our cluster's name gets nowhere,
/// as a client and as a server.
#[tokio::test]
async fn forged_trust_domain() -> Result {
    let logs = logs::capture();
    let bystander = Bystander::start().await?;
    let ours = bystander.pair.pki.clone();
    let theirs = Pki::new("b.example.com")?;
    // Even one that calls itself like ours.
    let namesake = Pki::new(CLUSTER)?;
    let uri = |kind: &str, name: &str| format!("spiffe://{CLUSTER}/{kind}/{name}");

    let mut kept = Vec::new();
    for (what, identity, alpn, reason) in [
        (
            "agent by theirs",
            theirs.mint(&[&uri("agent", "a1")], &[])?,
            ALPN_AGENT,
            "unknown_authority",
        ),
        (
            "user by theirs",
            theirs.mint(&[&uri("user", "alice")], &[])?,
            ALPN_USER,
            "unknown_authority",
        ),
        (
            "proxy by theirs",
            theirs.mint(&[&uri("proxy", "proxy-1")], &[SERVER_NAME])?,
            ALPN_USER,
            "unknown_authority",
        ),
        (
            "agent by a namesake",
            namesake.mint(&[&uri("agent", "a1")], &[])?,
            ALPN_AGENT,
            "unknown_authority",
        ),
        (
            "user by a namesake",
            namesake.mint(&[&uri("user", "alice")], &[])?,
            ALPN_USER,
            "unknown_authority",
        ),
        // A leaf of ours is no authority, whatever it signs.
        (
            "agent below an agent",
            ours.mint_below(Kind::Agent, "m1", &[&uri("agent", "a1")])?,
            ALPN_AGENT,
            "bad_certificate",
        ),
        (
            "user below a proxy",
            ours.mint_below(Kind::Proxy, "p9", &[&uri("user", "alice")])?,
            ALPN_USER,
            "bad_certificate",
        ),
        // Nor does our authority speak for theirs.
        (
            "theirs by ours",
            ours.mint(&["spiffe://b.example.com/agent/a1"], &[])?,
            ALPN_AGENT,
            "bad_certificate",
        ),
    ] {
        let (tls, _) = careless_tls(Some(identity), &[alpn])?;
        let refused = refused(&bystander, tls, reason).await.context(what)?;
        ensure!(
            is_crypto(&refused.error),
            "{what}: the client saw {:?}",
            refused.error
        );
        let line = refusal_line(&logs, refused.local).await.context(what)?;
        ensure!(
            line["level"] == "WARN" && line["reason"] == reason,
            "{what}: {line}"
        );
        kept.push(refused);
    }
    ensure!(bystander.pair.proxy.as_proxy()?.sessions().len() == 1);

    // The other way round: an agent of ours, lured to their proxies.
    let mut lures = Vec::new();
    for identity in [
        theirs.mint(&[&uri("proxy", "proxy-1")], &[SERVER_NAME])?,
        namesake.mint(&[&uri("proxy", "proxy-1")], &[SERVER_NAME])?,
        ours.mint_below(Kind::Proxy, "p9", &[&uri("proxy", "proxy-1")])?,
    ] {
        lures.push(lure(server_tls(&theirs, Some(identity))?)?);
    }
    lured(&logs, &bystander, &ours, "lured", &lures).await?;
    bystander.stop().await;
    Ok(())
}

/// A server that takes every client, and bears `identity` or one of its own cluster.
fn server_tls(
    pki: &Pki,
    identity: Option<Arc<rustls::sign::SingleCertAndKey>>,
) -> Result<rustls::ServerConfig> {
    let own = pki.issue(Kind::Proxy, "p1")?;
    let mut tls = certs::proxy_server_config(&own, &[ALPN_AGENT], certs::system_time())?;
    if let Some(identity) = identity {
        tls.cert_resolver = identity;
    }
    Ok(tls)
}

fn lure(tls: rustls::ServerConfig) -> Result<hostile::Server> {
    hostile::Server::start(tls, |connection| async move {
        connection.closed().await;
        Ok(())
    })
}

/// An agent that is told to dial `servers` and the bystander's proxy trusts none but the latter,
/// says so once for each, with the remedy, and goes on trying.
async fn lured(
    logs: &Logs,
    bystander: &Bystander,
    pki: &Pki,
    name: &str,
    servers: &[hostile::Server],
) -> Result {
    let mut proxies = vec![bystander.quic_addr()?];
    proxies.extend(servers.iter().map(|server| server.addr));
    let agent = Node::agent(agent_config(pki, name, &proxies, &[bystander.echo.rule()])?).await?;
    bystander.pair.proxy.sessions(2).await?;
    // Twice each at least, so that the log had the occasion to repeat itself.
    let untrusted = "mesh_agent_connects_total{result=\"untrusted\"}";
    probe::eventually("the agent tries again and again", || {
        let metrics = agent.metrics();
        let wanted = servers.len() * 2;
        async move {
            let tried = metrics?.get(untrusted)?;
            ensure!(
                tried >= f64::from(u32::try_from(wanted)?),
                "{tried} of {wanted}"
            );
            Ok(())
        }
    })
    .await?;
    for server in servers {
        let address = format!("\"address\":\"{}\"", server.addr);
        let lines = logs.lines_with(&["\"WARN\"", "cannot connect to a proxy", &address]);
        let [line] = &lines[..] else {
            bail!("{}: {} lines: {lines:?}", server.addr, lines.len())
        };
        let text = line.to_string();
        ensure!(
            text.contains("do not trust each other") && text.contains("node certs show"),
            "{line}"
        );
    }
    let metrics = agent.metrics()?;
    ensure!(
        (
            metrics.get("mesh_agent_connected_proxies")?,
            metrics.sum("mesh_agent_connects_total") - metrics.get(untrusted)?
        ) == (1.0, 1.0)
    );
    bystander.check().await?;
    dial(&bystander.pair.proxy, name, &bystander.echo.rule())
        .await?
        .map_err(|reason| anyhow::anyhow!("through the good connection: {reason}"))?;
    agent.stop().await;
    bystander.pair.proxy.sessions(1).await
}

/// An agent looks as hard at a proxy as the proxy at it.
#[tokio::test]
async fn untrusted_proxies_are_refused() -> Result {
    let logs = logs::capture();
    let bystander = Bystander::start().await?;
    let pki = bystander.pair.pki.clone();
    let other = Pki::new("other.example.com")?;
    let of = |credentials: &Credentials| -> Result<rustls::ServerConfig> {
        Ok(certs::proxy_server_config(
            credentials,
            &[ALPN_AGENT],
            certs::system_time(),
        )?)
    };
    let user = format!("spiffe://{CLUSTER}/user/eve");
    let agent = format!("spiffe://{CLUSTER}/agent/m1");
    let proxy = format!("spiffe://{CLUSTER}/proxy/p1");
    let mut other_protocol = server_tls(&pki, None)?;
    other_protocol.alpn_protocols = vec![b"h3".to_vec()];
    let servers = [
        of(&*other.issue(Kind::Proxy, "p1")?)?,
        of(&*pki.issue_for(Kind::Proxy, "p1", &expired()?)?)?,
        of(&*pki.issue_for(Kind::Proxy, "p1", &not_yet_valid()?)?)?,
        // As `node certs` makes them, and as another tool could.
        of(&*pki.issue(Kind::User, "eve")?)?,
        of(&*pki.issue(Kind::Agent, "m1")?)?,
        server_tls(&pki, Some(pki.mint(&[&user], &[SERVER_NAME])?))?,
        server_tls(&pki, Some(pki.mint(&[&agent], &[SERVER_NAME])?))?,
        server_tls(&pki, Some(pki.mint(&[&proxy, &user], &[SERVER_NAME])?))?,
        server_tls(
            &pki,
            Some(pki.mint(&[&proxy], &["proxy.other.example.com"])?),
        )?,
        other_protocol,
    ];
    let servers = servers.into_iter().map(lure).collect::<Result<Vec<_>>>()?;
    lured(&logs, &bystander, &pki, "careful", &servers).await?;
    bystander.stop().await;
    Ok(())
}

/// Counts the tickets that a server hands out, and keeps them for the next connection.
#[derive(Debug)]
struct Tickets {
    cache: rustls::client::ClientSessionMemoryCache,
    got: AtomicUsize,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, name: ServerName<'static>, group: rustls::NamedGroup) {
        self.cache.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        self.cache.kx_hint(name)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.got.fetch_add(1, Ordering::SeqCst);
        self.cache.insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.cache.take_tls13_ticket(name)
    }
}

/// Counts the sessions that clients bring back.
#[derive(Debug)]
struct Sessions {
    cache: Arc<ServerSessionMemoryCache>,
    put: AtomicUsize,
    asked_for: AtomicUsize,
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.put.fetch_add(1, Ordering::SeqCst);
        self.cache.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.asked_for.fetch_add(1, Ordering::SeqCst);
        self.cache.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.asked_for.fetch_add(1, Ordering::SeqCst);
        self.cache.take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// Takes every client, and counts.
#[derive(Debug)]
struct CountClients(Arc<dyn ClientCertVerifier>, AtomicUsize);

impl ClientCertVerifier for CountClients {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A resumed session would bring back an identity that nobody looks at again: a proxy offers no
/// ticket and no 0-RTT to a client that would like both, and an agent takes neither.
#[tokio::test]
async fn no_resumption() -> Result {
    let bystander = Bystander::start().await?;
    let pki = bystander.pair.pki.clone();
    let alice = identity(&*pki.issue(Kind::User, "alice")?)?;
    let (mut tls, verifier) = careless_tls(Some(alice), &[ALPN_USER])?;
    let tickets = Arc::new(Tickets {
        cache: rustls::client::ClientSessionMemoryCache::new(16),
        got: AtomicUsize::new(0),
    });
    tls.resumption = rustls::client::Resumption::store(tickets.clone());
    let crypto = Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls)?);
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    for round in 1..=3 {
        let client = quinn::ClientConfig::new(crypto.clone());
        let connecting = endpoint.connect_with(client, bystander.quic_addr()?, SERVER_NAME)?;
        let connection = match connecting.into_0rtt() {
            Ok(_) => bail!("round {round}: the client could send 0-RTT data"),
            Err(connecting) => connecting.await?,
        };
        // Whatever comes after the handshake has come when the echo has.
        let target: Target = bystander.echo.rule().parse()?;
        let (answer, mut send, mut recv) =
            quic::ask(&connection, &dial_frame(target, "a1")?).await?;
        ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
        send.write_all(b"who am I?").await?;
        send.finish()?;
        ensure!(recv.read_to_end(100).await? == b"who am I?");
        connection.close(0u32.into(), b"");
        ensure!(
            verifier.asked() == round,
            "handshake {round} was not a full one"
        );
        ensure!(
            tickets.got.load(Ordering::SeqCst) == 0,
            "the proxy gave out a ticket"
        );
    }

    // A server that offers everything.
    let mut tls = certs::proxy_server_config(
        &*pki.issue(Kind::Proxy, "p1")?,
        &[ALPN_AGENT],
        certs::system_time(),
    )?;
    let sessions = Arc::new(Sessions {
        cache: ServerSessionMemoryCache::new(100),
        put: AtomicUsize::new(0),
        asked_for: AtomicUsize::new(0),
    });
    let clients = Arc::new(CountClients(
        rustls::server::WebPkiClientVerifier::no_client_auth(),
        AtomicUsize::new(0),
    ));
    let builder = rustls::ServerConfig::builder_with_provider(certs::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients.clone());
    let resolver = tls.cert_resolver.clone();
    tls = builder.with_cert_resolver(resolver);
    tls.alpn_protocols = vec![ALPN_AGENT.to_vec()];
    tls.session_storage = sessions.clone();
    tls.send_tls13_tickets = 4;
    tls.max_early_data_size = u32::MAX;
    let server = hostile::Server::start(tls, |connection| async move {
        // The first stream comes after the handshake; its answer sees to it that tickets arrived.
        connection.accept_bi().await?;
        connection.close(CloseCode::Done.code().into(), b"again, please");
        Ok(())
    })?;
    let agent = Node::agent(agent_config(&pki, "returning", &[server.addr], &[])?).await?;
    probe::until("the agent comes back", || server.accepted() >= 3).await?;
    agent.stop().await;
    ensure!(
        sessions.put.load(Ordering::SeqCst) >= 8,
        "the server of this test offers no tickets"
    );
    ensure!(
        sessions.asked_for.load(Ordering::SeqCst) == 0,
        "the agent resumed a session"
    );
    ensure!(
        clients.1.load(Ordering::SeqCst) >= server.accepted(),
        "a handshake without the agent's certificate"
    );
    bystander.stop().await;
    Ok(())
}

/// A dial as a user sends it, with a principal that is a lie.
fn dial_frame(target: Target, agent: &str) -> Result<Open> {
    Ok(Open::Dial(Dial {
        target,
        agent: agent.parse()?,
        principal: "user:somebody-else".parse()?,
        hops_left: 0,
        deadline_ms: 30_000,
        trace: None,
        ext: Vec::new(),
    }))
}

type Seen<T> = Arc<Mutex<Vec<T>>>;

fn seen<T: Clone>(list: &Seen<T>) -> Vec<T> {
    list.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn note<T>(list: &Seen<T>, entry: T) {
    list.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(entry);
}

/// An authorizer of either role sees who asks for what, and has its say beside the config.
#[tokio::test]
async fn authorizers_have_a_say() -> Result {
    let (echo, secret) = (Service::echo().await?, Service::echo().await?);
    let (at_proxy, at_agent): (Seen<DialInfo>, Seen<DialInfo>) = Default::default();
    let hooks = |list: &Seen<DialInfo>, refuse: fn(&DialInfo) -> Option<&'static str>| {
        let list = list.clone();
        let authorizer = move |info: &DialInfo| {
            note(&list, info.clone());
            refuse(info).map_or(Ok(()), |why| Err(why.to_owned()))
        };
        Hooks {
            authorizer: Some(Arc::new(authorizer)),
            on_connect: None,
        }
    };
    let on_proxy = hooks(&at_proxy, |info| {
        (info.principal.to_string() == "user:eve").then_some("eve is on holiday")
    });
    let on_agent = hooks(&at_agent, |info| {
        let is_user = matches!(info.principal, Principal::User(_));
        (!is_user && info.target.to_string().starts_with("service:"))
            .then_some("services are for users with a certificate")
    });
    let pki = Pki::new(CLUSTER)?;
    let mut config = proxy_config(&pki, "proxy-1")?;
    config.ingresses = vec![http_ingress(), tcp_ingress("a1", "service:echo")?];
    let proxy = Node::proxy_with(config, on_proxy).await?;
    // What the config refuses stays refused, whatever an authorizer says.
    let mut config = agent_config(&pki, "a1", &[proxy.quic_addr()?], &[echo.rule()])?;
    config.services = vec![service("echo", echo.addr)?];
    ensure!(config.allow != AllowList::default());
    let agent = Node::agent_with(config, on_agent).await?;
    proxy.sessions(1).await?;

    let mut users = BTreeMap::new();
    for name in ["alice", "eve"] {
        let credentials = pki.issue(Kind::User, name)?;
        let raw = quic::connect(proxy.quic_addr()?, &credentials, ALPN_USER).await?;
        users.insert(name, raw);
    }
    let ask =
        async |user: &str, target: String| -> Result<std::result::Result<(), (Reason, String)>> {
            let frame = dial_frame(target.parse()?, "a1")?;
            Ok(match quic::ask(&users[user].connection, &frame).await?.0 {
                Answer::Opened(_) => Ok(()),
                Answer::Refused(refused) => Err((refused.reason, refused.message)),
            })
        };

    ensure!(ask("alice", echo.rule()).await? == Ok(()));
    ensure!(ask("alice", "service:echo".into()).await? == Ok(()));
    let principal: Principal = "user:alice".parse()?;
    for list in [&at_proxy, &at_agent] {
        let seen = seen(list);
        ensure!(seen.len() == 2, "{seen:?}");
        for info in seen {
            ensure!(
                info.principal == principal && info.agent.as_str() == "a1",
                "{info:?}"
            );
        }
    }
    let refused = ask("alice", secret.rule()).await?;
    ensure!(
        matches!(&refused, Err((Reason::NotAllowed, why)) if why.contains("agent.allow")),
        "{refused:?}"
    );

    // Refused at the proxy: the agent hears nothing of it.
    let before = seen(&at_agent).len();
    let refused = ask("eve", echo.rule()).await?;
    ensure!(
        refused == Err((Reason::NotAllowed, "eve is on holiday".into())),
        "{refused:?}"
    );
    ensure!(seen(&at_agent).len() == before);

    // Refused at the agent: the text reaches the user.
    let why = "services are for users with a certificate";
    let accepted = echo.accepted();
    let answer = http::get(proxy.ingress(0)?, "/client/a1/http/service:echo/").await?;
    ensure!(
        (answer.status, answer.mesh_error()) == (403, "not_allowed") && answer.text().contains(why),
        "{} {}",
        answer.status,
        answer.text()
    );
    ensure!(echoes(proxy.ingress(1)?, b"me").await.is_err());
    let dialled = dial(&proxy, "a1", "service:echo").await?;
    ensure!(dialled == Err(Reason::NotAllowed), "{dialled:?}");
    ensure!(echo.accepted() == accepted && secret.accepted() == 0);
    let principals: Vec<String> = seen(&at_agent)
        .iter()
        .map(|info| info.principal.to_string())
        .collect();
    for listen in [proxy.ingress(0)?, proxy.ingress(1)?] {
        let principal = format!("ingress:{listen}");
        ensure!(
            principals.contains(&principal),
            "{principal} is not in {principals:?}"
        );
    }

    agent.stop().await;
    proxy.stop().await;
    Ok(())
}

/// `on_connect` hears once of each connection, on both sides, when both have said hello.
#[tokio::test]
async fn on_connect_hears_of_connections() -> Result {
    let pki = Pki::new(CLUSTER)?;
    let (at_proxy, at_agent): (Seen<Connected>, Seen<Connected>) = Default::default();
    let hooks = |list: &Seen<Connected>| {
        let list = list.clone();
        let on_connect = Arc::new(move |connected: &Connected| note(&list, connected.clone()));
        Hooks {
            authorizer: None,
            on_connect: Some(on_connect),
        }
    };
    let mut config = proxy_config(&pki, "proxy-1")?;
    config.common.quic.handshake_timeout = Duration::from_secs(1);
    let proxy = Node::proxy_with(config, hooks(&at_proxy)).await?;
    let stranger = Pki::new("other.example.com")?;
    let lure = lure(server_tls(&stranger, None)?)?;
    let config = agent_config(&pki, "a1", &[proxy.quic_addr()?, lure.addr], &[])?;
    let agent = Node::agent_with(config, hooks(&at_agent)).await?;
    proxy.sessions(1).await?;
    probe::until("the agent's hook", || !seen(&at_agent).is_empty()).await?;

    // Neither a handshake without a hello nor a user is a connection of an agent.
    let silent = quic::connect(
        proxy.quic_addr()?,
        &*pki.issue(Kind::Agent, "a2")?,
        ALPN_AGENT,
    )
    .await?;
    silent.connection.closed().await;
    let alice = quic::connect(
        proxy.quic_addr()?,
        &*pki.issue(Kind::User, "alice")?,
        ALPN_USER,
    )
    .await?;
    let untrusted = "mesh_agent_connects_total{result=\"untrusted\"}";
    probe::until("the agent is lured", || {
        agent
            .metrics()
            .and_then(|metrics| metrics.get(untrusted))
            .is_ok_and(|tries| tries >= 1.0)
    })
    .await?;

    let session = proxy.as_proxy().map(Proxy::sessions)?;
    let [session] = &session[..] else {
        bail!("{} sessions", session.len())
    };
    for (list, remote) in [(&at_proxy, session.remote), (&at_agent, proxy.quic_addr()?)] {
        let seen = seen(list);
        let [connected] = &seen[..] else {
            bail!("heard of {seen:?}")
        };
        ensure!(
            (
                connected.agent.as_str(),
                connected.proxy.as_str(),
                connected.remote
            ) == ("a1", "proxy-1", remote),
            "{connected:?}"
        );
    }
    drop(alice);
    Pair {
        pki: Arc::new(pki),
        proxy,
        agent,
    }
    .stop()
    .await;
    Ok(())
}
