#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::time::Duration;

use super::*;
use crate::{Authority, Issued, Request, Validity};

const DAY: i64 = 86_400;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn load(&self, ca: &str, cert: &str, key: &str) -> Result<Credentials, CredentialsError> {
        let paths = (
            self.write("ca.pem", ca),
            self.write("a1.pem", cert),
            self.write("a1.key", key),
        );
        Credentials::load(&paths.0, &paths.1, &paths.2)
    }

    /// The error, which must name this file.
    fn fail(&self, ca: &str, cert: &str, key: &str, file: &str) -> CredentialsError {
        let error = self.load(ca, cert, key).unwrap_err();
        let path = self.dir.path().join(file).display().to_string();
        assert!(error.to_string().starts_with(&path), "{error}");
        error
    }
}

fn authority(cluster: &str) -> Authority {
    Authority::create(cluster.parse().unwrap(), &Validity::days(30).unwrap()).unwrap()
}

fn issue(authority: &Authority, kind: Kind) -> Issued {
    authority
        .issue(&Request::new(
            kind,
            "a1".parse().unwrap(),
            Validity::days(10).unwrap(),
        ))
        .unwrap()
}

fn unix(secs: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(secs.try_into().unwrap()))
}

#[test]
fn good_ones_load() {
    let authority = authority("example.com");
    for kind in Kind::ALL {
        let issued = issue(&authority, kind);
        let credentials = Fixture::new()
            .load(authority.ca_pem(), &issued.cert_pem, &issued.key_pem)
            .unwrap();
        assert_eq!(*credentials.identity(), issued.identity);
        assert_eq!(credentials.not_after(), issued.validity.not_after());
        assert_eq!(credentials.authority_not_after(), authority.not_after());
        assert_eq!(credentials.chain().len(), 1);
        assert!(!format!("{credentials:?}").contains("PRIVATE"));
    }
}

#[test]
fn missing_and_unreadable_files() {
    let fixture = Fixture::new();
    let none = fixture.dir.path().join("none.pem");
    let error = Credentials::load(&none, &none, &none).unwrap_err();
    assert!(
        matches!(error, CredentialsError::File(FileError::Missing { .. })),
        "{error}"
    );
    let error = Credentials::load(fixture.dir.path(), &none, &none).unwrap_err();
    assert!(
        matches!(
            error,
            CredentialsError::File(FileError::Io { doing: "read", .. })
        ),
        "{error}"
    );
}

#[test]
fn what_is_not_pem() {
    let (fixture, authority) = (Fixture::new(), authority("example.com"));
    let issued = issue(&authority, Kind::Agent);
    let (ca, cert, key) = (
        authority.ca_pem(),
        &issued.cert_pem[..],
        &issued.key_pem[..],
    );
    for (ca, cert, key, file) in [
        ("", cert, key, "ca.pem"),
        ("junk", cert, key, "ca.pem"),
        (ca, "junk", key, "a1.pem"),
        (ca, cert, "junk", "a1.key"),
        (ca, cert, "", "a1.key"),
    ] {
        let error = fixture.fail(ca, cert, key, file);
        assert!(matches!(error, CredentialsError::NotPem { .. }), "{error}");
    }
    let swapped = fixture.fail(ca, key, cert, "a1.pem");
    assert!(swapped.to_string().contains("swapped"), "{swapped}");
    let swapped = fixture.fail(ca, cert, cert, "a1.key");
    assert!(swapped.to_string().contains("swapped"), "{swapped}");
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let error = fixture.fail(ca, cert, encrypted, "a1.key");
    assert!(error.to_string().contains("decrypted"), "{error}");
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(
        fixture.fail(garbage, cert, key, "ca.pem"),
        CredentialsError::BadAuthority { .. }
    ));
    assert!(matches!(
        fixture.fail(ca, garbage, key, "a1.pem"),
        CredentialsError::Identity { .. }
    ));
    let garbage = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert!(matches!(
        fixture.fail(ca, cert, garbage, "a1.key"),
        CredentialsError::BadKey { .. }
    ));
    let many = cert.repeat(CERTIFICATES_MAX + 1);
    assert!(matches!(
        fixture.fail(ca, &many, key, "a1.pem"),
        CredentialsError::NotPem { .. }
    ));
}

#[test]
fn things_that_do_not_belong_together() {
    let (fixture, ours) = (Fixture::new(), authority("example.com"));
    let (issued, other) = (issue(&ours, Kind::Agent), issue(&ours, Kind::Agent));
    let error = fixture.fail(ours.ca_pem(), &issued.cert_pem, &other.key_pem, "a1.key");
    assert!(
        matches!(error, CredentialsError::KeyMismatch { .. }),
        "{error}"
    );

    let theirs = authority("b.example.com");
    let error = fixture.fail(theirs.ca_pem(), &issued.cert_pem, &issued.key_pem, "a1.pem");
    assert!(
        matches!(error, CredentialsError::OtherCluster { .. }),
        "{error}"
    );

    let anew = authority("example.com");
    let error = fixture.fail(anew.ca_pem(), &issued.cert_pem, &issued.key_pem, "a1.pem");
    assert!(
        matches!(error, CredentialsError::WrongAuthority { .. }),
        "{error}"
    );

    let error = fixture.fail(
        &issued.cert_pem,
        &issued.cert_pem,
        &issued.key_pem,
        "ca.pem",
    );
    assert!(
        matches!(error, CredentialsError::BadAuthority { .. }),
        "{error}"
    );
    // The authority's certificate in place of the leaf: its URI names a cluster, and nobody in it.
    let error = fixture.fail(ours.ca_pem(), ours.ca_pem(), &issued.key_pem, "a1.pem");
    assert!(
        matches!(error, CredentialsError::Identity { .. }),
        "{error}"
    );
}

