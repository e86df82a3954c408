#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::tls::{client_config, provider, proxy_server_config};
use crate::{Authority, Credentials, KeyKind, Request, Validity, leaf};

mod foreign;
mod leaf_names;
mod protocol;

const ALPN: &[u8] = b"mesh-test/1";
const NOW: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

#[derive(Debug)]
struct FixedTime(i64);

impl TimeProvider for FixedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            self.0.try_into().unwrap(),
        )))
    }
}

fn at(secs: i64) -> Arc<dyn TimeProvider> {
    Arc::new(FixedTime(secs))
}

fn validity() -> Validity {
    Validity::between(NOW - DAY, NOW + DAY).unwrap()
}

fn authority(cluster: &str) -> Authority {
    let long = Validity::between(NOW - 10 * DAY, NOW + 100 * DAY).unwrap();
    Authority::create(cluster.parse().unwrap(), &long).unwrap()
}

fn credentials(authority: &Authority, kind: Kind, name: &str) -> Credentials {
    let issued = authority
        .issue(&Request::new(kind, name.parse().unwrap(), validity()))
        .unwrap();
    Credentials::from_pem(
        authority.ca_pem().as_bytes(),
        issued.cert_pem.as_bytes(),
        issued.key_pem.as_bytes(),
    )
    .unwrap()
}

fn server_of(credentials: &Credentials) -> ServerConfig {
    proxy_server_config(credentials, &[ALPN], at(NOW)).unwrap()
}

fn client_of(credentials: &Credentials) -> ClientConfig {
    client_config(credentials, ALPN, None, at(NOW)).unwrap()
}

/// A certificate with these URI and DNS names, which the authority signs without a look.
fn minted(
    authority: &Authority,
    uris: &[&str],
    dns: &[&str],
    server: bool,
) -> Arc<SingleCertAndKey> {
    let key = KeyKind::default().generate().unwrap();
    let mut params = leaf::base_params(&validity()).unwrap();
    params.distinguished_name = leaf::common_name("minted");
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .collect();
    params.subject_alt_names.extend(
        dns.iter()
            .map(|name| SanType::DnsName((*name).try_into().unwrap())),
    );
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if server {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    let certificate = params.signed_by(&key, authority.issuer()).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = provider().key_provider.load_private_key(key).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(
        vec![certificate.into()],
        key,
    )))
}

#[derive(Debug, PartialEq)]
enum Side {
    Client,
    Server,
}

type Handshake = Result<(ClientConnection, ServerConnection), (Side, Error)>;

fn handshake(client: &ClientConfig, server: &ServerConfig) -> Handshake {
    handshake_as(client, server, "proxy.example.com")
}

/// A handshake over memory. The first error of either side ends it.
fn handshake_as(client: &ClientConfig, server: &ServerConfig, name: &str) -> Handshake {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client.clone()), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server.clone())).unwrap();
    // A TLS 1.3 handshake is two flights and the server's afterthoughts; more rounds are a fault.
    for _ in 0..6 {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut rest = &flight[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server
                .process_new_packets()
                .map_err(|error| (Side::Server, error))?;
        }
        flight.clear();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        let mut rest = &flight[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client
                .process_new_packets()
                .map_err(|error| (Side::Client, error))?;
        }
    }
    assert!(
        !client.is_handshaking() && !server.is_handshaking(),
        "the handshake hangs"
    );
    Ok((client, server))
}

#[track_caller]
fn refused(handshake: Handshake, by: &Side) -> Error {
    let (side, error) = handshake.map(|_| "accepted").unwrap_err();
    assert_eq!(side, *by, "{error}");
    error
}

