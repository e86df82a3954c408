use std::collections::BTreeMap;

use super::*;

fn label(bytes: usize) -> String {
    "x".repeat(bytes)
}

/// A cluster's name of exactly that many bytes.
fn cluster_of(bytes: usize) -> String {
    let mut name = vec![label(63); 3].join(".");
    name.push('.');
    let rest = bytes - name.len();
    assert!((1..=63).contains(&rest));
    name + &label(rest)
}

#[test]
fn labels_are_accepted_iff_the_rule_holds() {
    for good in [
        "a",
        "0",
        "a1",
        "proxy-1",
        "a--b",
        "xn--bcher-kva",
        &label(63),
    ] {
        let name: NodeName = good.parse().unwrap();
        assert_eq!(name.as_str(), good);
        assert_eq!(name.to_string(), good);
    }
    for (bad, says) in [
        ("", "a label is empty"),
        ("A", "'A' is upper case"),
        ("a.b", "'.' is not allowed"),
        ("a/b", "'/' is not allowed"),
        ("a_b", "'_' is not allowed"),
        ("a b", "' ' is not allowed"),
        ("a\n", "'\\n' is not allowed"),
        ("é", "'é' is not allowed"),
        ("-a", "begins or ends with '-'"),
        ("a-", "begins or ends with '-'"),
        ("-", "begins or ends with '-'"),
        (&label(64), "a label has 64 bytes"),
    ] {
        let error = bad.parse::<NodeName>().unwrap_err();
        assert!(error.rule.contains(says), "{bad}: {error}");
        assert!(error.rule.ends_with(LABEL_RULE), "{bad}: {error}");
    }
}

#[test]
fn an_error_names_what_the_value_and_the_rule() {
    let error = "db/1".parse::<ServiceName>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "service name \"db/1\" is not valid: '/' is not allowed; use 1 to 63 of a-z, 0-9 and '-', with no '-' at either end"
    );
    assert_eq!("".parse::<Group>().unwrap_err().what, "group");
    assert_eq!("".parse::<TokenName>().unwrap_err().what, "token name");
    assert_eq!("".parse::<Cluster>().unwrap_err().what, "cluster");
    assert_eq!("".parse::<AgentRef>().unwrap_err().what, "agent");
    // A hostile name neither breaks a log line nor fills it.
    let error = format!("\u{1b}[2J{}", label(5000))
        .parse::<NodeName>()
        .unwrap_err();
    assert!(
        error.value.starts_with("\\u{1b}[2Jxxx") && error.value.chars().count() == 81,
        "{error}"
    );
}

#[test]
fn clusters_are_accepted_iff_the_rule_holds() {
    for good in [
        "a.b",
        "example.com",
        "b.example.com",
        "1.2",
        &cluster_of(CLUSTER_BYTES_MAX),
    ] {
        let cluster: Cluster = good.parse().unwrap();
        assert!(cluster.proxy_dns_name().len() <= DNS_NAME_BYTES_MAX);
    }
    for (bad, says) in [
        ("", "a label is empty"),
        ("local", "it has no dot"),
        ("example.com.", "a label is empty"),
        (".example.com", "a label is empty"),
        ("a..b", "a label is empty"),
        ("Example.com", "'E' is upper case"),
        ("a_b.com", "'_' is not allowed"),
        ("-a.com", "begins or ends"),
        (&format!("{}.com", label(64)), "a label has 64 bytes"),
        (&cluster_of(CLUSTER_BYTES_MAX + 1), "it has 248 bytes"),
    ] {
        let error = bad.parse::<Cluster>().unwrap_err();
        assert!(error.rule.contains(says), "{bad}: {error}");
    }
    let cluster: Cluster = "example.com".parse().unwrap();
    assert_eq!(cluster.proxy_dns_name(), "proxy.example.com");
}

#[test]
fn agents_are_found_by_what_users_write() {
    let own: Cluster = "example.com".parse().unwrap();
    let other: Cluster = "b.example.com".parse().unwrap();
    let table = [
        // (text, name here, is our cluster, name in the other, is the other)
        ("foo", Some("foo"), false, None, false),
        ("foo.example.com", Some("foo"), false, None, false),
        ("example.com", None, true, None, false),
        ("b.example.com", Some("b"), false, None, true),
        ("foo.b.example.com", None, false, Some("foo"), false),
        ("foo.other.com", None, false, None, false),
        ("xexample.com", None, false, None, false),
    ];
    for (text, local, is_own, remote, is_other) in table {
        let agent: AgentRef = text.parse().unwrap();
        assert_eq!(
            agent.local_name(&own).as_ref().map(NodeName::as_str),
            local,
            "{text}"
        );
        assert_eq!(agent.is_cluster(&own), is_own, "{text}");
        assert_eq!(
            agent.name_in(&other).as_ref().map(NodeName::as_str),
            remote,
            "{text}"
        );
        assert_eq!(agent.is_cluster(&other), is_other, "{text}");
    }
}

