//! Targets over TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use certs::{Kind, Request as CertRequest, Validity};
use mesh_tests::fleet::{Pair, service};
use mesh_tests::pki::Pki;
use mesh_tests::services::Service;
use mesh_tests::{Result, http as client, web};
use node::config::{IngressConfig, IngressKind};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

/// A target that answers over TLS with a certificate of `pki` for these names.
async fn secured(pki: &Pki, ips: &[&str], dns: &[&str]) -> Result<Service> {
    let mut request = CertRequest::new(Kind::Proxy, "target".parse()?, Validity::days(7)?);
    request.ips = ips
        .iter()
        .map(|ip| ip.parse())
        .collect::<std::result::Result<_, _>>()?;
    request.dns = dns.iter().map(|name| (*name).to_owned()).collect();
    let issued = pki.authority().issue(&request)?;
    let tls = rustls::ServerConfig::builder_with_provider(certs::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(issued.cert_pem.as_bytes())?],
            PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())?,
        )?;
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    Service::start(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await?;
            let mut buffer = [0; 4096];
            loop {
                if stream.read(&mut buffer).await? == 0 {
                    return Ok(());
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
                    .await?;
            }
        }
    })
    .await
}

fn https(target: impl std::fmt::Display) -> String {
    format!("/client/a1/https/{target}/")
}

/// `https` targets are verified, by address, name or service; whoever cannot be is unreachable,
/// and the answer says which key of the config decides.
#[tokio::test]
async fn targets_over_tls_are_verified() -> Result {
    let known = Pki::new("known.example.com")?;
    let unknown = Pki::new("unknown.example.com")?;
    let good = secured(&known, &["127.0.0.1"], &["localhost", "secured"]).await?;
    let of_stranger = secured(&unknown, &["127.0.0.1"], &[]).await?;
    let other_name = secured(&known, &["192.0.2.1"], &["other.example.com"]).await?;
    let plain = web::start().await?;
    let mute = Service::silent().await?;

    let authority = CertificateDer::from_pem_slice(known.authority().ca_pem().as_bytes())?;
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let ingress = |upstream_ca| IngressConfig::new(any, IngressKind::Http { upstream_ca });
    let good_addr = good.addr;
    let pair = Pair::start_with(
        &["127.0.0.1:*".into(), "localhost:*".into()],
        |config| {
            config.ingresses = vec![ingress(Some(vec![authority])), ingress(None)];
            config.dial_deadline = std::time::Duration::from_secs(2);
        },
        |config| config.services.extend(service("secured", good_addr)),
    )
    .await?;
    let (with_ca, with_system) = (pair.proxy.ingress(0)?, pair.proxy.ingress(1)?);

    for target in [
        good.addr.to_string(),
        format!("localhost:{}", good.addr.port()),
        "service:secured".into(),
    ] {
        let answer = client::get(with_ca, &https(&target)).await?;
        ensure!(
            (answer.status, &*answer.text()) == (200, "secret"),
            "{target}: {} {}",
            answer.status,
            answer.text()
        );
    }
    for (what, ingress, target) in [
        ("an authority that is not known", with_ca, of_stranger.addr),
        ("another name", with_ca, other_name.addr),
        (
            "an authority that the system does not know",
            with_system,
            good.addr,
        ),
        ("a target without TLS", with_ca, plain.addr),
    ] {
        let answer = client::get(ingress, &https(target)).await.context(what)?;
        ensure!(
            (answer.status, answer.mesh_error()) == (502, "unreachable"),
            "{what}: {} {:?} {}",
            answer.status,
            answer.mesh_error(),
            answer.text()
        );
        ensure!(
            answer.text().contains("upstream_ca"),
            "{what}: {}",
            answer.text()
        );
    }
    // One that never answers.
    let answer = client::get(with_ca, &https(mute.addr)).await?;
    ensure!(
        (answer.status, answer.mesh_error()) == (504, "timeout"),
        "{}",
        answer.text()
    );
    // And the other way round: TLS is expected, and HTTP comes.
    let answer = client::get(with_ca, &format!("/client/a1/http/{}/", good.addr)).await?;
    ensure!(answer.status == 502, "{} {}", answer.status, answer.text());
    pair.stop().await;
    Ok(())
}
