//! Other clusters: whom their authorities vouch for, on either side of a connection.

use std::path::Path;

use super::*;
use crate::foreign::{ForeignAuthority, ForeignAuthorityError, TrustedClusters};
use crate::tls::{foreign_client_config, proxy_server_config_trusting};

/// Trusts one other cluster.
#[derive(Debug)]
pub(super) struct One(pub(super) ForeignAuthority);

impl TrustedClusters for One {
    fn authority(&self, cluster: &Cluster) -> Option<ForeignAuthority> {
        (cluster == self.0.cluster()).then(|| self.0.clone())
    }
}

fn read(cluster: &str, pem: &str) -> Result<ForeignAuthority, ForeignAuthorityError> {
    let cluster = cluster.parse().unwrap();
    ForeignAuthority::from_pem(&cluster, Path::new("b-ca.pem"), pem.as_bytes())
}

pub(super) fn foreign(authority: &Authority) -> ForeignAuthority {
    read(authority.cluster().as_str(), authority.ca_pem()).unwrap()
}

/// A server that trusts two clusters, as one does that serves tunnels: each authority speaks for
/// its own cluster alone, although both are known, and theirs for proxies alone.
#[test]
fn forged_trust_domain() {
    let (ours, theirs, third) = (
        authority("example.com"),
        authority("b.example.com"),
        authority("c.example.com"),
    );
    let proxy = credentials(&ours, Kind::Proxy, "p1");
    let trusted = Arc::new(One(foreign(&theirs)));
    let server = proxy_server_config_trusting(&proxy, trusted, &[ALPN], at(NOW)).unwrap();

    let mut client = client_of(&credentials(&ours, Kind::Agent, "a1"));
    let authorities = [&ours, &theirs, &third];
    for cluster in ["example.com", "b.example.com", "c.example.com"] {
        for kind in ["proxy", "agent", "user"] {
            for authority in authorities {
                let uri = format!("spiffe://{cluster}/{kind}/x1");
                let own = (cluster, authority.cluster().as_str()) == ("example.com", "example.com");
                let proxy_of_theirs = (cluster, kind, authority.cluster().as_str())
                    == ("b.example.com", "proxy", "b.example.com");
                client.client_auth_cert_resolver = minted(authority, &[&uri], &[], false);
                match handshake(&client, &server) {
                    Ok((_, server)) => {
                        assert!(own || proxy_of_theirs, "{uri} by {}", authority.cluster());
                        assert_eq!(peer(server.peer_certificates()), uri);
                    }
                    Err((side, error)) => {
                        let by = authority.cluster();
                        assert!(!own && !proxy_of_theirs, "{uri} by {by}: {error}");
                        assert_eq!(side, Side::Server);
                        let known = cluster != "c.example.com";
                        if known
                            && by.as_str() != cluster
                            && (kind == "proxy" || cluster == "example.com")
                        {
                            assert!(is_wrong_authority(&error), "{uri} by {by}: {error}");
                        }
                    }
                }
            }
        }
    }
}

/// A proxy that dials another cluster takes proxies of that cluster alone, by its own authority.
#[test]
fn dialling_another_cluster() {
    let (ours, theirs) = (authority("example.com"), authority("b.example.com"));
    let own = credentials(&ours, Kind::Proxy, "p1");
    let known = foreign(&theirs);
    let client = |proxy: Option<&str>| {
        let proxy = proxy.map(|name| name.parse().unwrap());
        foreign_client_config(&own, &known, ALPN, proxy.as_ref(), at(NOW)).unwrap()
    };
    let trusting = |credentials: &Credentials| {
        let trusted = Arc::new(One(foreign(&ours)));
        proxy_server_config_trusting(credentials, trusted, &[ALPN], at(NOW)).unwrap()
    };
    let their_proxy = trusting(&credentials(&theirs, Kind::Proxy, "p7"));
    let name = "proxy.b.example.com";
    for (config, accepted) in [
        (client(None), true),
        (client(Some("p7")), true),
        (client(Some("p8")), false),
    ] {
        let shaken = handshake_as(&config, &their_proxy, name);
        assert_eq!(shaken.is_ok(), accepted);
    }
    // Of the own cluster, or with their name and another authority: nobody.
    let dns = ["proxy.b.example.com", "proxy.example.com"];
    for (authority, uri) in [
        (&ours, "spiffe://example.com/proxy/p7"),
        (&ours, "spiffe://b.example.com/proxy/p7"),
        (&theirs, "spiffe://example.com/proxy/p7"),
        (&theirs, "spiffe://b.example.com/agent/p7"),
        (&theirs, "spiffe://b.example.com/user/p7"),
    ] {
        let mut server = their_proxy.clone();
        server.cert_resolver = minted(authority, &[uri], &dns, true);
        let refused = handshake_as(&client(None), &server, name);
        assert_eq!(refused.unwrap_err().0, Side::Client, "{uri}");
    }
    // The mesh's own clients take none of the other cluster either.
    let agent = client_of(&credentials(&ours, Kind::Agent, "a1"));
    assert!(handshake(&agent, &their_proxy).is_err());
}

#[test]
fn files_of_other_authorities() {
    let (ours, theirs) = (authority("example.com"), authority("b.example.com"));
    let own = credentials(&ours, Kind::Proxy, "p1");
    let known = foreign(&theirs);
    assert!(known.is_same(&foreign(&theirs)));
    assert!(!known.is_same(&foreign(&authority("b.example.com"))));
    assert!(!known.shares_key_with_own(&own));
    assert!(foreign(&ours).shares_key_with_own(&own));
    assert!(known.shares_key_with(&foreign(&theirs)));
    assert!(!known.shares_key_with(&foreign(&ours)));

    let path = Path::new("b-ca.pem");
    assert!(known.check_time(path, NOW).is_ok());
    let expired = known.check_time(path, NOW + 200 * DAY).unwrap_err();
    assert!(
        expired.to_string().contains("b-ca.pem: expired at"),
        "{expired}"
    );
    let both = format!("{}{}", theirs.ca_pem(), authority("b.example.com").ca_pem());
    assert!(
        read("b.example.com", &both).is_ok(),
        "while one is replaced"
    );
    let leaf = theirs
        .issue(&Request::new(
            Kind::Proxy,
            "p1".parse().unwrap(),
            validity(),
        ))
        .unwrap();
    let mixed = format!("{both}{}", ours.ca_pem());
    for (pem, says) in [
        ("", "no certificate"),
        (leaf.cert_pem.as_str(), "leaf certificate"),
        (leaf.key_pem.as_str(), "private key"),
        (
            ours.ca_pem(),
            "is the authority of example.com, not of b.example.com",
        ),
        (
            mixed.as_str(),
            "is the authority of example.com, not of b.example.com",
        ),
    ] {
        let error = read("b.example.com", pem).unwrap_err().to_string();
        assert!(
            error.starts_with("b-ca.pem: ") && error.contains(says),
            "{error}"
        );
    }
}
