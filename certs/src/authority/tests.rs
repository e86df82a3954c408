#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use super::*;
use crate::{Csr, Inspection, KeyKind, inspect_pem};

const DAY: i64 = 86_400;

fn authority() -> Authority {
    let validity = Validity::between(0, 100 * DAY).unwrap();
    Authority::create("example.com".parse().unwrap(), &validity).unwrap()
}

fn request(kind: Kind, name: &str) -> Request {
    Request::new(
        kind,
        name.parse().unwrap(),
        Validity::between(DAY, 2 * DAY).unwrap(),
    )
}

fn identity(uri: &str) -> Identity {
    uri.parse().unwrap()
}

fn only(pem: &str) -> Inspection {
    let mut all = inspect_pem(pem.as_bytes()).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn the_authoritys_certificate() {
    let authority = authority();
    let der = CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap();
    let parsed = identity::parse(&der).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = parsed.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign());
    assert!(!usage.value.digital_signature());
    assert_eq!(
        identity::authority_cluster(&parsed).unwrap(),
        *authority.cluster()
    );
}

#[test]
fn leaves_have_one_uri_and_the_usages_of_their_kind() {
    let authority = authority();
    for (kind, usages, dns) in [
        (
            Kind::Proxy,
            &["server", "client"][..],
            &["proxy.example.com"][..],
        ),
        (Kind::Agent, &["client"], &[]),
        (Kind::User, &["client"], &[]),
    ] {
        let issued = authority.issue(&request(kind, "n1")).unwrap();
        let facts = only(&issued.cert_pem);
        assert_eq!(facts.uris, [format!("spiffe://example.com/{kind}/n1")]);
        assert_eq!(
            (facts.usages, facts.dns),
            (
                usages.iter().map(ToString::to_string).collect(),
                dns.iter().map(ToString::to_string).collect()
            )
        );
        let der = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap();
        let parsed = identity::parse(&der).unwrap();
        assert!(!parsed.is_ca());
        assert!(
            parsed
                .key_usage()
                .unwrap()
                .unwrap()
                .value
                .digital_signature()
        );
    }
}

#[test]
fn a_leafs_life_is_cut_to_the_authoritys() {
    let authority = authority();
    let mut long = request(Kind::Agent, "a1");
    long.validity = Validity::between(DAY, 1000 * DAY).unwrap();
    let issued = authority.issue(&long).unwrap();
    assert_eq!(
        (issued.validity.not_before(), issued.validity.not_after()),
        (DAY, 100 * DAY)
    );
    assert_eq!(only(&issued.cert_pem).not_after, authority.not_after());
    long.validity = Validity::between(101 * DAY, 1000 * DAY).unwrap();
    let error = authority.issue(&long).unwrap_err();
    assert!(matches!(error, AuthorityError::NotValid { .. }), "{error}");
}

#[test]
fn serials_differ_and_certificates_are_equally_long() {
    let authority = authority();
    let issue = || authority.issue(&request(Kind::Agent, "a1")).unwrap();
    let (one, two) = (issue(), issue());
    assert_ne!(only(&one.cert_pem).serial, only(&two.cert_pem).serial);
    assert_eq!(one.cert_pem.len(), two.cert_pem.len());
}

#[test]
fn names_that_do_not_do() {
    let authority = authority();
    for name in [
        "",
        "*.example.com",
        "a b",
        "x:80",
        "x.",
        "-x.com",
        "10.0.0.1/8",
        "ä.com",
    ] {
        let mut request = request(Kind::Proxy, "p1");
        request.dns.push(name.to_owned());
        let error = authority.issue(&request).unwrap_err();
        assert!(
            matches!(
                error,
                AuthorityError::AltName(AltNameError::InvalidDns { .. })
            ),
            "{name}: {error}"
        );
    }
    for name in ["proxy.example.com", "PROXY.example.com"] {
        let mut request = request(Kind::Agent, "a1");
        request.dns.push(name.to_owned());
        let error = authority.issue(&request).unwrap_err();
        assert!(
            matches!(
                error,
                AuthorityError::AltName(AltNameError::Reserved { .. })
            ),
            "{name}: {error}"
        );
    }
    let mut request = request(Kind::Proxy, "p1");
    request.dns = (0..65).map(|i| format!("h{i}.example.com")).collect();
    let error = authority.issue(&request).unwrap_err();
    assert!(
        matches!(
            error,
            AuthorityError::AltName(AltNameError::TooMany { count: 65 })
        ),
        "{error}"
    );
}

