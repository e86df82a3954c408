//! Header fields on their way.

use anyhow::{Context as _, ensure};
use http::Request;
use http_body_util::Full;
use mesh_tests::http::Client;
use mesh_tests::{Result, web};
use serde_json::{Value, json};

use crate::support::{Target, pair, path};

/// What a target hears of a request: who asked, how, for what; and nothing that was the ingress'
/// or of one connection alone.
#[tokio::test]
async fn requests_are_told_where_they_come_from() -> Result {
    let (pair, ingress) = pair().await?;
    let echo = web::start().await?;
    let prefix = path(echo.addr, "");
    let request = Request::get(format!("{prefix}/a/./b/../c//d%2f%20?x=%2F&y"))
        .header("host", "localhost:1234")
        .header("connection", "keep-alive, X-Private, Upgrade")
        .header("keep-alive", "timeout=5")
        .header("x-private", "of this connection")
        .header("proxy-authorization", "Basic c2VjcmV0")
        .header("proxy-connection", "keep-alive")
        .header("te", "gzip")
        .header(
            "x-mesh-token",
            "not checked here, and no business of the target",
        )
        .header("authorization", "Bearer for-the-target")
        .header("cookie", "a=b")
        .header("x-forwarded-for", "198.51.100.7")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "spoofed.example.com")
        .header("x-forwarded-prefix", "/spoofed")
        .header("forwarded", "for=198.51.100.7;proto=https")
        .header("via", "1.0 elsewhere")
        .header("x-plain", "one")
        .header("x-plain", "two")
        .body(Full::default())?;
    let answer = Client::connect(ingress).await?.ask(request).await?;
    let told: Value = serde_json::from_slice(&answer.body).with_context(|| answer.text())?;
    ensure!(told["path"] == "/a/./b/../c//d%2f%20?x=%2F&y", "{told}");
    let headers = &told["headers"];
    for (name, value) in [
        ("host", json!([echo.addr.to_string()])),
        ("authorization", json!(["Bearer for-the-target"])),
        ("cookie", json!(["a=b"])),
        ("x-plain", json!(["one", "two"])),
        ("via", json!(["1.0 elsewhere, 1.1 mesh"])),
        ("x-forwarded-for", json!(["198.51.100.7, 127.0.0.1"])),
        ("x-forwarded-proto", json!(["http"])),
        ("x-forwarded-host", json!(["localhost:1234"])),
        ("x-forwarded-prefix", json!([prefix])),
        (
            "forwarded",
            json!([
                "for=198.51.100.7;proto=https, for=127.0.0.1;host=\"localhost:1234\";proto=http"
            ]),
        ),
    ] {
        ensure!(
            headers[name] == value,
            "{name}: {} is not {value}",
            headers[name]
        );
    }
    for name in [
        "connection",
        "keep-alive",
        "x-private",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "upgrade",
        "transfer-encoding",
        "content-length",
        "x-mesh-token",
    ] {
        ensure!(headers.get(name).is_none(), "{name}: {}", headers[name]);
    }
    pair.stop().await;
    Ok(())
}

/// What a user hears of a response: all of it, but for what was between proxy and target.
#[tokio::test]
async fn responses_lose_what_is_of_one_connection() -> Result {
    let (pair, ingress) = pair().await?;
    let target = Target::start(
        b"HTTP/1.1 200 Fine\r\n\
          Connection: close, X-Private\r\n\
          X-Private: of that connection\r\n\
          Keep-Alive: timeout=5\r\n\
          Proxy-Authenticate: Basic\r\n\
          Upgrade: h2c\r\n\
          X-Mesh-Error: timeout\r\n\
          Set-Cookie: a=b\r\n\
          Set-Cookie: c=d\r\n\
          Server: of the target\r\n\
          X-Odd: caf\xe9\r\n\
          Content-Length: 4\r\n\r\nbody",
    )
    .await?;
    let mut client = Client::connect(ingress).await?;
    for _ in 0..2 {
        let request = Request::get(path(target.service.addr, "/")).body(Full::default())?;
        let answer = client.ask(request).await?;
        ensure!(answer.status == 200 && answer.text() == "body");
        let headers = &answer.headers;
        let cookies: Vec<_> = headers.get_all("set-cookie").iter().collect();
        ensure!(cookies == ["a=b", "c=d"], "{cookies:?}");
        ensure!(headers["server"] == "of the target");
        ensure!(headers["x-odd"].as_bytes() == b"caf\xe9");
        for name in [
            "connection",
            "x-private",
            "keep-alive",
            "proxy-authenticate",
            "upgrade",
            "x-mesh-error",
        ] {
            ensure!(!headers.contains_key(name), "{name}: {:?}", headers[name]);
        }
    }
    pair.stop().await;
    Ok(())
}
