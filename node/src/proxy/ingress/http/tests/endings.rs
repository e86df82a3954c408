//! How exchanges end: in order, or so that nobody takes a part for the whole.

use socket2::SockRef;

use super::*;

fn reset_on_close(stream: &TcpStream) {
    SockRef::from(stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// A target that answers with `head` and a part of the body, and then resets.
async fn cut_after(head: &'static str) -> Target {
    Target::start(move |mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream
            .write_all(format!("{head}\r\n\r\npart").as_bytes())
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        reset_on_close(&stream);
    })
    .await
}

#[tokio::test]
async fn a_cut_response_is_not_whole() {
    let mesh = Mesh::start().await;
    for (head, version) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100", "1.1"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 100", "1.0"),
        ("HTTP/1.0 200 OK", "1.1"),
        ("HTTP/1.0 200 OK", "1.0"),
    ] {
        let target = cut_after(head).await;
        let request = format!("GET TARGET/ HTTP/{version}\r\nHOST\r\n\r\n");
        let mut stream = mesh.send(target.addr, &request).await;
        read_until(&mut stream, "part").await;
        let end = read_all(&mut stream).await;
        assert!(end.is_err(), "{head} for {version}: {end:?}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_broken_upload_is_not_whole() {
    let mesh = Mesh::start().await;
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let target = Target::start(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            read_until(&mut stream, "part").await;
            tell.send(read_all(&mut stream).await.is_err())
                .await
                .unwrap();
        }
    })
    .await;
    for reset in [true, false] {
        let request = "PUT TARGET/ HTTP/1.1\r\nHOST\r\nContent-Length: 100\r\n\r\npart";
        let stream = mesh.send(target.addr, request).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        if reset {
            reset_on_close(&stream);
        }
        drop(stream);
        let broken = tokio::time::timeout(PATIENCE, told.recv())
            .await
            .unwrap()
            .unwrap();
        assert!(broken, "the target saw an end in order, reset {reset}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_user_that_ends_its_half_gets_the_whole_answer() {
    let mesh = Mesh::start().await;
    let target = Target::start(|mut stream, _| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        if head.starts_with("POST") {
            read_until(&mut stream, "hello").await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\nfirst";
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        stream.write_all(b"-last").await.unwrap();
        let _ = read_all(&mut stream).await;
    })
    .await;
    for request in [
        "GET TARGET/ HTTP/1.1\r\nHOST\r\n\r\n",
        "GET TARGET/ HTTP/1.0\r\nHOST\r\n\r\n",
        "POST TARGET/ HTTP/1.1\r\nHOST\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        let mut stream = mesh.send(target.addr, request).await;
        stream.shutdown().await.unwrap();
        let answer = read_all(&mut stream).await.unwrap();
        assert!(answer.ends_with("first-last"), "{answer}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_user_that_goes_away_lets_go_of_the_target() {
    let mesh = Mesh::start().await;
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let target = Target::start(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            // Never answers.
            read_until(&mut stream, "\r\n\r\n").await;
            let _ = read_all(&mut stream).await;
            tell.send(()).await.unwrap();
        }
    })
    .await;
    for reset in [true, false] {
        let stream = mesh
            .send(target.addr, "GET TARGET/ HTTP/1.1\r\nHOST\r\n\r\n")
            .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        if reset {
            reset_on_close(&stream);
        }
        drop(stream);
        tokio::time::timeout(PATIENCE, told.recv())
            .await
            .expect("the target hears nothing")
            .unwrap();
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_refused_upload_hears_why() {
    let mesh = Mesh::start().await;
    let gone = TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    for _ in 0..5 {
        let head = "PUT TARGET/ HTTP/1.1\r\nHOST\r\nContent-Length: 4194304\r\n\r\n";
        let mut stream = mesh.send(gone, head).await;
        let body = vec![b'x'; 4 << 20];
        let (mut read, mut write) = stream.split();
        let (_, answer) = tokio::join!(write.write_all(&body), read_all(&mut read));
        let answer = answer.unwrap();
        assert!(answer.contains("x-mesh-error: refused"), "{answer}");
    }
    mesh.stop().await;
}

/// An agent's target that switches protocols, sends `early` with the head, and echoes.
async fn switching() -> Target {
    Target::start(|mut stream, _| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        if head.contains("upgrade: echo\r\n") {
            assert!(head.contains("connection: upgrade\r\n"), "{head}");
        }
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly;";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => break,
                Ok(read) if buffer[..read].ends_with(b"cut") => {
                    reset_on_close(&stream);
                    return;
                }
                Ok(read) => stream.write_all(&buffer[..read]).await.unwrap(),
                Err(_) => return,
            }
        }
        stream.write_all(b"end").await.unwrap();
    })
    .await
}

