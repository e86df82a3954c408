use super::*;

#[test]
fn every_form_is_read_and_written() {
    for (text, written) in [
        ("192.0.2.7:80", "192.0.2.7:80"),
        ("[2001:db8::7]:80", "[2001:db8::7]:80"),
        ("[2001:DB8:0::7]:080", "[2001:db8::7]:80"),
        ("[::ffff:192.0.2.7]:80", "192.0.2.7:80"),
        ("[::ffff:c000:207]:80", "192.0.2.7:80"),
        ("localhost:1", "localhost:1"),
        ("DB.Example.com:65535", "db.example.com:65535"),
        ("db.example.com.:443", "db.example.com:443"),
        ("_sip._tcp.example.com:5060", "_sip._tcp.example.com:5060"),
        ("1password.com:443", "1password.com:443"),
        ("4.example:443", "4.example:443"),
        ("unix:/run/db.sock", "unix:/run/db.sock"),
        ("unix:/run/a..b/ü", "unix:/run/a..b/ü"),
        ("service:web", "service:web"),
    ] {
        let target: Target = text.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(target.to_string(), written);
        assert_eq!(written.parse(), Ok(target));
    }
}

#[test]
fn what_breaks_the_rule_is_refused_with_the_rule() {
    let long_host = format!("{}:80", vec!["x".repeat(63); 4].join("."));
    let long_label = format!("{}.com:80", "x".repeat(64));
    let long_path = format!("unix:/{}", "x".repeat(UNIX_PATH_BYTES_MAX));
    for (text, says) in [
        ("", "the port is missing; write host:port"),
        ("db", "the port is missing"),
        (":80", "the host is missing"),
        ("db:", "a port is a number from 1 to 65535"),
        ("db:0", "a port is a number"),
        ("db:65536", "a port is a number"),
        ("db:+80", "a port is a number"),
        ("db:80 ", "a port is a number"),
        ("db:http", "a port is a number"),
        (
            "::1:80",
            "several colons; write an IPv6 address in brackets",
        ),
        ("[::1]", "the port is missing"),
        ("[::1]80", "only :port may follow the bracket"),
        ("[::1:80", "the bracket is not closed"),
        ("[192.0.2.7]:80", "no IPv6 address between the brackets"),
        ("[fe80::1%eth0]:80", "leave the zone out"),
        ("[fe80::1%1]:80", "leave the zone out"),
        ("127.1:80", "ends in a number"),
        ("0x7f.1:80", "ends in a number"),
        ("0x7f.0.0.0x1:80", "ends in a number"),
        ("0X7F000001:80", "ends in a number"),
        ("0x:80", "ends in a number"),
        ("2130706433:80", "ends in a number"),
        ("017700000001:80", "ends in a number"),
        ("127.0.0.01:80", "ends in a number"),
        ("127.0.0.1.:80", "ends in a number"),
        ("256.0.0.1:80", "ends in a number"),
        ("db.123:80", "ends in a number"),
        ("a..b:80", "an empty label"),
        ("..:80", "an empty label"),
        ("a.com..:80", "an empty label"),
        ("-a.com:80", "begins or ends with '-'"),
        ("a/b:80", "'/' is not allowed"),
        ("user@db:80", "'@' is not allowed"),
        ("a b:80", "' ' is not allowed"),
        ("bücher.de:80", "xn--"),
        ("*.com:80", "'*' is not allowed"),
        (&long_host, "the host has 255 bytes"),
        (&long_label, "a label of the host has 64 bytes"),
        ("unix:", "does not begin with '/'"),
        ("unix:run/db.sock", "does not begin with '/'"),
        ("unix:80", "does not begin with '/'"),
        ("unix:/run/../etc/x", "has a '..'"),
        ("unix:/..", "has a '..'"),
        ("unix:/a\0b", "control character"),
        ("unix:/a\nb", "control character"),
        (&long_path, "it has 108 bytes"),
        ("Unix:80", "write the host with its domain"),
        ("unix.:80", "write the host with its domain"),
        ("service.:80", "write the host with its domain"),
        ("SERVICE:80", "write the host with its domain"),
        ("service:", "a label is empty"),
        ("service:Web", "'W' is upper case"),
        ("service:web:80", "':' is not allowed"),
    ] {
        let error = text.parse::<Target>().expect_err(text);
        assert!(error.rule.contains(says), "{text}: {error}");
    }
}

#[test]
fn the_limits_themselves_are_allowed() {
    let label = "x".repeat(63);
    let host = format!("{label}.{label}.{label}.{}", "x".repeat(61));
    assert_eq!(host.len(), DNS_NAME_BYTES_MAX);
    assert!(format!("{host}:80").parse::<Target>().is_ok());
    assert!(format!("{host}.:80").parse::<Target>().is_ok());
    assert!(format!("{host}x:80").parse::<Target>().is_err());
    assert!(
        format!("unix:/{}", "x".repeat(UNIX_PATH_BYTES_MAX - 1))
            .parse::<Target>()
            .is_ok()
    );
}

#[test]
fn a_missing_port_is_filled_in() {
    for (text, written) in [
        ("db", "db:443"),
        ("db:80", "db:80"),
        ("192.0.2.7", "192.0.2.7:443"),
        ("[2001:db8::7]", "[2001:db8::7]:443"),
        ("[2001:db8::7]:80", "[2001:db8::7]:80"),
        ("unix:/run/x", "unix:/run/x"),
        ("service:web", "service:web"),
    ] {
        assert_eq!(
            Target::default_port(text, 443).unwrap().to_string(),
            written
        );
    }
    for bad in ["", "db:", "2001:db8::7", "[::1", "127.1", "a b"] {
        assert!(Target::default_port(bad, 443).is_err(), "{bad}");
    }
    assert!(Target::default_port("db", 0).is_err());
}

#[test]
fn constructors_keep_the_rules() {
    let mapped: SocketAddr = "[::ffff:192.0.2.7]:80".parse().unwrap();
    assert_eq!(Target::address(mapped), "192.0.2.7:80".parse());
    for bad in ["192.0.2.7:0", "[fe80::1%3]:80"] {
        assert!(Target::address(bad.parse().unwrap()).is_err(), "{bad}");
    }
    let host: HostName = "DB.local.".parse().unwrap();
    assert_eq!(host.as_str(), "db.local");
    assert!(Target::host(host.clone(), 0).is_err());
    assert_eq!(Target::host(host, 1).unwrap().port(), Some(1));
    assert_eq!("service:web".parse::<Target>().unwrap().port(), None);
}

#[test]
fn an_error_names_the_value_and_the_rule() {
    assert_eq!(
        "db:0".parse::<Target>().unwrap_err().to_string(),
        "target \"db:0\" is not valid: a port is a number from 1 to 65535"
    );
}
