//! Every handshake is a full one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{bail, ensure};
use certs::Kind;
use mesh_proto::close::CloseCode;
use mesh_proto::target::Target;
use mesh_proto::wire::{ALPN_AGENT, ALPN_USER, Answer};
use mesh_tests::fleet::{Bystander, Node, agent_config};
use mesh_tests::hostile::{self, careless_tls, identity};
use mesh_tests::{Result, probe, quic};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, NamedGroup, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::support::{SERVER_NAME, dial_frame};

/// Counts the tickets that a server hands out, and keeps them for the next connection.
#[derive(Debug)]
struct Tickets {
    cache: rustls::client::ClientSessionMemoryCache,
    got: AtomicUsize,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.cache.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
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
#[derive(Debug, Default)]
struct CountClients(AtomicUsize);

impl ClientCertVerifier for CountClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, Error> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        Err(Error::General("not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        let provider = certs::provider();
        verify_tls13_signature(
            message,
            cert,
            dss,
            &provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        certs::provider()
            .signature_verification_algorithms
            .supported_schemes()
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
    let sessions = Arc::new(Sessions {
        cache: ServerSessionMemoryCache::new(100),
        put: AtomicUsize::new(0),
        asked_for: AtomicUsize::new(0),
    });
    let clients = Arc::new(CountClients::default());
    let proxy = certs::proxy_server_config(
        &*pki.issue(Kind::Proxy, "p1")?,
        &[ALPN_AGENT],
        certs::system_time(),
    )?;
    let mut tls = rustls::ServerConfig::builder_with_provider(certs::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients.clone())
        .with_cert_resolver(proxy.cert_resolver.clone());
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
        clients.0.load(Ordering::SeqCst) >= server.accepted(),
        "a handshake without the agent's certificate"
    );
    bystander.stop().await;
    Ok(())
}
