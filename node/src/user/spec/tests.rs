#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

#[test]
fn what_is_written_is_what_is_meant() {
    for (text, local, agent, target) in [
        (
            "5432:a1/10.0.0.7:5432",
            "127.0.0.1:5432",
            "a1",
            "10.0.0.7:5432",
        ),
        ("0:a1/10.0.0.7:5432", "127.0.0.1:0", "a1", "10.0.0.7:5432"),
        ("localhost:80:a1/web:80", "127.0.0.1:80", "a1", "web:80"),
        (
            "0.0.0.0:80:a1/web.example.com:80",
            "0.0.0.0:80",
            "a1",
            "web.example.com:80",
        ),
        ("192.0.2.1:80:a1/web:80", "192.0.2.1:80", "a1", "web:80"),
        (
            "[::1]:80:a1/[2001:db8::7]:80",
            "[::1]:80",
            "a1",
            "[2001:db8::7]:80",
        ),
        ("[::]:0:a1/web:80", "[::]:0", "a1", "web:80"),
        (
            "22:a1.b.example.com/127.0.0.1:22",
            "127.0.0.1:22",
            "a1.b.example.com",
            "127.0.0.1:22",
        ),
        (
            "22:b.example.com/db:22",
            "127.0.0.1:22",
            "b.example.com",
            "db:22",
        ),
        (
            "1:a1/unix:/run/db.sock",
            "127.0.0.1:1",
            "a1",
            "unix:/run/db.sock",
        ),
        ("1:a1/service:web", "127.0.0.1:1", "a1", "service:web"),
        (
            "unix:/tmp/db.sock:a1/service:web",
            "unix:/tmp/db.sock",
            "a1",
            "service:web",
        ),
        (
            "unix:/tmp/x:a1/unix:/run/a:b",
            "unix:/tmp/x",
            "a1",
            "unix:/run/a:b",
        ),
    ] {
        let spec: ForwardSpec = text.parse().unwrap_or_else(|error| panic!("{error}"));
        let ForwardSpec {
            local: is_local,
            request,
        } = &spec;
        assert_eq!(
            (
                is_local.to_string(),
                request.agent.to_string(),
                request.target.to_string()
            ),
            (local.to_owned(), agent.to_owned(), target.to_owned()),
            "{text}"
        );
    }
}

/// Each mistake, the part that the error names, and what it says to do.
#[test]
fn errors_name_the_part_and_the_remedy() {
    for (text, part, remedy) in [
        ("", "the agent is missing", "write [BIND:]PORT:AGENT/TARGET"),
        (
            "5432",
            "the agent is missing",
            "write [BIND:]PORT:AGENT/TARGET",
        ),
        ("a1", "the local port is missing", "5432:a1"),
        (
            "a1/10.0.0.7:5432",
            "the local port is missing",
            "write 5432:a1/10.0.0.7:5432, or 0:a1/10.0.0.7:5432",
        ),
        ("5432:a1", "the target is missing", "as a1/127.0.0.1:22"),
        ("5432:a1/", "the target is missing", "write host:port"),
        (
            "5432:/10.0.0.7:5432",
            "the agent is missing",
            "as 5432:a1/10.0.0.7:5432",
        ),
        (
            "5432:10.0.0.7:5432",
            "no agent before the target",
            "write 5432:AGENT/10.0.0.7:5432",
        ),
        ("5432:10.0.0.7:5432/x:1", "the local address", "as a number"),
        (
            ":a1/web:80",
            "the local port is missing",
            "the local side is PORT",
        ),
        ("x:a1/web:80", "the local port \"x\"", "0 to 65535"),
        ("65536:a1/web:80", "the local port \"65536\"", "0 to 65535"),
        ("+1:a1/web:80", "the local port \"+1\"", "0 to 65535"),
        ("-1:a1/web:80", "the local port \"-1\"", "0 to 65535"),
        ("127.0.0.1::a1/web:80", "the local port \"\"", "0 to 65535"),
        (
            "host:1:a1/web:80",
            "the local address \"host\"",
            "as a number",
        ),
        (
            "*:1:a1/web:80",
            "the local address is missing",
            "0.0.0.0 or [::]",
        ),
        ("::1:80:a1/web:80", "too many colons", "in brackets"),
        (
            "[::1:80:a1/web:80",
            "the bracket of the local address",
            "[V6]:PORT",
        ),
        ("[::1]", "the port and the agent are missing", "as 5432:a1"),
        (
            "[::1]80:a1/web:80",
            "the local port is missing",
            "[V6]:PORT",
        ),
        (
            "[zz]:80:a1/web:80",
            "the local address \"[zz]\"",
            "[V6]:PORT",
        ),
        ("80:A1/web:80", "the agent \"A1\"", "a-z"),
        ("80:a_1/web:80", "the agent \"a_1\"", "a-z"),
        ("80:a1/web", "the target \"web\"", "the port is missing"),
        ("80:a1/web:0", "the target \"web:0\"", "1 to 65535"),
        ("80:a1/2001:db8::7:80", "the target", "in brackets"),
        ("80:a1/unix:db", "the target \"unix:db\"", "absolute"),
        ("80:a1/service:", "the target", "1 to 63"),
        ("80:a1/http://web:80", "the target", "in brackets"),
        ("unix:/tmp/x", "the agent is missing", "as 5432:a1"),
        ("unix:x:a1/web:80", "the local path \"x\"", "absolute"),
        (
            "unix:/tmp/x:a1",
            "the target is missing",
            "as a1/127.0.0.1:22",
        ),
        ("udp:53:a1/dns:53", "UDP is not forwarded", "TCP"),
        ("53:a1/dns:53/udp", "UDP is not forwarded", "TCP"),
        ("80:a1/web:80\n", "the target", "from 1 to 65535"),
    ] {
        let error = text.parse::<ForwardSpec>().expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
        assert!(error.contains(remedy), "{text}: {error}");
    }
}

