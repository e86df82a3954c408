//! A plain HTTP/1.1 client, and raw requests that no client would send.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Result;

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of `X-Mesh-Error`, empty when there is none.
    #[must_use]
    pub fn mesh_error(&self) -> &str {
        self.headers
            .get("x-mesh-error")
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }
}

/// One connection to a server.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    server: SocketAddr,
    _connection: JoinSet<()>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When the server does not.
    pub async fn connect(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server).await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Its failure is the request's.
            let _ = connection.with_upgrades().await;
        });
        Ok(Self {
            sender,
            server,
            _connection: tasks,
        })
    }

    /// Sends a request; `Host` is added where it is missing.
    ///
    /// # Errors
    /// When the connection breaks before the head of the answer.
    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        if !request.headers().contains_key(http::header::HOST) {
            let host = self.server.to_string().parse()?;
            request.headers_mut().insert(http::header::HOST, host);
        }
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks before its end.
    pub async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let response = self.send(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }
}

/// GET on a connection of its own.
///
/// # Errors
/// When the connection breaks before the end of the answer.
pub async fn get(server: SocketAddr, path: &str) -> Result<Answer> {
    let request = Request::get(path).body(Full::default())?;
    Client::connect(server).await?.ask(request).await
}

/// Sends bytes as they are, and reads until the server closes.
///
/// # Errors
/// When the connection cannot be made.
pub async fn raw(server: SocketAddr, request: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(server).await?;
    // The server may refuse before it has read all.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        answer.extend_from_slice(&buffer[..read]);
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
