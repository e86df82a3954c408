//! Hosts, origins, tokens, certificates.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use certs::{Kind, Request as CertRequest, Validity};
use http::Request;
use http_body_util::Full;
use mesh_tests::fleet::{Pair, http_ingress};
use mesh_tests::http::{Answer, Client};
use mesh_tests::pki::Pki;
use mesh_tests::{Result, logs, probe, web};
use node::config::{IngressAuth, IngressConfig, IngressTls, TokenTable};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use crate::support::{get_over_tls, pair_with, path};

async fn ask(pair: &Pair, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Client::connect(pair.proxy.ingress(0)?)
        .await?
        .ask(request.body(Full::default())?)
        .await
}

/// A page of another site cannot reach an ingress on a loopback address, whatever its DNS says.
#[tokio::test]
async fn pages_of_other_sites_are_refused() -> Result {
    let echo = web::start().await?;
    let path = path(echo.addr, "/");
    for (hosts, cases) in [
        (
            vec![],
            vec![
                (vec![("host", "localhost")], 200),
                (vec![("host", "localhost:8123")], 200),
                (vec![("host", "LOCALHOST.")], 200),
                (vec![("host", "127.0.0.1:1")], 200),
                (vec![("host", "[::1]:8123")], 200),
                (vec![("host", "rebound.example.com")], 403),
                (vec![("host", "localhost.example.com")], 403),
                (vec![("host", "127.0.0.1.example.com")], 403),
                (vec![("host", "user@localhost")], 403),
                (vec![("host", "192.0.2.1")], 403),
                (vec![("host", "")], 403),
                (
                    vec![("host", "localhost"), ("origin", "http://localhost:3000")],
                    200,
                ),
                (
                    vec![
                        ("host", "localhost"),
                        ("origin", "https://evil.example.com"),
                    ],
                    403,
                ),
                (vec![("host", "localhost"), ("origin", "null")], 403),
            ],
        ),
        (
            vec!["mesh.example.com".to_owned()],
            vec![
                (vec![("host", "mesh.example.com")], 200),
                (vec![("host", "Mesh.Example.Com:8123")], 200),
                (vec![("host", "localhost")], 200),
                (vec![("host", "other.example.com")], 403),
                (vec![("host", "sub.mesh.example.com")], 403),
                (
                    vec![
                        ("host", "localhost"),
                        ("origin", "https://mesh.example.com"),
                    ],
                    200,
                ),
                (
                    vec![
                        ("host", "mesh.example.com"),
                        ("origin", "https://evil.example.com"),
                    ],
                    403,
                ),
            ],
        ),
    ] {
        let pair = pair_with(IngressConfig {
            hosts,
            ..http_ingress()
        })
        .await?;
        for (headers, status) in cases {
            let answer = ask(&pair, &path, &headers).await?;
            ensure!(
                answer.status == status,
                "{headers:?}: {} {}",
                answer.status,
                answer.text()
            );
            if status == 403 {
                ensure!(
                    answer.mesh_error() == "not_allowed" && answer.text().contains("hosts"),
                    "{}",
                    answer.text()
                );
            }
        }
        pair.stop().await;
    }
    Ok(())
}

