//! `node certs`.

use anyhow::ensure;
use mesh_tests::Result;
use serde_json::Value;

use crate::support::{CLUSTER, exits, mode};

/// Everything that a cluster needs, with keys that nobody else can read.
#[test]
fn certificates_are_made_signed_and_shown() -> Result {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    let (said, _) = exits(
        dir.path(),
        &["certs", "init", "--cluster", CLUSTER, "--dir", "pki"],
        0,
    )?;
    ensure!(
        said.contains("pki/ca.pem") && said.contains("next: node certs issue"),
        "{said}"
    );
    for kind in ["proxy", "agent", "user"] {
        let name = format!("{kind}-1");
        let args = ["certs", "issue", kind, &name, "--dir", "pki", "--days", "3"];
        let (said, _) = exits(dir.path(), &args, 0)?;
        ensure!(
            said.contains(&format!("spiffe://{CLUSTER}/{kind}/{name}")),
            "{said}"
        );
        let (shown, _) = exits(
            dir.path(),
            &["certs", "show", &format!("pki/{name}.pem")],
            0,
        )?;
        for part in [&*name, kind, CLUSTER, "days left"] {
            ensure!(shown.contains(part), "{shown}");
        }
        let args = ["certs", "show", "--json", &format!("pki/{name}.pem")];
        let (json, _) = exits(dir.path(), &args, 0)?;
        let shown: Value = serde_json::from_str(&json)?;
        ensure!(
            shown[0]["kind"] == kind
                && shown[0]["name"] == *name
                && shown[0]["cluster"] == CLUSTER
                && shown[0]["valid_now"] == true
                && shown[0]["problem"].is_null(),
            "{json}"
        );
        ensure!(mode(at("pki").join(format!("{name}.key")))? == 0o600);
    }
    ensure!(mode(at("pki/ca.key"))? == 0o600);
    let (shown, _) = exits(dir.path(), &["certs", "show", "pki/ca.pem"], 0)?;
    ensure!(
        shown.contains("authority") && shown.contains(CLUSTER),
        "{shown}"
    );

    // A key that never leaves its host.
    let args = [
        "certs",
        "csr",
        "agent",
        "far",
        "--cluster",
        CLUSTER,
        "--dir",
        "far",
        "--dns",
        "far.example.com",
    ];
    exits(dir.path(), &args, 0)?;
    ensure!(mode(at("far/far.key"))? == 0o600 && !at("far/far.pem").exists());
    let (said, _) = exits(
        dir.path(),
        &["certs", "sign", "far/far.csr", "--dir", "pki"],
        0,
    )?;
    ensure!(said.contains("also far.example.com"), "{said}");
    ensure!(at("pki/far.pem").exists() && !at("pki/far.key").exists());
    let (json, _) = exits(dir.path(), &["certs", "show", "--json", "pki/far.pem"], 0)?;
    let shown: Value = serde_json::from_str(&json)?;
    ensure!(
        shown[0]["name"] == "far" && shown[0]["dns"][0] == "far.example.com",
        "{json}"
    );
    Ok(())
}

/// What exists stays as it is, whatever is asked.
#[test]
fn nothing_is_overwritten() -> Result {
    let dir = tempfile::tempdir()?;
    let init = ["certs", "init", "--cluster", CLUSTER, "--dir", "."];
    let issue = ["certs", "issue", "agent", "a1", "--dir", "."];
    let csr = [
        "certs",
        "csr",
        "agent",
        "far",
        "--cluster",
        CLUSTER,
        "--dir",
        ".",
    ];
    let sign = ["certs", "sign", "far.csr", "--dir", "."];
    for args in [&init[..], &issue, &csr, &sign] {
        exits(dir.path(), args, 0)?;
    }
    let read = || -> Result<Vec<_>> {
        let names = [
            "ca.pem", "ca.key", "a1.pem", "a1.key", "far.key", "far.csr", "far.pem",
        ];
        names
            .iter()
            .map(|name| Ok(std::fs::read(dir.path().join(name))?))
            .collect()
    };
    let before = read()?;
    let other_kind = ["certs", "issue", "proxy", "a1", "--dir", "."];
    for args in [&init[..], &issue, &other_kind, &csr, &sign] {
        let (_, error) = exits(dir.path(), args, 1)?;
        ensure!(
            error.contains("already exists") && error.contains("never overwritten"),
            "{error}"
        );
    }
    ensure!(read()? == before);
    // Half of a pair is enough to refuse, and the other half is not made.
    std::fs::remove_file(dir.path().join("a1.pem"))?;
    exits(dir.path(), &issue, 1)?;
    ensure!(!dir.path().join("a1.pem").exists());
    Ok(())
}