#[test]
fn an_authority_can_be_replaced_by_listing_both() {
    let (old, new) = (authority("example.com"), authority("example.com"));
    let both = format!("{}{}", old.ca_pem(), new.ca_pem());
    for authority in [&old, &new] {
        let issued = issue(authority, Kind::Proxy);
        Fixture::new()
            .load(&both, &issued.cert_pem, &issued.key_pem)
            .unwrap();
    }
    // But not to unite two clusters.
    let mixed = format!("{}{}", old.ca_pem(), authority("b.example.com").ca_pem());
    let issued = issue(&old, Kind::Proxy);
    let error = Fixture::new()
        .load(&mixed, &issued.cert_pem, &issued.key_pem)
        .unwrap_err();
    assert!(
        matches!(error, CredentialsError::OtherCluster { .. }),
        "{error}"
    );
}

#[test]
fn certificates_without_a_usable_identity_or_name() {
    let (fixture, ours) = (Fixture::new(), authority("example.com"));
    let mint = |sans: &[rcgen::SanType]| {
        let key = crate::KeyKind::default().generate().unwrap();
        let mut params = crate::leaf::base_params(&Validity::days(10).unwrap()).unwrap();
        params.subject_alt_names = sans.to_vec();
        (
            params.signed_by(&key, ours.issuer()).unwrap().pem(),
            key.serialize_pem(),
        )
    };
    let uri = |uri: &str| rcgen::SanType::URI(uri.try_into().unwrap());

    let (cert, key) = mint(&[]);
    let error = fixture.fail(ours.ca_pem(), &cert, &key, "a1.pem");
    assert!(
        matches!(
            error,
            CredentialsError::Identity {
                source: IdentityError::NoUri,
                ..
            }
        ),
        "{error}"
    );

    let (cert, key) = mint(&[
        uri("spiffe://example.com/agent/a1"),
        uri("spiffe://example.com/agent/a2"),
    ]);
    let error = fixture.fail(ours.ca_pem(), &cert, &key, "a1.pem");
    assert!(
        matches!(
            error,
            CredentialsError::Identity {
                source: IdentityError::SeveralUris { count: 2 },
                ..
            }
        ),
        "{error}"
    );

    let (cert, key) = mint(&[uri("spiffe://example.com/proxy/p1")]);
    let error = fixture.fail(ours.ca_pem(), &cert, &key, "a1.pem");
    assert!(
        error
            .to_string()
            .contains("lacks the DNS name proxy.example.com"),
        "{error}"
    );
}

#[test]
fn time_is_checked_by_the_clock_that_is_given() {
    let authority = Authority::create(
        "example.com".parse().unwrap(),
        &Validity::between(0, 100 * DAY).unwrap(),
    )
    .unwrap();
    let mut request = Request::new(
        Kind::Agent,
        "a1".parse().unwrap(),
        Validity::between(10 * DAY, 20 * DAY).unwrap(),
    );
    let issued = authority.issue(&request).unwrap();
    let (ca, cert, key) = (
        authority.ca_pem(),
        &issued.cert_pem[..],
        &issued.key_pem[..],
    );
    let credentials =
        Credentials::from_pem(ca.as_bytes(), cert.as_bytes(), key.as_bytes()).unwrap();
    credentials.check_time(unix(10 * DAY)).unwrap();
    credentials.check_time(unix(20 * DAY)).unwrap();
    let error = credentials.check_time(unix(20 * DAY + 1)).unwrap_err();
    let until = 20 * DAY;
    assert!(
        matches!(&error, CredentialsError::Expired { path, not_after, .. } if *path == Path::new("cert.pem") && *not_after == until),
        "{error}"
    );
    let error = credentials.check_time(unix(10 * DAY - 1)).unwrap_err();
    assert!(
        matches!(error, CredentialsError::NotYetValid { .. }),
        "{error}"
    );
    // Past the authority's life, it is the authority that must be replaced.
    let error = credentials.check_time(unix(100 * DAY + 1)).unwrap_err();
    assert!(
        matches!(&error, CredentialsError::Expired { path, .. } if *path == Path::new("ca.pem")),
        "{error}"
    );

    // By the system's clock all of this was long ago.
    let error = Fixture::new().load(ca, cert, key).unwrap_err();
    assert!(matches!(error, CredentialsError::Expired { .. }), "{error}");

    // A certificate of the future.
    let far = Authority::create(
        "example.com".parse().unwrap(),
        &Validity::days(36_500).unwrap(),
    )
    .unwrap();
    request.validity = Validity::between(far.not_after() - DAY, far.not_after()).unwrap();
    let issued = far.issue(&request).unwrap();
    let error = Fixture::new().fail(far.ca_pem(), &issued.cert_pem, &issued.key_pem, "a1.pem");
    assert!(
        matches!(error, CredentialsError::NotYetValid { .. }),
        "{error}"
    );
}