/// Whoever brings a token of the table is let in under its name; the target never sees it, and no
/// log does.
#[tokio::test]
async fn tokens_are_asked_for_and_kept() -> Result {
    const TOKEN: &str = "correct-horse-battery-staple";
    const WRONG: &str = "incorrect-horse-battery-staple";
    let logs = logs::capture();
    let echo = web::start().await?;
    let table = TokenTable::from_text(&format!(
        "ci:{TOKEN}\n# other:\nops:another-token-of-24-chars\n"
    ))?;
    let auth = IngressAuth::Tokens(Arc::new(table));
    let pair = pair_with(IngressConfig {
        auth,
        ..http_ingress()
    })
    .await?;
    let path = path(echo.addr, "/token-test");
    let (right, wrong) = (format!("Bearer {TOKEN}"), format!("Bearer {WRONG}"));
    for (headers, status) in [
        (vec![], 401),
        (vec![("x-mesh-token", WRONG)], 401),
        (vec![("x-mesh-token", "")], 401),
        (vec![("authorization", &*wrong)], 401),
        (vec![("authorization", "Basic Y2k6Y29ycmVjdA==")], 401),
        (vec![("authorization", TOKEN)], 401),
        (
            vec![("x-mesh-token", WRONG), ("authorization", &right)],
            401,
        ),
        (vec![("x-mesh-token", TOKEN)], 200),
        (vec![("authorization", &right)], 200),
        (
            vec![
                ("x-mesh-token", TOKEN),
                ("authorization", "Bearer of-the-target"),
            ],
            200,
        ),
    ] {
        let accepted = echo.accepted();
        let answer = ask(&pair, &path, &headers).await?;
        ensure!(
            answer.status == status,
            "{headers:?}: {} {}",
            answer.status,
            answer.text()
        );
        if status == 401 {
            ensure!(answer.headers["www-authenticate"] == "Bearer realm=\"mesh\"");
            ensure!(
                answer.mesh_error() == "not_allowed" && answer.text().contains("tokens_file"),
                "{}",
                answer.text()
            );
            ensure!(
                echo.accepted() == accepted,
                "{headers:?}: the target was asked"
            );
        } else {
            let told: Value = serde_json::from_slice(&answer.body)?;
            ensure!(told["headers"].get("x-mesh-token").is_none(), "{told}");
            let authorization = told["headers"].get("authorization");
            let kept = headers.len() == 2;
            ensure!(authorization.is_some() == kept, "{told}");
            ensure!(!answer.text().contains(TOKEN), "{told}");
        }
    }
    let target = echo.addr.to_string();
    let lines = || logs.lines_with(&["\"access\"", "\"kind\":\"http\"", "/token-test", &target]);
    probe::until("ten access lines", || lines().len() == 10).await?;
    let served: Vec<Value> = lines()
        .into_iter()
        .filter(|line| line["status"] == 200)
        .collect();
    ensure!(served.len() == 3, "{served:?}");
    for line in &served {
        ensure!(
            line["principal"] == "token:ci" && line["agent"] == "a1" && line["target"] == target,
            "{line}"
        );
    }
    for secret in [TOKEN, WRONG] {
        let leaked = logs.lines_with(&[secret]);
        ensure!(leaked.is_empty(), "{leaked:?}");
    }
    pair.stop().await;
    Ok(())
}

/// A certificate of `pki` for servers on this host, as an ingress has one.
fn server_certificate(pki: &Pki) -> Result<IngressTls> {
    let mut request = CertRequest::new(Kind::Proxy, "ingress".parse()?, Validity::days(7)?);
    request.ips = vec!["127.0.0.1".parse()?];
    let issued = pki.authority().issue(&request)?;
    Ok(IngressTls {
        chain: vec![CertificateDer::from_pem_slice(issued.cert_pem.as_bytes())?],
        key: Arc::new(PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())?),
        not_after: issued.validity.not_after(),
    })
}

fn authority(pki: &Pki) -> Result<CertificateDer<'static>> {
    Ok(CertificateDer::from_pem_slice(
        pki.authority().ca_pem().as_bytes(),
    )?)
}

/// A client that trusts `pki`, with a certificate or none.
fn client_tls(
    pki: &Pki,
    identity: Option<Arc<dyn rustls::client::ResolvesClientCert>>,
    alpn: &[&[u8]],
) -> Result<rustls::ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority(pki)?)?;
    let builder = rustls::ClientConfig::builder_with_provider(certs::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut tls = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(tls)
}