#[test]
fn proxies_are_named_by_host_and_port() {
    for (text, address) in [
        ("proxy.example.com:7443", "proxy.example.com:7443"),
        ("proxy.example.com", "proxy.example.com:7443"),
        ("192.0.2.1:1", "192.0.2.1:1"),
        ("[2001:db8::1]", "[2001:db8::1]:7443"),
        ("[2001:db8::1]:9", "[2001:db8::1]:9"),
    ] {
        assert_eq!(proxy_address(text).unwrap(), address);
    }
    for (text, remedy) in [
        ("", "write host:port"),
        ("https://proxy.example.com", "leave the scheme out"),
        ("2001:db8::1", "in brackets"),
        ("proxy:0", "1 to 65535"),
        ("proxy:http", "1 to 65535"),
        ("unix:/run/x", "write host:port"),
        ("service:x", "write host:port"),
        ("a b", "' ' is not allowed"),
    ] {
        let error = proxy_address(text).expect_err(text).to_string();
        assert!(error.contains(remedy), "{text}: {error}");
    }
}

fn local() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<u16>().prop_map(|port| port.to_string()),
        any::<(std::net::Ipv4Addr, u16)>().prop_map(|(ip, port)| format!("{ip}:{port}")),
        any::<(std::net::Ipv6Addr, u16)>().prop_map(|(ip, port)| format!("[{ip}]:{port}")),
        "unix:/[a-z/]{1,20}",
    ]
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<(std::net::Ipv4Addr, u16)>().prop_map(|(ip, port)| format!("{ip}:{}", port.max(1))),
        any::<(std::net::Ipv6Addr, u16)>().prop_map(|(ip, port)| format!("[{ip}]:{}", port.max(1))),
        ("[a-z][a-z0-9]{0,20}", 1u16..).prop_map(|(host, port)| format!("x-{host}:{port}")),
        "unix:/[a-z:/]{1,20}",
        "service:[a-z]{1,20}",
    ]
}

proptest! {
    /// What is put together from good parts is taken, and written again means the same.
    #[test]
    fn good_parts_make_a_good_forward(
        local in local(),
        agent in "[a-z][a-z0-9]{0,10}(\\.[a-z]{1,5}\\.[a-z]{1,5})?",
        target in target(),
    ) {
        let spec: ForwardSpec = format!("{local}:{agent}/{target}").parse().unwrap();
        prop_assert_eq!(spec.request.agent.to_string(), agent);
        prop_assert_eq!(&spec.request.target, &target.parse().unwrap());
        prop_assert_eq!(spec.to_string().parse::<ForwardSpec>().unwrap(), spec);
    }

    /// No text panics, and every error is one line that says something beside the text.
    #[test]
    fn any_text_is_taken_or_refused_in_one_line(text in "[0-9a-c:/.\\[\\]\\*\\-\n\u{1b}é ]{0,40}|\\PC{0,200}") {
        if let Err(error) = text.parse::<ForwardSpec>() {
            let told = error.to_string();
            prop_assert!(!told.chars().any(char::is_control), "{:?}", told);
            prop_assert!(told.len() < 1500 && error.why.len() > 20);
        }
        if let Err(error) = proxy_address(&text) {
            prop_assert!(!error.to_string().chars().any(char::is_control));
        }
    }
}
