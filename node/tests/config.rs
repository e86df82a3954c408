//! Config files, as a person writes them: every file in `fixtures/config/valid` loads, and every
//! one in `fixtures/config/invalid` gives exactly the errors in its `.expected` file.
//!
//! `{dir}` in a fixture is the directory that it is copied to, where the certificates are.
//! With `BLESS=1` in the environment, `.expected` and `.warnings` files are written anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use certs::{Authority, Kind, Request, Validity};
use node::config::{
    AdminListen, ConfigErrors, IngressAuth, IngressKind, Loaded, NodeConfig, Place, ProxyConfig,
    Role, Sources, load,
};
use tempfile::TempDir;

const DAY: i64 = 24 * 60 * 60;

/// A directory with everything that the fixtures name.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        let always = Validity::between(1_000_000_000, 4_000_000_000).unwrap();
        let authority = Authority::create("example.com".parse().unwrap(), &always).unwrap();
        let imposter = Authority::create("example.com".parse().unwrap(), &always).unwrap();
        let other = Authority::create("example.org".parse().unwrap(), &always).unwrap();
        fs::write(at("ca.pem"), authority.ca_pem()).unwrap();
        fs::write(at("imposter-ca.pem"), imposter.ca_pem()).unwrap();
        fs::write(at("other-ca.pem"), other.ca_pem()).unwrap();
        let past = Validity::between(1_000_000_000, 1_000_086_400).unwrap();
        let expired = Authority::create("c.example.com".parse().unwrap(), &past).unwrap();
        fs::write(at("expired-ca.pem"), expired.ca_pem()).unwrap();
        let now = now();
        let past = Validity::between(1_000_000_000, 1_000_086_400).unwrap();
        let future = Validity::between(3_000_000_000, 3_000_086_400).unwrap();
        let soon = Validity::between(1_000_000_000, now + 3 * DAY + DAY / 2).unwrap();
        for (authority, kind, name, validity) in [
            (&authority, Kind::Proxy, "proxy-1", always),
            (&authority, Kind::Agent, "a1", always),
            (&authority, Kind::User, "alice", always),
            (&authority, Kind::Proxy, "expired", past),
            (&authority, Kind::Proxy, "future", future),
            (&authority, Kind::Proxy, "soon", soon),
            (&other, Kind::Proxy, "other", always),
        ] {
            let issued = authority
                .issue(&Request::new(kind, name.parse().unwrap(), validity))
                .unwrap();
            issued.save(dir.path()).unwrap();
        }
        fs::write(at("agents.txt"), "a1\na2\n").unwrap();
        fs::write(
            at("garbage.pem"),
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        fs::write(
            at("tokens.txt"),
            "# who\nci:0123456789abcdef0123456789abcdef\n",
        )
        .unwrap();
        fs::write(at("bad-tokens.txt"), "ci:short\nno colon\n").unwrap();
        for name in ["tokens.txt", "bad-tokens.txt"] {
            chmod(&at(name), 0o600);
        }
        fs::create_dir(at("state")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a config file; `{dir}` stands for this directory.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(
            &path,
            text.replace("{dir}", &self.dir.path().display().to_string()),
        )
        .unwrap();
        path
    }

    /// A text with this directory as `{dir}`.
    fn masked(&self, text: &str) -> String {
        text.replace(&self.dir.path().display().to_string(), "{dir}")
    }

    fn load(&self, text: &str) -> Result<Loaded, ConfigErrors> {
        load(&file(self.write("node.toml", text)))
    }

    fn errors(&self, text: &str) -> String {
        self.masked(&self.load(text).unwrap_err().to_string())
    }
}

