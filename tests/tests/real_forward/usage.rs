//! Wrong usage: exit code 2, and what to do about it; identities and proxies that do not fit.

use std::fs;
use std::process::Output;

use ::certs::{Kind, Request, Validity};
use anyhow::Context as _;
use mesh_tests::Result;
use mesh_tests::binary::{free_port, run};

use super::support::{Mesh, certificates, certs};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_usage_names_the_part_and_the_remedy() -> Result {
    let dir = certificates()?;
    fs::write(dir.path().join("certs/empty.pem"), "")?;
    certs(dir.path(), &["issue", "user", "bob"])?;
    fs::remove_file(dir.path().join("certs/bob.key"))?;
    let good = ["--proxy", "127.0.0.1:7443", "--identity", "certs/alice.pem"];
    let with = |args: &[&'static str]| [&good[..], args].concat();
    for (args, words) in [
        (vec![], vec!["FORWARD"]),
        (
            with(&["5432:a1"]),
            vec!["`5432:a1`", "the target is missing"],
        ),
        (
            with(&["a1/web:80", "80:a1"]),
            vec!["`a1/web:80`", "`80:a1`"],
        ),
        (
            with(&["1:a1/x:1", "127.0.0.1:1:a1/y:1"]),
            vec!["there twice", "port 0"],
        ),
        (
            with(&["--udp", "53:a1/dns:53"]),
            vec!["UDP is not forwarded"],
        ),
        (with(&["udp:53:a1/dns:53"]), vec!["UDP is not forwarded"]),
        (
            with(&["--connections-max", "0", "1:a1/x:1"]),
            vec!["--connections-max"],
        ),
        (
            vec!["--identity", "certs/alice.pem", "1:a1/x:1"],
            vec!["--proxy", "MESH_PROXY"],
        ),
        (
            vec!["--proxy", "x", "1:a1/x:1"],
            vec!["--identity", "MESH_IDENTITY"],
        ),
        (
            vec![
                "--proxy",
                "https://x",
                "--identity",
                "certs/alice.pem",
                "1:a1/x:1",
            ],
            vec!["--proxy", "leave the scheme out"],
        ),
        (
            vec!["--proxy", "x", "--identity", "certs/nobody.pem", "1:a1/x:1"],
            vec!["certs/nobody.pem"],
        ),
        (
            vec!["--proxy", "x", "--identity", "certs/alice.key", "1:a1/x:1"],
            vec!["name the certificate, certs/alice.pem"],
        ),
        (
            vec!["--proxy", "x", "--identity", "certs/bob.pem", "1:a1/x:1"],
            vec!["certs/bob.key"],
        ),
        (
            vec!["--proxy", "x", "--identity", "certs/empty.pem", "1:a1/x:1"],
            vec!["certs/empty."],
        ),
        (
            vec!["--proxy", "x", "--identity", "certs/a1.pem", "1:a1/x:1"],
            vec!["/agent/a1", "node certs issue user NAME"],
        ),
    ] {
        let args = [&["forward"], &args[..]].concat();
        let output = run(dir.path(), &args)?;
        let told = text(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        for words in words {
            assert!(told.contains(words), "{args:?}: no `{words}` in: {told}");
        }
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    Ok(())
}

#[test]
fn what_cannot_work_is_said_at_once() -> Result {
    let mesh = Mesh::start(1, &[])?;
    let proxy = mesh.quic(0).to_string();
    // Another authority, which names the same cluster.
    let other = certificates()?;
    let foreign = other.path().join("certs/alice.pem").display().to_string();
    let output = run(
        mesh.dir(),
        &[
            "forward",
            "--proxy",
            &proxy,
            "--identity",
            &foreign,
            "0:a1/x:1",
        ],
    )?;
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("do not trust each other"), "{told}");
    assert!(
        told.contains(&proxy) && told.contains("/user/alice"),
        "{told}"
    );

    // A port that is taken.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?;
    let spec = format!("{}:a1/x:1", taken.port());
    let output = run(
        mesh.dir(),
        &[
            "forward",
            "--proxy",
            &proxy,
            "--identity",
            "certs/alice.pem",
            &spec,
        ],
    )?;
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains(&format!("cannot listen on {taken}")),
        "{told}"
    );
    assert!(told.contains("choose another port"), "{told}");
    Ok(())
}

#[test]
fn an_expired_identity_is_wrong_usage() -> Result {
    let dir = certificates()?;
    let pki = mesh_tests::pki::Pki::new("test.example.com")?;
    let now = ::certs::system_time().current_time().context("no clock")?;
    let now = i64::try_from(now.as_secs())?;
    let validity = Validity::between(now - 3000, now - 600)?;
    let request = Request::new(Kind::User, "late".parse()?, validity);
    pki.authority()
        .issue(&request)?
        .save(&dir.path().join("certs"))?;
    fs::write(dir.path().join("certs/ca.pem"), pki.authority().ca_pem())?;
    let unused = free_port()?.to_string();
    let output = run(
        dir.path(),
        &[
            "forward",
            "--proxy",
            &unused,
            "--identity",
            "certs/late.pem",
            "0:a1/x:1",
        ],
    )?;
    let told = text(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains("certs/late.pem") && told.contains("expired at"),
        "{told}"
    );
    Ok(())
}
