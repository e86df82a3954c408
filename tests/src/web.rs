//! A web server in this process for HTTP clients of any kind: it makes and checks bodies of any
//! size as they pass, and tells what arrived.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::Result;
use crate::programs::Sha256;
use crate::services::{Service, pattern};

/// Size of the pieces that bodies are made in.
const PIECE_BYTES: u64 = 256 << 10;

/// What `/slow` sends at a time, and how often.
const SLOW_BYTES: u64 = 16 << 10;
const SLOW_PACE: Duration = Duration::from_millis(100);

/// What the target of an upgrade sends: a WebSocket text frame with `hello`, and an orderly close.
pub const UPGRADED_BYTES: &[u8] = b"\x81\x05hello\x88\x02\x03\xe8";

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Starts the server.
///
/// | path | answer |
/// |---|---|
/// | `/source/N` | N bytes of [`pattern`], with a length |
/// | `/chunked/N` | the same in chunks, without one |
/// | `/endless` | chunks without end |
/// | `/slow/N` | N bytes of it, with a length, 16 KiB every 100 ms |
/// | `/sink` | `BYTES SHA256` of the request's body |
/// | `/upgrade` | switches to WebSocket, and sends [`UPGRADED_BYTES`] |
/// | any other | what arrived, as JSON: method, path, headers (lists by name), `body_bytes` |
///
/// # Errors
/// When no port is free.
pub async fn start() -> Result<Service> {
    Service::start(|stream, _| async move {
        let serve = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
        let connection = hyper::server::conn::http1::Builder::new()
            .max_headers(400)
            .serve_connection(TokioIo::new(stream), serve)
            .with_upgrades();
        connection.await.map_err(std::io::Error::other)
    })
    .await
}

/// Pieces of `bytes` of [`pattern`]; no more than one is held at a time.
pub fn pieces(bytes: u64) -> impl Iterator<Item = Vec<u8>> {
    let pieces = bytes.div_ceil(PIECE_BYTES);
    (0..pieces).map(move |piece| {
        let offset = piece * PIECE_BYTES;
        pattern(
            offset,
            usize::try_from((bytes - offset).min(PIECE_BYTES)).unwrap_or(0),
        )
    })
}

/// The digest of `bytes` of [`pattern`].
#[must_use]
pub fn digest(bytes: u64) -> String {
    let mut sha256 = Sha256::default();
    for piece in pieces(bytes) {
        sha256.update(&piece);
    }
    sha256.finish()
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let size = path
        .rsplit('/')
        .next()
        .and_then(|size| size.parse().ok())
        .unwrap_or(0);
    match path.split('/').nth(1) {
        Some("source") => {
            let mut response = Response::new(source(size));
            response.headers_mut().insert(CONTENT_LENGTH, size.into());
            response
        }
        Some("slow") => {
            let mut response = Response::new(slow(size));
            response.headers_mut().insert(CONTENT_LENGTH, size.into());
            response
        }
        Some("chunked") => Response::new(source(size)),
        Some("endless") => Response::new(source(u64::MAX)),
        Some("sink") => sink(request).await,
        Some("upgrade") => upgrade(request),
        _ => echo(request).await,
    }
}

fn source(bytes: u64) -> Body {
    let frames = pieces(bytes).map(|piece| Ok(Frame::data(Bytes::from(piece))));
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

fn slow(bytes: u64) -> Body {
    let frames = stream::unfold(0, move |offset| async move {
        if offset >= bytes {
            return None;
        }
        tokio::time::sleep(SLOW_PACE).await;
        let length = (bytes - offset).min(SLOW_BYTES);
        let piece = pattern(offset, usize::try_from(length).unwrap_or(0));
        Some((Ok(Frame::data(Bytes::from(piece))), offset + length))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::from(text).boxed_unsync());
    *response.status_mut() = status;
    response
}

async fn sink(request: Request<Incoming>) -> Response<Body> {
    let mut sha256 = Sha256::default();
    let mut bytes = 0;
    let mut body = pin!(request.into_body().into_data_stream());
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) => {
                sha256.update(&piece);
                bytes += piece.len();
            }
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("cut: {error}\n")),
        }
    }
    text(StatusCode::OK, format!("{bytes} {}\n", sha256.finish()))
}

fn upgrade(request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request.headers().get("sec-websocket-key").cloned() else {
        return text(StatusCode::BAD_REQUEST, "no Sec-WebSocket-Key\n".into());
    };
    tokio::spawn(async move {
        // A client that has gone is for the test to notice.
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let mut socket = TokioIo::new(upgraded);
            let _ = socket.write_all(UPGRADED_BYTES).await;
            let _ = socket.shutdown().await;
        }
    });
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, String::new());
    let headers = response.headers_mut();
    headers.insert(CONNECTION, http::HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, http::HeaderValue::from_static("websocket"));
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        headers.insert("sec-websocket-accept", accept);
    }
    response
}

async fn echo(request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body_bytes = body.collect().await.map(|body| body.to_bytes().len()).ok();
    let told = serde_json::json!({
        "method": head.method.as_str(),
        "path": head.uri.to_string(),
        "headers": by_name(&head.headers),
        "body_bytes": body_bytes,
    });
    let mut response = text(StatusCode::OK, told.to_string());
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    if head.method == Method::OPTIONS {
        let allow = http::HeaderValue::from_static("GET, HEAD, OPTIONS");
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

fn by_name(headers: &HeaderMap) -> serde_json::Map<String, serde_json::Value> {
    headers
        .keys()
        .map(|name| {
            let values = headers.get_all(name).iter();
            let values: Vec<_> = values
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            (name.to_string(), values.into())
        })
        .collect()
}
