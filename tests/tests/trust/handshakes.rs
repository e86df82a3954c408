//! Who may connect to whom.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use certs::{Credentials, Kind};
use mesh_proto::close::CloseCode;
use mesh_proto::wire::{ALPN_AGENT, ALPN_PEER, ALPN_USER};
use mesh_tests::fleet::Bystander;
use mesh_tests::hostile::{careless_tls, identity};
use mesh_tests::pki::{Minted, Pki};
use mesh_tests::{Result, logs};
use quinn::ConnectionError;
use rustls::client::ResolvesClientCert;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::support::{
    CLUSTER, SERVER_NAME, expired, lure, lured, not_yet_valid, refusal_line, refused, server_tls,
};

fn is_crypto(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(close) if (0x100..0x200).contains(&u64::from(close.error_code)))
}

fn is_wrong_kind(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == CloseCode::WrongKind.code().into())
}

/// The one's certificate with the other's key.
fn keyed(certificate: &Minted, key: &Minted) -> Result<Minted> {
    let inner = |minted: &Minted| ResolvesClientCert::resolve(&**minted, &[], &[]);
    let certificate = inner(certificate).context("no certificate")?;
    let key = inner(key).context("no key")?;
    let pair = CertifiedKey::new(certificate.cert.clone(), key.key.clone());
    Ok(Arc::new(SingleCertAndKey::from(pair)))
}

/// What it is, whose certificate, which protocols; as what it counts, at which level it is logged,
/// and a word of the line.
type Case = (
    &'static str,
    Option<Arc<dyn ResolvesClientCert>>,
    &'static [&'static [u8]],
    &'static str,
    &'static str,
    &'static str,
);

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

    let m1 = format!("spiffe://{CLUSTER}/agent/m1");
    // Everybody can see a certificate; its key is another matter.
    let stolen = keyed(&pki.mint(&[&m1], &[])?, &pki.mint(&[&m1], &[])?)?;
    let server_only = pki.mint_server(&[&m1], &[SERVER_NAME])?;

    let cases: Vec<Case> = vec![
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
            "a certificate for servers",
            Some(server_only as _),
            &[ALPN_AGENT],
            "bad_certificate",
            "WARN",
            "invalid peer certificate",
        ),
        (
            "a certificate without its key",
            Some(stolen as _),
            &[ALPN_AGENT],
            "bad_certificate",
            "WARN",
            "invalid peer certificate",
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
            "agent as peer",
            Some(agent.clone()),
            &[ALPN_PEER],
            "wrong_kind",
            "WARN",
            "spiffe://test.example.com/agent/m1 may not connect as proxy",
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
