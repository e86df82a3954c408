#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

fn etcd(text: &str) -> EtcdUrl {
    match text.parse() {
        Ok(StoreUrl::Etcd(url)) => url,
        other => panic!("{text}: {other:?}"),
    }
}

fn fault(text: &str) -> String {
    text.parse::<StoreUrl>()
        .expect_err(&format!("{text} is taken"))
        .to_string()
}

#[test]
fn files() {
    for (text, path) in [
        ("redb:store.redb", "store.redb"),
        ("redb:/var/lib/node/store.redb", "/var/lib/node/store.redb"),
        ("redb:a b?c@d", "a b?c@d"),
    ] {
        let url: StoreUrl = text.parse().unwrap();
        assert_eq!(url, StoreUrl::Redb(path.into()));
        assert_eq!(url.to_string(), text);
    }
    assert!(fault("redb:").contains("the file is missing"));
    assert!(fault("redb:/var/lib/").contains("the file is missing"));
}

#[test]
fn clusters() {
    let plain = etcd("etcd://127.0.0.1:2379/mesh");
    assert_eq!(plain.endpoints, ["127.0.0.1:2379"]);
    assert_eq!(plain.prefix, "/mesh/");
    assert_eq!((plain.user, plain.tls), (None, None));
    assert_eq!(plain.password, Password::None);

    let whole = etcd(
        "etcd://root:p%40s%2Fs%3A%25@Etcd-1.example.com,10.0.0.2:1,[::1]/a/b/?ca=/etc/ca.pem&cert=c.pem&key=k.pem&server_name=etcd.example.com",
    );
    assert_eq!(
        whole.endpoints,
        ["etcd-1.example.com:2379", "10.0.0.2:1", "[::1]:2379"]
    );
    assert_eq!(whole.prefix, "/a/b/");
    assert_eq!(whole.user.as_deref(), Some("root"));
    assert_eq!(whole.password, Password::Text("p@s/s:%".to_owned()));
    assert_eq!(
        whole.tls,
        Some(TlsFiles {
            ca: Some("/etc/ca.pem".into()),
            identity: Some(("c.pem".into(), "k.pem".into())),
            server_name: Some("etcd.example.com".to_owned()),
        })
    );

    for text in ["etcd://h", "etcd://h/", "etcd://h//?", "etcd://h?tls=false"] {
        assert_eq!(etcd(text).prefix, "/mesh/", "{text}");
        assert_eq!(etcd(text).tls, None);
    }
    assert_eq!(etcd("etcd://h?tls=true").tls, Some(TlsFiles::default()));
    assert_eq!(
        etcd("etcd://root@h?password_file=/run/p").password,
        Password::File("/run/p".into())
    );
}

#[test]
fn what_is_wrong_is_said_all_at_once() {
    let error = "etcd://h:0,ok:1,unix:/x".parse::<StoreUrl>().unwrap_err();
    assert_eq!(error.faults().len(), 2, "{error}");
    let error =
        "etcd://@h:x,h,h/%zz?tls=maybe&nope=1&cert=c&ca=a&ca=b&server_name=1.2&key&password_file=f"
            .parse::<StoreUrl>()
            .unwrap_err();
    for part in [
        "the user before '@' is empty",
        "\"h:x\" is not host:port",
        "h:2379 is named twice",
        "is no prefix",
        "tls is true or false",
        "there is no \"nope\"",
        "cert and key come together",
        "\"ca\" is written twice",
        "server_name \"1.2\"",
        "\"key\" has no value",
        "password_file is for a user",
    ] {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    for (text, part) in [
        ("", "neither redb: nor etcd://"),
        ("http://x", "neither redb: nor etcd://"),
        ("etcd:h", "two slashes"),
        ("etcd://", "is not host:port"),
        ("etcd://a,,b", "\"\" is not host:port"),
        ("etcd://h\n", "control character"),
        ("etcd://h?tls=false&ca=x", "leave one out"),
        ("etcd://u:p@h?password_file=x", "leave one out"),
        ("etcd://h/a//b", "no prefix"),
    ] {
        assert!(fault(text).contains(part), "{text}: {}", fault(text));
    }
    assert!(fault(&format!("redb:{}", "x".repeat(5000))).contains("over the limit"));
}

#[test]
fn passwords_are_never_shown() {
    let secret = "Sup3rSecret";
    let url: StoreUrl = format!("etcd://root:{secret}@h:1/mesh?ca=f")
        .parse()
        .unwrap();
    assert_eq!(url.to_string(), "etcd://root:***@h:1/mesh/?ca=f");
    let StoreUrl::Etcd(inner) = &url else {
        panic!("{url}")
    };
    for shown in [
        format!("{url:?} {url:#?} {url}"),
        format!("{inner:?} {inner:#?} {inner}"),
        format!("{:?} {:#?}", inner.password, inner.password),
    ] {
        assert!(!shown.contains(secret), "{shown}");
    }
    // Also where it was written so that it ends up elsewhere, or the rest is wrong.
    for text in [
        format!("etcd://root:{secret}/x@h:1"),
        format!("etcd://root:{secret}?x@h:1"),
        format!("etcd://root:{secret}#x@h:1"),
        format!("etcd://root:{secret}@x@h:1"),
        format!("etcd://root:{secret}:x@h:1"),
        format!("etcd://root:{secret}%@h:1"),
        format!("etcd://root:{secret}@h:0"),
        format!("etcd://:{secret}@h:1"),
        format!("https://root:{secret}@h:1"),
        format!("etcd:root:{secret}@h:1"),
        format!("etcd://h?pasword={secret}"),
    ] {
        let error = text.parse::<StoreUrl>().unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(secret), "{shown}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What is shown of a URL without a password is that URL.
    #[test]
    fn shown_urls_read_back(
        user in proptest::option::of("[^\\p{Cc}]{1,8}"),
        file in proptest::option::of("[^\\p{Cc}]{1,8}"),
        prefix in "[^\\p{Cc}/]{1,6}(/[^\\p{Cc}/]{1,6}){0,2}",
        ca in proptest::option::of("[^\\p{Cc}]{1,12}"),
        tls in any::<bool>(),
    ) {
        let password = match (&user, file) {
            (Some(_), Some(file)) => Password::File(file.into()),
            _ => Password::None,
        };
        let tls = (tls || ca.is_some()).then(|| TlsFiles { ca: ca.map(Into::into), ..TlsFiles::default() });
        let url = StoreUrl::Etcd(EtcdUrl {
            endpoints: vec!["a.example.com:1".to_owned(), "[::1]:2".to_owned()],
            user,
            password,
            prefix: format!("/{prefix}/"),
            tls,
        });
        let shown = url.to_string();
        prop_assert_eq!(shown.parse::<StoreUrl>(), Ok(url), "{}", shown);
    }

    /// Whatever is written is a store or an error, and never more than one thing.
    #[test]
    fn any_text_is_a_store_or_an_error(text in "(etcd://|redb:)?[a-z0-9:/@?&=%.,\\[\\]#*-]{0,40}") {
        if let Ok(url) = text.parse::<StoreUrl>() {
            let shown = url.to_string();
            let masked = matches!(&url, StoreUrl::Etcd(url) if matches!(url.password, Password::Text(_)));
            if !masked {
                prop_assert_eq!(shown.parse::<StoreUrl>(), Ok(url));
            }
        }
    }
}