#[test]
fn saved_and_loaded_it_is_the_same_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority();
    let [cert, key] = authority.save(dir.path()).unwrap();
    let before = fs::read(&key).unwrap();
    assert!(matches!(
        authority.save(dir.path()),
        Err(FileError::Exists { .. })
    ));
    assert_eq!(fs::read(&key).unwrap(), before);

    let loaded = Authority::load(dir.path()).unwrap();
    assert_eq!(loaded.cluster(), authority.cluster());
    assert_eq!(loaded.not_after(), authority.not_after());
    let issued = loaded.issue(&request(Kind::User, "alice")).unwrap();
    let ca = fs::read(cert).unwrap();
    crate::Credentials::from_pem(&ca, issued.cert_pem.as_bytes(), issued.key_pem.as_bytes())
        .unwrap();

    issued.save(dir.path()).unwrap();
    let again = loaded.issue(&request(Kind::User, "alice")).unwrap();
    let error = again.save(dir.path()).unwrap_err();
    assert!(error.to_string().contains("never overwritten"), "{error}");
    assert_eq!(
        fs::read_to_string(dir.path().join("alice.pem")).unwrap(),
        issued.cert_pem
    );
}

#[test]
fn loading_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let error = Authority::load(dir.path()).unwrap_err();
    assert!(
        matches!(&error, AuthorityError::File(FileError::Missing { path: p }) if *p == path("ca.pem")),
        "{error}"
    );

    let (ours, other) = (authority(), authority());
    let leaf = ours.issue(&request(Kind::User, "alice")).unwrap();
    let unusable =
        |ca: &str, key: &str| Authority::from_pem(ca.as_bytes(), key.as_bytes()).unwrap_err();
    assert!(matches!(
        unusable(ours.ca_pem(), &other.key_pem),
        AuthorityError::KeyMismatch { .. }
    ));
    assert!(
        unusable("", &ours.key_pem)
            .to_string()
            .contains("BEGIN CERTIFICATE")
    );
    assert!(
        unusable(ours.ca_pem(), "x")
            .to_string()
            .contains("BEGIN PRIVATE KEY")
    );
    assert!(
        unusable(&leaf.cert_pem, &leaf.key_pem)
            .to_string()
            .contains("a leaf")
    );
}

#[test]
fn a_request_is_signed_with_what_the_authority_decides() {
    let authority = authority();
    let validity = Validity::between(DAY, 2 * DAY).unwrap();
    let asked = identity("spiffe://example.com/proxy/p1");
    let ips = ["10.0.0.1".parse().unwrap()];
    for key in [KeyKind::Ed25519, KeyKind::EcdsaP256] {
        let csr = Csr::generate(asked.clone(), &["lb.example.com".to_owned()], &ips, key).unwrap();
        let signed = authority.sign(csr.csr_pem().as_bytes(), &validity).unwrap();
        assert_eq!(signed.identity, asked);
        let facts = only(&signed.cert_pem);
        assert_eq!(facts.uris, [asked.to_string()]);
        assert_eq!(facts.dns, ["proxy.example.com", "lb.example.com"]);
        assert_eq!(facts.ips, ips);
        crate::Credentials::from_pem(
            authority.ca_pem().as_bytes(),
            signed.cert_pem.as_bytes(),
            csr.key_pem().as_bytes(),
        )
        .unwrap();
    }
}

