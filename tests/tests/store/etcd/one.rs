//! One member: prefixes, rights, TLS, restarts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use etcd_client::{Permission, PutOptions, RoleGrantPermissionResponse};
use mesh_tests::probe::eventually;
use mesh_tests::{Result, binary};
use node::store::{Clock, Freshness, Revision, Store, StoreError, StoreUrl, Watched};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio::time::Instant;

use super::support::Etcd;
use crate::support::{Answer, next, next_many, pairs, said};

const NONE: Revision = Revision::NONE;

#[expect(clippy::expect_used, reason = "the tests write what is parsed")]
async fn open(url: &str) -> Answer<Arc<dyn Store>> {
    let url: StoreUrl = url.parse().expect("a URL");
    node::store::open(&url, Clock::system()).await
}

fn is_denied<T>(result: &Answer<T>) -> bool {
    matches!(result, Err(StoreError::Denied { .. }))
}

#[tokio::test]
async fn stores_under_other_prefixes_do_not_see_each_other() -> Result {
    let etcd = Etcd::start(1)?;
    let (one, two) = (etcd.store("/one").await?, etcd.store("/on").await?);
    let mut watch = two.watch("", two.list("").await?.revision).await?;
    one.put("a", "1".into(), NONE, None).await?;
    // Keys of others, and keys that are no text, are nobody's.
    let mut kv = etcd.client().await?.kv_client();
    for key in [&b"/on"[..], b"/on0", b"/on/\xff", b"zzz"] {
        kv.put(key, "x", None).await?;
    }
    two.put("a", "2".into(), NONE, None).await?;
    assert_eq!(said(&next(&mut *watch).await?), [("a", Some(&b"2"[..]))]);
    assert_eq!(pairs(&one.list("").await?), [("a", &b"1"[..])]);
    assert_eq!(pairs(&two.list("").await?), [("a", &b"2"[..])]);
    let raw = kv.get("/one/a", None).await?;
    assert_eq!(raw.kvs()[0].value(), b"1");
    Ok(())
}

#[tokio::test]
async fn users_and_their_rights() -> Result {
    const ROOT: &str = "r00t-secret";
    const MESH: &str = "m3sh/s@cret:%";
    const ESCAPED: &str = "m3sh%2Fs%40cret%3A%25";
    let mut etcd = Etcd::start(1)?;
    let mut auth = etcd.client().await?.auth_client();
    auth.user_add("root", ROOT, None).await?;
    auth.user_grant_role("root", "root").await?;
    auth.role_add("mesh").await?;
    let permission = Permission::read_write("/fleet/").with_prefix();
    let _: RoleGrantPermissionResponse = auth.role_grant_permission("mesh", permission).await?;
    auth.user_add("mesh", MESH, None).await?;
    auth.user_grant_role("mesh", "mesh").await?;
    auth.auth_enable().await?;

    let url = etcd.url(&format!("mesh:{ESCAPED}@"), "/fleet");
    let store = open(&url).await?;
    let ttl = Some(std::time::Duration::from_secs(600));
    let revision = store.put("a", "1".into(), NONE, ttl).await?;
    let mut watch = store.watch("", Revision(revision.0 - 1)).await?;
    assert_eq!(said(&next(&mut *watch).await?), [("a", Some(&b"1"[..]))]);
    assert_eq!(store.list("").await?.entries.len(), 1);
    let shown = format!("{store:?} {store:#?} {watch:?}");
    assert!(shown.contains("mesh:***@"), "{shown}");
    for secret in [MESH, ESCAPED] {
        assert!(!shown.contains(secret), "{shown}");
    }

    // A password from a file.
    let file = etcd.dir().join("password");
    std::fs::write(&file, format!("{MESH}\n"))?;
    let rest = format!("/fleet?password_file={}", file.display());
    let from_file = open(&etcd.url("mesh@", &rest)).await?;
    assert!(from_file.get("a").await?.is_some());

    for (user, prefix) in [
        (format!("mesh:{ESCAPED}x@"), "/fleet"),
        ("mesh@".to_owned(), "/fleet"),
        (format!("nobody:{ESCAPED}@"), "/fleet"),
        (String::new(), "/fleet"),
        (format!("mesh:{ESCAPED}@"), "/other"),
    ] {
        let store = open(&etcd.url(&user, prefix)).await?;
        let results = [
            store.get("a").await.map(drop),
            store.list("").await.map(drop),
            store.put("a", Bytes::new(), NONE, None).await.map(drop),
            match store.watch("", NONE).await {
                Ok(mut watch) => watch.next().await.map(drop),
                Err(error) => Err(error),
            },
        ];
        for result in &results {
            assert!(is_denied(result), "{prefix}: {results:?}");
            let shown = format!("{result:?}");
            assert!(!shown.contains(ESCAPED) && !shown.contains(MESH), "{shown}");
        }
    }

    // A member that was restarted knows no tokens any more: they are asked for anew.
    etcd.kill(0);
    etcd.restart(0)?;
    assert_eq!(
        store.get("a").await?.map(|entry| entry.modified),
        Some(revision)
    );
    store.put("b", "2".into(), NONE, None).await?;
    eventually("the watch goes on", async || {
        let mut watch = store.watch("", revision).await?;
        let events = next(&mut *watch).await?;
        ensure!(said(&events) == [("b", Some(&b"2"[..]))], "{events:?}");
        Ok(())
    })
    .await
}

