//! Requests that cannot be served, and why.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use mesh_tests::fleet::{Pair, http_ingress};
use mesh_tests::http::{self as client, Client};
use mesh_tests::scripted::{Fate, ScriptedNetwork};
use mesh_tests::services::Service;
use mesh_tests::{Result, web};
use node::app::Parts;

use crate::support::{Target, pair, path};

const FORM: &str = "/client/<agent>/<http or https>/<host:port>/<path>";

/// Each path that is not well formed is answered with what is wrong with it, and with the form.
#[tokio::test]
async fn bad_paths_name_the_form() -> Result {
    let (pair, ingress) = pair().await?;
    let echo = web::start().await?;
    let mut client = Client::connect(ingress).await?;
    for (path, status, why) in [
        ("/", 404, "nothing is served here"),
        ("/favicon.ico", 404, "nothing is served here"),
        ("/clients/a1/http/h:80/", 404, "nothing is served here"),
        ("/CLIENT/a1/http/h:80/", 404, "nothing is served here"),
        ("/client", 400, "the agent is missing"),
        ("/client/", 400, "is missing"),
        ("/client/a1", 400, "the scheme is missing"),
        ("/client/a1/", 400, "is missing"),
        ("/client/a1/http", 400, "the host:port is missing"),
        ("/client//http/h:80/", 400, "empty"),
        ("/client/A1/http/h:80/", 400, "upper case"),
        ("/client/a1/ftp/h:80/", 400, "neither `http` nor `https`"),
        ("/client/a1/HTTP/h:80/", 400, "neither `http` nor `https`"),
        ("/client/a1/http//", 400, "target"),
        ("/client/a1/http/h:0/", 400, "port"),
        ("/client/a1/http/h:65536/", 400, "port"),
        ("/client/a1/http/h:http/", 400, "port"),
        ("/client/a1/http/h:80:80/", 400, "target"),
        ("/client/a1/http/127.1:80/", 400, "target"),
        ("/client/a1/http/2130706433:80/", 400, "target"),
        ("/client/a1/http/0x7f000001:80/", 400, "target"),
        ("/client/a1/http/[::1:80/", 400, "target"),
        ("/client/a1/http/[fe80::1%25eth0]:80/", 400, "target"),
        ("/client/a1/http/user@h:80/", 400, "target"),
        ("/client/a1/http/a..b:80/", 400, "target"),
        ("/client/a1/http/%ff:80/", 400, "UTF-8"),
        ("/client/a1/http/h%0d%0aX:80/", 400, "target"),
        ("/client/a1/http/h%00:80/", 400, "target"),
        ("/client/a1/http/service:Web/", 400, "target"),
        ("/client/a1/http/unix:run%2Fa.sock/", 400, "target"),
        ("/client/a1/http/unix:%2Frun%2F..%2Fa.sock/", 400, "target"),
        ("/client/../client/a1/http/h:80/", 400, "a label is empty"),
    ] {
        // All on one connection: a bad path is no reason to end it.
        let answer = client
            .ask(Request::get(path).body(Full::default())?)
            .await
            .context(path)?;
        let (reason, text) = (answer.mesh_error().to_owned(), answer.text());
        ensure!(
            answer.status == status && text.contains(why) && text.contains(FORM),
            "{path}: {} {text}",
            answer.status
        );
        let expected = if status == 404 { "" } else { "bad_target" };
        ensure!(
            reason == expected && text.ends_with('\n'),
            "{path}: {reason:?} {text}"
        );
        ensure!(answer.headers["content-type"] == "text/plain; charset=utf-8");
    }
    let answer = client
        .ask(Request::get(path(echo.addr, "/good")).body(Full::default())?)
        .await?;
    ensure!(answer.status == 200, "{}", answer.text());
    let metrics = pair.proxy.metrics()?;
    for (code, count) in [("404", 4.0), ("400", 28.0), ("200", 1.0)] {
        let series = format!("mesh_ingress_requests_total{{kind=\"http\",code=\"{code}\"}}");
        let swapped = format!("mesh_ingress_requests_total{{code=\"{code}\",kind=\"http\"}}");
        let counted = metrics.get(&swapped).or_else(|_| metrics.get(&series))?;
        ensure!(
            counted.to_bits() == f64::to_bits(count),
            "{code}: {counted}"
        );
    }
    pair.stop().await;
    Ok(())
}

