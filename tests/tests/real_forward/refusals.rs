//! What is refused, and how often the user hears of it.

use std::io::ErrorKind;

use mesh_tests::services::{Service, echoes};
use mesh_tests::{Result, probe};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::support::{Forward, Mesh};

async fn is_reset(forward: &Forward, index: usize) -> Result {
    let local = forward.local(index)?;
    let used = async {
        let mut stream = TcpStream::connect(local).await?;
        stream.read_to_end(&mut Vec::new()).await
    };
    // A refusal of this program's own may come before the connection is known to stand.
    let error = used.await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reason_is_told_once_and_in_the_proxys_words() -> Result {
    let echo = Service::echo().await?;
    let closed = mesh_tests::binary::free_port()?;
    let mesh = Mesh::start(1, &[echo.rule(), closed.to_string()])?;
    let mut forward = mesh.forward(&[
        "0:nobody/127.0.0.1:22",
        "0:a1/127.0.0.1:1",
        &format!("0:a1/{closed}"),
        "0:a1/service:none",
        &format!("0:a1/{}", echo.addr),
    ])?;
    let wanted = [
        ("no_agent", "no agent `nobody` is connected"),
        ("not_allowed", "127.0.0.1:1"),
        ("refused", "refused"),
        ("bad_target", "none"),
    ];
    for (index, (reason, words)) in wanted.iter().enumerate() {
        for _ in 0..20 {
            is_reset(&forward, index).await?;
        }
        forward.until(|events| {
            let mut of_it = events.iter().filter(|event| event["reason"] == *reason);
            of_it.any(|event| {
                event["message"]
                    .as_str()
                    .is_some_and(|text| text.contains(words))
            })
        })?;
    }
    let told = forward.told("refused")?;
    assert_eq!(told.len(), wanted.len(), "{told:#?}");
    assert!(told.iter().all(|event| event["untold"] == 0));
    assert_eq!(told[0]["remote"], "nobody/127.0.0.1:22");
    // None of it disturbs a forward that works.
    echoes(forward.local(4)?, b"still here").await?;
    forward.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded() -> Result {
    let echo = Service::echo().await?;
    let mesh = Mesh::start(1, &[echo.rule()])?;
    let spec = format!("0:a1/{}", echo.addr);
    let mut forward = mesh.forward_with(&["--connections-max", "3"], &[&spec])?;
    let local = forward.local(0)?;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(local).await?;
        stream.write_all(b"x").await?;
        stream.read_exact(&mut [0]).await?;
        open.push(stream);
    }
    for _ in 0..10 {
        is_reset(&forward, 0).await?;
    }
    let told = forward.wait_for("refused")?;
    assert_eq!(told["reason"], "overloaded");
    assert!(told["message"].to_string().contains("--connections-max"));
    assert_eq!(forward.told("refused")?.len(), 1);
    // A place that is free again is used again.
    for stream in &mut open {
        stream.shutdown().await?;
        assert_eq!(stream.read(&mut [0]).await?, 0);
    }
    mesh.no_streams(0).await?;
    probe::eventually("there is room", || echoes(local, b"room")).await?;
    forward.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_proxy_a_connection_is_closed_with_a_reason() -> Result {
    let echo = Service::echo().await?;
    let mut mesh = Mesh::start(1, &[echo.rule()])?;
    let mut forward = mesh.forward(&[&format!("0:a1/{}", echo.addr)])?;
    let local = forward.local(0)?;
    echoes(local, b"before").await?;
    mesh.kill_proxy(0)?;
    is_reset(&forward, 0).await?;
    let told = forward.wait_for("refused")?;
    assert!(
        ["no_proxy", "lost"].contains(&told["reason"].as_str().unwrap_or_default()),
        "{told}"
    );
    let told = forward.wait_for("unreachable")?;
    assert_eq!(told["failures"][0]["at"], mesh.quic(0).to_string());
    mesh.restart_proxy(0)?;
    probe::eventually("it is reached again", || echoes(local, b"after")).await?;
    forward.stop()
}
