//! Trailers, `Expect`, WebSocket.

use anyhow::{Context as _, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use mesh_tests::services::Service;
use mesh_tests::{Result, probe, web};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::support::{Target, begin, pair, path, read_until};

/// Trailers arrive, in both directions.
#[tokio::test]
async fn trailers_go_both_ways() -> Result {
    let (pair, ingress) = pair().await?;
    let target = Service::start(|mut stream, _| async move {
        let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
        while !heard.to_ascii_lowercase().ends_with(b"x-sum: 7\r\n\r\n") {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            heard.extend_from_slice(&buffer[..read]);
        }
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n\
                  4\r\nback\r\n0\r\nX-Back: 9\r\n\r\n",
            )
            .await?;
        let _ = stream.read(&mut buffer).await?;
        Ok(())
    })
    .await?;
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nConnection: TE\r\n\
         Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nthis\r\n0\r\nX-Sum: 7\r\n\r\n",
        path(target.addr, "/")
    );
    let mut stream = begin(ingress, request.as_bytes()).await?;
    let answer = read_until(&mut stream, "0\r\nx-back: 9\r\n\r\n").await?;
    ensure!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("back"),
        "{answer}"
    );
    drop(stream);
    pair.stop().await;
    Ok(())
}

/// `Expect: 100-continue`: nothing of the body is asked for until it is known who takes it.
#[tokio::test]
async fn a_body_is_asked_for_when_somebody_takes_it() -> Result {
    let (pair, ingress) = pair().await?;
    let echo = web::start().await?;
    let head = |path: &str| {
        format!(
            "PUT {path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
    };
    let mut stream = begin(ingress, head(&path(echo.addr, "/in")).as_bytes()).await?;
    let asked = read_until(&mut stream, "\r\n\r\n").await?;
    ensure!(asked.starts_with("HTTP/1.1 100 Continue\r\n"), "{asked}");
    stream.write_all(b"hello").await?;
    let answer = read_until(&mut stream, "\"body_bytes\":5").await?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    for (path, status) in [
        (path(echo.addr, "/in").replace("/a1/", "/nobody/"), "502"),
        ("/elsewhere".to_owned(), "404"),
        (path(echo.addr, "/in").replace("/http/", "/ftp/"), "400"),
    ] {
        let mut stream = begin(ingress, head(&path).as_bytes()).await?;
        let answer = read_until(&mut stream, "\r\n\r\n").await?;
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {answer}"
        );
    }
    pair.stop().await;
    Ok(())
}

type Socket = WebSocketStream<TcpStream>;

/// How a target's WebSocket ended.
#[derive(Debug)]
enum End {
    Closed(Option<u16>),
    Broken,
}