fn peer(certificates: Option<&[CertificateDer<'_>]>) -> String {
    Identity::from_certificate(&certificates.unwrap()[0])
        .unwrap()
        .to_string()
}

#[test]
fn every_kind_of_the_own_cluster_is_accepted() {
    let ours = authority("example.com");
    let server = server_of(&credentials(&ours, Kind::Proxy, "p1"));
    for kind in Kind::ALL {
        let (client, server) =
            handshake(&client_of(&credentials(&ours, kind, "n1")), &server).unwrap();
        assert_eq!(
            peer(server.peer_certificates()),
            format!("spiffe://example.com/{kind}/n1")
        );
        assert_eq!(
            peer(client.peer_certificates()),
            "spiffe://example.com/proxy/p1"
        );
        assert_eq!(client.alpn_protocol(), Some(ALPN));
        assert_eq!(
            client.protocol_version(),
            Some(rustls::ProtocolVersion::TLSv1_3)
        );
    }
}

#[test]
fn both_kinds_of_key_are_accepted() {
    let validity = validity();
    let ours = Authority::create_with(
        "example.com".parse().unwrap(),
        &validity,
        KeyKind::EcdsaP256,
    )
    .unwrap();
    let server = server_of(&credentials(&ours, Kind::Proxy, "p1"));
    let mut request = Request::new(Kind::Agent, "a1".parse().unwrap(), validity);
    request.key = KeyKind::EcdsaP256;
    let issued = ours.issue(&request).unwrap();
    let agent = Credentials::from_pem(
        ours.ca_pem().as_bytes(),
        issued.cert_pem.as_bytes(),
        issued.key_pem.as_bytes(),
    );
    handshake(&client_of(&agent.unwrap()), &server).unwrap();
}

#[test]
fn no_client_certificate_is_refused() {
    let ours = authority("example.com");
    let server = server_of(&credentials(&ours, Kind::Proxy, "p1"));
    let mut client = client_of(&credentials(&ours, Kind::Agent, "a1"));
    client.client_auth_cert_resolver = Arc::new(NoCertificate);
    let error = refused(handshake(&client, &server), &Side::Server);
    assert_eq!(error, Error::NoCertificatesPresented);
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn expired_and_not_yet_valid_are_refused_on_both_sides() {
    let ours = authority("example.com");
    let (proxy, agent) = (
        credentials(&ours, Kind::Proxy, "p1"),
        credentials(&ours, Kind::Agent, "a1"),
    );
    for (time, expired) in [(NOW + 2 * DAY, true), (NOW - 2 * DAY, false)] {
        let right = |error: &Error| {
            use CertificateError::{ExpiredContext, NotValidYetContext};
            if expired {
                matches!(error, Error::InvalidCertificate(ExpiredContext { .. }))
            } else {
                matches!(error, Error::InvalidCertificate(NotValidYetContext { .. }))
            }
        };
        let server = proxy_server_config(&proxy, &[ALPN], at(time)).unwrap();
        let error = refused(handshake(&client_of(&agent), &server), &Side::Server);
        assert!(right(&error), "{error}");
        let client = client_config(&agent, ALPN, None, at(time)).unwrap();
        let error = refused(handshake(&client, &server_of(&proxy)), &Side::Client);
        assert!(right(&error), "{error}");
    }
}

#[test]
fn another_cluster_is_refused_on_both_sides() {
    let (ours, theirs) = (authority("example.com"), authority("b.example.com"));
    let (our_proxy, our_agent) = (
        credentials(&ours, Kind::Proxy, "p1"),
        credentials(&ours, Kind::Agent, "a1"),
    );
    let their_proxy = credentials(&theirs, Kind::Proxy, "p1");

    let mut client = client_of(&our_agent);
    client.client_auth_cert_resolver =
        minted(&theirs, &["spiffe://b.example.com/agent/a1"], &[], false);
    let error = refused(handshake(&client, &server_of(&our_proxy)), &Side::Server);
    assert!(
        error
            .to_string()
            .contains("whose authority is not known here"),
        "{error}"
    );

    let error = refused(
        handshake(&client_of(&our_agent), &server_of(&their_proxy)),
        &Side::Client,
    );
    assert!(
        error
            .to_string()
            .contains("whose authority is not known here"),
        "{error}"
    );
}

#[test]
fn an_authority_of_the_same_name_is_refused_on_both_sides() {
    let (ours, impostor) = (authority("example.com"), authority("example.com"));
    let (proxy, agent) = (
        credentials(&ours, Kind::Proxy, "p1"),
        credentials(&ours, Kind::Agent, "a1"),
    );
    let mut client = client_of(&agent);
    client.client_auth_cert_resolver =
        minted(&impostor, &["spiffe://example.com/agent/a1"], &[], false);
    assert!(is_wrong_authority(&refused(
        handshake(&client, &server_of(&proxy)),
        &Side::Server
    )));

    let false_proxy = credentials(&impostor, Kind::Proxy, "p1");
    assert!(is_wrong_authority(&refused(
        handshake(&client_of(&agent), &server_of(&false_proxy)),
        &Side::Client
    )));
}

fn is_wrong_authority(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(CertificateError::UnknownIssuer)
    )
}