/// Each way in which a target cannot be reached has its status, its reason and its words, whatever
/// the method; the connection serves the next request.
#[tokio::test]
async fn unreachable_targets_say_why() -> Result {
    let network = ScriptedNetwork::default();
    let parts = Parts {
        network: Arc::new(network.clone()),
        ..Parts::current()
    };
    let pair = Pair::start_in(
        &[
            "127.0.0.1:*".into(),
            "10.1.2.3:80".into(),
            "10.1.2.4:80".into(),
            "*.svc.local:80".into(),
        ],
        |config| {
            config.ingresses = vec![http_ingress()];
            config.dial_deadline = Duration::from_millis(700);
        },
        |_| {},
        Parts::current(),
        parts,
    )
    .await?;
    let ingress = pair.proxy.ingress(0)?;
    network.fate("10.1.2.3:80".parse()?, Fate::Unreachable);
    network.fate("10.1.2.4:80".parse()?, Fate::Silence);
    network.name("meta.svc.local", &[&["169.254.169.254"]]);
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        listener.local_addr()?
    };
    let not_http = Service::start(|mut stream, _| async move {
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 mail.example.com ESMTP\r\n").await?;
        std::future::pending().await
    })
    .await?;
    let mute = Service::start(|mut stream, _| async move {
        // Reads the request and ends without a word.
        tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4096]).await?;
        Ok(())
    })
    .await?;
    let echo = web::start().await?;

    let mut client = Client::connect(ingress).await?;
    for (target, status, reason, why) in [
        (
            "nobody/http/127.0.0.1:80".to_owned(),
            502,
            "no_agent",
            "no agent `nobody` is connected",
        ),
        (
            "a1.other.example.com/http/127.0.0.1:80".into(),
            502,
            "no_agent",
            "neither an agent of the cluster",
        ),
        (
            "test.example.com/http/127.0.0.1:80".into(),
            403,
            "not_allowed",
            "proxy.allow in its config",
        ),
        (
            format!("a1/http/{closed}"),
            502,
            "refused",
            "does the service run",
        ),
        (
            "a1/http/192.0.2.1:80".into(),
            403,
            "not_allowed",
            "agent.allow",
        ),
        (
            "a1/http/meta.svc.local".into(),
            403,
            "not_allowed",
            "169.254.169.254",
        ),
        (
            "a1/http/unix:%2Frun%2Fother.sock".into(),
            403,
            "not_allowed",
            "agent.allow",
        ),
        (
            "a1/http/10.1.2.3".into(),
            502,
            "unreachable",
            "cannot reach",
        ),
        ("a1/http/10.1.2.4".into(), 504, "timeout", "within"),
        (
            "a1/http/none.svc.local".into(),
            502,
            "resolve_failed",
            "cannot resolve none.svc.local",
        ),
        (
            "a1/http/service:none".into(),
            400,
            "bad_target",
            "no service `none`",
        ),
        (
            format!("a1/http/{}", not_http.addr),
            502,
            "unsupported",
            "not HTTP",
        ),
        (
            format!("a1/http/{}", mute.addr),
            502,
            "lost",
            "the target may have seen the request",
        ),
    ] {
        for method in [Method::GET, Method::POST, Method::HEAD] {
            let body = if method == Method::POST {
                Bytes::from("a body")
            } else {
                Bytes::new()
            };
            let request = Request::builder()
                .method(method.clone())
                .uri(format!("/client/{target}/x"))
                .body(Full::from(body))?;
            let answer = client.ask(request).await.with_context(|| target.clone())?;
            ensure!(
                (answer.status, answer.mesh_error()) == (status, reason),
                "{method} {target}: {} {:?} {}",
                answer.status,
                answer.mesh_error(),
                answer.text()
            );
            let text = answer.text();
            if method == Method::HEAD {
                ensure!(text.is_empty(), "{text}");
            } else {
                ensure!(
                    text.starts_with(&format!("{reason}: ")) && text.contains(why),
                    "{target}: {text}"
                );
            }
        }
    }
    let request = Request::get(path(echo.addr, "/")).body(Full::default())?;
    ensure!(client.ask(request).await?.status == 200);
    pair.stop().await;
    Ok(())
}

/// A target's answer that is too much, or not well formed, is not passed on.
#[tokio::test]
async fn bad_answers_of_targets_are_not_passed_on() -> Result {
    let (pair, ingress) = pair().await?;
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/3.0 200 OK\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let target = Target::start(answer).await?;
        let answered = client::get(ingress, &path(target.service.addr, "/")).await?;
        ensure!(
            answered.status == 502 && ["unsupported", "lost"].contains(&answered.mesh_error()),
            "{}: {} {}",
            String::from_utf8_lossy(answer),
            answered.status,
            answered.text()
        );
    }
    let huge = Service::start(|mut stream, _| async move {
        let line = [b"X-Filler: ", &[b'x'; 1000][..], b"\r\n"].concat();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\n").await?;
        loop {
            tokio::io::AsyncWriteExt::write_all(&mut stream, &line).await?;
        }
    })
    .await?;
    let answered = client::get(ingress, &path(huge.addr, "/")).await?;
    ensure!(
        answered.status == 502,
        "{} {}",
        answered.status,
        answered.text()
    );
    // What a target says of itself is not taken for the mesh's word.
    let target = Target::start(
        b"HTTP/1.1 502 Bad Gateway\r\nX-Mesh-Error: no_agent\r\nContent-Length: 4\r\n\r\nown!",
    )
    .await?;
    let answered = client::get(ingress, &path(target.service.addr, "/")).await?;
    ensure!((answered.status, answered.mesh_error(), &*answered.text()) == (502, "", "own!"));
    pair.stop().await;
    Ok(())
}
