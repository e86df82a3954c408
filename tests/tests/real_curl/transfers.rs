//! Bodies of all sizes and speeds, both ways.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::Context as _;
use mesh_tests::curl::{curl, curled, download, upload};
use mesh_tests::installation::{Installation, Site, tcp_ingress};
use mesh_tests::programs::{Sha256, run};
use mesh_tests::{Result, binary, probe, web};

use super::MIB;

const GIB: u64 = 1 << 30;

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
    let (file, at_file) = (
        file.to_str().context("path")?,
        format!("@{}", file.display()),
    );
    let expected = format!("{size} {digest}\n");

    // From a pipe: chunked, with PUT.
    assert_eq!(upload(&["-T", "-", &sink], size)?.0.text(), expected);
    // With POST.
    let chunked = ["-H", "Transfer-Encoding: chunked"];
    assert_eq!(
        curled(&[&chunked[..], &["--data-binary", &at_file, &sink]].concat())?,
        expected
    );
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
async fn http2_over_tls() -> Result {
    let web = web::start().await?;
    let tls = "kind = \"http\"\n\
               tls = { cert = \"certs/proxy-1.pem\", key = \"certs/proxy-1.key\" }";
    let mesh = Site::new()?.start(&[tls.into()], &[web.rule()])?;
    let ca = mesh.dir().join("certs/ca.pem");
    let ca = ["--cacert", ca.to_str().context("path")?];
    let url = |path: &str| {
        let port = mesh.ingress(0)?.port();
        anyhow::Ok(format!(
            "https://localhost:{port}/client/a1/http/{}{path}",
            web.addr
        ))
    };
    let size = 64 * MIB;
    let digest = web::digest(size);

    for (version, asked) in [("2", "--http2"), ("1.1", "--http1.1")] {
        let shape = [
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{http_version}",
            asked,
        ];
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
        let (answer, _) = upload(
            &[&ca[..], &[asked, "-T", "-", &url("/sink")?]].concat(),
            size,
        )?;
        assert_eq!(
            answer.text(),
            format!("{size} {digest}\n"),
            "HTTP/{version}"
        );
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
    let told = curled(&[
        "-o",
        "/dev/null",
        "-o",
        "/dev/null",
        "-w",
        format,
        both[0],
        both[1],
    ])?;
    assert_eq!(told, "1\n0\n");
    mesh.no_streams().await?;
    // A refused dial is a reset, and no empty answer (52). When curl sees it depends on how soon
    // it comes: connecting (7), sending (55) or receiving (56).
    let refused = run(&mut curl([&format!("http://{}/", mesh.ingress(1)?)])?)?;
    let code = refused.code();
    assert!(
        matches!(code, Some(7 | 55 | 56)),
        "{code:?} {}",
        refused.stderr
    );
    mesh.little_memory()?;
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
        .map(|_| {
            Ok(curl([&endless])?
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()?)
        })
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
    let mut upload = curl(["-T", "-", &sink])?
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
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
