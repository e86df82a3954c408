//! Which TLS is spoken: the version, and that nothing is ever resumed or sent early.

use rustls::HandshakeKind;

use super::*;

#[test]
fn tls12_is_refused_on_both_sides() {
    let ours = authority("example.com");
    let (proxy, agent) = (
        credentials(&ours, Kind::Proxy, "p1"),
        credentials(&ours, Kind::Agent, "a1"),
    );
    let roots = || Arc::clone(agent.authorities());

    let mut old_client = ClientConfig::builder_with_details(provider(), at(NOW))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots())
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
            agent.certified().as_ref().clone(),
        )));
    old_client.alpn_protocols = vec![ALPN.to_vec()];
    let error = refused(handshake(&old_client, &server_of(&proxy)), &Side::Server);
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error}");

    let mut old_server = ServerConfig::builder_with_details(provider(), at(NOW))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(roots(), provider())
                .build()
                .unwrap(),
        )
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(
            proxy.certified().as_ref().clone(),
        )));
    old_server.alpn_protocols = vec![ALPN.to_vec()];
    assert!(handshake(&client_of(&agent), &old_server).is_err());
    // Both old: the test itself can speak TLS 1.2, so the refusals above are ours.
    handshake(&old_client, &old_server).unwrap();
}

#[test]
fn no_resumption() {
    let ours = authority("example.com");
    let server = server_of(&credentials(&ours, Kind::Proxy, "p1"));
    let client = client_of(&credentials(&ours, Kind::Agent, "a1"));
    assert_eq!(server.max_early_data_size, 0);
    assert_eq!(server.send_tls13_tickets, 0);
    assert!(!server.send_half_rtt_data);
    assert!(!server.ticketer.enabled());
    assert!(!client.enable_early_data);
    // One pair of configurations, shared as a node shares them.
    for _ in 0..2 {
        let (mut client, server) = handshake(&client, &server).unwrap();
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
        assert!(client.early_data().is_none());
        assert!(!client.is_early_data_accepted());
    }
}

/// A client that would resume finds nothing to resume with.
#[test]
fn a_client_that_stores_tickets_gets_none() {
    let ours = authority("example.com");
    let server = server_of(&credentials(&ours, Kind::Proxy, "p1"));
    let mut client = client_of(&credentials(&ours, Kind::Agent, "a1"));
    client.resumption = rustls::client::Resumption::in_memory_sessions(8);
    client.enable_early_data = true;
    for _ in 0..2 {
        let (client, server) = handshake(&client, &server).unwrap();
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        assert!(!client.is_early_data_accepted());
    }
}

/// A server that hands out tickets and would take early data meets a client that wants neither.
#[test]
fn a_server_that_offers_tickets_sees_full_handshakes() {
    let ours = authority("example.com");
    let mut server = server_of(&credentials(&ours, Kind::Proxy, "p1"));
    server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    server.send_tls13_tickets = 2;
    server.max_early_data_size = u32::MAX;
    let client = client_of(&credentials(&ours, Kind::Agent, "a1"));
    for _ in 0..2 {
        let (mut client, server) = handshake(&client, &server).unwrap();
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
        assert!(client.early_data().is_none());
    }
}
