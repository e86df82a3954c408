#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

fn draft(addresses: &[&str]) -> Draft {
    Draft {
        cluster: "a.example.com".to_owned(),
        addresses: addresses.iter().map(|&text| text.to_owned()).collect(),
        ..Draft::default()
    }
}

fn canonical(text: &str) -> String {
    text.parse::<DialAddress>()
        .unwrap_or_else(|error| panic!("{error}"))
        .to_string()
}

#[test]
fn addresses_have_one_spelling() {
    for (written, spelled) in [
        ("10.0.0.4:2023", "10.0.0.4:2023"),
        ("10.0.0.4", "10.0.0.4:7443"),
        ("LB.Example.com:2023", "lb.example.com:2023"),
        ("lb.example.com.", "lb.example.com:7443"),
        ("localhost", "localhost:7443"),
        ("[2001:DB8:0::7]:80", "[2001:db8::7]:80"),
        ("[2001:db8::7]", "[2001:db8::7]:7443"),
        ("[::ffff:10.0.0.4]:2023", "10.0.0.4:2023"),
        ("[::1]:007", "[::1]:7"),
    ] {
        assert_eq!(canonical(written), spelled, "{written}");
        assert_eq!(canonical(spelled), spelled);
    }
}

#[test]
fn addresses_that_cannot_be_dialled_are_refused() {
    for (written, why) in [
        ("", "it is empty"),
        (":2023", "the host is missing"),
        (".:2023", "the host is missing"),
        ("10.0.0.4:0", "a port is a number"),
        ("10.0.0.4:", "a port is a number"),
        ("10.0.0.4:+1", "a port is a number"),
        ("10.0.0.4:65536", "a port is a number"),
        ("10.0.0.300:1", "ends in a number"),
        ("10.0.4:1", "ends in a number"),
        ("2001:db8::7", "in brackets"),
        ("[2001:db8::7", "not closed"),
        ("[2001:db8::7]80", "may follow the bracket"),
        ("[fe80::1%eth0]:1", "zone"),
        ("[10.0.0.4]:1", "no IPv6 address"),
        ("0.0.0.0:1", "all addresses"),
        ("[::]:1", "all addresses"),
        ("[::ffff:0.0.0.0]:1", "all addresses"),
        ("224.0.0.1:1", "many hosts"),
        ("255.255.255.255:1", "many hosts"),
        ("[ff02::1]:1", "many hosts"),
        ("a b:1", "not allowed"),
        ("-a.example.com:1", "'-'"),
        ("bücher.example:1", "xn--"),
        ("unix:/run/x", "no address of a proxy"),
        ("service:web", "no address of a proxy"),
        ("http://a.example.com", "several colons"),
        ("https:", "a port is a number"),
    ] {
        let shown = written.parse::<DialAddress>().unwrap_err().to_string();
        // `http://` splits into host and port at its one colon.
        let fits = shown.contains(why) || (written.starts_with("http:") && shown.contains("port"));
        assert!(fits, "{written}: {shown}");
    }
    let both = "a_b..c:0".parse::<DialAddress>().unwrap_err().rule;
    assert!(
        both.contains("empty label") && both.contains("a port is"),
        "{both}"
    );
}

#[test]
fn every_address_is_validated() {
    let mut draft = draft(&[
        "10.0.0.4:2023",
        "10.0.0.5:99999",
        "good.example.com",
        "",
        "2001:db8::7",
        "GOOD.example.com:7443",
        "[::ffff:10.0.0.4]:2023",
        "0.0.0.0",
        "bad\u{1b}[31m host",
    ]);
    draft.cluster = "A.example".to_owned();
    draft.connections = 1025;
    draft.labels.insert("Site".to_owned(), "x".to_owned());
    draft.labels.insert("note".to_owned(), "a\nb".to_owned());
    draft.created_ms = 10_000;
    draft.expires_ms = Some(11_000);
    let error = draft.check().unwrap_err();
    let fields: Vec<Field> = error.faults().iter().map(|fault| fault.field).collect();
    assert_eq!(
        fields,
        [
            Field::Cluster,
            Field::Address(1),
            Field::Address(3),
            Field::Address(4),
            Field::Address(5),
            Field::Address(6),
            Field::Address(7),
            Field::Address(8),
            Field::Connections,
            Field::Labels,
            Field::Labels,
            Field::Expiry,
        ]
    );
    let shown = error.to_string();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), fields.len(), "{shown}");
    assert!(
        lines[1].starts_with("address 2: \"10.0.0.5:99999\" cannot be dialled: a port is"),
        "{shown}"
    );
    assert!(
        lines[4].contains("same as address 3 (good.example.com:7443)"),
        "{shown}"
    );
    assert!(
        lines[5].contains("same as address 1 (10.0.0.4:2023)"),
        "{shown}"
    );
    assert!(
        !shown.contains('\u{1b}'),
        "what was written drives no terminal"
    );
}

