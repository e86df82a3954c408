//! Bodies that break on the way: what is not whole never looks whole.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use mesh_tests::fleet::Pair;
use mesh_tests::http::Client;
use mesh_tests::services::Service;
use mesh_tests::{Result, probe, web};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::support::{begin, pair, path, read_until};

/// The agent dies in the middle of a response, whatever its framing: its reader gets an error.
#[tokio::test]
async fn an_agent_that_is_gone_cuts_the_response() -> Result {
    let half = Service::start(|mut stream, _| async move {
        let mut head = [0; 4096];
        let read = stream.read(&mut head).await?;
        let framing = match &head[..read] {
            head if head.starts_with(b"GET /length ") => "Content-Length: 1000\r\n",
            head if head.starts_with(b"GET /chunked ") => "Transfer-Encoding: chunked\r\n",
            _ => "",
        };
        let chunk = if framing.starts_with("Transfer") {
            "5\r\nfirst\r\n"
        } else {
            "first"
        };
        let answer = format!("HTTP/1.1 200 OK\r\n{framing}\r\n{chunk}");
        stream.write_all(answer.as_bytes()).await?;
        std::future::pending().await
    })
    .await?;
    for framing in ["length", "chunked", "until-the-end"] {
        for version in ["1.1", "1.0"] {
            let (pair, ingress) = pair().await?;
            let path = path(half.addr, &format!("/{framing}"));
            let request = format!("GET {path} HTTP/{version}\r\nHost: localhost\r\n\r\n");
            let mut stream = begin(ingress, request.as_bytes()).await?;
            let head = read_until(&mut stream, "first").await.context(framing)?;
            ensure!(head.contains(" 200 "), "{head}");
            let Pair { agent, proxy, .. } = pair;
            drop(agent);
            let mut rest = Vec::new();
            let end = tokio::time::timeout(probe::PATIENCE, stream.read_to_end(&mut rest)).await;
            let end = end.with_context(|| format!("{framing} in HTTP/{version}: no end"))?;
            let chunked_end = String::from_utf8_lossy(&rest).contains("0\r\n\r\n");
            ensure!(
                end.is_err() && !chunked_end,
                "{framing} in HTTP/{version}: it ended in order after {:?}",
                String::from_utf8_lossy(&rest)
            );
            // And whoever asks now is told that nobody is there.
            proxy.sessions(0).await?;
            let answer = mesh_tests::http::get(ingress, &path).await?;
            ensure!((answer.status, answer.mesh_error()) == (502, "no_agent"));
            proxy.stop().await;
        }
    }
    Ok(())
}

/// A target that breaks off is no better.
#[tokio::test]
async fn a_target_that_breaks_off_cuts_the_response() -> Result {
    let (pair, ingress) = pair().await?;
    for (what, answer, reset) in [
        (
            "short of its length",
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst",
            false,
        ),
        (
            "in the middle of a chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nfirst",
            false,
        ),
        (
            "before the last chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
            false,
        ),
        (
            "by a broken chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\nxyz\r\n",
            false,
        ),
        (
            "by a reset, with a length",
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst",
            true,
        ),
        (
            "by a reset, until the end",
            "HTTP/1.1 200 OK\r\n\r\nfirst",
            true,
        ),
    ] {
        let target = Service::start(move |mut stream, _| async move {
            let _ = stream.read(&mut [0; 4096]).await?;
            stream.write_all(answer.as_bytes()).await?;
            if reset {
                // Else the reset could overtake the bytes.
                tokio::time::sleep(Duration::from_millis(50)).await;
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            }
            Ok(())
        })
        .await?;
        let mut client = Client::connect(ingress).await?;
        let request = Request::get(path(target.addr, "/")).body(Full::default())?;
        // hyper may see the failure before the head has gone out.
        match client.send(request).await {
            Ok(answer) if answer.status() == 200 => {
                let body = answer.into_body().collect().await;
                ensure!(body.is_err(), "{what}: it ended in order");
            }
            Ok(answer) => ensure!(answer.status() == 502, "{what}: {}", answer.status()),
            Err(_) => {}
        }
    }
    pair.stop().await;
    Ok(())
}

/// A user who breaks off an upload: the target must not take it for the whole.
#[tokio::test]
async fn a_user_that_breaks_off_cuts_the_request() -> Result {
    let (pair, ingress) = pair().await?;
    let (ends, mut ended) = mpsc::channel(16);
    let target = Service::start(move |mut stream, _| {
        let ends = ends.clone();
        async move {
            let mut heard = Vec::new();
            let end = stream.read_to_end(&mut heard).await;
            let heard = String::from_utf8_lossy(&heard).into_owned();
            let _ = ends.send((end.is_ok(), heard)).await;
            Ok(())
        }
    })
    .await?;
    let path = path(target.addr, "/upload");
    for (framing, body) in [
        ("Content-Length: 1000", "first"),
        ("Transfer-Encoding: chunked", "5\r\nfirst\r\n"),
        ("Transfer-Encoding: chunked", "100\r\nfirst"),
        ("Transfer-Encoding: chunked", "5\r\nfirst\r\nnonsense\r\n"),
    ] {
        let request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n{body}");
        let mut stream = begin(ingress, request.as_bytes()).await?;
        if !body.contains("nonsense") {
            probe::until("the target has a connection", || target.open() == 1).await?;
        }
        stream.shutdown().await?;
        drop(stream);
        let told = tokio::time::timeout(probe::PATIENCE, ended.recv()).await;
        let (in_order, heard) = told
            .context("the target heard no end")?
            .context("no target")?;
        let whole = heard.ends_with("0\r\n\r\n") || heard.contains("nonsense");
        ensure!(!(in_order && whole), "{framing} {body}: {heard}");
        // Of a body with a length, what is missing shows; of chunks, the last one must be missing.
        ensure!(!heard.contains("\r\n0\r\n"), "{framing} {body}: {heard}");
        probe::until("the target's connection ends", || target.open() == 0).await?;
    }
    pair.stop().await;
    Ok(())
}

/// A user who goes away in the middle of a response costs its target nothing more.
#[tokio::test]
async fn a_user_that_is_gone_ends_the_response() -> Result {
    let (pair, ingress) = pair().await?;
    let endless = web::start().await?;
    for _ in 0..5 {
        let mut client = Client::connect(ingress).await?;
        let request = Request::get(path(endless.addr, "/endless")).body(Full::<Bytes>::default())?;
        let mut body = client.send(request).await?.into_body();
        body.frame().await.context("a body")??;
        drop((body, client));
    }
    probe::until("the target's connections end", || endless.open() == 0).await?;
    probe::eventually("the streams end", || async {
        let open = pair.proxy.metrics()?.get("mesh_streams_open")?;
        ensure!(open.to_bits() == 0f64.to_bits(), "{open}");
        Ok(())
    })
    .await?;
    pair.stop().await;
    Ok(())
}
