//! A real sshd behind the agent, and ssh and scp at a `tcp` ingress.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use anyhow::Context as _;
use mesh_tests::binary::{Process, free_port};
use mesh_tests::curl::{download, upload};
use mesh_tests::installation::Installation;
use mesh_tests::programs::{Daemon, Sha256, run, run_fed, run_piped};
use mesh_tests::sshd::Sshd;
use mesh_tests::{Result, probe, web};

const SIZE: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands() -> Result {
    let sshd = Sshd::start(None)?;
    let mesh = Installation::tcp(sshd.addr())?;
    let ingress = mesh.ingress(0)?;
    let told = run(sshd.ssh(ingress)?.arg("echo out; echo err >&2; exit 7"))?;
    assert_eq!(
        (told.code(), told.text().as_str()),
        (Some(7), "out\n"),
        "{}",
        told.stderr
    );
    assert!(told.stderr.contains("err"), "{}", told.stderr);
    assert_eq!(run(sshd.ssh(ingress)?.arg("true"))?.must()?.stdout, b"");
    // Where it came from: the agent.
    let told = run(sshd.ssh(ingress)?.arg("echo $SSH_CONNECTION"))?
        .must()?
        .text();
    assert!(
        told.trim()
            .ends_with(&format!("127.0.0.1 {}", sshd.addr().port())),
        "{told}"
    );
    // A terminal, for what it is worth without one here.
    let told = run(sshd
        .ssh(ingress)?
        .args(["-tt", "test -t 0 && echo terminal"]))?
    .must()?;
    assert_eq!(told.text().trim(), "terminal");
    mesh.no_streams().await?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipes_both_ways() -> Result {
    let sshd = Sshd::start(None)?;
    let mesh = Installation::tcp(sshd.addr())?;
    let (mut bytes, mut sha256) = (0, Sha256::default());
    run_piped(
        sshd.ssh(mesh.ingress(0)?)?.arg("cat"),
        |stdin| web::pieces(SIZE).try_for_each(|piece| stdin.write_all(&piece)),
        |piece| {
            bytes += piece.len() as u64;
            sha256.update(piece);
        },
    )?
    .must()?;
    assert_eq!((bytes, sha256.finish()), (SIZE, web::digest(SIZE)));

    // One way at a time, with the end of the input as the only sign of it.
    let told = run_fed(sshd.ssh(mesh.ingress(0)?)?.arg("sha256sum"), |stdin| {
        web::pieces(SIZE).try_for_each(|piece| stdin.write_all(&piece))
    })?
    .must()?;
    assert_eq!(told.text(), format!("{}  -\n", web::digest(SIZE)));
    mesh.no_streams().await?;
    mesh.little_memory()?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_up_and_down() -> Result {
    let sshd = Sshd::start(None)?;
    let mesh = Installation::tcp(sshd.addr())?;
    let ingress = mesh.ingress(0)?;
    let [here, there, back] = ["here", "there", "back"].map(|name| sshd.path(name));
    let bytes: Vec<_> = web::pieces(SIZE).flatten().collect();
    fs::write(&here, &bytes)?;
    run(sshd
        .client("scp", ingress)?
        .arg(&here)
        .arg(sshd.remote(ingress, &there)))?
    .must()?;
    assert!(fs::read(&there)? == bytes, "what was copied up differs");
    run(sshd
        .client("scp", ingress)?
        .arg(sshd.remote(ingress, &there))
        .arg(&back))?
    .must()?;
    assert!(fs::read(&back)? == bytes, "what was copied down differs");
    // With the protocol of old, which has another rhythm.
    fs::remove_file(&there)?;
    run(sshd
        .client("scp", ingress)?
        .arg("-O")
        .arg(&here)
        .arg(sshd.remote(ingress, &there)))?
    .must()?;
    assert!(
        fs::read(&there)? == bytes,
        "what was copied up with -O differs"
    );
    let absent = run(sshd
        .client("scp", ingress)?
        .arg(sshd.remote(ingress, &sshd.path("absent")))
        .arg(&back))?;
    assert_eq!(absent.code(), Some(1), "{}", absent.stderr);
    mesh.no_streams().await?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwards_a_port() -> Result {
    let web = web::start().await?;
    let sshd = Sshd::start(None)?;
    let mesh = Installation::tcp(sshd.addr())?;
    let (local, ingress) = (free_port()?, mesh.ingress(0)?);
    let mut forward = sshd.client("ssh", ingress)?;
    forward
        .args([
            "-N",
            "-o",
            "ExitOnForwardFailure=yes",
            "-L",
            &format!("{local}:{}", web.addr),
        ])
        .arg(format!("{}@{}", sshd.user(), ingress.ip()));
    let daemon = Daemon::start(forward, local)?;

    let size = 16 << 20;
    let source = format!("http://{local}/source/{size}");
    assert_eq!(download(&[&source])?, (size, web::digest(size)));
    // Several at once over the one connection.
    let sink = format!("http://{local}/sink");
    let uploads: Vec<_> = std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| upload(&["-T", "-", &sink], size)))
            .collect();
        uploads
            .into_iter()
            .map(|upload| upload.join().expect("no panic"))
            .collect()
    });
    for upload in uploads {
        let (told, digest) = upload?;
        assert_eq!(told.text(), format!("{size} {digest}\n"));
    }
    let [proxy, _] = mesh.metrics().await?;
    assert_eq!(proxy.get("mesh_streams_open")?, 1.0);
    drop(daemon);
    mesh.no_streams().await?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_sessions_at_once() -> Result {
    let sshd = Sshd::start(None)?;
    let mesh = Installation::tcp(sshd.addr())?;
    let ingress = mesh.ingress(0)?;
    // All are in at once: each waits until a file says go.
    let go = sshd.path("go");
    let script = format!(
        "echo ready; while [ ! -e {} ]; do sleep 0.05; done; read -r line; echo $line; exec cat",
        go.display()
    );
    let mut sessions = (0..10)
        .map(|_| {
            let mut ssh = sshd.ssh(ingress)?;
            ssh.arg(&script);
            Process::spawn_with_input(ssh)
        })
        .collect::<Result<Vec<_>>>()?;
    for (session, _) in &mut sessions {
        session.wait_for_log("ready")?;
    }
    let [proxy, agent] = mesh.metrics().await?;
    assert_eq!(proxy.get("mesh_streams_open")?, 10.0);
    assert_eq!(agent.get("mesh_streams_open")?, 10.0);
    fs::write(&go, "")?;
    for (number, (_, stdin)) in sessions.iter_mut().enumerate() {
        use std::io::Write as _;
        writeln!(stdin, "session {number}")?;
        writeln!(stdin, "and more for {number}")?;
    }
    for (number, (mut session, stdin)) in sessions.into_iter().enumerate() {
        drop(stdin);
        let status = session
            .wait()
            .with_context(|| format!("session {number}"))?;
        assert!(status.success(), "{status}: {}", session.log());
        // What the shell's own start-up files complain of comes first.
        let log = session.log();
        let echoed = format!("ready\nsession {number}\nand more for {number}");
        assert!(log.ends_with(&echoed), "{log}");
    }
    mesh.no_streams().await?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_session_ends_at_the_server() -> Result {
    let sshd = Sshd::start(None)?;
    let mesh = Installation::tcp(sshd.addr())?;
    let mark = sshd.path("mark");
    let mut ssh = sshd.ssh(mesh.ingress(0)?)?;
    // When the connection ends, sshd closes the pipe and `cat` sees the end.
    ssh.arg(format!("echo ready; cat; touch {}", mark.display()));
    let (mut session, stdin) = Process::spawn_with_input(ssh)?;
    session.wait_for_log("ready")?;
    session.signal("KILL")?;
    mesh.no_streams().await?;
    probe::until("the server's side has ended", || mark.exists()).await?;
    drop(stdin);
    mesh.stop()
}