#[test]
fn every_address_is_validated_alone_and_in_any_place() {
    for bad_at in 0..4 {
        let mut texts = ["a.example.com", "b.example.com", "10.0.0.1", "[::1]:9"];
        texts[bad_at] = "10.0.0.1:no";
        let error = draft(&texts).check().unwrap_err();
        assert_eq!(error.faults().len(), 1, "{error}");
        assert_eq!(error.faults()[0].field, Field::Address(bad_at));
    }
}

#[test]
fn what_is_too_much_is_refused_and_the_list_of_faults_is_bounded() {
    let none = draft(&[]).check().unwrap_err();
    assert_eq!(none.faults()[0].field, Field::Addresses);

    let texts: Vec<String> = (0..=ADDRESSES_MAX).map(|n| format!("h{n}:1")).collect();
    let mut many = draft(&[]);
    many.addresses = texts[..ADDRESSES_MAX].to_vec();
    assert_eq!(many.check().unwrap().addresses().len(), ADDRESSES_MAX);
    many.addresses = texts;
    assert_eq!(
        many.check().unwrap_err().faults()[0].field,
        Field::Addresses
    );

    many.addresses = vec![String::new(); 5000];
    let error = many.check().unwrap_err();
    assert_eq!(error.faults().len(), FAULTS_MAX);
    assert!(error.to_string().ends_with("\nand 4901 more"), "{error}");

    let mut labelled = draft(&["a"]);
    labelled.labels = (0..LABELS_MAX)
        .map(|n| (format!("k{n}"), "v".repeat(LABEL_VALUE_BYTES_MAX)))
        .collect();
    labelled.check().unwrap();
    labelled.labels.insert("k".to_owned(), String::new());
    assert!(labelled.check().is_err());
}

#[test]
fn the_largest_tunnel_fits_its_stored_bounds() {
    let mut largest = Draft {
        cluster: format!("{}.{}", "c".repeat(63), "d".repeat(63)),
        connections: CONNECTIONS_MAX,
        created_ms: u64::MAX - 3_000,
        expires_ms: Some(u64::MAX),
        ..Draft::default()
    };
    largest.addresses = (10..10 + ADDRESSES_MAX)
        .map(|n| format!("{}.{0}.{0}.{}{n}:65535", "h".repeat(63), "i".repeat(59)))
        .collect();
    largest.labels = (10..10 + LABELS_MAX)
        .map(|n| (format!("{}{n}", "k".repeat(61)), "\\".repeat(253)))
        .collect();
    let tunnel = largest.check().unwrap();
    let bytes = tunnel.encode();
    assert!(bytes.len() <= STORED_BYTES_MAX, "{}", bytes.len());
    let key = Tunnel::key(tunnel.cluster());
    assert_eq!(Tunnel::decode(&key, bytes.as_bytes(), 0).unwrap(), tunnel);
}

#[test]
fn lists_are_split_as_people_write_them() {
    assert_eq!(
        split_addresses("10.0.0.4:2023, 10.0.0.5:2033"),
        ["10.0.0.4:2023", "10.0.0.5:2033"]
    );
    // What is missing is said, not overlooked.
    assert_eq!(split_addresses("a,,b,"), ["a", "", "b", ""]);
}

#[test]
fn time_left_ends_at_zero() {
    let mut ending = draft(&["a"]);
    ending.created_ms = 1_000;
    ending.expires_ms = Some(601_000);
    let tunnel = ending.check().unwrap();
    assert_eq!(tunnel.time_left(1_000), Some(Duration::from_secs(600)));
    assert_eq!(tunnel.time_left(601_001), Some(Duration::ZERO));
    assert_eq!(draft(&["a"]).check().unwrap().time_left(5), None);
}

#[test]
fn stored_forms_that_are_none_are_refused() {
    let key = "tunnels/a.example.com";
    let refused = |text: &str| {
        Tunnel::decode(key, text.as_bytes(), 1)
            .unwrap_err()
            .to_string()
    };
    for text in ["", "x", "[]", "{}", "{\"version\":\"1\"}", "\u{0}"] {
        assert!(
            refused(text).starts_with("stored form: it is not a tunnel's JSON"),
            "{text}"
        );
    }
    assert!(refused("{\"version\":2}").contains("version 2"));
    assert!(refused("{\"version\":1}").contains("cluster"));
    assert!(
        refused("{\"version\":1,\"cluster\":\"b.example.com\",\"addresses\":[\"x\"]}")
            .contains("store it under tunnels/b.example.com")
    );
    assert!(refused(&" ".repeat(STORED_BYTES_MAX + 1)).contains("over the limit"));
    let twice = "{\"version\":1,\"cluster\":\"a.example.com\",\"addresses\":[\"x\",\"X:7443\"]}";
    assert!(refused(twice).contains("the same as address 1"));
}
