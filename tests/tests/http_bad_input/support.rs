//! Requests by hand, and targets that keep what they hear.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use mesh_tests::Result;
use mesh_tests::fleet::{Pair, http_ingress};
use mesh_tests::http::Answer;
use mesh_tests::services::Service;
use node::config::IngressConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A pair whose agent may reach any port of this host, with one `http` ingress.
pub(crate) async fn pair_with(ingress: IngressConfig) -> Result<Pair> {
    Pair::start(&["127.0.0.1:*".into()], vec![ingress]).await
}

/// The same with a plain ingress; and its address.
pub(crate) async fn pair() -> Result<(Pair, SocketAddr)> {
    let pair = pair_with(http_ingress()).await?;
    let ingress = pair.proxy.ingress(0)?;
    Ok((pair, ingress))
}

/// The path of a target's `path`.
pub(crate) fn path(target: SocketAddr, path: &str) -> String {
    format!("/client/a1/http/{target}{path}")
}

/// A target that keeps all that it reads, and answers the first head of each connection.
pub(crate) struct Target {
    pub(crate) service: Service,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Target {
    /// Answers with `answer`, and reads on until the other side ends.
    pub(crate) async fn start(answer: &'static [u8]) -> Result<Self> {
        let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
        let ears = heard.clone();
        let service = Service::start(move |mut stream, _| {
            let ears = ears.clone();
            async move {
                let (mut before, mut answered) = (Vec::new(), false);
                let mut buffer = [0; 4096];
                loop {
                    let read = stream.read(&mut buffer).await?;
                    if read == 0 {
                        return Ok(());
                    }
                    ears.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend_from_slice(&buffer[..read]);
                    before.extend_from_slice(&buffer[..read]);
                    if !answered && before.windows(4).any(|end| end == b"\r\n\r\n") {
                        answered = true;
                        stream.write_all(answer).await?;
                    }
                }
            }
        })
        .await?;
        Ok(Self { service, heard })
    }

    /// What it has read, of all connections.
    pub(crate) fn heard(&self) -> String {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&heard).into_owned()
    }
}

/// Reads until the whole of `text` has come.
pub(crate) async fn read_until(stream: &mut TcpStream, text: &str) -> Result<String> {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        let mut buffer = [0; 4096];
        match stream
            .read(&mut buffer)
            .await
            .with_context(|| format!("before `{text}`"))?
        {
            0 => bail!(
                "the end before `{text}`: {}",
                String::from_utf8_lossy(&read)
            ),
            length => read.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// Sends bytes on a connection of their own.
pub(crate) async fn begin(server: SocketAddr, bytes: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(bytes).await?;
    Ok(stream)
}

/// GET over TLS.
pub(crate) async fn get_over_tls(
    server: SocketAddr,
    tls: rustls::ClientConfig,
    path: &str,
) -> Result<Answer> {
    let stream = TcpStream::connect(server).await?;
    let name = ServerName::IpAddress(server.ip().into());
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(http::header::HOST, server.to_string())
        .body(Full::<Bytes>::default())?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    };
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        answer = exchange => answer,
        ended = &mut connection => {
            ended?;
            bail!("the connection ended without an answer")
        }
    }
}