/// An ingress with a certificate of its own speaks TLS and nothing else.
#[tokio::test]
async fn an_ingress_over_tls() -> Result {
    let web_pki = Pki::new("web.example.com")?;
    let echo = web::start().await?;
    let tls = Some(server_certificate(&web_pki)?);
    let pair = pair_with(IngressConfig {
        tls,
        ..http_ingress()
    })
    .await?;
    let ingress = pair.proxy.ingress(0)?;
    let path = path(echo.addr, "/");

    let answer = get_over_tls(ingress, client_tls(&web_pki, None, &[b"http/1.1"])?, &path).await?;
    let told: Value = serde_json::from_slice(&answer.body)?;
    ensure!(told["headers"]["x-forwarded-proto"][0] == "https", "{told}");
    let forwarded = told["headers"]["forwarded"][0].as_str().unwrap_or_default();
    ensure!(forwarded.ends_with(";proto=https"), "{told}");
    // Nobody who does not speak TLS gets an answer, nor who trusts another authority.
    let answer =
        mesh_tests::http::raw(ingress, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    ensure!(!answer.contains("HTTP/1.1"), "{answer}");
    let stranger = Pki::new("web.example.com")?;
    ensure!(
        get_over_tls(ingress, client_tls(&stranger, None, &[])?, &path)
            .await
            .is_err()
    );
    // The certificate's end is a metric.
    let series = format!(
        "mesh_cert_expiry_timestamp_seconds{{certificate=\"ingress:{}\"}}",
        "127.0.0.1:0"
    );
    ensure!(pair.proxy.metrics()?.get(&series)? > 0.0);
    pair.stop().await;
    Ok(())
}

/// `client_ca`: whoever has a certificate of it is let in, a user of the cluster by name.
#[tokio::test]
async fn certificates_of_users_are_asked_for() -> Result {
    let logs = logs::capture();
    let web_pki = Pki::new("web.example.com")?;
    let partner = Pki::new("partner.example.com")?;
    let echo = web::start().await?;
    let path = path(echo.addr, "/client-ca");
    // The cluster's authority is made with the pair: so its identity comes from there.
    let pki = Arc::new(Pki::new("test.example.com")?);
    let mut config = mesh_tests::fleet::proxy_config(&pki, "proxy-1")?;
    config.ingresses = vec![IngressConfig {
        tls: Some(server_certificate(&web_pki)?),
        auth: IngressAuth::ClientCa(vec![authority(&pki)?, authority(&partner)?]),
        ..http_ingress()
    }];
    let proxy = mesh_tests::fleet::Node::proxy(config).await?;
    let config = mesh_tests::fleet::agent_config(
        &pki,
        "a1",
        &[proxy.quic_addr()?],
        &["127.0.0.1:*".into()],
    )?;
    let agent = mesh_tests::fleet::Node::agent(config).await?;
    proxy.sessions(1).await?;
    let pair = Pair {
        pki: pki.clone(),
        proxy,
        agent,
    };
    let ingress = pair.proxy.ingress(0)?;

    let of = |pki: &Pki, kind, name: &str| -> Result<_> {
        mesh_tests::hostile::identity(&*pki.issue(kind, name)?)
    };
    let by_ingress = format!("ingress:{ingress}");
    // The partner's authority may write any name into a certificate; it stays a guest.
    let forged = partner.mint(&["spiffe://test.example.com/user/root"], &[])?;
    for (what, identity, principal) in [
        ("a user", of(&pki, Kind::User, "alice")?, Some("user:alice")),
        ("an agent", of(&pki, Kind::Agent, "a7")?, Some(&*by_ingress)),
        (
            "a guest",
            of(&partner, Kind::User, "bob")?,
            Some(&*by_ingress),
        ),
        (
            "a guest who claims to be a user",
            forged as _,
            Some(&*by_ingress),
        ),
        (
            "a stranger",
            of(&Pki::new("test.example.com")?, Kind::User, "alice")?,
            None,
        ),
    ] {
        let tls = client_tls(&web_pki, Some(identity), &[b"http/1.1"])?;
        let marked = format!("{path}/{}", what.replace(' ', "-"));
        let answer = get_over_tls(ingress, tls, &marked).await;
        let Some(principal) = principal else {
            ensure!(answer.is_err(), "{what}: {answer:?}");
            continue;
        };
        let answer = answer.context(what)?;
        ensure!(
            answer.status == 200,
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
        let mark = format!("\"path\":\"{marked}\"");
        let lines = || logs.lines_with(&["\"access\"", &mark]);
        probe::until("an access line", || !lines().is_empty()).await?;
        let lines = lines();
        let [line] = &lines[..] else {
            bail!("{what}: {lines:?}")
        };
        ensure!(line["principal"] == principal, "{what}: {line}");
    }
    let nobody = get_over_tls(ingress, client_tls(&web_pki, None, &[])?, &path).await;
    ensure!(nobody.is_err(), "{nobody:?}");
    pair.stop().await;
    Ok(())
}
