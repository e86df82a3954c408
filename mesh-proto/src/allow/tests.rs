use super::*;

fn list(rules: &[&str]) -> AllowList {
    rules
        .iter()
        .map(|rule| {
            rule.parse::<AllowRule>()
                .unwrap_or_else(|error| panic!("{error}"))
        })
        .collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

#[test]
fn every_form_is_read_and_written() {
    for (text, written) in [
        ("127.0.0.1:8125", "127.0.0.1:8125"),
        ("127.0.0.1/32:8125", "127.0.0.1:8125"),
        ("10.0.0.0/8:5432", "10.0.0.0/8:5432"),
        ("0.0.0.0/0:*", "0.0.0.0/0:*"),
        ("[2001:db8::7]:80", "[2001:db8::7]:80"),
        ("[2001:db8::7]/128:80", "[2001:db8::7]:80"),
        ("[fd00::]/8:*", "[fd00::]/8:*"),
        ("[::]/0:1-65535", "[::]/0:*"),
        ("[::ffff:10.0.0.0]/104:80", "10.0.0.0/8:80"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ("db.example.com:80-443", "db.example.com:80-443"),
        ("DB.example.com.:80-80", "db.example.com:80"),
        ("*.svc.local:80-443", "*.svc.local:80-443"),
        ("*.local:*", "*.local:*"),
        ("unix:/run/db.sock", "unix:/run/db.sock"),
    ] {
        let rule: AllowRule = text.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(rule.to_string(), written);
        assert_eq!(written.parse(), Ok(rule));
    }
}

#[test]
fn what_breaks_the_rule_is_refused_with_the_remedy() {
    for (text, says) in [
        ("", "the ports are missing"),
        ("db", "the ports are missing; write IP:ports"),
        ("10.0.0.0/8", "the ports are missing"),
        ("[fd00::]/8", "the ports are missing"),
        ("[fd00::]", "the ports are missing"),
        ("fd00::/8:*", "in brackets"),
        ("[fd00::/8]:*", "no IPv6 address between the brackets"),
        ("10.0.0.1/8:80", "write 10.0.0.0/8:80 for the whole network"),
        ("[fd00::1]/8:*", "write [fd00::]/8:* for the whole network"),
        ("10.0.0.0/33:80", "a number from 0 to 32"),
        ("[fd00::]/129:80", "a number from 0 to 128"),
        ("10.0.0.0/:80", "a number from 0 to 32"),
        ("10.0.0.0/+8:80", "a number from 0 to 32"),
        ("10/8:80", "an IPv4 address in full"),
        ("db/8:80", "an IPv4 address in full"),
        ("10.1:80", "ends in a number"),
        ("*:80", "write 0.0.0.0/0:ports and [::]/0:ports"),
        ("*.*.local:80", "'*' is not allowed"),
        ("db.*:80", "a star stands for whole labels at the front"),
        (
            "db*.local:80",
            "a star stands for whole labels at the front",
        ),
        ("*.:80", "the host is missing"),
        ("uniX:5", "write the host with its domain"),
        ("db:", "ports are *, one port, or a range"),
        ("db:0", "ports are *"),
        ("db:0-80", "ports are *"),
        ("db:443-80", "the range runs backwards"),
        ("db:80-", "ports are *"),
        ("db:80,443", "ports are *"),
        ("unix:run/x", "does not begin with '/'"),
        ("unix:/run/../x", "has a '..'"),
        ("[fe80::1%1]:80", "leave the zone out"),
    ] {
        let error = text.parse::<AllowRule>().expect_err(text);
        assert!(error.rule.contains(says), "{text}: {error}");
        assert!(error.to_string().starts_with("allow rule \""), "{error}");
    }
}

#[test]
fn addresses_are_permitted_by_address_rules_alone() {
    let allow = list(&[
        "10.0.0.0/8:5432",
        "192.0.2.7:80-81",
        "[fd00::]/8:*",
        "db.local:9",
    ]);
    for (text, permitted) in [
        ("10.0.0.0:5432", true),
        ("10.255.255.255:5432", true),
        ("[::ffff:10.1.2.3]:5432", true),
        ("11.0.0.0:5432", false),
        ("9.255.255.255:5432", false),
        ("10.0.0.1:5433", false),
        ("192.0.2.7:79", false),
        ("192.0.2.7:80", true),
        ("192.0.2.7:81", true),
        ("192.0.2.7:82", false),
        ("192.0.2.8:80", false),
        ("[fd12::1]:1", true),
        ("[fd12::1]:65535", true),
        ("[fd12::1]:0", false),
        ("[fe00::1]:1", false),
        ("127.0.0.1:9", false),
    ] {
        assert_eq!(allow.permits_address(address(text)), permitted, "{text}");
    }
    // A rule for all of IPv6 does not let IPv4 in by its other name.
    assert!(!list(&["[::]/0:*"]).permits_address(address("[::ffff:127.0.0.1]:80")));
    assert!(!AllowList::default().permits_address(address("127.0.0.1:80")));
}

#[test]
fn names_are_permitted_exactly_or_below_a_star() {
    let allow = list(&["db.local:5432", "*.svc.local:80-443"]);
    for (host, port, permitted) in [
        ("db.local", 5432, true),
        ("DB.local.", 5432, true),
        ("db.local", 5433, false),
        ("x.db.local", 5432, false),
        ("a.svc.local", 80, true),
        ("a.b.svc.local", 443, true),
        ("svc.local", 80, false),
        ("xsvc.local", 80, false),
        ("a.svc.local.evil", 80, false),
        ("a.svc.local", 444, false),
    ] {
        assert_eq!(
            allow.permits_name(&name(host), port),
            permitted,
            "{host}:{port}"
        );
    }
}

#[test]
fn a_name_admits_what_it_resolves_to_but_no_metadata() {
    let allow = list(&["db.local:80"]);
    let both = list(&[
        "db.local:80",
        "169.254.169.254:80",
        "[fe80::]/10:80",
        "[64:ff9b::a9fe:a9fe]:80",
    ]);
    let wide = list(&["0.0.0.0/0:*", "[::]/0:*"]);
    for (resolved, by_name, by_address) in [
        ("192.0.2.7:80", true, true),
        ("127.0.0.1:80", true, true),
        ("[::1]:80", true, true),
        ("10.0.0.1:80", true, true),
        ("[fd00::1]:80", true, true),
        ("[64:ff9b::c000:207]:80", true, true),
        ("169.254.169.254:80", false, true),
        ("[::ffff:169.254.169.254]:80", false, true),
        ("[fe80::1]:80", false, true),
        ("[64:ff9b::a9fe:a9fe]:80", false, true),
        ("[2002:a9fe:a9fe::1]:80", false, false),
        ("[fd00:ec2::254]:80", false, false),
        ("[fd20:ce::254]:80", false, false),
        ("100.100.100.200:80", false, false),
        ("224.0.0.1:80", false, false),
        ("[ff02::1]:80", false, false),
        ("255.255.255.255:80", false, false),
        ("0.0.0.0:80", false, false),
        ("0.0.0.1:80", false, false),
        ("[::]:80", false, false),
        ("192.0.2.7:81", false, false),
    ] {
        let resolved_address = address(resolved);
        assert_eq!(
            allow.permits_name_address(&name("db.local"), resolved_address),
            by_name,
            "{resolved}"
        );
        assert_eq!(
            both.permits_name_address(&name("db.local"), resolved_address),
            by_address,
            "{resolved}"
        );
        // An address rule admits what any name resolves to.
        assert!(
            wide.permits_name_address(&name("other.local"), resolved_address),
            "{resolved}"
        );
        assert!(
            !allow.permits_name_address(&name("other.local"), resolved_address),
            "{resolved}"
        );
    }
}

#[test]
fn a_socket_is_permitted_exactly() {
    let allow = list(&["unix:/run/db.sock", "0.0.0.0/0:*"]);
    assert!(allow.permits_unix(&"/run/db.sock".parse().unwrap()));
    for other in ["/run/db.sock2", "/run", "/run//db.sock", "/run/./db.sock"] {
        assert!(!allow.permits_unix(&other.parse().unwrap()), "{other}");
    }
}