fn now() -> i64 {
    let time = certs::system_time().current_time().unwrap();
    i64::try_from(time.as_secs()).unwrap()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn file(path: PathBuf) -> Sources {
    Sources {
        file: Some(path),
        ..Sources::default()
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn proxy(loaded: Loaded) -> ProxyConfig {
    match loaded.config {
        NodeConfig::Proxy(proxy) => *proxy,
        NodeConfig::Agent(_) => panic!("an agent"),
    }
}

const PROXY: &str =
    "role = \"proxy\"\n[tls]\nca = \"ca.pem\"\ncert = \"proxy-1.pem\"\nkey = \"proxy-1.key\"\n";

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/config")
        .join(kind);
    let mut paths: Vec<PathBuf> = fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

/// Compares with the file beside a fixture; the differences of all fixtures are shown together.
fn compare(fixture: &Path, extension: &str, actual: &str, differences: &mut Vec<String>) {
    let path = fixture.with_extension(extension);
    if std::env::var_os("BLESS").is_some() {
        if actual.is_empty() {
            let _ = fs::remove_file(&path);
        } else {
            fs::write(&path, format!("{actual}\n")).unwrap();
        }
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if expected.trim_end() != actual {
        differences.push(format!(
            "{}\n--- expected\n{expected}\n--- actual\n{actual}\n",
            path.display()
        ));
    }
}

#[test]
fn valid_files_load_and_show_themselves() {
    let files = Files::new();
    let mut differences = Vec::new();
    for fixture in fixtures("valid") {
        let name = fixture.file_name().unwrap().to_str().unwrap();
        let path = files.write(name, &fs::read_to_string(&fixture).unwrap());
        let loaded = load(&file(path)).unwrap_or_else(|errors| panic!("{name}:\n{errors}"));
        compare(
            &fixture,
            "warnings",
            &files.masked(&loaded.warnings.join("\n")),
            &mut differences,
        );
        // What `config show` prints is a config of the same meaning, from any directory.
        let shown = loaded.to_toml().unwrap();
        let elsewhere = TempDir::new().unwrap();
        let again = elsewhere.path().join("shown.toml");
        fs::write(&again, &shown).unwrap();
        let reloaded =
            load(&file(again)).unwrap_or_else(|errors| panic!("{name}:\n{shown}\n{errors}"));
        assert_eq!(reloaded.to_toml().unwrap(), shown, "{name}");
        assert_eq!(
            format!("{:?}", reloaded.config),
            format!("{:?}", loaded.config),
            "{name}"
        );
        for secret in ["0123456789abcdef", "PRIVATE KEY", "BEGIN"] {
            assert!(!shown.contains(secret), "{name}:\n{shown}");
            assert!(!format!("{loaded:?}").contains(secret), "{name}");
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn invalid_files_give_exactly_their_errors() {
    let files = Files::new();
    let mut differences = Vec::new();
    for fixture in fixtures("invalid") {
        let name = fixture.file_name().unwrap().to_str().unwrap();
        let path = files.write(name, &fs::read_to_string(&fixture).unwrap());
        let errors = match load(&file(path)) {
            Ok(_) => panic!("{name} was accepted"),
            Err(errors) => files.masked(&errors.to_string()),
        };
        compare(&fixture, "expected", &errors, &mut differences);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn many_errors_come_at_once() {
    let files = Files::new();
    let text = fs::read_to_string(
        fixtures("invalid")
            .into_iter()
            .find(|path| path.ends_with("many.toml"))
            .unwrap(),
    )
    .unwrap();
    let errors = files.load(&text).unwrap_err();
    assert!(errors.iter().count() >= 10, "{errors}");
    for error in &errors {
        assert!(
            matches!(&error.place, Place::File { line: Some(_), .. }),
            "{error}"
        );
        assert!(
            !error.key.is_empty() && !error.what.is_empty() && !error.remedy.is_empty(),
            "{error:?}"
        );
    }
}

#[test]
fn later_layers_override_earlier_ones() {
    let files = Files::new();
    let path = files.write(
        "node.toml",
        &format!("{PROXY}[quic]\nlisten = \"127.0.0.1:1\"\nstreams_max = 1\nshards = 1\n[[ingress]]\nkind = \"http\"\nlisten = \"127.0.0.1:10\"\nconnections_max = 5\n"),
    );
    let loaded = load(&Sources {
        env: pairs(&[
            ("MESH__QUIC__LISTEN", "127.0.0.1:2"),
            ("MESH__QUIC__STREAMS_MAX", "2"),
            ("MESH__INGRESS__0__LISTEN", "127.0.0.1:20"),
            ("MESH__LOG__LEVEL", "debug"),
            ("MESH_ADMIN", "http://127.0.0.1:7480"),
            ("MESH_IDENTITY", "alice.pem"),
            ("PATH", "/bin"),
        ]),
        set: pairs(&[
            ("quic.listen", "127.0.0.1:3"),
            ("quic.listen", "127.0.0.1:4"),
            ("ingress[1].kind", "http"),
            ("ingress[1].listen", "127.0.0.1:0"),
            ("proxy.peers", "[\"p2:1\", \"p3:1\"]"),
            ("proxy.group", "2024"),
            ("metrics.listen", "\"127.0.0.1:0\""),
        ]),
        ..file(path)
    })
    .unwrap();
    assert_eq!(loaded.warnings, [""; 0]);
    let proxy = proxy(loaded);
    assert_eq!(proxy.common.quic.listen.port(), 4);
    assert_eq!(proxy.common.quic.streams_max, 2);
    assert_eq!(proxy.common.log.filter, "debug");
    assert_eq!(proxy.ingresses.len(), 2);
    assert_eq!(proxy.ingresses[0].listen.port(), 20);
    assert_eq!(proxy.ingresses[0].connections_max, 5);
    assert_eq!(proxy.peers, ["p2:1", "p3:1"]);
    assert_eq!(proxy.group.as_str(), "2024");
    assert!(proxy.common.metrics.is_some());
}

#[test]
fn flags_alone_will_do() {
    let files = Files::new();
    let at = |name: &str| files.path(name).display().to_string();
    let loaded = load(&Sources {
        role: Some(Role::Agent),
        env: pairs(&[("MESH__ROLE", "proxy"), ("MESH__NAME", "a1")]),
        set: pairs(&[
            ("tls.ca", &at("ca.pem")),
            ("tls.cert", &at("a1.pem")),
            ("tls.key", &at("a1.key")),
            ("agent.proxies", "lb.example.com:7443"),
            (
                "service",
                "[{ name = \"web\", address = \"127.0.0.1:80\" }]",
            ),
        ]),
        ..Sources::default()
    })
    .unwrap();
    let NodeConfig::Agent(agent) = loaded.config else {
        panic!("a proxy")
    };
    assert_eq!(agent.common.name.as_str(), "a1");
    assert_eq!(agent.common.cluster.as_str(), "example.com");
    assert_eq!(agent.proxies, ["lb.example.com:7443"]);
    assert!(agent.allow.permits_address("127.0.0.1:80".parse().unwrap()));
    assert!(!agent.allow.permits_address("127.0.0.1:81".parse().unwrap()));
}

#[test]
fn the_role_flag_wins() {
    let files = Files::new();
    let sources = Sources {
        role: Some(Role::Agent),
        ..file(files.write("node.toml", PROXY))
    };
    let errors = files.masked(&load(&sources).unwrap_err().to_string());
    assert_eq!(
        errors,
        "{dir}/node.toml:4: tls.cert: {dir}/proxy-1.pem is the certificate of proxy \"proxy-1\", and this node's role is agent: \
         issue one with `node certs issue agent NAME`, or correct the role\n\
         {dir}/node.toml: agent.proxies: is not set: write proxies = [\"lb.example.com:7443\"], a load balancer or the proxies themselves"
    );
}

#[test]
fn variables_and_flags_are_named_in_errors() {
    let files = Files::new();
    let sources = Sources {
        env: pairs(&[
            ("MESH__QUIC__STREM_WINDOW", "1MiB"),
            ("MESH__QUIC__STREAMS_MAX", "many"),
            ("MESH__PROXY__PEERS", "[\"p2:1\", \"p3\"]"),
            ("MESH__", "1"),
            ("MESH__0__X", "1"),
            ("MESH__STORE__URL", "x"),
            ("MESH__QUIC", "5"),
        ]),
        set: pairs(&[
            ("quic.stream_window", "8MiB"),
            ("quick.listen", "127.0.0.1:1"),
            ("", "x"),
            ("ingress[999].listen", "127.0.0.1:1"),
            ("quic.mtu_max", "\"1200\""),
        ]),
        ..file(files.write("node.toml", PROXY))
    };
    let errors = load(&sources).unwrap_err().to_string();
    let expected = [
        "MESH__: names no key: write MESH__SECTION__KEY, as in MESH__QUIC__LISTEN, or remove it",
        "MESH__0__X: names no key: write MESH__SECTION__KEY, as in MESH__QUIC__LISTEN, or remove it",
        "MESH__PROXY__PEERS: proxy.peers[1]: \"p3\" is not host:port: the port is missing; write host:port or [v6]:port, as in \"lb.example.com:7443\"",
        "MESH__QUIC: quic: the number 5 does not fit: write a table",
        "MESH__QUIC__STREAMS_MAX: quic.streams_max: the text \"many\" does not fit: write a whole number without quotes",
        "MESH__QUIC__STREM_WINDOW: quic.strem_window: unknown key: did you mean \"stream_window\"?",
        "MESH__STORE__URL: store.url: names no store: it begins with neither redb: nor etcd://: write redb:PATH, or etcd://[user[:password]@]host:port,host:port/prefix?ca=FILE",
        "--set quic.mtu_max: the text \"1200\" does not fit: write a whole number without quotes",
        "--set quick: unknown key: did you mean \"quic\"?",
        "--set \"\": is no key: write --set KEY=VALUE, as in --set quic.listen=127.0.0.1:7443",
        "--set \"ingress[999].listen\": is no key: write --set KEY=VALUE, as in --set quic.listen=127.0.0.1:7443",
        "--set quic.stream_window: \"8MiB\" is over the limit of 4MiB: choose 64KiB to 4MiB; each node holds up to this much for a stream whose reader is slow",
    ];
    let mut lines: Vec<&str> = errors.lines().collect();
    let mut expected: Vec<&str> = expected.into();
    lines.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lines, expected, "{errors}");
}

#[test]
fn gaps_in_lists_are_errors() {
    let files = Files::new();
    let sources = Sources {
        set: pairs(&[
            ("ingress[1].kind", "http"),
            ("ingress[1].listen", "127.0.0.1:0"),
        ]),
        ..file(files.write("node.toml", PROXY))
    };
    assert_eq!(
        load(&sources).unwrap_err().to_string(),
        "ingress[0]: is not set, though a later one is: number the entries from 0 without a gap"
    );
}

#[test]
fn files_that_cannot_be_read_are_errors() {
    let files = Files::new();
    let failure =
        |path: &Path| files.masked(&load(&file(path.to_owned())).unwrap_err().to_string());
    assert_eq!(
        failure(&files.path("absent.toml")),
        "{dir}/absent.toml: does not exist: check the path given with --config"
    );
    assert_eq!(
        failure(&files.path("state")),
        "{dir}/state: is not a file: check the path given with --config"
    );
    fs::write(files.path("binary.toml"), [0xff, 0xfe, 0]).unwrap();
    assert_eq!(
        failure(&files.path("binary.toml")),
        "{dir}/binary.toml: is not UTF-8 text: check that --config names a TOML file"
    );
    fs::write(files.path("large.toml"), "#".repeat((1 << 20) + 1)).unwrap();
    assert_eq!(
        failure(&files.path("large.toml")),
        "{dir}/large.toml: is over the limit of 1MiB for such a file: check the path given with --config"
    );
}

#[test]
fn nothing_at_all_is_an_error() {
    let errors = load(&Sources::default()).unwrap_err().to_string();
    assert!(
        errors.starts_with("role: is not set: write role = \"proxy\""),
        "{errors}"
    );
    assert!(errors.contains("\ntls: is not set: "), "{errors}");
}

#[test]
fn defaults_are_the_documented_ones() {
    let files = Files::new();
    let proxy = proxy(files.load(PROXY).unwrap());
    assert_eq!(proxy.common.quic.listen.to_string(), "0.0.0.0:7443");
    assert_eq!(proxy.common.quic.stream_window_bytes, 2 << 20);
    assert_eq!(proxy.common.quic.buffer_bytes_max, 1 << 30);
    assert_eq!(proxy.common.drain_deadline.as_secs(), 30);
    assert_eq!(proxy.drain_notice.as_secs(), 5);
    assert_eq!(proxy.dial_deadline.as_secs(), 10);
    assert_eq!(proxy.group.as_str(), "default");
    assert_eq!(proxy.generation.0, 0);
    assert!(
        proxy.state_dir.is_none() && proxy.common.admin.is_none() && proxy.common.metrics.is_none()
    );
}

#[test]
fn paths_are_relative_to_the_file_and_secrets_are_read() {
    let files = Files::new();
    let text = fs::read_to_string(
        fixtures("valid")
            .into_iter()
            .find(|path| path.ends_with("proxy-full.toml"))
            .unwrap(),
    )
    .unwrap();
    let proxy = proxy(files.load(&text).unwrap());
    assert_eq!(proxy.state_dir.unwrap(), files.path("state"));
    let [loopback, tokens, certificates, ..] = &proxy.ingresses[..] else {
        panic!("fewer than three")
    };
    assert!(matches!(loopback.auth, IngressAuth::Open));
    let IngressAuth::Tokens(table) = &tokens.auth else {
        panic!("no tokens")
    };
    assert_eq!(
        table
            .matches(b"0123456789abcdef0123456789abcdef")
            .unwrap()
            .as_str(),
        "ci"
    );
    assert_eq!(
        tokens.hosts,
        ["mesh.example.com", "203.0.113.10", "2001:db8::10"]
    );
    assert_eq!(tokens.tls.as_ref().unwrap().not_after, 4_000_000_000);
    assert!(
        matches!(&tokens.kind, IngressKind::Http { upstream_ca: Some(authorities) } if authorities.len() == 1)
    );
    assert!(
        matches!(&certificates.auth, IngressAuth::ClientCa(authorities) if authorities.len() == 1)
    );
    let admin = proxy.common.admin.unwrap();
    assert_eq!(
        admin.listen,
        AdminListen::Unix("/run/mesh/admin.sock".into())
    );
    assert!(matches!(admin.auth, IngressAuth::Tokens(_)));
}

#[test]
fn what_deserves_a_look_is_warned_of() {
    let files = Files::new();
    chmod(&files.path("soon.key"), 0o644);
    chmod(&files.path("tokens.txt"), 0o604);
    let loaded = files
        .load("role = \"proxy\"\n[tls]\nca = \"ca.pem\"\ncert = \"soon.pem\"\nkey = \"soon.key\"\n[[ingress]]\nkind = \"http\"\nlisten = \"127.0.0.1:0\"\nauth = { tokens_file = \"tokens.txt\" }\n")
        .unwrap();
    let warnings: Vec<String> = loaded
        .warnings
        .iter()
        .map(|warning| files.masked(warning))
        .collect();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(
        warnings[0].starts_with("{dir}/node.toml:4: tls.cert: expires in 3 days, at "),
        "{warnings:?}"
    );
    assert_eq!(
        warnings[1],
        "{dir}/node.toml:5: tls.key: {dir}/soon.key can be read by every user of this host: run `chmod 600 {dir}/soon.key`"
    );
    assert!(
        warnings[2].starts_with(
            "{dir}/node.toml:9: ingress[0].auth.tokens_file: {dir}/tokens.txt can be read"
        ),
        "{warnings:?}"
    );
}

#[test]
fn a_certificate_of_the_future_is_an_error() {
    let files = Files::new();
    let errors = files.errors(&PROXY.replace("proxy-1", "future"));
    assert!(errors.starts_with("{dir}/node.toml:4: tls.cert: {dir}/future.pem is valid from 2065-01-24T05:20:00Z, and this host's clock says "), "{errors}");
}

#[test]
fn errors_name_the_line_within_long_lists() {
    let files = Files::new();
    let errors = files.errors(&format!(
        "{PROXY}[proxy]\npeers = [\n  \"p2:1\",\n  \"p3\",\n  \"p4:1\",\n]\n"
    ));
    assert!(
        errors.starts_with("{dir}/node.toml:9: proxy.peers[1]: \"p3\" is not host:port"),
        "{errors}"
    );
}

#[test]
fn a_file_store_is_in_the_state_directory() {
    let files = Files::new();
    let with =
        |text: &str| format!("{PROXY}[proxy]\nstate_dir = \"state\"\n[store]\nurl = {text:?}\n");
    let url = |text: &str| match files.load(&with(text)).map(|loaded| loaded.config) {
        Ok(NodeConfig::Proxy(proxy)) => proxy.store.map(|url| files.masked(&url.to_string())),
        Ok(NodeConfig::Agent(_)) => None,
        Err(errors) => Some(files.masked(&errors.to_string())),
    };
    assert_eq!(url("redb:a/b.redb").unwrap(), "redb:{dir}/state/a/b.redb");
    assert_eq!(url("redb:/var/b.redb").unwrap(), "redb:/var/b.redb");
    let etcd = url("etcd://mesh:s3cret@etcd-1,etcd-2:2380/fleet?ca=etcd-ca.pem").unwrap();
    assert!(!etcd.contains("s3cret"), "{etcd}");
    if cfg!(feature = "etcd") {
        assert_eq!(
            etcd,
            "etcd://mesh:***@etcd-1:2379,etcd-2:2380/fleet/?ca={dir}/etcd-ca.pem"
        );
    } else {
        assert!(
            etcd.contains("store.url: this build of node knows no etcd"),
            "{etcd}"
        );
    }
}
