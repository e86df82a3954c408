//! Losing the proxy in use.

use mesh_tests::services::{Service, echoes, pattern};
use mesh_tests::{Result, probe};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::support::Mesh;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_proxy_is_replaced_by_the_other() -> Result {
    let echo = Service::echo().await?;
    let mut mesh = Mesh::start(2, &[echo.rule()])?;
    let mut forward = mesh.forward(&[&format!("0:a1/{}", echo.addr)])?;
    let local = forward.local(0)?;
    assert_eq!(forward.wait_for("connected")?["proxy"], "proxy-1");
    echoes(local, &pattern(0, 100_000)).await?;
    let mut open = TcpStream::connect(local).await?;
    open.write_all(b"x").await?;
    open.read_exact(&mut [0]).await?;

    for (dead, next) in [(0, 1), (1, 0)] {
        mesh.kill_proxy(dead)?;
        // What comes now may be the one that finds out; the next ones must not fail.
        let _ = echoes(local, b"who is there").await;
        for _ in 0..5 {
            echoes(local, &pattern(0, 100_000)).await?;
        }
        let name = format!("proxy-{}", next + 1);
        forward.until(|events| {
            let newest = events
                .iter()
                .rfind(|event| event["event"] == "connected" || event["event"] == "moved");
            newest.is_some_and(|event| event["proxy"] == name.as_str())
        })?;
        mesh.restart_proxy(dead)?;
    }
    // The stream through the killed proxy has broken, and did not end as if it were whole.
    open.read_to_end(&mut Vec::new()).await.expect_err("cut");
    forward.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_proxy_lets_streams_end_while_new_ones_go_elsewhere() -> Result {
    let echo = Service::echo().await?;
    let mut mesh = Mesh::start_with(2, &[echo.rule()], "50s")?;
    let mut forward = mesh.forward(&[&format!("0:a1/{}", echo.addr)])?;
    let local = forward.local(0)?;
    let mut open = TcpStream::connect(local).await?;
    open.write_all(b"before").await?;
    open.read_exact(&mut [0; 6]).await?;

    mesh.proxy(0)?.signal("TERM")?;
    mesh.proxy(0)?.wait_for_log("drain")?;
    // Bytes that were refused as draining are sent again elsewhere: nobody has seen them.
    for _ in 0..5 {
        echoes(local, &pattern(0, 10_000)).await?;
    }
    forward.until(|events| {
        events.iter().any(|event| {
            event["event"] == "moved" && event["proxy"] == "proxy-2" && event["why"] == "draining"
        })
    })?;
    assert!(forward.told("refused")?.is_empty());
    assert!(forward.told("lost")?.is_empty());

    // The old stream is as alive as ever, and ends in order.
    let bytes = pattern(6, 200_000);
    open.write_all(&bytes).await?;
    open.shutdown().await?;
    let mut back = Vec::new();
    if let Err(error) = open.read_to_end(&mut back).await {
        panic!(
            "{error} after {} bytes:\n{}\n{}\n{}",
            back.len(),
            forward.0.log(),
            mesh.proxy(0)?.log(),
            mesh.log()
        );
    }
    assert!(back == bytes, "{} bytes came back", back.len());
    // Nothing keeps the proxy any more, this user's connection neither.
    assert!(mesh.proxy(0)?.wait()?.success());
    probe::eventually("still there", || echoes(local, b"still there")).await?;
    forward.stop()
}