#[tokio::test]
async fn an_upgrade_carries_bytes_and_their_ends() {
    let mesh = Mesh::start().await;
    let target = switching().await;
    let request =
        "GET TARGET/ HTTP/1.1\r\nHOST\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nahead;";
    let mut stream = mesh.send(target.addr, request).await;
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.contains("upgrade: echo\r\n") && head.contains("connection: upgrade\r\n"),
        "{head}"
    );
    assert_eq!(
        read_until(&mut stream, "early;ahead;").await,
        "early;ahead;"
    );
    stream.write_all(b"more;").await.unwrap();
    assert_eq!(read_until(&mut stream, "more;").await, "more;");
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await.unwrap(), "end");

    let mut stream = mesh.send(target.addr, request).await;
    read_until(&mut stream, "ahead;").await;
    stream.write_all(b"cut").await.unwrap();
    assert!(
        read_all(&mut stream).await.is_err(),
        "a reset came as an end"
    );

    let answer = mesh
        .ask(
            target.addr,
            "GET TARGET/ HTTP/1.1\r\nHOST\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.contains("not asked for"),
        "{answer}"
    );
    mesh.stop().await;
}

#[tokio::test]
async fn a_drain_ends_idle_connections_at_once_and_busy_ones_when_they_are_done() {
    let mesh = Mesh::start().await;
    let target = Target::start(|mut stream, _| async move {
        loop {
            let head = read_until(&mut stream, "\r\n\r\n").await;
            if head.contains("/slow") {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .await
                .unwrap();
        }
    })
    .await;
    let request = "GET TARGET/ HTTP/1.1\r\nHOST\r\n\r\n";
    let mut idle = mesh.send(target.addr, request).await;
    read_until(&mut idle, "ok").await;
    let mut fresh = mesh.connect().await;
    let mut busy = mesh
        .send(target.addr, &request.replace("TARGET/", "TARGET/slow"))
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;

    let started = tokio::time::Instant::now();
    let drain = tokio::spawn(mesh.proxy.shutdown());
    assert_eq!(read_all(&mut idle).await.unwrap(), "");
    assert_eq!(read_all(&mut fresh).await.unwrap(), "");
    assert!(
        started.elapsed() < Duration::from_millis(700),
        "{:?}",
        started.elapsed()
    );
    let answer = read_all(&mut busy).await.unwrap();
    assert!(
        answer.contains("connection: close\r\n") && answer.ends_with("ok"),
        "{answer}"
    );
    let report = tokio::time::timeout(PATIENCE, drain)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(report.streams_cut, 0);
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    mesh.agent.shutdown().await;
}

#[tokio::test]
async fn a_drain_is_cut_at_its_deadline() {
    let mesh = Mesh::start().await;
    let target = Target::start(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream
            .write_all(b"HTTP/1.0 200 OK\r\n\r\npart")
            .await
            .unwrap();
        let _ = read_all(&mut stream).await;
    })
    .await;
    let mut busy = mesh
        .send(target.addr, "GET TARGET/ HTTP/1.0\r\nHOST\r\n\r\n")
        .await;
    read_until(&mut busy, "part").await;
    let report = mesh.proxy.shutdown().await;
    assert_eq!(report.streams_cut, 1);
    assert!(
        read_all(&mut busy).await.is_err(),
        "the cut response looks whole"
    );
    mesh.agent.shutdown().await;
}

#[tokio::test]
async fn a_slow_head_is_not_waited_for() {
    let mesh = Mesh::start().await;
    let mut silent = mesh.connect().await;
    let mut slow = mesh.connect().await;
    let mut second = mesh.connect().await;
    slow.write_all(b"GET / HT").await.unwrap();
    second
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut second, "index.html\n").await;
    second.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
    let started = tokio::time::Instant::now();
    for stream in [&mut silent, &mut slow, &mut second] {
        let _ = read_all(stream).await;
    }
    let waited = started.elapsed();
    assert!(
        waited > Duration::from_secs(8) && waited < Duration::from_secs(15),
        "{waited:?}"
    );
    mesh.stop().await;
}
