//! Messages that two readers could read differently.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tests::{Result, http as client, probe, web};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Target, begin, pair, path};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Requests that no reader may guess about: answered 400 at once, never passed on, and the
/// connection is over.
#[tokio::test]
async fn ambiguous_requests_are_refused() -> Result {
    let (pair, ingress) = pair().await?;
    let target = Target::start(OK).await?;
    let path = path(target.service.addr, "/in");
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let cases: Vec<(&str, Vec<u8>)> = [
        ("two lengths", format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n{smuggled}")),
        ("a list of lengths", format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0, 44\r\n\r\n{smuggled}")),
        ("a signed length", format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nhello{smuggled}")),
        ("a negative length", format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{smuggled}")),
        ("a hexadecimal length", format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x0\r\n\r\n{smuggled}")),
        ("an endless length", format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n{smuggled}")),
        ("an unknown coding", format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("chunks and then another coding", format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}")),
        ("a coding in HTTP/1.0", format!("POST {path} HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("a space in a name", format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length : 44\r\n\r\n{smuggled}")),
        ("a folded line", format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n c: d\r\n\r\n")),
        ("a bare CR", format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-A: b\rX-B: c\r\n\r\n")),
        ("a NUL in a value", format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-A: b\0c\r\n\r\n")),
        ("a NUL in a name", format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-\0: b\r\n\r\n")),
        ("a line without a colon", format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-A\r\n\r\n")),
        ("a control character in the path", format!("GET {path}\u{1}x HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        ("no host", format!("GET {path} HTTP/1.1\r\n\r\n")),
        ("two hosts", format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")),
        ("a whole URI", format!("GET http://localhost{path} HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        ("a version that is none", format!("GET {path} HTTP/9.9\r\nHost: localhost\r\n\r\n")),
        ("no version", format!("GET {path}\r\n\r\n")),
        ("noise", "\u{16}\u{3}\u{1}\0\u{7f}not HTTP at all\r\n\r\n".to_owned()),
    ]
    .into_iter()
    .map(|(what, text)| (what, text.into_bytes()))
    .collect();
    for (what, mut request) in cases {
        // Refused or not, this asks for the connection's end.
        let keeps_connection = ["no host", "two hosts", "a whole URI"].contains(&what);
        if keeps_connection {
            let text =
                String::from_utf8(request)?.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
            request = text.into_bytes();
        }
        let answer = client::raw(ingress, &request).await.context(what)?;
        ensure!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        ensure!(
            answer.matches("HTTP/1.1 ").count() == 1,
            "{what}: more than one answer: {answer}"
        );
    }
    ensure!(
        target.heard().is_empty(),
        "the target heard {}",
        target.heard()
    );
    ensure!(target.service.accepted() == 0);
    let answer = client::get(ingress, &path).await?;
    ensure!(answer.status == 200);
    pair.stop().await;
    Ok(())
}

/// A length beside chunks: the chunks count (RFC 9112, section 6.3), the length goes no further,
/// and what follows is no request of its own.
#[tokio::test]
async fn a_length_beside_chunks_smuggles_nothing() -> Result {
    let (pair, ingress) = pair().await?;
    for (what, codings) in [
        (
            "length first",
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "chunks first",
            "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        ),
        (
            "odd case",
            "content-LENGTH: 4\r\ntransfer-ENCODING: Chunked\r\n",
        ),
        (
            "named as of the connection",
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close, transfer-encoding, content-length\r\n",
        ),
        (
            "length named as of the connection",
            "Content-Length: 5\r\nConnection: content-length\r\n",
        ),
    ] {
        let target = Target::start(OK).await?;
        let path = path(target.service.addr, "/in");
        let body = if codings.contains("hunked") {
            "5\r\nhello\r\n0\r\n\r\n"
        } else {
            "hello"
        };
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\n{codings}\r\n{body}GET /smuggled HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        );
        let answer = client::raw(ingress, request.as_bytes())
            .await
            .context(what)?;
        let refused = answer.starts_with("HTTP/1.1 400 ") && target.heard().is_empty();
        // `/smuggled`, if it is read at all, is a request to the ingress, which serves no such path.
        ensure!(
            refused || answer.starts_with("HTTP/1.1 200 "),
            "{what}: {answer}"
        );
        ensure!(
            answer.matches("HTTP/1.1 200 ").count() <= 1,
            "{what}: {answer}"
        );
        let heard = target.heard().to_ascii_lowercase();
        ensure!(
            !heard.contains("smuggled"),
            "{what}: the target heard {heard}"
        );
        if !refused {
            let lengths = heard.matches("content-length:").count();
            let codings = heard.matches("transfer-encoding:").count();
            ensure!(
                lengths + codings == 1 && heard.contains("hello"),
                "{what}: {heard}"
            );
        }
    }
    pair.stop().await;
    Ok(())
}

/// Heads beyond all measure are refused, and their connections are over.
#[tokio::test]
async fn endless_heads_are_refused() -> Result {
    let (pair, ingress) = pair().await?;
    let target = Target::start(OK).await?;
    let path = path(target.service.addr, "/in");
    let big = "x".repeat(1 << 20);
    let many: String = (0..1000).map(|index| format!("X-{index}: y\r\n")).collect();
    for (what, request) in [
        (
            "a value of 1 MiB",
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-A: {big}\r\n\r\n"),
        ),
        (
            "a name of 1 MiB",
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-{big}: a\r\n\r\n"),
        ),
        (
            "a path of 1 MiB",
            format!("GET {path}/{big} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ),
        (
            "a method of 1 MiB",
            format!("{big} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ),
        (
            "1000 fields",
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
        ),
    ] {
        let answer = client::raw(ingress, request.as_bytes())
            .await
            .context(what)?;
        let status = answer.get(9..12).unwrap_or_default();
        ensure!(
            ["400", "414", "431"].contains(&status),
            "{what}: {}",
            answer.lines().next().unwrap_or("")
        );
    }
    // One that never ends, and its sender reads nothing: it is cut off.
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n");
    let mut stream = begin(ingress, head.as_bytes()).await?;
    let line = [b"X-A: ", &[b'x'; 8000][..], b"\r\n"].concat();
    let cut_off = async { while stream.write_all(&line).await.is_ok() {} };
    tokio::time::timeout(probe::PATIENCE, cut_off)
        .await
        .context("a head goes on for ever")?;
    ensure!(target.heard().is_empty());
    let answer = client::get(ingress, &path).await?;
    ensure!(answer.status == 200);
    pair.stop().await;
    Ok(())
}

/// Request targets that are no paths.
#[tokio::test]
async fn other_forms_of_request_targets() -> Result {
    let (pair, ingress) = pair().await?;
    let target = Target::start(OK).await?;
    for (request, status, says) in [
        (
            format!(
                "CONNECT {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                target.service.addr
            ),
            "405",
            "takes no CONNECT",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".into(),
            "404",
            "nothing is served here",
        ),
        (
            format!(
                "GET http://{}/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                target.service.addr
            ),
            "400",
            "no forward proxy",
        ),
    ] {
        let answer = client::raw(ingress, request.as_bytes()).await?;
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(says),
            "{request}: {answer}"
        );
        ensure!(
            answer.contains("/client/<agent>/<http or https>/<host:port>/<path>"),
            "{answer}"
        );
    }
    ensure!(target.service.accepted() == 0);
    pair.stop().await;
    Ok(())
}

/// What begins like HTTP/2 and goes on otherwise ends; HTTP/2 itself is served.
#[tokio::test]
async fn http2_garbage_ends() -> Result {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let (pair, ingress) = pair().await?;
    let echo = web::start().await?;
    // Settings, and what may not follow: a frame of 16 MiB, HEADERS that are no HPACK, DATA on
    // stream 0, a frame of an idle stream.
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    for (what, bytes) in [
        ("noise", &[0xff; 500][..]),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (
            "a frame of 16 MiB",
            &[settings, &b"\xff\xff\xff\x00\0\0\0\0\x01"[..]].concat(),
        ),
        (
            "no HPACK",
            &[settings, &b"\0\0\x04\x01\x05\0\0\0\x01\xff\xff\xff\xff"[..]].concat(),
        ),
        (
            "data on stream 0",
            &[settings, &b"\0\0\x01\x00\x01\0\0\0\0x"[..]].concat(),
        ),
        (
            "an idle stream",
            &[settings, &b"\0\0\x04\x08\0\0\0\0\x07\0\0\0\x01"[..]].concat(),
        ),
    ] {
        let mut stream = begin(ingress, &[PREFACE, bytes].concat()).await?;
        let mut answer = Vec::new();
        // Ends, in order or not.
        let _ = stream.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer);
        ensure!(!text.contains("HTTP/1.1 200"), "{what}: {text}");
    }
    // Half of the preface, and the end.
    let mut stream = begin(ingress, &PREFACE[..10]).await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    ensure!(!String::from_utf8_lossy(&answer).contains(" 200 "));

    let stream = TcpStream::connect(ingress).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let uri = format!("http://{ingress}{}", path(echo.addr, "/two"));
    let request = Request::get(uri)
        .version(Version::HTTP_2)
        .body(Full::<Bytes>::default())?;
    let answer = sender.send_request(request).await?;
    ensure!(answer.status() == 200);
    let told: serde_json::Value =
        serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
    ensure!(
        told["path"] == "/two" && told["headers"]["via"][0] == "2 mesh",
        "{told}"
    );
    drop(sender);
    connection.await??;
    pair.stop().await;
    Ok(())
}

/// Several requests on one connection, sent at once, are answered in their order.
#[tokio::test]
async fn pipelined_requests_keep_their_order() -> Result {
    let (pair, ingress) = pair().await?;
    let echo = web::start().await?;
    let mut all = String::new();
    for index in 0..5 {
        all.push_str(&format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {index}\r\n\r\n{}",
            path(echo.addr, &format!("/nr-{index}")),
            "x".repeat(index)
        ));
    }
    all.push_str("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let answer = client::raw(ingress, all.as_bytes()).await?;
    let places: Vec<_> = (0..5)
        .map(|index| answer.find(&format!("/nr-{index}\"")))
        .collect();
    ensure!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{places:?}: {answer}"
    );
    ensure!(
        answer.matches("HTTP/1.1 200 ").count() == 5
            && answer.matches("HTTP/1.1 404 ").count() == 1
    );
    pair.stop().await;
    Ok(())
}
