//! What goes through, and how.

use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

#[tokio::test]
async fn a_request_arrives_as_it_was_written() {
    let mesh = Mesh::start().await;
    let target = Target::mirror("\r\n\r\n").await;
    let answer = mesh
        .ask(
            target.addr,
            "GET TARGET/a/../b//%2f%2F?q=%20&x=/client HTTP/1.1\r\nHOST\r\nX-One: 1\r\nConnection: close, X-Hop\r\nX-Hop: 2\r\n\
             traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    let (_, request) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<_> = request.trim_end().lines().map(str::to_owned).collect();
    assert_eq!(
        lines.remove(0),
        "GET /a/../b//%2f%2F?q=%20&x=/client HTTP/1.1"
    );
    lines.sort();
    assert_eq!(
        lines,
        [
            format!(
                "forwarded: for=127.0.0.1;host=\"{}\";proto=http",
                mesh.ingress
            ),
            format!("host: {}", target.addr),
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            "via: 1.1 mesh".to_owned(),
            "x-forwarded-for: 127.0.0.1".to_owned(),
            format!("x-forwarded-host: {}", mesh.ingress),
            format!("x-forwarded-prefix: /client/a1/http/{}", target.addr),
            "x-forwarded-proto: http".to_owned(),
            "x-one: 1".to_owned(),
        ]
    );
    mesh.stop().await;
}

#[tokio::test]
async fn connections_to_the_target_are_used_again() {
    let mesh = Mesh::start().await;
    let target = Target::mirror("\r\n\r\n").await;
    for _ in 0..5 {
        let answer = mesh
            .ask(
                target.addr,
                "GET TARGET/ HTTP/1.1\r\nHOST\r\nConnection: close\r\n\r\n",
            )
            .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(target.accepted(), 1);
    mesh.stop().await;
}

#[tokio::test]
async fn a_body_without_length_arrives_whatever_the_method() {
    let mesh = Mesh::start().await;
    let target = Target::mirror("0\r\n\r\n").await;
    for method in ["GET", "POST", "DELETE", "PROPFIND"] {
        let request = format!(
            "{method} TARGET/ HTTP/1.1\r\nHOST\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        );
        let answer = mesh.ask(target.addr, &request).await;
        assert!(
            answer.contains("transfer-encoding: chunked\r\n"),
            "{answer}"
        );
        assert!(
            answer.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            "{answer}"
        );
    }
    mesh.stop().await;
}

/// Two lengths of one body are how requests are smuggled: whichever hyper takes, the target is
/// told one, and the user's connection ends.
#[tokio::test]
async fn what_is_forwarded_has_one_length() {
    let mesh = Mesh::start().await;
    let target = Target::mirror("0\r\n\r\n").await;
    for lengths in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\nContent-Length: 7",
    ] {
        let request = format!(
            "POST TARGET/ HTTP/1.1\r\nHOST\r\n{lengths}\r\n\r\n2\r\nab\r\n0\r\n\r\nGET TARGET/smuggled HTTP/1.1\r\nHOST\r\n\r\n"
        );
        let answer = mesh.ask(target.addr, &request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            !answer.contains("content-length: 5") && !answer.contains("smuggled"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\n2\r\nab\r\n0\r\n\r\n"), "{answer}");
    }
    for refused in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: +5",
    ] {
        let request = format!("POST TARGET/ HTTP/1.1\r\nHOST\r\n{refused}\r\n\r\nhello");
        let answer = mesh.ask(target.addr, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert!(target.accepted() <= 3);
    mesh.stop().await;
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let mesh = Mesh::start().await;
    let target = Target::start(|mut stream, _| async move {
        let request = read_until(&mut stream, "0\r\nx-sum: 1\r\n\r\n").await;
        assert!(request.contains("te: trailers\r\n") && request.contains("connection: te\r\n"), "{request}");
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n2\r\nok\r\n0\r\nX-Back: 2\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let answer = mesh
        .ask(
            target.addr,
            "POST TARGET/ HTTP/1.1\r\nHOST\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
        )
        .await;
    assert!(
        answer.ends_with("2\r\nok\r\n0\r\nx-back: 2\r\n\r\n"),
        "{answer}"
    );
    mesh.stop().await;
}

#[tokio::test]
async fn expectations_are_met_once_the_target_is_there() {
    let mesh = Mesh::start().await;
    let target = Target::mirror("hello").await;
    let head = "PUT TARGET/ HTTP/1.1\r\nHOST\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
    let mut stream = mesh.send(target.addr, head).await;
    assert_eq!(
        read_until(&mut stream, "\r\n\r\n").await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    stream.write_all(b"hello").await.unwrap();
    let answer = read_all(&mut stream).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );

    let gone = TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let answer = mesh.ask(gone, head).await;
    assert!(
        answer.starts_with("HTTP/1.1 502"),
        "no body is asked for in vain: {answer}"
    );
    assert!(answer.contains("x-mesh-error: refused\r\n"), "{answer}");
    mesh.stop().await;
}

#[tokio::test]
async fn http2_to_the_ingress() {
    let mesh = Mesh::start().await;
    let target = Target::start(|mut stream, _| async move {
        loop {
            let request = read_until(&mut stream, "\r\n\r\n").await;
            if request.starts_with("POST") {
                read_until(&mut stream, "0\r\n\r\n").await;
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\nConnection: keep-alive\r\n\r\n{:x}\r\n{request}\r\n0\r\ngrpc-status: 0\r\n\r\n",
                request.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let stream = mesh.connect().await;
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let uri = format!("http://{}/client/a1/http/{}/x?y", mesh.ingress, target.addr);
    for method in ["GET", "POST"] {
        let chunks = (method == "POST")
            .then(|| Ok::<_, std::convert::Infallible>(Frame::data(bytes::Bytes::from("hi"))));
        let body = StreamBody::new(futures_util::stream::iter(chunks));
        let request = http::Request::builder()
            .method(method)
            .uri(&uri)
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(body)
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        let request = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        assert!(
            request.starts_with(&format!("{method} /x?y HTTP/1.1\r\n")),
            "{request}"
        );
        assert!(
            request.contains("cookie: a=1; b=2\r\n") && request.contains("via: 2 mesh\r\n"),
            "{request}"
        );
        assert!(
            request.contains(&format!("x-forwarded-host: {}\r\n", mesh.ingress)),
            "{request}"
        );
    }
    drop(sender);
    connection.await.unwrap().unwrap();
    mesh.stop().await;
}

#[tokio::test]
async fn refusals_say_why() {
    let mesh = Mesh::start().await;
    let gone = TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let garbage = Target::start(|mut stream, _| async move {
        stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
        let _ = read_all(&mut stream).await;
    })
    .await;
    for (path, host, more, status, error) in [
        ("/", "", "", 404, ""),
        ("/client/a1/http", "", "", 400, "bad_target"),
        ("/client/a1/http/10.0.0.1:80/", "", "", 403, "not_allowed"),
        ("/client/ghost/http/127.0.0.1:80/", "", "", 502, "no_agent"),
        (&format!("/client/a1/http/{gone}/"), "", "", 502, "refused"),
        (
            &format!("/client/a1/https/{}/", garbage.addr),
            "",
            "",
            502,
            "unreachable",
        ),
        (
            &format!("/client/a1/http/{}/", garbage.addr),
            "",
            "",
            502,
            "unsupported",
        ),
        (
            "/client/ghost/http/127.0.0.1:80/",
            "evil.example.com",
            "",
            403,
            "not_allowed",
        ),
        (
            "/client/ghost/http/127.0.0.1:80/",
            "",
            "Origin: http://evil.example.com\r\n",
            403,
            "not_allowed",
        ),
        (
            "/client/ghost/http/127.0.0.1:80/",
            "",
            "Origin: null\r\n",
            403,
            "not_allowed",
        ),
        (
            "/client/ghost/http/127.0.0.1:80/",
            "",
            "Host: localhost\r\n",
            400,
            "",
        ),
        (
            "http://127.0.0.1/client/ghost/http/127.0.0.1:80/",
            "",
            "",
            400,
            "",
        ),
    ] {
        let own = mesh.ingress.to_string();
        let host = if host.is_empty() { &own } else { host };
        for (method, has_body) in [("GET", true), ("HEAD", false)] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n"
            );
            let answer = mesh.ask(gone, &request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{path} {host}: {answer}"
            );
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let named = head
                .lines()
                .find_map(|line| line.strip_prefix("x-mesh-error: "));
            assert_eq!(named.unwrap_or_default(), error, "{path}: {answer}");
            if has_body {
                assert!(
                    body.ends_with('\n') && body.starts_with(error),
                    "{path}: {answer}"
                );
            } else {
                assert_eq!(body, "");
            }
        }
    }
    let answer = mesh
        .ask(
            gone,
            "CONNECT a1:80 HTTP/1.1\r\nHOST\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let answer = mesh
        .ask(gone, "GET TARGET/ HTTP/1.1\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let answer = mesh
        .ask(
            gone,
            &format!(
                "GET / HTTP/1.1\r\nHOST\r\nConnection: close\r\nX: {}\r\n\r\n",
                "x".repeat(80 << 10)
            ),
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    mesh.stop().await;
}

#[tokio::test]
async fn a_response_without_body_keeps_its_length() {
    let mesh = Mesh::start().await;
    let target = Target::start(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream
            .write_all(b"HTTP/1.1 200 Fine\r\nContent-Length: 1234\r\nX-Mesh-Error: lost\r\n\r\n")
            .await
            .unwrap();
        read_until(&mut stream, "\r\n\r\n").await;
        stream
            .write_all(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\nETag: x\r\n\r\n")
            .await
            .unwrap();
        let _ = read_all(&mut stream).await;
    })
    .await;
    let mut stream = mesh
        .send(target.addr, "HEAD TARGET/ HTTP/1.1\r\nHOST\r\n\r\n")
        .await;
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200 Fine\r\n") && head.contains("content-length: 1234\r\n"),
        "{head}"
    );
    assert!(!head.contains("x-mesh-error"), "{head}");
    let next = mesh.fill(target.addr, "GET TARGET/ HTTP/1.1\r\nHOST\r\n\r\n");
    stream.write_all(next.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 304 ") && head.contains("etag: x\r\n"),
        "{head}"
    );
    // The connection is still good.
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    assert!(
        read_all(&mut stream)
            .await
            .unwrap()
            .starts_with("HTTP/1.1 404 ")
    );
    mesh.stop().await;
}

#[tokio::test]
async fn a_request_is_sent_again_when_the_pooled_connection_was_closed() {
    let mesh = Mesh::start().await;
    // Closes on the second request of a connection, before it answers.
    let target = Target::start(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await
            .unwrap();
        read_until(&mut stream, "\r\n\r\n").await;
    })
    .await;
    for (method, status) in [("GET", 200), ("GET", 200), ("PUT", 200), ("POST", 502)] {
        let request = format!("{method} TARGET/ HTTP/1.1\r\nHOST\r\nConnection: close\r\n\r\n");
        let answer = mesh.ask(target.addr, &request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{method}: {answer}"
        );
        assert_eq!(
            answer.contains("x-mesh-error: lost"),
            status == 502,
            "{answer}"
        );
    }
    mesh.stop().await;
}

#[tokio::test]
async fn pools_are_emptied_when_the_agent_leaves() {
    let mesh = Mesh::start().await;
    let closed = Arc::new(tokio::sync::Notify::new());
    let told = closed.clone();
    let target = Target::start(move |mut stream, _| {
        let told = told.clone();
        async move {
            read_until(&mut stream, "\r\n\r\n").await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await
                .unwrap();
            assert_eq!(read_all(&mut stream).await.expect("a reset"), "");
            told.notify_one();
        }
    })
    .await;
    let answer = mesh
        .ask(
            target.addr,
            "GET TARGET/ HTTP/1.1\r\nHOST\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert!(answer.ends_with("ok"), "{answer}");
    let leaving = mesh.agent.shutdown();
    tokio::time::timeout(PATIENCE, async { tokio::join!(leaving, closed.notified()) })
        .await
        .unwrap();
    mesh.proxy.shutdown().await;
}

#[tokio::test]
async fn large_bodies_pass_whole() {
    let mesh = Mesh::start().await;
    let target = Target::start(|mut stream, _| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.contains("content-length: 8388608\r\n"), "{head}");
        let (mut read, mut write) = stream.split();
        write.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await.unwrap();
        let mut body = (&mut read).take(8 << 20);
        tokio::io::copy(&mut body, &mut write).await.unwrap();
        // Without a length, the end of the connection is the end of the body.
        write.shutdown().await.unwrap();
    })
    .await;
    let stream = mesh.connect().await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let sent: bytes::Bytes = (0..8_u32 << 20).map(|at| (at % 251) as u8).collect();
    let request = http::Request::put(format!("/client/a1/http/{}/", target.addr))
        .header("host", mesh.ingress.to_string())
        .body(Full::new(sent.clone()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body == sent, "{} bytes came back", body.len());
    drop(sender);
    connection.await.unwrap().unwrap();
    mesh.stop().await;
}
