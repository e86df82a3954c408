//! What the leaf of either side must say: one identity, the kind, the names, the usages.

use super::*;
use crate::identity::ODD_URIS;

#[test]
fn two_or_no_uri_sans_are_refused_on_both_sides() {
    let ours = authority("example.com");
    let (proxy, agent) = (
        credentials(&ours, Kind::Proxy, "p1"),
        credentials(&ours, Kind::Agent, "a1"),
    );
    let cases: [(&[&str], &str); 3] = [
        (
            &[
                "spiffe://example.com/proxy/p1",
                "spiffe://example.com/proxy/p2",
            ],
            "2 URI SANs",
        ),
        (
            &["spiffe://example.com/proxy/p1", "https://example.com/"],
            "2 URI SANs",
        ),
        (&[], "no URI SAN"),
    ];
    for (uris, why) in cases {
        let certificate = minted(&ours, uris, &["proxy.example.com"], true);
        let mut client = client_of(&agent);
        client.client_auth_cert_resolver = certificate.clone();
        let error = refused(handshake(&client, &server_of(&proxy)), &Side::Server);
        assert!(error.to_string().contains(why), "{error}");

        let mut server = server_of(&proxy);
        server.cert_resolver = certificate;
        let error = refused(handshake(&client_of(&agent), &server), &Side::Client);
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn odd_uris_are_refused_on_both_sides() {
    let ours = authority("example.com");
    let (proxy, agent) = (
        credentials(&ours, Kind::Proxy, "p1"),
        credentials(&ours, Kind::Agent, "a1"),
    );
    for uri in ODD_URIS {
        let mut client = client_of(&agent);
        client.client_auth_cert_resolver = minted(&ours, &[uri], &[], false);
        let error = refused(handshake(&client, &server_of(&proxy)), &Side::Server);
        assert!(
            error.to_string().contains("is no identity"),
            "{uri}: {error}"
        );

        let mut server = server_of(&proxy);
        let uri = uri.replace("agent", "proxy");
        server.cert_resolver = minted(&ours, &[&uri], &["proxy.example.com"], true);
        let error = refused(handshake(&client_of(&agent), &server), &Side::Client);
        assert!(
            error.to_string().contains("is no identity"),
            "{uri}: {error}"
        );
    }
}

#[test]
fn a_server_that_is_no_proxy_is_refused() {
    let ours = authority("example.com");
    let (proxy, agent) = (
        credentials(&ours, Kind::Proxy, "p1"),
        credentials(&ours, Kind::Agent, "a1"),
    );
    let mut server = server_of(&proxy);

    // As issued: it may not be a server at all, and lacks the name.
    let other = credentials(&ours, Kind::Agent, "a2");
    server.cert_resolver = Arc::new(SingleCertAndKey::from(other.certified().as_ref().clone()));
    refused(handshake(&client_of(&agent), &server), &Side::Client);

    // With the name, still for clients alone.
    let uri = "spiffe://example.com/agent/a2";
    server.cert_resolver = minted(&ours, &[uri], &["proxy.example.com"], false);
    let error = refused(handshake(&client_of(&agent), &server), &Side::Client);
    assert!(
        matches!(
            error,
            Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })
        ),
        "{error}"
    );

    // With all but the kind.
    server.cert_resolver = minted(&ours, &[uri], &["proxy.example.com"], true);
    let error = refused(handshake(&client_of(&agent), &server), &Side::Client);
    assert!(error.to_string().contains("not a proxy"), "{error}");
}

#[test]
fn a_client_certificate_that_is_for_servers_alone_is_refused() {
    let ours = authority("example.com");
    let key = KeyKind::default().generate().unwrap();
    let mut params = leaf::base_params(&validity()).unwrap();
    params.subject_alt_names = vec![SanType::URI(
        "spiffe://example.com/agent/a1".try_into().unwrap(),
    )];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, ours.issuer()).unwrap();
    let verifier = proxy_verifier(&ours);
    let error = verifier
        .verify_client_cert(certificate.der(), &[], at(NOW).current_time().unwrap())
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })
        ),
        "{error}"
    );
}

#[test]
fn an_authoritys_own_certificate_is_no_leaf() {
    let ours = authority("example.com");
    let key = KeyKind::default().generate().unwrap();
    let mut params = leaf::base_params(&validity()).unwrap();
    params.subject_alt_names = vec![SanType::URI(
        "spiffe://example.com/agent/a1".try_into().unwrap(),
    )];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.signed_by(&key, ours.issuer()).unwrap();
    let verifier = proxy_verifier(&ours);
    verifier
        .verify_client_cert(certificate.der(), &[], at(NOW).current_time().unwrap())
        .unwrap_err();
}

fn proxy_verifier(authority: &Authority) -> ClientVerifier {
    let proxy = credentials(authority, Kind::Proxy, "p1");
    let own = authority.cluster().clone();
    let roots = Arc::clone(proxy.authorities());
    ClientVerifier::new(own, roots, Arc::new(()), &provider()).unwrap()
}

#[test]
fn a_server_without_the_name_of_proxies_is_refused() {
    let ours = authority("example.com");
    let (proxy, agent) = (
        credentials(&ours, Kind::Proxy, "p1"),
        credentials(&ours, Kind::Agent, "a1"),
    );
    let mut server = server_of(&proxy);
    server.cert_resolver = minted(
        &ours,
        &["spiffe://example.com/proxy/p1"],
        &["p1.example.com"],
        true,
    );
    let error = refused(handshake(&client_of(&agent), &server), &Side::Client);
    assert!(
        matches!(
            error,
            Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })
        ),
        "{error}"
    );
}

#[test]
fn dialling_by_another_server_name_is_refused() {
    let ours = authority("example.com");
    let (proxy, agent) = (
        credentials(&ours, Kind::Proxy, "p1"),
        credentials(&ours, Kind::Agent, "a1"),
    );
    // The certificate has the other name as well: it is no excuse.
    let mut server = server_of(&proxy);
    server.cert_resolver = minted(
        &ours,
        &["spiffe://example.com/proxy/p1"],
        &["proxy.example.com", "lb.example.com"],
        true,
    );
    handshake(&client_of(&agent), &server).unwrap();
    let error = refused(
        handshake_as(&client_of(&agent), &server, "lb.example.com"),
        &Side::Client,
    );
    assert!(error.to_string().contains("lb.example.com"), "{error}");
}

#[test]
fn a_directed_dial_reaches_the_proxy_that_it_names() {
    let ours = authority("example.com");
    let server = server_of(&credentials(&ours, Kind::Proxy, "p1"));
    let agent = credentials(&ours, Kind::Agent, "a1");
    let directed = |name: &str| {
        let name: NodeName = name.parse().unwrap();
        client_config(&agent, ALPN, Some(&name), at(NOW)).unwrap()
    };
    handshake(&directed("p1"), &server).unwrap();
    let error = refused(handshake(&directed("p2"), &server), &Side::Client);
    assert!(error.to_string().contains("p2 was dialled"), "{error}");
}
