#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use certs::Credentials;
use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct TestCli {
    #[command(flatten)]
    certs: CertsArgs,
}

/// Runs `node certs …`, with `{dir}` in the arguments replaced.
fn certs_in(dir: &tempfile::TempDir, line: &str) -> Result<String, CliError> {
    let words = line
        .split(' ')
        .map(|word| word.replace("{dir}", dir.path().to_str().unwrap()));
    let cli = TestCli::try_parse_from(std::iter::once("node".to_owned()).chain(words))
        .map_err(|e| CliError::Usage(e.to_string()))?;
    execute(cli.certs)
}

fn credentials(dir: &tempfile::TempDir, name: &str) -> Credentials {
    let path = |file: &str| dir.path().join(file);
    Credentials::load(
        &path("ca.pem"),
        &path(&format!("{name}.pem")),
        &path(&format!("{name}.key")),
    )
    .unwrap()
}

fn mode(dir: &tempfile::TempDir, name: &str) -> u32 {
    fs::metadata(dir.path().join(name))
        .unwrap()
        .permissions()
        .mode()
        & 0o777
}

#[test]
fn init_issue_show() {
    let dir = tempfile::tempdir().unwrap();
    let text = certs_in(&dir, "init --cluster example.com --dir {dir}").unwrap();
    assert!(
        text.contains("ca.pem") && text.contains("no node gets ca.key"),
        "{text}"
    );
    assert_eq!(mode(&dir, "ca.key"), 0o600);
    for kind in ["proxy", "agent", "user"] {
        let text = certs_in(&dir, &format!("issue {kind} {kind}-1 --dir {{dir}}")).unwrap();
        assert!(
            text.contains(&format!("spiffe://example.com/{kind}/{kind}-1")),
            "{text}"
        );
        assert_eq!(mode(&dir, &format!("{kind}-1.key")), 0o600);
        assert_eq!(
            credentials(&dir, &format!("{kind}-1"))
                .identity()
                .kind
                .as_str(),
            kind
        );
    }
    let text = certs_in(&dir, "show {dir}/agent-1.pem").unwrap();
    for fact in [
        "kind         agent\n",
        "name         agent-1\n",
        "cluster      example.com\n",
        " days left)",
        "sha256",
    ] {
        assert!(text.contains(fact), "{fact}: {text}");
    }
    let text = certs_in(&dir, "show {dir}/ca.pem --json").unwrap();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list[0]["kind"], "authority");
    assert_eq!(list[0]["cluster"], "example.com");
    assert_eq!(list[0]["valid_now"], true);
}

#[test]
fn names_and_addresses_reach_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    certs_in(
        &dir,
        "init --cluster example.com --dir {dir} --key ecdsa-p256",
    )
    .unwrap();
    certs_in(&dir, "issue proxy p1 --dir {dir} --dns lb.example.com --dns x.example.com --ip 10.0.0.1 --ip ::1 --days 5")
        .unwrap();
    let text = certs_in(&dir, "show {dir}/p1.pem --json").unwrap();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        list[0]["dns"],
        json!(["proxy.example.com", "lb.example.com", "x.example.com"])
    );
    assert_eq!(list[0]["ip"], json!(["10.0.0.1", "::1"]));
    // Five days to the second, of which some have passed.
    assert!((4..=5).contains(&list[0]["days_left"].as_i64().unwrap()));
}

#[test]
fn a_key_that_never_travels() {
    let (home, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certs_in(&home, "init --cluster example.com --dir {dir}").unwrap();
    certs_in(&away, "csr agent a1 --cluster example.com --dir {dir}").unwrap();
    assert_eq!(mode(&away, "a1.key"), 0o600);
    fs::copy(away.path().join("a1.csr"), home.path().join("a1.csr")).unwrap();
    let text = certs_in(&home, "sign {dir}/a1.csr --dir {dir}").unwrap();
    assert!(text.contains("spiffe://example.com/agent/a1"), "{text}");
    assert!(!home.path().join("a1.key").exists());
    for file in ["a1.pem", "ca.pem"] {
        fs::copy(home.path().join(file), away.path().join(file)).unwrap();
    }
    assert_eq!(credentials(&away, "a1").identity().name.as_str(), "a1");
}

#[test]
fn a_request_for_another_cluster_is_not_signed() {
    let dir = tempfile::tempdir().unwrap();
    certs_in(&dir, "init --cluster example.com --dir {dir}").unwrap();
    certs_in(&dir, "csr agent a1 --cluster b.example.com --dir {dir}").unwrap();
    let error = certs_in(&dir, "sign {dir}/a1.csr --dir {dir}").unwrap_err();
    assert!(
        matches!(&error, CliError::Failed(text) if text.contains("a1.csr") && text.contains("b.example.com")),
        "{error}"
    );
    assert!(!dir.path().join("a1.pem").exists());
}

#[test]
fn nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    certs_in(&dir, "init --cluster example.com --dir {dir}").unwrap();
    certs_in(&dir, "issue agent a1 --dir {dir}").unwrap();
    let content = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let before = ["ca.pem", "ca.key", "a1.pem", "a1.key"].map(content);
    for line in [
        "init --cluster example.com --dir {dir}",
        "issue agent a1 --dir {dir}",
        "issue user a1 --dir {dir}",
        "csr agent a1 --cluster example.com --dir {dir}",
    ] {
        let error = certs_in(&dir, line).unwrap_err();
        assert!(
            matches!(&error, CliError::Failed(text) if text.contains("already exists")),
            "{line}: {error}"
        );
    }
    assert_eq!(
        ["ca.pem", "ca.key", "a1.pem", "a1.key"].map(content),
        before
    );
    assert!(!dir.path().join("a1.csr").exists());
}

#[test]
fn wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    certs_in(&dir, "init --cluster example.com --dir {dir}").unwrap();
    for line in [
        "init --cluster example --dir {dir}/x",
        "init --cluster Example.com --dir {dir}/x",
        "init --cluster example.com --dir {dir}/x --days 0",
        "issue agent a.1 --dir {dir}",
        "issue agent ../a --dir {dir}",
        "issue agent ca --dir {dir}",
        "issue robot a1 --dir {dir}",
        "issue agent a1 --dir {dir} --days 0",
        "issue agent a1 --dir {dir} --days 99999999",
        "issue agent a1 --dir {dir} --dns proxy.example.com",
        "issue proxy p1 --dir {dir} --dns *.example.com",
        "issue proxy p1 --dir {dir} --ip example.com",
        "csr agent a1 --cluster example --dir {dir}",
        "csr agent A --cluster example.com --dir {dir}",
    ] {
        let error = certs_in(&dir, line).unwrap_err();
        assert!(matches!(error, CliError::Usage(_)), "{line}: {error}");
    }
    let mut left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["ca.key", "ca.pem"]);
}

#[test]
fn failures_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for (line, file) in [
        ("issue agent a1 --dir {dir}/none", "none/ca.pem"),
        ("show {dir}/none.pem", "none.pem"),
        ("sign {dir}/none.csr --dir {dir}", "ca.pem"),
    ] {
        let error = certs_in(&dir, line).unwrap_err();
        assert!(
            matches!(&error, CliError::Failed(text) if text.contains(file)),
            "{line}: {error}"
        );
    }
    fs::write(dir.path().join("x.pem"), "x").unwrap();
    let error = certs_in(&dir, "show {dir}/x.pem").unwrap_err();
    assert!(
        matches!(&error, CliError::Failed(text) if text.contains("x.pem: holds no certificate")),
        "{error}"
    );
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    assert_eq!(printable("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
}
