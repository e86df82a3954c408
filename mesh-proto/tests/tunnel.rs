//! The stored form of tunnel resources: pinned bytes, and properties of what is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use mesh_proto::Target;
use mesh_proto::tunnel::{DialAddress, Draft, Tunnel};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;

const CLUSTER: &str = "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\\.[a-z0-9]{1,8}){1,3}";
const HOST: &str = "([a-zA-Z0-9_]{1,8}\\.){0,3}[a-zA-Z][a-zA-Z0-9_]{0,8}\\.?";

const WHOLE: &str = concat!(
    r#"{"version":1,"cluster":"a.example.com","#,
    r#""addresses":["10.0.0.4:2023","[2001:db8::7]:7443","lb.example.com:443"],"connections":2,"#,
    r#""labels":{"owner":"ops","site":"Zürich \"1\""},"#,
    r#""created_ms":1763700000000,"expires_ms":1763700600000}"#
);
const PLAIN: &str = concat!(
    r#"{"version":1,"cluster":"b.example.com","addresses":["b.example.com:7443"],"#,
    r#""connections":0,"labels":{},"created_ms":0}"#
);

/// What is stored in fleets is read by every later release, and written as it was.
#[test]
fn golden_stored_form() {
    let whole = Draft {
        cluster: "a.example.com".to_owned(),
        addresses: vec![
            "[::ffff:10.0.0.4]:2023".to_owned(),
            "[2001:DB8::7]".to_owned(),
            "LB.example.com.:443".to_owned(),
        ],
        connections: 2,
        labels: BTreeMap::from([
            ("site".to_owned(), "Zürich \"1\"".to_owned()),
            ("owner".to_owned(), "ops".to_owned()),
        ]),
        created_ms: 1_763_700_000_000,
        expires_ms: Some(1_763_700_600_000),
    };
    let plain = Draft {
        cluster: "b.example.com".to_owned(),
        addresses: vec!["b.example.com".to_owned()],
        ..Draft::default()
    };
    for (draft, text) in [(whole, WHOLE), (plain, PLAIN)] {
        let tunnel = draft.check().unwrap();
        assert_eq!(tunnel.encode(), text);
        let key = Tunnel::key(tunnel.cluster());
        let read = Tunnel::decode(&key, text.as_bytes(), 7).unwrap();
        assert_eq!(read.revision(), 7);
        assert_eq!(read, tunnel.at_revision(7));
    }
}

/// Fields of a later release are overlooked; what was written by hand may leave out what may be.
#[test]
fn unknown_fields_are_ignored_and_optional_ones_may_be_missing() {
    let text = r#"{ "addresses": ["B.example.com"], "colour": {"x": [1]}, "cluster": "b.example.com",
        "version": 1 }"#;
    let read = Tunnel::decode("tunnels/b.example.com", text.as_bytes(), 0).unwrap();
    assert_eq!(read.encode(), PLAIN);
}

fn draft() -> impl Strategy<Value = Draft> {
    let address = prop_oneof![
        HOST,
        (HOST, 1..=u16::MAX).prop_map(|(host, port)| format!("{host}:{port}")),
        (any::<IpAddr>(), 1..=u16::MAX)
            .prop_map(|(ip, port)| SocketAddr::new(ip, port).to_string()),
    ];
    (
        CLUSTER,
        vec(address, 1..8),
        0..1025_u64,
        btree_map("[a-z0-9./_-]{1,12}", "[^\\p{Cc}]{0,20}", 0..5),
        0..u64::MAX / 2,
        option::of(2_000..31_000_000_000_u64),
    )
        .prop_map(
            |(cluster, addresses, connections, labels, created_ms, ttl_ms)| Draft {
                cluster,
                addresses,
                connections,
                labels,
                created_ms,
                expires_ms: ttl_ms.map(|ttl_ms| created_ms + ttl_ms),
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What is valid comes back from the store as it went in, and writing it again changes nothing.
    #[test]
    fn valid_tunnels_come_back(draft in draft(), revision in any::<u64>()) {
        let Ok(tunnel) = draft.check() else {
            // Random addresses may be those of many hosts, or twice the same; nothing else is wrong.
            let error = draft.check().unwrap_err();
            for fault in error.faults() {
                prop_assert!(
                    fault.what.contains("many hosts") || fault.what.contains("the same as")
                        || fault.what.contains("all addresses"),
                    "{error}"
                );
            }
            return Ok(());
        };
        let text = tunnel.encode();
        let key = Tunnel::key(tunnel.cluster());
        let read = Tunnel::decode(&key, text.as_bytes(), revision).unwrap();
        prop_assert_eq!(read.encode(), text);
        prop_assert_eq!(read, tunnel.at_revision(revision));
    }

    /// An address is accepted in the place of a target's address, and is the same one there.
    #[test]
    fn addresses_agree_with_targets(text in prop_oneof![
        HOST.prop_map(|host| format!("{host}:80")),
        "\\PC{0,30}",
        "[0-9a-fx.:\\[\\]%]{0,24}",
    ]) {
        if let Ok(address) = text.parse::<DialAddress>() {
            let target = Target::default_port(&text, 7443).unwrap();
            prop_assert_eq!(address.to_string(), target.to_string());
            prop_assert_eq!(address.to_string().parse::<DialAddress>().unwrap(), address);
        } else if let Ok(target @ (Target::Host { .. } | Target::Address(_))) =
            Target::default_port(&text, 7443)
        {
            let Target::Address(address) = target else {
                panic!("a host that cannot be dialled: {text}")
            };
            let ip = address.ip();
            let broadcast = ip == IpAddr::from([255, 255, 255, 255]);
            prop_assert!(ip.is_unspecified() || ip.is_multicast() || broadcast, "{}", text);
        }
    }

    /// Each bad address is named, whatever stands around it.
    #[test]
    fn every_bad_address_is_named(
        mut draft in draft(),
        places in vec((any::<Index>(), "[ !/@%][a-z]{0,5}"), 1..6),
    ) {
        let mut bad = std::collections::BTreeSet::new();
        for (place, text) in places {
            let index = place.index(draft.addresses.len());
            draft.addresses[index] = text;
            bad.insert(index);
        }
        let error = draft.check().unwrap_err();
        for index in bad {
            let field = mesh_proto::tunnel::Field::Address(index);
            prop_assert!(error.faults().iter().any(|fault| fault.field == field), "{error}");
        }
    }

    /// Whatever lies in a store is a tunnel or an error.
    #[test]
    fn mutated_stored_forms_do_no_harm(
        edits in vec((any::<Index>(), any::<u8>()), 0..6),
        cut in any::<Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = WHOLE.as_bytes().to_vec();
        for (place, byte) in edits {
            let index = place.index(bytes.len());
            bytes[index] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(tunnel) = Tunnel::decode("tunnels/a.example.com", &bytes, 1) {
            let again = Tunnel::decode("tunnels/a.example.com", tunnel.encode().as_bytes(), 1);
            prop_assert_eq!(again.unwrap(), tunnel);
        }
    }
}
