//! What is asked and answered: methods, headers, upgrades, refusals, tokens.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Context as _;
use mesh_tests::curl::{curl, curled, upload};
use mesh_tests::installation::{Installation, Site};
use mesh_tests::programs::{RUN_PATIENCE, run};
use mesh_tests::{Result, binary, web};
use serde_json::Value;

use super::MIB;

/// Asks for a status and a header, as in `502 no_agent`.
fn refused(args: &[&str]) -> Result<String> {
    let format = "%{http_code} %header{x-mesh-error}";
    let shape = ["--output", "/dev/null", "--write-out", format];
    Ok(curled(&[&shape, args].concat())?.trim_end().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_urls_share_a_connection() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let (first, second) = (
        mesh.url(web.addr, "/first")?,
        mesh.url(web.addr, "/second")?,
    );
    let format = "%{num_connects} %{http_code} %{http_version}\\n";
    let told = curled(&[
        "-o",
        "/dev/null",
        "-o",
        "/dev/null",
        "-w",
        format,
        &first,
        &second,
    ])?;
    assert_eq!(told, "1 200 1.1\n0 200 1.1\n");
    // The connection behind the agent is kept as well.
    assert_eq!(web.accepted(), 1);

    // HTTP/1.0 is answered and closed, unless the client asks to keep it.
    let told = curled(&[
        "--http1.0",
        "-o",
        "/dev/null",
        "-o",
        "/dev/null",
        "-w",
        format,
        &first,
        &second,
    ])?;
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.lines().all(|line| line.contains(" 200 ")), "{told}");
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_100_continue() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let size = 3 * MIB;
    // Without the interim response curl would wait for longer than it is allowed to run.
    let patience = (2 * RUN_PATIENCE.as_secs()).to_string();
    let waiting = [
        "-v",
        "-H",
        "Expect: 100-continue",
        "--expect100-timeout",
        &patience,
        "-T",
        "-",
    ];
    let sink = mesh.url(web.addr, "/sink")?;
    let (answer, digest) = upload(&[&waiting[..], &[&sink]].concat(), size)?;
    assert_eq!(answer.text(), format!("{size} {digest}\n"));
    assert!(
        answer.stderr.contains("< HTTP/1.1 100 Continue"),
        "{}",
        answer.stderr
    );

    // Who is refused has sent nothing.
    let nowhere = sink.replace("/client/a1/", "/client/nobody/");
    let format = "%{http_code} %header{x-mesh-error} %{size_upload}";
    let shape = ["-o", "/dev/null", "-w", format];
    let (answer, _) = upload(&[&waiting[..], &shape, &[&nowhere]].concat(), size)?;
    assert_eq!(answer.text(), "502 no_agent 0");
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let url = mesh.url(web.addr, "/echo/some%20path/../x?q=%2f&r")?;
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE",
    ] {
        for body in ["", "some body"] {
            let told = curled(&["-X", method, "--path-as-is", "--data-binary", body, &url])?;
            let told: Value = serde_json::from_str(&told).context(told)?;
            assert_eq!(told["method"], method);
            assert_eq!(told["path"], "/echo/some%20path/../x?q=%2f&r");
            assert_eq!(told["body_bytes"], body.len(), "{method}");
            assert_eq!(told["headers"]["host"][0], web.addr.to_string());
        }
    }
    let head = curled(&["-I", &mesh.url(web.addr, &format!("/source/{MIB}"))?])?.to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(
        head.contains(&format!("content-length: {MIB}\r\n")),
        "{head}"
    );
    let options = curled(&["-i", "-X", "OPTIONS", &url])?.to_lowercase();
    assert!(
        options.contains("allow: get, head, options\r\n"),
        "{options}"
    );
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_upgrade() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    // The example of RFC 6455, section 1.3.
    let finished = run(&mut curl([
        "-i",
        "-N",
        "--http1.1",
        "-H",
        "Connection: Upgrade",
        "-H",
        "Upgrade: websocket",
        "-H",
        "Sec-WebSocket-Version: 13",
        "-H",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        &mesh.url(web.addr, "/upgrade")?,
    ])?)?
    .must()?;
    let end = finished
        .stdout
        .windows(4)
        .position(|four| four == b"\r\n\r\n");
    let (head, sent) = finished
        .stdout
        .split_at(end.context("no end of the head")? + 4);
    let head = String::from_utf8_lossy(head).to_lowercase();
    assert!(
        head.starts_with("http/1.1 101 switching protocols\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    assert!(
        head.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"),
        "{head}"
    );
    assert_eq!(sent, web::UPGRADED_BYTES);
    mesh.no_streams().await?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_why() -> Result {
    let web = web::start().await?;
    let nothing = binary::free_port()?;
    let mesh = Installation::http(&[web.rule(), nothing.to_string()])?;
    let base = format!("http://{}", mesh.ingress(0)?);
    let target = web.addr;
    for (path, expected) in [
        (format!("/client/a1/http/{target}/"), "200 "),
        (
            format!("/client/a1.test.example.com/http/{target}/"),
            "200 ",
        ),
        (format!("/client/nobody/http/{target}/"), "502 no_agent"),
        ("/client/a1/http/127.0.0.1:1/".into(), "403 not_allowed"),
        ("/client/a1/http/169.254.169.254/".into(), "403 not_allowed"),
        (format!("/client/a1/http/{nothing}/"), "502 refused"),
        (format!("/client/a1/ftp/{target}/"), "400 bad_target"),
        ("/client/a1/http/127.1:80/".into(), "400 bad_target"),
        ("/client/a1/http/127.0.0.1:99999/".into(), "400 bad_target"),
        ("/client/a1".into(), "400 bad_target"),
        ("/client/A_1/http/127.0.0.1:80/".into(), "400 bad_target"),
        ("/".into(), "404"),
        ("/robots.txt".into(), "404"),
    ] {
        assert_eq!(
            refused(&[&format!("{base}{path}")])?,
            expected.trim_end(),
            "{path}"
        );
        // The same with a body that is refused unread.
        let body = ["--data-binary", "ignored"];
        let url = format!("{base}{path}");
        assert_eq!(
            refused(&[&body[..], &[&url]].concat())?,
            expected.trim_end(),
            "{path}"
        );
    }
    // The text says what was asked for, and the target cannot pretend to be the mesh.
    let text = curled(&[&format!("{base}/client/nobody/http/{target}/")])?;
    assert!(text.starts_with("no_agent: "), "{text}");
    assert!(
        text.contains("nobody") && text.contains(&target.to_string()),
        "{text}"
    );
    // A page of another site does not get through a browser on this machine.
    let url = format!("{base}/client/a1/http/{target}/");
    assert_eq!(
        refused(&["-H", "Host: rebound.example.net", &url])?,
        "403 not_allowed"
    );
    assert_eq!(
        refused(&["-H", "Origin: https://evil.example.net", &url])?,
        "403 not_allowed"
    );
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_with_tokens() -> Result {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let web = web::start().await?;
    let site = Site::new()?;
    let tokens = site.dir().join("tokens.txt");
    fs::write(&tokens, format!("# who may\nci:{TOKEN}\n"))?;
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600))?;
    let ingress = "kind = \"http\"\nauth = { tokens_file = \"tokens.txt\" }";
    let mesh = site.start(&[ingress.into()], &[web.rule()])?;
    let url = mesh.url(web.addr, "/echo")?;

    assert_eq!(refused(&[&url])?, "401 not_allowed");
    assert_eq!(
        refused(&["-H", "X-Mesh-Token: 0123456789abcdef0123456789abcdeX", &url])?,
        "401 not_allowed"
    );
    assert_eq!(refused(&["-u", "ci:secret", &url])?, "401 not_allowed");
    for header in [
        format!("X-Mesh-Token: {TOKEN}"),
        format!("Authorization: Bearer {TOKEN}"),
    ] {
        let told = curled(&["-H", &header, &url])?;
        assert!(!told.contains(TOKEN), "the target saw the token: {told}");
    }
    // A target with credentials of its own.
    let header = format!("X-Mesh-Token: {TOKEN}");
    let told = curled(&["-H", &header, "-u", "user:word", &url])?;
    let told: Value = serde_json::from_str(&told)?;
    assert_eq!(told["headers"]["authorization"][0], "Basic dXNlcjp3b3Jk");
    mesh.stop()
}