/// A target that sends back every message but `die`, on which it resets.
async fn ws_echo() -> Result<(Service, mpsc::Receiver<End>)> {
    let (ends, ended) = mpsc::channel(16);
    let service = Service::start(move |stream, _| {
        let ends = ends.clone();
        async move {
            let mut socket = accept_async(stream).await.map_err(std::io::Error::other)?;
            let mut end = End::Broken;
            while let Some(message) = socket.next().await {
                match message {
                    Ok(Message::Text(text)) if text.as_str() == "die" => {
                        let linger = Some(std::time::Duration::ZERO);
                        socket2::SockRef::from(socket.get_ref()).set_linger(linger)?;
                        break;
                    }
                    Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                        socket.send(message).await.map_err(std::io::Error::other)?;
                    }
                    Ok(Message::Close(frame)) => {
                        end = End::Closed(frame.map(|frame| frame.code.into()));
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            let _ = ends.send(end).await;
            Ok(())
        }
    })
    .await?;
    Ok((service, ended))
}

async fn ws_connect(ingress: std::net::SocketAddr, path: &str) -> Result<Socket> {
    let stream = TcpStream::connect(ingress).await?;
    let (socket, response) = client_async(format!("ws://{ingress}{path}"), stream).await?;
    ensure!(response.status() == 101, "{response:?}");
    Ok(socket)
}

async fn end_of(ended: &mut mpsc::Receiver<End>) -> Result<End> {
    tokio::time::timeout(probe::PATIENCE, ended.recv())
        .await
        .context("the target's socket did not end")?
        .context("no target")
}

/// WebSocket through the mesh: messages of all sizes, an orderly close from either side, and a
/// loss that is told to the other end.
#[tokio::test]
async fn websocket_echo_close_and_loss() -> Result {
    let (pair, ingress) = pair().await?;
    let (target, mut ended) = ws_echo().await?;
    let path = path(target.addr, "/ws");

    let mut socket = ws_connect(ingress, &path).await?;
    for message in [
        Message::text("hello"),
        Message::text(""),
        Message::binary(vec![0; 1]),
        Message::binary(vec![7; 3 << 20]),
        Message::text("\u{e4}\u{1f980}".repeat(10_000)),
    ] {
        socket.send(message.clone()).await?;
        let back = socket.next().await.context("an echo")??;
        ensure!(back == message, "{} bytes came back", back.len());
    }
    // Both ways at once.
    let (mut write, mut read) = socket.split();
    let sending = async {
        for index in 0..500 {
            write
                .send(Message::text(format!("message {index}")))
                .await?;
        }
        anyhow::Ok(())
    };
    let receiving = async {
        for index in 0..500 {
            let message = read.next().await.context("a message")??;
            ensure!(
                message == Message::text(format!("message {index}")),
                "{message:?}"
            );
        }
        anyhow::Ok(())
    };
    tokio::try_join!(sending, receiving)?;
    let mut socket = write.reunite(read)?;
    let frame = CloseFrame {
        code: CloseCode::Away,
        reason: "done here".into(),
    };
    socket.close(Some(frame.clone())).await?;
    let answer = socket.next().await.context("a close")??;
    ensure!(
        matches!(&answer, Message::Close(Some(back)) if back.code == frame.code),
        "{answer:?}"
    );
    ensure!(
        socket
            .next()
            .await
            .is_none_or(|end| matches!(end, Err(WsError::ConnectionClosed)))
    );
    let end = end_of(&mut ended).await?;
    ensure!(matches!(end, End::Closed(Some(1001))), "{end:?}");

    // A user who vanishes.
    let mut socket = ws_connect(ingress, &path).await?;
    socket.send(Message::text("about to vanish")).await?;
    socket.next().await.context("an echo")??;
    socket2::SockRef::from(socket.get_ref()).set_linger(Some(std::time::Duration::ZERO))?;
    drop(socket);
    let end = end_of(&mut ended).await?;
    ensure!(matches!(end, End::Broken), "{end:?}");

    // A target that vanishes: no close frame, and no orderly end of the connection either.
    let mut socket = ws_connect(ingress, &path).await?;
    socket.send(Message::text("die")).await?;
    let end = socket.next().await;
    ensure!(matches!(end, Some(Err(_))), "{end:?}");
    let end = end_of(&mut ended).await?;
    ensure!(matches!(end, End::Broken), "{end:?}");
    probe::until("the target's connections end", || target.open() == 0).await?;
    pair.stop().await;
    Ok(())
}

/// Upgrades that do not come about, and such that nobody has asked for.
#[tokio::test]
async fn upgrades_that_do_not_come_about() -> Result {
    let (pair, ingress) = pair().await?;
    let echo = web::start().await?;
    // A target that does not upgrade answers as it likes.
    let stream = TcpStream::connect(ingress).await?;
    let url = format!("ws://{ingress}{}", path(echo.addr, "/plain"));
    match client_async(url, stream).await {
        Err(WsError::Http(response)) => ensure!(response.status() == 200, "{response:?}"),
        other => bail!("{other:?}"),
    }
    // One who answers with an upgrade although nobody asked is not believed.
    let pushy = Target::start(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi",
    )
    .await?;
    let answer = mesh_tests::http::get(ingress, &path(pushy.service.addr, "/")).await?;
    ensure!(answer.status == 502, "{} {}", answer.status, answer.text());
    // To nobody.
    let stream = TcpStream::connect(ingress).await?;
    let url = format!(
        "ws://{ingress}{}",
        path(echo.addr, "/").replace("/a1/", "/nobody/")
    );
    match client_async(url, stream).await {
        Err(WsError::Http(response)) => ensure!(
            response.status() == 502 && response.headers()["x-mesh-error"] == "no_agent",
            "{response:?}"
        ),
        other => bail!("{other:?}"),
    }
    pair.stop().await;
    Ok(())
}
