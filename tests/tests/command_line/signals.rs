//! The end of a node.

use anyhow::ensure;
use mesh_tests::services::Service;
use mesh_tests::{Result, http, probe, web};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::Site;

/// A request whose answer never ends, on its way through the mesh.
async fn open_stream(site: &Site, target: &Service) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(site.http).await?;
    let head = format!(
        "GET /client/a1/http/{}/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        target.addr
    );
    stream.write_all(head.as_bytes()).await?;
    probe::until("the target is reached", || target.open() > 0).await?;
    Ok(stream)
}

/// A target that reads whatever comes and never answers.
async fn mute() -> Result<Service> {
    Service::start(|mut stream, _| async move {
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        Ok(())
    })
    .await
}

/// Either signal ends either node in order: exit code 0.
#[tokio::test]
async fn the_first_signal_ends_in_order() -> Result {
    let site = Site::new()?;
    let echo = web::start().await?;
    for signal in ["TERM", "INT"] {
        let (mut proxy, mut agent) = site.start_both("0s", "10s")?;
        let answer = http::get(site.http, &format!("/client/a1/http/{}/", echo.addr)).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        agent.signal(signal)?;
        ensure!(agent.wait()?.code() == Some(0), "{}", agent.log());
        proxy.wait_for_log("agent disconnected")?;
        proxy.signal(signal)?;
        ensure!(proxy.wait()?.code() == Some(0), "{}", proxy.log());
        for (node, words) in [
            (&agent, ["leaving", "left"]),
            (&proxy, ["draining", "drained"]),
        ] {
            let log = node.log();
            ensure!(words.iter().all(|word| log.contains(word)), "{log}");
            ensure!(
                log.contains(&format!("SIG{signal}")) && !log.contains("WARN"),
                "{log}"
            );
        }
    }
    Ok(())
}

/// What still runs at the drain deadline is cut, and the exit code is 0 all the same.
#[tokio::test]
async fn the_deadline_bounds_a_drain() -> Result {
    let site = Site::new()?;
    let silent = mute().await?;
    let (mut proxy, _agent) = site.start_both("0s", "1s")?;
    let mut stream = open_stream(&site, &silent).await?;
    proxy.signal("TERM")?;
    ensure!(proxy.wait()?.code() == Some(0), "{}", proxy.log());
    ensure!(
        proxy.log().contains("the drain deadline has passed"),
        "{}",
        proxy.log()
    );
    // No answer looks like one.
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer).await;
    ensure!(
        end.is_err() || !answer.starts_with(b"HTTP/1.1 200"),
        "{answer:?}"
    );
    probe::until("the target is let go", || silent.open() == 0).await
}

/// A second signal ends at once, with exit code 1 and the reason.
#[tokio::test]
async fn the_second_signal_ends_at_once() -> Result {
    let site = Site::new()?;
    let silent = mute().await?;
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM")] {
        let (mut proxy, mut agent) = site.start_both("0s", "600s")?;
        let _stream = open_stream(&site, &silent).await?;
        for (node, word) in [(&mut agent, "leaving"), (&mut proxy, "draining")] {
            node.signal(first)?;
            node.wait_for_log(word)?;
            node.signal(second)?;
            ensure!(node.wait()?.code() == Some(1), "{}", node.log());
            let log = node.log();
            ensure!(
                log.contains(&format!("second signal (SIG{second})")),
                "{log}"
            );
        }
        probe::until("the target is let go", || silent.open() == 0).await?;
    }
    Ok(())
}