#[test]
fn a_request_cannot_ask_for_more_than_a_leaf() {
    let authority = authority();
    let key = KeyKind::default().generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(
        "spiffe://example.com/agent/a1".try_into().unwrap(),
    )];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let signed = authority
        .sign(csr.as_bytes(), &Validity::between(DAY, 2 * DAY).unwrap())
        .unwrap();
    let facts = only(&signed.cert_pem);
    assert_eq!(facts.usages, ["client"]);
    assert!(matches!(facts.subject, crate::Subject::Identity(_)));
    let der = CertificateDer::from_pem_slice(signed.cert_pem.as_bytes()).unwrap();
    assert!(
        !identity::parse(&der)
            .unwrap()
            .key_usage()
            .unwrap()
            .unwrap()
            .value
            .key_cert_sign()
    );
}

#[test]
fn requests_that_are_not_signed() {
    let authority = authority();
    let validity = Validity::between(DAY, 2 * DAY).unwrap();
    let sign = |sans: &[SanType]| {
        let key = KeyKind::default().generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans.to_vec();
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        authority.sign(csr.as_bytes(), &validity).unwrap_err()
    };
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    let own = uri("spiffe://example.com/agent/a1");

    let error = sign(&[uri("spiffe://b.example.com/agent/a1")]);
    assert!(
        matches!(error, AuthorityError::OtherCluster { .. }),
        "{error}"
    );
    let error = sign(&[own.clone(), uri("spiffe://example.com/agent/a2")]);
    assert!(
        matches!(error, AuthorityError::Csr(CsrError::Identity(_))),
        "{error}"
    );
    let error = sign(&[]);
    assert!(
        matches!(error, AuthorityError::Csr(CsrError::Identity(_))),
        "{error}"
    );
    let error = sign(&[uri("spiffe://example.com/agent/A1")]);
    assert!(
        matches!(error, AuthorityError::Csr(CsrError::Identity(_))),
        "{error}"
    );
    let error = sign(&[
        own.clone(),
        SanType::DnsName("proxy.example.com".try_into().unwrap()),
    ]);
    assert!(
        matches!(
            error,
            AuthorityError::AltName(AltNameError::Reserved { .. })
        ),
        "{error}"
    );
    let error = sign(&[
        own,
        SanType::Rfc822Name("a@example.com".try_into().unwrap()),
    ]);
    assert!(
        matches!(error, AuthorityError::Csr(CsrError::OtherName)),
        "{error}"
    );

    let error = authority
        .sign(authority.ca_pem().as_bytes(), &validity)
        .unwrap_err();
    assert!(
        matches!(error, AuthorityError::Csr(CsrError::NotACsr { .. })),
        "{error}"
    );
}

#[test]
fn a_request_that_its_key_did_not_sign_is_refused() {
    let csr = Csr::generate(
        identity("spiffe://example.com/agent/a1"),
        &[],
        &[],
        KeyKind::default(),
    )
    .unwrap();
    let mut der =
        rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(csr.csr_pem().as_bytes())
            .unwrap()
            .as_ref()
            .to_vec();
    // Another name under the same signature.
    let at = der
        .windows(8)
        .position(|window| window == b"agent/a1")
        .unwrap();
    der[at + 7] = b'2';
    let error = Asked::from_der(&der.into())
        .map(|asked| asked.identity)
        .unwrap_err();
    assert!(
        matches!(&error, CsrError::NotACsr { why } if why.contains("signature")),
        "{error}"
    );
}

#[test]
fn debug_shows_no_key() {
    let authority = authority();
    let issued = authority.issue(&request(Kind::Agent, "a1")).unwrap();
    let csr = Csr::generate(issued.identity.clone(), &[], &[], KeyKind::default()).unwrap();
    for shown in [
        format!("{authority:?}"),
        format!("{issued:?}"),
        format!("{csr:?}"),
    ] {
        assert!(!shown.contains("PRIVATE"), "{shown}");
    }
}
