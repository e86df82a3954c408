//! curl, as users have it, through the real binary.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use mesh_tests::installation::{Installation, Site, tcp_ingress};
use mesh_tests::programs::{Finished, RUN_PATIENCE, Sha256, curl, run, run_fed, run_piped};
use mesh_tests::{Result, binary, probe, web};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Runs curl to its success and returns what it wrote.
fn curled(args: &[&str]) -> Result<String> {
    Ok(run(&mut curl(args)?)?.must()?.text())
}

/// Runs curl with a body of `bytes` on its standard input; returns what it wrote, and the digest
/// of the body.
fn upload(args: &[&str], bytes: u64) -> Result<(Finished, String)> {
    let mut sha256 = Sha256::default();
    let finished = run_fed(&mut curl(args)?, |stdin| {
        for piece in web::pieces(bytes) {
            sha256.update(&piece);
            stdin.write_all(&piece)?;
        }
        Ok(())
    })?;
    Ok((finished.must()?, sha256.finish()))
}

/// Runs curl and digests what it writes, without keeping it; returns the bytes too.
fn download(args: &[&str]) -> Result<(u64, String)> {
    let (mut bytes, mut sha256) = (0, Sha256::default());
    let finished = run_piped(&mut curl(args)?, |_| Ok(()), |piece| {
        bytes += piece.len() as u64;
        sha256.update(piece);
    })?;
    finished.must()?;
    Ok((bytes, sha256.finish()))
}