#[test]
fn agent_refs_are_accepted_iff_the_rule_holds() {
    let longest = format!("{}.{}", label(63), cluster_of(CLUSTER_BYTES_MAX));
    for good in ["a", "a.b", "a.example.com", &longest] {
        assert_eq!(good.parse::<AgentRef>().unwrap().as_str(), good);
    }
    for bad in [
        "",
        ".",
        "a.",
        ".a",
        "A",
        "a/b",
        "a..b",
        &format!("a.{longest}"),
        &format!("a.{}", cluster_of(248)),
    ] {
        assert!(bad.parse::<AgentRef>().is_err(), "{bad}");
    }
    let name: NodeName = label(63).parse().unwrap();
    let cluster: Cluster = cluster_of(CLUSTER_BYTES_MAX).parse().unwrap();
    let qualified = AgentRef::qualified(&name, &cluster);
    assert_eq!(qualified.as_str(), longest);
    assert_eq!(qualified.name_in(&cluster), Some(name.clone()));
    assert_eq!(
        AgentRef::from(name.clone()).local_name(&cluster),
        Some(name)
    );
    assert!(AgentRef::from(cluster.clone()).is_cluster(&cluster));
}

#[test]
fn generations_are_whole_numbers() {
    assert_eq!("0".parse(), Ok(Generation(0)));
    assert_eq!("18446744073709551615".parse(), Ok(Generation(u64::MAX)));
    assert_eq!(Generation(7).to_string(), "7");
    for bad in ["", "+1", "-1", "1.0", " 1", "18446744073709551616", "x"] {
        let error = bad.parse::<Generation>().unwrap_err();
        assert!(error.rule.contains("whole number"), "{bad}: {error}");
    }
}

#[test]
fn names_are_found_by_text_in_a_map() {
    let mut map = BTreeMap::new();
    map.insert("foo".parse::<NodeName>().unwrap(), 1);
    assert_eq!(map.get("foo"), Some(&1));
    assert_eq!(map.get("bar"), None);
}

#[test]
fn agent_names_are_of_agents_or_of_clusters() {
    let agent: AgentName = "a1".parse().unwrap();
    assert_eq!(agent.node(), Some("a1".parse().unwrap()));
    assert_eq!((agent.is_cluster(), agent.cluster()), (false, None));
    let cluster: AgentName = "b.example.com".parse().unwrap();
    assert_eq!(cluster.cluster(), Some("b.example.com".parse().unwrap()));
    assert_eq!((cluster.is_cluster(), cluster.node()), (true, None));
    assert_eq!(AgentName::from(agent.node().unwrap()), agent);
    assert_eq!(AgentName::from(cluster.cluster().unwrap()), cluster);
    for bad in ["", "A", "a_b", "a.", ".a", "-a.b", &"a".repeat(64)] {
        assert!(bad.parse::<AgentName>().is_err(), "{bad}");
    }
    let longest = cluster_of(CLUSTER_BYTES_MAX);
    assert!(longest.parse::<AgentName>().is_ok());
    assert!(format!("{longest}a").parse::<AgentName>().is_err());
}

/// The longest match is what is meant: `a.example.com` is a cluster where it is known as one.
#[test]
fn clusters_behind_references() {
    let find = |text: &str, known: &[&str]| {
        let agent: AgentRef = text.parse().unwrap();
        let found = agent.cluster_in(|cluster| known.contains(&cluster.as_str()));
        found.map(|cluster| cluster.to_string())
    };
    let both = ["example.com", "a.example.com"];
    for (text, known, expected) in [
        ("a1", &both[..], None),
        ("example.com", &both, Some("example.com")),
        ("a.example.com", &both, Some("a.example.com")),
        ("a.example.com", &both[..1], Some("example.com")),
        ("b.example.com", &both, Some("example.com")),
        ("b.a.example.com", &both, Some("a.example.com")),
        ("c.b.a.example.com", &both, None),
        ("a.example.org", &both, None),
        ("a.example.com", &[], None),
    ] {
        assert_eq!(find(text, known).as_deref(), expected, "{text} {known:?}");
    }
}
