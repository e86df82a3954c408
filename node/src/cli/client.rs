//! Requests to a node's admin API, and plain HTTP requests of the demo.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::CliError;
use crate::report::ApiError;

/// How long a node may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How to find the node's admin listener.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// The admin listener of the node: `http://HOST:PORT`, or `unix:PATH`.
    #[arg(
        long,
        value_name = "URL",
        env = "MESH_ADMIN",
        default_value = "http://127.0.0.1:7480"
    )]
    admin: String,
    /// A file whose one line is the token that the listener asks for (admin.auth).
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// A node's admin API.
#[derive(Debug, Clone)]
pub(super) struct AdminClient {
    place: Place,
    url: String,
    token: Option<String>,
}

#[derive(Debug, Clone)]
enum Place {
    Tcp(String),
    Unix(PathBuf),
}

/// A request was not answered as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody answers.
    #[error(
        "no node answers at {url}: {why}; see that it runs with an [admin] section, and name its listener with --admin or MESH_ADMIN"
    )]
    Unreachable { url: String, why: String },
    /// The node says no.
    #[error("the node at {url} refused: {why}")]
    Refused { url: String, why: String },
    /// The answer is not understood.
    #[error(
        "the answer of {url} is not understood ({why}): is it a node's admin listener, of about this version?"
    )]
    Misunderstood { url: String, why: String },
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl AdminClient {
    /// The client of the arguments.
    ///
    /// # Errors
    /// When the URL is none, or the token cannot be read.
    pub(super) fn new(args: &AdminArgs) -> Result<Self, CliError> {
        let wrong = |why: &str| {
            CliError::Usage(format!(
                "--admin {}: {why}; write http://HOST:PORT or unix:PATH",
                args.admin
            ))
        };
        let place = match args.admin.strip_prefix("unix:") {
            Some(path) => Place::Unix(path.into()),
            None => {
                let uri: Uri = args.admin.parse().map_err(|_| wrong("is no URL"))?;
                if uri.scheme_str() != Some("http") {
                    return Err(wrong("does not begin with http://"));
                }
                let host = uri.host().ok_or_else(|| wrong("names no host"))?;
                Place::Tcp(format!("{host}:{}", uri.port_u16().unwrap_or(7480)))
            }
        };
        let token = match &args.token_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    CliError::Usage(format!("--token-file {}: {error}", path.display()))
                })?;
                Some(text.trim().to_owned())
            }
        };
        Ok(Self {
            place,
            url: args.admin.clone(),
            token,
        })
    }

    /// What the node tells under a path.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.request(Method::GET, path, None).await?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Misunderstood {
            url: self.url.clone(),
            why: error.to_string(),
        })
    }

    /// Asks the node to do something.
    pub(super) async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, ClientError> {
        let unreachable = |why: String| ClientError::Unreachable {
            url: self.url.clone(),
            why,
        };
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            match &self.place {
                Place::Tcp(address) => {
                    exchange(TcpStream::connect(address.as_str()).await?, request).await
                }
                Place::Unix(path) => exchange(UnixStream::connect(path).await?, request).await,
            }
        };
        let (status, body) = tokio::time::timeout(ANSWER_DEADLINE, exchange)
            .await
            .map_err(|_| unreachable(format!("no answer within {ANSWER_DEADLINE:?}")))?
            .map_err(|error| unreachable(format!("{error:#}")))?;
        if status.is_success() {
            return Ok(body);
        }
        let why = match serde_json::from_slice::<ApiError>(&body) {
            Ok(ApiError { error }) => error,
            Err(_) => format!("{status}: {}", String::from_utf8_lossy(&body).trim()),
        };
        Err(ClientError::Refused {
            url: self.url.clone(),
            why,
        })
    }
}

/// One request over a fresh connection.
///
/// # Errors
/// When the connection or the exchange fails.
pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: http::Request<Full<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = client.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, body))
    };
    let connection = async {
        // Its failures are the exchange's.
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        exchanged = exchange => exchanged,
        () = connection => anyhow::bail!("the connection ended"),
    }
}