/// Writes `NAME.pem` and `NAME.key`.
fn write_pair(dir: &Path, name: &str, cert: &rcgen::Certificate, key: &KeyPair) -> Result {
    std::fs::write(dir.join(format!("{name}.pem")), cert.pem())?;
    std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    Ok(())
}

/// An authority, and a certificate of it for each name.
fn mint(dir: &Path, authority: &str, names: &[&str]) -> Result {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, authority);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let cert = params.self_signed(&key)?;
    write_pair(dir, authority, &cert, &key)?;
    let issuer = Issuer::new(params, key);
    for name in names {
        let key = KeyPair::generate()?;
        let sans = vec!["127.0.0.1".to_owned(), "etcd.example.com".to_owned()];
        let mut params = CertificateParams::new(sans)?;
        params.distinguished_name.push(DnType::CommonName, *name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let cert = params.signed_by(&key, &issuer)?;
        write_pair(dir, name, &cert, &key)?;
    }
    Ok(())
}

#[tokio::test]
async fn tls_both_ways() -> Result {
    let mut minted = Ok(());
    let etcd = Etcd::start_with("https", 1, |dir| {
        minted =
            mint(dir, "ca", &["server", "client"]).and_then(|()| mint(dir, "alien", &["stranger"]));
        let flag = |name: &str, file: &str| [name.to_owned(), dir.join(file).display().to_string()];
        let mut flags = vec!["--client-cert-auth".to_owned()];
        flags.extend(flag("--cert-file", "server.pem"));
        flags.extend(flag("--key-file", "server.key"));
        flags.extend(flag("--trusted-ca-file", "ca.pem"));
        flags
    })?;
    minted?;
    let dir = etcd.dir().display();
    let rest = |ca: &str, client: &str| {
        format!("/mesh?ca={dir}/{ca}.pem&cert={dir}/{client}.pem&key={dir}/{client}.key")
    };
    let good = rest("ca", "client");
    for more in ["", "&server_name=etcd.example.com"] {
        let store = open(&etcd.url("", &format!("{good}{more}"))).await?;
        let current = store.get("a").await?.map_or(NONE, |entry| entry.modified);
        let revision = store.put("a", "1".into(), current, None).await?;
        let mut watch = store.watch("", Revision(revision.0 - 1)).await?;
        assert_eq!(next(&mut *watch).await?[0].revision(), revision);
    }
    for bad in [
        rest("alien", "client"),
        rest("ca", "stranger"),
        format!("/mesh?ca={dir}/ca.pem"),
        "/mesh?tls=true".to_owned(),
        "/mesh".to_owned(),
        format!("{good}&server_name=other.example.com"),
    ] {
        let store = open(&etcd.url("", &bad)).await?;
        let result = store.get("a").await;
        assert!(
            matches!(result, Err(StoreError::Unreachable { .. })),
            "{bad}: {result:?}"
        );
    }
    // Files that are none are said before anything is dialled.
    std::fs::write(etcd.dir().join("text.pem"), "no certificate")?;
    for bad in [
        "/mesh?ca=/nowhere/ca.pem".to_owned(),
        format!("/mesh?ca={dir}/text.pem"),
    ] {
        let error = open(&etcd.url("", &bad)).await.expect_err("no certificate");
        assert!(matches!(error, StoreError::Credentials { .. }), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_goes_on_after_a_restart() -> Result {
    let mut etcd = Etcd::start(1)?;
    let store = etcd.store("/mesh").await?;
    let mut watch = store.watch("", store.list("").await?.revision).await?;
    let mut revision = store.put("a", "0".into(), NONE, None).await?;
    assert_eq!(next(&mut *watch).await?.len(), 1);
    for round in 1..4 {
        etcd.kill(0);
        let error = next(&mut *watch).await.expect_err("nobody is there");
        assert!(error.to_string().contains("cannot be reached"), "{error}");
        let put = store.put("a", "x".into(), revision, None).await;
        let Err(StoreError::Unreachable { what, maybe_done }) = put else {
            panic!("{put:?}")
        };
        // Nobody has heard of it, and it says so.
        assert!(!maybe_done, "{what}");
        etcd.restart(0)?;
        for _ in 0..3 {
            revision = store
                .put("a", round.to_string().into(), revision, None)
                .await?;
        }
        let events = next_many(&mut *watch, 3).await?;
        assert_eq!(events[2].revision(), revision, "round {round}");
    }
    Ok(())
}

#[tokio::test]
async fn store_outage_changes_nothing() -> Result {
    let mut etcd = Etcd::start(1)?;
    let store = etcd.store("/mesh").await?;
    for key in ["t/a", "t/b"] {
        store.put(key, "1".into(), NONE, None).await?;
    }
    let mut view = Watched::new(store.clone(), "t/", StdRng::seed_from_u64(1));
    view.next().await;
    let known = view.entries().clone();
    assert_eq!((known.len(), view.freshness()), (2, &Freshness::UpToDate));
    for (stop, go) in [("STOP", "CONT"), ("KILL", "")] {
        etcd.signal(0, stop)?;
        // A process that stands still is noticed by a probe.
        let update = view.next().await;
        assert_eq!(update.changes, [], "{stop}");
        ensure!(matches!(
            update.freshness,
            Freshness::Stale { error: Some(_), .. }
        ));
        // Several further tries change nothing either.
        for _ in 0..3 {
            let trying = tokio::time::timeout(std::time::Duration::from_millis(300), view.next());
            if let Ok(update) = trying.await {
                assert_eq!(update.changes, [], "{stop}");
            }
        }
        assert_eq!(view.entries(), &known);
        if go.is_empty() {
            etcd.kill(0);
            etcd.restart(0)?;
        } else {
            etcd.signal(0, go)?;
        }
        while *view.freshness() != Freshness::UpToDate {
            let update = view.next().await;
            assert_eq!(update.changes, [], "{stop}");
        }
        assert_eq!(view.entries(), &known);
    }
    store.delete("t/a", None).await?;
    let update = view.next().await;
    assert_eq!(update.changes[0].key, "t/a");
    Ok(())
}

/// Nothing listens there.
#[tokio::test]
async fn a_cluster_that_is_not_there_is_unreachable() -> Result {
    let address = binary::free_port()?;
    let store = open(&format!("etcd://{address}/mesh")).await?;
    let error = store.get("a").await.expect_err("nobody is there");
    let shown = error.to_string();
    assert!(shown.contains(&address.to_string()), "{shown}");
    assert!(shown.to_lowercase().contains("refused"), "{shown}");
    let put = store.put("a", Bytes::new(), NONE, None).await;
    let error = put.err().context("nobody is there")?;
    assert!(
        matches!(
            error,
            StoreError::Unreachable {
                maybe_done: false,
                ..
            }
        ),
        "{error}"
    );
    Ok(())
}

/// Members that accept connections and then say nothing: each of many calls ends at its own deadline,
/// as it would alone.
#[tokio::test(start_paused = true)]
async fn calls_do_not_wait_for_each_others_attempts() -> Result {
    let mut members = Vec::new();
    for _ in 0..5 {
        members.push(tokio::net::TcpListener::bind("127.0.0.1:0").await?);
    }
    let addresses: Vec<String> = members
        .iter()
        .map(|member| Ok(member.local_addr()?.to_string()))
        .collect::<Result<_>>()?;
    // With a password there is something to wait for before the first call.
    for user in ["mesh:secret@", ""] {
        let store = open(&format!("etcd://{user}{}/mesh", addresses.join(","))).await?;
        let calls = (0..8).map(|_| async {
            let start = Instant::now();
            let result = store.get("a").await;
            (result, start.elapsed())
        });
        for (result, took) in futures_util::future::join_all(calls).await {
            ensure!(
                matches!(result, Err(StoreError::Unreachable { .. })),
                "{result:?}"
            );
            // Of the clock that the test has.
            ensure!(took <= Duration::from_millis(10_010), "{took:?}");
        }
    }
    Ok(())
}

/// A lease lasts as long as the value that it is for, and at least as long as was asked for.
#[tokio::test]
async fn leases_that_nobody_needs_are_given_back() -> Result {
    let etcd = Etcd::start(1)?;
    let store = etcd.store("/mesh").await?;
    let client = etcd.client().await?;
    let leases = async || -> Result<Vec<i64>> {
        let leases = client.lease_client().leases().await?;
        Ok(leases.leases().iter().map(|lease| lease.id()).collect())
    };
    let ttl = Some(Duration::from_secs(600));
    let mut revision = NONE;
    let mut last = 0;
    for round in 0..3_u8 {
        revision = store.put("a", vec![round].into(), revision, ttl).await?;
        let there = leases().await?;
        ensure!(there.len() == 1 && there[0] != last, "{there:?}");
        last = there[0];
    }
    let granted = client.lease_client().time_to_live(last, None).await?;
    // The change itself may take ten seconds.
    assert_eq!(granted.granted_ttl(), 610);
    for wrong in [NONE, Revision(revision.0 - 1)] {
        let put = store.put("a", "x".into(), wrong, ttl).await;
        ensure!(matches!(put, Err(StoreError::Conflict { .. })), "{put:?}");
        assert_eq!(leases().await?, [last]);
    }
    // A value that stays, in place of one that does not.
    revision = store.put("a", "x".into(), revision, None).await?;
    assert_eq!(leases().await?, [0; 0]);
    revision = store.put("a", "x".into(), revision, ttl).await?;
    assert_eq!(leases().await?.len(), 1);
    store.delete("a", Some(revision)).await?;
    assert_eq!(leases().await?, [0; 0]);

    // Whoever writes by hand may use a lease for more than one key: the others stay.
    let by_hand = client.lease_client().grant(600, None).await?.id();
    for key in ["/mesh/b", "/mesh/c"] {
        let options = PutOptions::new().with_lease(by_hand);
        client.kv_client().put(key, "1", Some(options)).await?;
    }
    let there = store.get("b").await?.context("it is there")?;
    store.put("b", "2".into(), there.modified, None).await?;
    assert_eq!(leases().await?, [by_hand]);
    ensure!(store.get("c").await?.is_some(), "it went along");
    store.delete("c", None).await?;
    assert_eq!(leases().await?, [0; 0]);
    Ok(())
}