/// Asks for a status and a header, as in `502 no_agent`.
fn refused(args: &[&str]) -> Result<String> {
    let shape = ["--output", "/dev/null", "--write-out", "%{http_code} %header{x-mesh-error}"];
    Ok(curled(&[&shape, args].concat())?.trim_end().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_urls_share_a_connection() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let (first, second) = (mesh.url(web.addr, "/first")?, mesh.url(web.addr, "/second")?);
    let format = "%{num_connects} %{http_code} %{http_version}\\n";
    let told = curled(&["-o", "/dev/null", "-o", "/dev/null", "-w", format, &first, &second])?;
    assert_eq!(told, "1 200 1.1\n0 200 1.1\n");
    // The connection behind the agent is kept as well.
    assert_eq!(web.accepted(), 1);

    // HTTP/1.0 is answered and closed, unless the client asks to keep it.
    let told = curled(&["--http1.0", "-o", "/dev/null", "-o", "/dev/null", "-w", format, &first, &second])?;
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.lines().all(|line| line.contains(" 200 ")), "{told}");
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gibibyte_down() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let (bytes, digest) = download(&[&mesh.url(web.addr, &format!("/source/{GIB}"))?])?;
    assert_eq!((bytes, digest), (GIB, web::digest(GIB)));
    mesh.little_memory()?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gibibyte_up() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let url = mesh.url(web.addr, "/sink")?;
    let (answer, digest) = upload(&["-T", "-", &url], GIB)?;
    assert_eq!(answer.text(), format!("{GIB} {digest}\n"));
    mesh.little_memory()?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_get_everything() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let size = 6 * MIB;
    let source = mesh.url(web.addr, &format!("/source/{size}"))?;
    let (bytes, digest) = download(&["--limit-rate", "3M", &source])?;
    assert_eq!((bytes, digest), (size, web::digest(size)));
    let sink = mesh.url(web.addr, "/sink")?;
    let (answer, digest) = upload(&["--limit-rate", "3M", "-T", "-", &sink], size)?;
    assert_eq!(answer.text(), format!("{size} {digest}\n"));
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_every_form() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let sink = mesh.url(web.addr, "/sink")?;
    let size = 5 * MIB + 4321;
    let digest = web::digest(size);
    let file = mesh.dir().join("body");
    std::fs::write(&file, web::pieces(size).flatten().collect::<Vec<_>>())?;
    let (file, at_file) = (file.to_str().context("path")?, format!("@{}", file.display()));
    let expected = format!("{size} {digest}\n");

    // From a pipe: chunked, with PUT.
    assert_eq!(upload(&["-T", "-", &sink], size)?.0.text(), expected);
    // With POST.
    let chunked = ["-H", "Transfer-Encoding: chunked"];
    assert_eq!(curled(&[&chunked[..], &["--data-binary", &at_file, &sink]].concat())?, expected);
    // With a length.
    assert_eq!(curled(&["-T", file, &sink])?, expected);
    assert_eq!(curled(&["--data-binary", &at_file, &sink])?, expected);
    // As a form, whose envelope curl makes.
    let form = curled(&["-F", &format!("file=@{file}"), &sink])?;
    let sent: u64 = form.split(' ').next().context("no size")?.parse()?;
    assert!(sent > size, "{form}");
    // Nothing at all.
    let nothing = format!("0 {}\n", Sha256::of(b""));
    assert_eq!(curled(&["--data-binary", "", &sink])?, nothing);
    assert_eq!(curled(&["-T", "/dev/null", &sink])?, nothing);
    // Chunked downloads.
    let chunks = mesh.url(web.addr, &format!("/chunked/{size}"))?;
    assert_eq!(download(&[&chunks])?, (size, digest));
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_100_continue() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let size = 3 * MIB;
    // Without the interim response curl would wait for longer than it is allowed to run.
    let patience = (2 * RUN_PATIENCE.as_secs()).to_string();
    let waiting =
        ["-v", "-H", "Expect: 100-continue", "--expect100-timeout", &patience, "-T", "-"];
    let sink = mesh.url(web.addr, "/sink")?;
    let (answer, digest) = upload(&[&waiting[..], &[&sink]].concat(), size)?;
    assert_eq!(answer.text(), format!("{size} {digest}\n"));
    assert!(answer.stderr.contains("< HTTP/1.1 100 Continue"), "{}", answer.stderr);

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
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"] {
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
    assert!(head.contains(&format!("content-length: {MIB}\r\n")), "{head}");
    let options = curled(&["-i", "-X", "OPTIONS", &url])?.to_lowercase();
    assert!(options.contains("allow: get, head, options\r\n"), "{options}");
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_over_tls() -> Result {
    let web = web::start().await?;
    let tls = "kind = \"http\"\n\
               tls = { cert = \"certs/proxy-1.pem\", key = \"certs/proxy-1.key\" }";
    let mesh = Site::new()?.start(&[tls.into()], &[web.rule()])?;
    let ca = mesh.dir().join("certs/ca.pem");
    let ca = ["--cacert", ca.to_str().context("path")?];
    let url = |path: &str| {
        let port = mesh.ingress(0)?.port();
        anyhow::Ok(format!("https://localhost:{port}/client/a1/http/{}{path}", web.addr))
    };
    let size = 64 * MIB;
    let digest = web::digest(size);

    for (version, asked) in [("2", "--http2"), ("1.1", "--http1.1")] {
        let shape = ["-o", "/dev/null", "-w", "%{http_code} %{http_version}", asked];
        assert_eq!(
            curled(&[&ca[..], &shape, &[&url("/x")?]].concat())?,
            format!("200 {version}")
        );
        let source = url(&format!("/source/{size}"))?;
        assert_eq!(
            download(&[&ca[..], &[asked, &source]].concat())?,
            (size, digest.clone()),
            "HTTP/{version}"
        );
        let (answer, _) = upload(&[&ca[..], &[asked, "-T", "-", &url("/sink")?]].concat(), size)?;
        assert_eq!(answer.text(), format!("{size} {digest}\n"), "HTTP/{version}");
    }

    // Several at once on one connection.
    let mut args = [&ca[..], &["--http2", "--parallel", "--fail"]].concat();
    let several = url(&format!("/source/{}?[1-8]", 2 * MIB))?;
    let files = mesh.dir().join("part-#1");
    args.extend([several.as_str(), "-o", files.to_str().context("path")?]);
    curled(&args)?;
    for part in 1..=8 {
        let got = std::fs::read(mesh.dir().join(format!("part-{part}")))?;
        assert_eq!(Sha256::of(&got), web::digest(2 * MIB), "part {part}");
    }

    // Who does not know the authority does not talk to it.
    assert_eq!(run(&mut curl([&url("/x")?])?)?.code(), Some(60));
    mesh.little_memory()?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_upgrade() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    // The example of RFC 6455, section 1.3.
    let finished = run(&mut curl([
        "-i", "-N", "--http1.1",
        "-H", "Connection: Upgrade",
        "-H", "Upgrade: websocket",
        "-H", "Sec-WebSocket-Version: 13",
        "-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        &mesh.url(web.addr, "/upgrade")?,
    ])?)?.must()?;
    let end = finished.stdout.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, sent) = finished.stdout.split_at(end.context("no end of the head")? + 4);
    let head = String::from_utf8_lossy(head).to_lowercase();
    assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
    assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
    assert!(head.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");
    assert_eq!(sent, web::UPGRADED_BYTES);
    mesh.no_streams().await?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_downloads_leave_nothing() -> Result {
    let web = web::start().await?;
    let mesh = Installation::http(&[web.rule()])?;
    let endless = mesh.url(web.addr, "/endless")?;
    let gave_up = run(&mut curl(["--max-time", "1", "-o", "/dev/null", &endless])?)?;
    assert_eq!(gave_up.code(), Some(28), "{}", gave_up.stderr);
    mesh.no_streams().await?;

    // Killed, and stalled before that: nothing takes what comes.
    let mut stalled: Vec<_> = (0..8)
        .map(|_| Ok(curl([&endless])?.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
        .collect::<Result<_>>()?;
    let arrived = probe::until("all downloads run", || web.open() == 8).await;
    for client in &mut stalled {
        client.kill()?;
        client.wait()?;
    }
    arrived?;
    mesh.no_streams().await?;
    probe::until("the target has no connection", || web.open() == 0).await?;

    // Uploads too.
    let sink = mesh.url(web.addr, "/sink")?;
    let mut upload =
        curl(["-T", "-", &sink])?.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let mut stdin = upload.stdin.take().context("no standard input")?;
    stdin.write_all(&[1; 100_000])?;
    let arrived = probe::until("the upload runs", || web.open() == 1).await;
    upload.kill()?;
    upload.wait()?;
    arrived?;
    mesh.no_streams().await?;
    probe::until("the target has no connection", || web.open() == 0).await?;
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
        (format!("/client/a1.test.example.com/http/{target}/"), "200 "),
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
        assert_eq!(refused(&[&format!("{base}{path}")])?, expected.trim_end(), "{path}");
        // The same with a body that is refused unread.
        let body = ["--data-binary", "ignored"];
        let url = format!("{base}{path}");
        assert_eq!(refused(&[&body[..], &[&url]].concat())?, expected.trim_end(), "{path}");
    }
    // The text says what was asked for, and the target cannot pretend to be the mesh.
    let text = curled(&[&format!("{base}/client/nobody/http/{target}/")])?;
    assert!(text.starts_with("no_agent: "), "{text}");
    assert!(text.contains("nobody") && text.contains(&target.to_string()), "{text}");
    // A page of another site does not get through a browser on this machine.
    let url = format!("{base}/client/a1/http/{target}/");
    assert_eq!(refused(&["-H", "Host: rebound.example.net", &url])?, "403 not_allowed");
    assert_eq!(refused(&["-H", "Origin: https://evil.example.net", &url])?, "403 not_allowed");
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_with_tokens() -> Result {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let web = web::start().await?;
    let site = Site::new()?;
    let tokens = site.dir().join("tokens.txt");
    std::fs::write(&tokens, format!("# who may\nci:{TOKEN}\n"))?;
    ensure!(Command::new("chmod").arg("600").arg(&tokens).status()?.success(), "chmod");
    let ingress = "kind = \"http\"\nauth = { tokens_file = \"tokens.txt\" }";
    let mesh = site.start(&[ingress.into()], &[web.rule()])?;
    let url = mesh.url(web.addr, "/echo")?;

    assert_eq!(refused(&[&url])?, "401 not_allowed");
    assert_eq!(refused(&["-H", "X-Mesh-Token: 0123456789abcdef0123456789abcdeX", &url])?, "401 not_allowed");
    assert_eq!(refused(&["-u", "ci:secret", &url])?, "401 not_allowed");
    for header in [format!("X-Mesh-Token: {TOKEN}"), format!("Authorization: Bearer {TOKEN}")] {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tcp_ingress() -> Result {
    let web = web::start().await?;
    let nothing = binary::free_port()?;
    let allow = [web.rule(), nothing.to_string()];
    let ingresses = [tcp_ingress(web.addr), tcp_ingress(nothing)];
    let mesh = Site::new()?.start(&ingresses, &allow)?;
    let base = format!("http://{}", mesh.ingress(0)?);
    let size = 128 * MIB;
    let (bytes, digest) = download(&[&format!("{base}/source/{size}")])?;
    assert_eq!((bytes, digest), (size, web::digest(size)));
    let (answer, digest) = upload(&["-T", "-", &format!("{base}/sink")], size)?;
    assert_eq!(answer.text(), format!("{size} {digest}\n"));
    let format = "%{num_connects}\\n";
    let both = [&format!("{base}/a"), &format!("{base}/b")];
    let told =
        curled(&["-o", "/dev/null", "-o", "/dev/null", "-w", format, both[0], both[1]])?;
    assert_eq!(told, "1\n0\n");
    mesh.no_streams().await?;
    // A refused dial is a reset, and no empty answer.
    let refused = run(&mut curl([&format!("http://{}/", mesh.ingress(1)?)])?)?;
    assert_eq!(refused.code(), Some(56), "{}", refused.stderr);
    mesh.little_memory()?;
    mesh.stop()
}
