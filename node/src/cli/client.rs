//! Requests to a node's admin API, and plain HTTP requests of the demo.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Method, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OnceCell;

use super::{CliError, identity};
use crate::report::ApiError;
use crate::user::{AdminStream, DialError, Event, UserClient, UserConfig, UserParts};

/// How long a node may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// How to find the node's admin listener.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// The admin listener of the node: `http://HOST:PORT`, or `unix:PATH`; by default
    /// http://127.0.0.1:7480. [env: MESH_ADMIN=]
    #[arg(long, value_name = "URL", conflicts_with_all = ["proxy", "identity"])]
    admin: Option<String>,
    /// A file whose one line is the token that the listener asks for (admin.auth).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["proxy", "identity"])]
    token_file: Option<PathBuf>,
    /// Or a proxy, HOST[:PORT], by QUIC and with a user's identity, who may do there what grants say.
    /// [env: MESH_PROXY=, where --admin and MESH_ADMIN are not set]
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    proxy: Vec<String>,
    /// The user's certificate, as alice.pem; alice.key and ca.pem lie beside it.
    /// [env: MESH_IDENTITY=]
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

/// The listener of a node on this host, unless it is told otherwise.
const ADMIN: &str = "http://127.0.0.1:7480";

/// How long saying goodbye to a proxy may take.
const GOODBYE: Duration = Duration::from_millis(200);

/// How long a proxy may take to be connected to.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The value of an environment variable, if it has one.
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl AdminArgs {
    /// The proxies that were asked for, and the identity for them; none when it is a listener.
    fn by_quic(&self) -> Result<Option<UserConfig>, CliError> {
        let proxies = if !self.proxy.is_empty() {
            self.proxy.clone()
        } else if self.admin.is_some() || self.token_file.is_some() {
            return Ok(None);
        } else if self.identity.is_some() {
            env("MESH_PROXY").into_iter().collect()
        } else if env("MESH_ADMIN").is_some() {
            return Ok(None);
        } else {
            match env("MESH_PROXY") {
                Some(proxies) => vec![proxies],
                None => return Ok(None),
            }
        };
        let texts: Vec<String> = proxies
            .iter()
            .flat_map(|text| text.split(',').map(str::to_owned))
            .collect();
        let path = self
            .identity
            .clone()
            .or_else(|| env("MESH_IDENTITY").map(PathBuf::from));
        let proxies = identity::proxies(&texts)?;
        let credentials = identity::identity(path.as_deref(), "--proxy")?;
        let mut config = UserConfig::new(credentials, proxies);
        config.wait_max = CONNECT_DEADLINE;
        config.takes_leaving = true;
        Ok(Some(config))
    }
}

/// A node's admin API.
#[derive(Debug)]
pub(super) struct AdminClient {
    place: Place,
    url: String,
    token: Option<String>,
}

#[derive(Debug)]
enum Place {
    Tcp(String),
    Unix(PathBuf),
    Proxy(Box<Remote>),
}

/// A proxy that is reached by QUIC.
#[derive(Debug)]
struct Remote {
    config: UserConfig,
    /// Made with the first request.
    client: OnceCell<UserClient>,
    /// Why no proxy could be connected to, at last.
    failures: Arc<Mutex<String>>,
}

impl Remote {
    async fn stream(&self) -> Result<AdminStream, String> {
        let client = self
            .client
            .get_or_try_init(async || {
                let failures = self.failures.clone();
                let parts = UserParts {
                    on_event: Arc::new(move |event| {
                        if let Event::Unreachable { failures: told, .. } = event {
                            let texts: Vec<String> = told
                                .iter()
                                .map(|failure| format!("{}: {}", failure.at, failure.message))
                                .collect();
                            *failures.lock().unwrap_or_else(PoisonError::into_inner) =
                                texts.join("; ");
                        }
                    }),
                    ..UserParts::default()
                };
                UserClient::start(self.config.clone(), parts)
            })
            .await
            .map_err(|error| error.to_string())?;
        match client.dialer().administer().await {
            Ok((_, stream)) => Ok(stream),
            Err(error @ DialError::NoProxy { .. }) => {
                let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                Err(if failures.is_empty() {
                    error.to_string()
                } else {
                    failures.clone()
                })
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Does `work` with the node of the arguments, and says goodbye to it.
pub(super) fn ask<T>(
    args: &AdminArgs,
    work: impl AsyncFnOnce(&AdminClient) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let client = AdminClient::new(args)?;
    super::run::block_on(async {
        let done = work(&client).await;
        client.close().await;
        done
    })
}

/// A request was not answered as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody answers.
    #[error("no node answers at {url}: {why}; {remedy}")]
    Unreachable {
        url: String,
        why: String,
        remedy: &'static str,
    },
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
    fn new(args: &AdminArgs) -> Result<Self, CliError> {
        if let Some(config) = args.by_quic()? {
            return Ok(Self {
                url: config.proxies.join(","),
                place: Place::Proxy(Box::new(Remote {
                    config,
                    client: OnceCell::new(),
                    failures: Arc::default(),
                })),
                token: None,
            });
        }
        let admin = args
            .admin
            .clone()
            .or_else(|| env("MESH_ADMIN"))
            .unwrap_or_else(|| ADMIN.to_owned());
        let wrong = |why: &str| {
            CliError::Usage(format!(
                "--admin {admin}: {why}; write http://HOST:PORT or unix:PATH"
            ))
        };
        let place = match admin.strip_prefix("unix:") {
            Some(path) => Place::Unix(path.into()),
            None => {
                let uri: Uri = admin.parse().map_err(|_| wrong("is no URL"))?;
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
            url: admin,
            token,
        })
    }

    /// Whether it is one node that is asked, or whichever of several answers.
    pub(super) fn is_one(&self) -> bool {
        match &self.place {
            Place::Tcp(_) | Place::Unix(_) => true,
            Place::Proxy(remote) => remote.config.proxies.len() == 1,
        }
    }

    /// Says goodbye.
    async fn close(self) {
        if let Place::Proxy(remote) = self.place
            && let Some(client) = remote.client.into_inner()
        {
            // The goodbye goes out at once; nobody has to wait until the network is quiet.
            let _ = tokio::time::timeout(GOODBYE, client.shutdown()).await;
        }
    }

    /// What the node tells under a path.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.request(Method::GET, path, None).await?;
        self.read(&body)
    }

    /// An answer as what it should be.
    pub(super) fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| ClientError::Misunderstood {
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
            remedy: match &self.place {
                Place::Proxy(_) => {
                    "see that it runs, that UDP reaches it, and that it takes this identity"
                }
                Place::Tcp(_) | Place::Unix(_) => {
                    "see that it runs with an [admin] section, and name its listener with --admin or MESH_ADMIN"
                }
            },
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
                Place::Proxy(remote) => {
                    let stream = remote.stream().await.map_err(anyhow::Error::msg)?;
                    exchange(stream, request).await
                }
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