/// 2 for what was asked wrongly, 1 for what could not be done; nothing is written either way.
#[test]
fn mistakes_have_their_exit_codes() -> Result {
    let dir = tempfile::tempdir()?;
    exits(
        dir.path(),
        &["certs", "init", "--cluster", CLUSTER, "--dir", "."],
        0,
    )?;
    exits(
        dir.path(),
        &[
            "certs",
            "init",
            "--cluster",
            "other.example.com",
            "--dir",
            "other",
        ],
        0,
    )?;
    let csr = [
        "certs",
        "csr",
        "agent",
        "far",
        "--cluster",
        CLUSTER,
        "--dir",
        ".",
    ];
    exits(dir.path(), &csr, 0)?;
    std::fs::write(
        dir.path().join("noise.pem"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )?;
    let files = || -> Result<usize> { Ok(std::fs::read_dir(dir.path())?.count()) };
    let before = files()?;
    for (args, code, why) in [
        (
            &["certs", "init", "--cluster", "nodot", "--dir", "new"][..],
            2,
            "dot",
        ),
        (
            &[
                "certs",
                "init",
                "--cluster",
                "UPPER.example.com",
                "--dir",
                "new",
            ],
            2,
            "upper case",
        ),
        (
            &[
                "certs",
                "init",
                "--cluster",
                "x.example.com",
                "--dir",
                "new",
                "--days",
                "0",
            ],
            2,
            "--days",
        ),
        (
            &["certs", "issue", "agent", "ca", "--dir", "."],
            2,
            "the authority's",
        ),
        (&["certs", "issue", "king", "a1", "--dir", "."], 2, "king"),
        (&["certs", "issue", "agent", "a1"], 2, "--dir"),
        (
            &[
                "certs",
                "issue",
                "agent",
                "a1",
                "--dir",
                ".",
                "--dns",
                "*.example.com",
            ],
            2,
            "no DNS name",
        ),
        (
            &[
                "certs",
                "issue",
                "agent",
                "a1",
                "--dir",
                ".",
                "--dns",
                "proxy.test.example.com",
            ],
            2,
            "stands for this cluster's proxies",
        ),
        (
            &[
                "certs", "issue", "agent", "a1", "--dir", ".", "--days", "99999",
            ],
            2,
            "--days",
        ),
        (
            &["certs", "issue", "agent", "a1", "--dir", "nowhere"],
            1,
            "nowhere/ca.pem",
        ),
        (&["certs", "show", "missing.pem"], 1, "missing.pem"),
        (&["certs", "show", "noise.pem"], 1, "noise.pem"),
        (
            &["certs", "sign", "far.csr", "--dir", "other"],
            1,
            "other.example.com",
        ),
        (&["certs", "sign", "ca.pem", "--dir", "."], 1, "ca.pem"),
        (&["certs"], 2, "Usage"),
        (&["certs", "forge"], 2, "forge"),
    ] {
        let (_, error) = exits(dir.path(), args, code)?;
        ensure!(error.contains(why), "{args:?}: {error}");
        ensure!(files()? == before, "{args:?} wrote a file");
    }
    Ok(())
}
