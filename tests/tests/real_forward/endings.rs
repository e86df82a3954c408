//! Signals, and what waits for them.

use std::process::{Command, Stdio};

use mesh_tests::binary::{Process, free_port, path};
use mesh_tests::services::{Service, echoes};
use mesh_tests::{Result, probe};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::support::Mesh;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_signal_waits_for_connections_and_accepts_no_more() -> Result {
    let echo = Service::echo().await?;
    let mesh = Mesh::start(1, &[echo.rule()])?;
    let mut forward = mesh.forward(&[&format!("0:a1/{}", echo.addr)])?;
    let local = forward.local(0)?;
    let mut open = TcpStream::connect(local).await?;
    open.write_all(b"x").await?;
    open.read_exact(&mut [0]).await?;
    forward.0.signal("INT")?;
    assert_eq!(forward.wait_for("ending")?["connections"], 1);
    probe::eventually("the listener is closed", || async {
        match TcpStream::connect(local).await {
            Ok(_) => anyhow::bail!("it still accepts"),
            Err(_) => Ok(()),
        }
    })
    .await?;
    open.write_all(b"and the rest").await?;
    open.shutdown().await?;
    let mut rest = String::new();
    open.read_to_string(&mut rest).await?;
    assert_eq!(rest, "and the rest");
    assert_eq!(forward.0.wait()?.code(), Some(0));
    assert_eq!(forward.told("ended")?[0]["cut"], 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once() -> Result {
    let echo = Service::echo().await?;
    let mesh = Mesh::start(1, &[echo.rule()])?;
    let mut forward = mesh.forward(&[&format!("0:a1/{}", echo.addr)])?;
    let mut open = TcpStream::connect(forward.local(0)?).await?;
    open.write_all(b"x").await?;
    open.read_exact(&mut [0]).await?;
    forward.0.signal("TERM")?;
    forward.wait_for("ending")?;
    forward.0.signal("INT")?;
    assert_eq!(forward.0.wait()?.code(), Some(1));
    assert!(forward.0.log().contains("ended at once by a second signal"));
    open.read_to_end(&mut Vec::new()).await.expect_err("cut");
    Ok(())
}

/// For people, with a reader that goes away: nothing of that disturbs the connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_for_people_and_a_reader_that_has_gone() -> Result {
    let echo = Service::echo().await?;
    let mesh = Mesh::start(1, &[echo.rule()])?;
    let mut command = Command::new(path()?);
    command
        .args(["forward", &format!("0:a1/{}", echo.addr)])
        .env("MESH_PROXY", mesh.quic(0).to_string())
        .env("MESH_IDENTITY", "certs/alice.pem")
        .current_dir(mesh.dir());
    let mut forward = Process::spawn(command)?;
    forward.wait_for_log("ready: ")?;
    let log = forward.log();
    let mut lines = log.lines();
    let connected = format!("connected to proxy-1 at {}", mesh.quic(0));
    assert_eq!(lines.next(), Some(connected.as_str()));
    let ready = lines.next().unwrap();
    let local = ready
        .strip_prefix("ready: ")
        .and_then(|rest| rest.strip_suffix(&format!(" leads to a1/{}", echo.addr)))
        .unwrap_or_else(|| panic!("{ready}"));
    echoes(local.parse()?, b"hello").await?;
    forward.signal("TERM")?;
    assert_eq!(forward.wait()?.code(), Some(0));
    assert_eq!(forward.log().lines().last(), Some("ended"));

    // Whoever read its lines has gone before there was one.
    let local = free_port()?;
    let mut command = Command::new(path()?);
    command
        .args(["forward", "--json", "--identity", "certs/alice.pem"])
        .args(["--proxy", &mesh.quic(0).to_string()])
        .arg(format!("{}:a1/{}", local.port(), echo.addr))
        .current_dir(mesh.dir())
        .stdout(Stdio::piped());
    let mut child = command.spawn()?;
    drop(child.stdout.take());
    let reached = probe::eventually("it works", || echoes(local, b"hello")).await;
    let ended = Command::new("kill").arg(child.id().to_string()).status();
    let status = child.wait()?;
    reached?;
    assert!(ended?.success());
    assert_eq!(status.code(), Some(0));
    Ok(())
}
