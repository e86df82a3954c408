//! The connection to one member of the cluster at a time.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, KeyValue, TlsOptions};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::failure::{Failure, classify};
use super::to_revision;
use crate::store::{Entry, EtcdUrl, Password, StoreError, TlsFiles};

/// How long one member has to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one member has to answer, connecting included. An election takes up to two seconds.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long all attempts at one thing may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The wait before members that answer, but cannot at the moment, are asked again.
const BUSY_WAIT: Duration = Duration::from_millis(100);
/// How often a connection in use is probed. etcd takes it amiss below five seconds.
const PROBE_INTERVAL: Duration = Duration::from_secs(6);
/// How long the answer to a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);
/// The largest file of certificates, a key or a password, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where to ask, and who is asked now.
pub(super) struct Connection {
    url: EtcdUrl,
    options: ConnectOptions,
    current: Mutex<Current>,
    closed: AtomicBool,
    closing: Notify,
}

/// The member that is asked.
#[derive(Default)]
struct Current {
    /// Which of the URL's, modulo their number. Grows with each failure.
    turn: usize,
    client: Option<Client>,
}

/// What was asked for is done.
pub(super) struct Done<T> {
    pub(super) answer: T,
    /// An attempt before may have done it already.
    pub(super) maybe_before: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options have the password in clear.
        fmt::Display::fmt(&self.url, f)
    }
}

impl Connection {
    pub(super) async fn new(url: &EtcdUrl) -> Result<Self, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PROBE_INTERVAL, PROBE_TIMEOUT)
            .with_keep_alive_while_idle(false)
            // A member that was cut off must not answer from what it remembers.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(user) = &url.user {
            let password = match &url.password {
                Password::None => String::new(),
                Password::Text(password) => password.clone(),
                Password::File(path) => read_password(path).await?,
            };
            options = options.with_user(user, password);
        }
        if let Some(files) = &url.tls {
            options = options.with_tls(read_tls(files).await?);
        }
        Ok(Self {
            url: url.clone(),
            options,
            current: Mutex::default(),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
        })
    }

    /// A key as etcd has it.
    pub(super) fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.url.prefix)
    }

    /// A key of etcd as it is to us; `None` if it is not ours.
    pub(super) fn own_key(&self, key: &[u8]) -> Option<String> {
        let key = key.strip_prefix(self.url.prefix.as_bytes())?;
        // Nobody can ask for one that is not text.
        std::str::from_utf8(key).ok().map(str::to_owned)
    }

    pub(super) fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        Some(Entry {
            key: self.own_key(kv.key())?,
            value: Bytes::copy_from_slice(kv.value()),
            created: to_revision(kv.create_revision()),
            modified: to_revision(kv.mod_revision()),
        })
    }

    /// Asks for something that may be asked for twice.
    pub(super) async fn read<T, F>(
        &self,
        work: impl Fn(Client) -> F + Send,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>> + Send,
        T: Send,
    {
        match self.write(work).await {
            Ok(done) => Ok(done.answer),
            Err(StoreError::Unreachable { what, .. }) => Err(StoreError::unreachable(what)),
            Err(error) => Err(error),
        }
    }

    /// Asks one member after the other, until one has an answer or the time is over. All members are
    /// asked once even if none of them can be reached; again only if one of them is there.
    pub(super) async fn write<T, F>(
        &self,
        work: impl Fn(Client) -> F + Send,
    ) -> Result<Done<T>, StoreError>
    where
        F: Future<Output = Result<T, Error>> + Send,
        T: Send,
    {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let mut maybe_before = false;
        let mut someone_answers = false;
        // A connection that stood for long may be broken without anybody having noticed.
        let mut left_in_round = self.url.endpoints.len() + 1;
        loop {
            let (turn, failure) = match self.attempt(deadline, &work).await {
                Ok(answer) => {
                    return Ok(Done {
                        answer,
                        maybe_before,
                    });
                }
                Err(failed) => failed,
            };
            let (what, answers) = match failure {
                Failure::Final(error) => return Err(error),
                Failure::Elsewhere {
                    what,
                    maybe_done,
                    answers,
                } => {
                    maybe_before |= maybe_done;
                    (what, answers)
                }
            };
            let endpoint = self.endpoint(turn);
            tracing::debug!(store = ?self, endpoint, what, "a member of the store did not do it");
            someone_answers |= answers;
            left_in_round -= 1;
            let over = left_in_round == 0 && !someone_answers;
            if over || Instant::now() + BUSY_WAIT >= deadline || self.is_closed() {
                return Err(StoreError::Unreachable {
                    what: format!("{}: {what}", self.url_of(endpoint)),
                    maybe_done: maybe_before,
                });
            }
            if left_in_round == 0 {
                left_in_round = self.url.endpoints.len();
                someone_answers = false;
                tokio::time::sleep(BUSY_WAIT).await;
            }
        }
    }

    /// Asks one member once, for something that need not be done. Whether it was, is told.
    pub(super) async fn try_once<T, F>(&self, work: impl Fn(Client) -> F + Send) -> Option<T>
    where
        F: Future<Output = Result<T, Error>> + Send,
        T: Send,
    {
        let deadline = Instant::now() + ATTEMPT_TIMEOUT;
        match self.attempt(deadline, &work).await {
            Ok(answer) => Some(answer),
            Err((turn, failure)) => {
                let endpoint = self.endpoint(turn);
                tracing::debug!(store = ?self, endpoint, ?failure, "a member of the store did not tidy up");
                None
            }
        }
    }

    /// One attempt, at the member whose turn it is, which ends at the deadline at the latest. After
    /// a failure it is another one's.
    async fn attempt<T, F>(
        &self,
        deadline: Instant,
        work: impl Fn(Client) -> F,
    ) -> Result<T, (usize, Failure)>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (turn, client) = self.client(deadline).await?;
        let until = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
        let failure = match tokio::time::timeout_at(until, work(client)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => classify(&error),
            Err(_) => Failure::timed_out(),
        };
        if matches!(failure, Failure::Elsewhere { .. }) {
            self.give_up(turn);
        }
        Err((turn, failure))
    }

    /// The client of the member whose turn it is. Several that want one at the same time connect
    /// side by side, so that none waits for the others' attempts; the first to have it is kept.
    async fn client(&self, deadline: Instant) -> Result<(usize, Client), (usize, Failure)> {
        let (turn, known) = {
            let current = self.current();
            (current.turn, current.client.clone())
        };
        let was_closed = || Failure::Final(StoreError::unreachable("it was closed"));
        if self.is_closed() {
            return Err((turn, was_closed()));
        }
        if let Some(client) = known {
            return Ok((turn, client));
        }
        let scheme = if self.url.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let endpoint = format!("{scheme}://{}", self.endpoint(turn));
        let connecting = Client::connect([endpoint], Some(self.options.clone()));
        let until = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
        let failure = match tokio::time::timeout_at(until, connecting).await {
            Ok(Ok(client)) => {
                let mut current = self.current();
                // Closing says so first, and takes away afterwards what is kept.
                if self.is_closed() {
                    return Err((turn, was_closed()));
                }
                if current.turn != turn {
                    return Ok((turn, client));
                }
                return Ok((turn, current.client.get_or_insert(client).clone()));
            }
            Ok(Err(error)) => classify(&error),
            Err(_) => Failure::timed_out(),
        };
        // Nothing but a password was sent.
        let failure = match failure {
            Failure::Elsewhere { what, answers, .. } => {
                self.give_up(turn);
                Failure::Elsewhere {
                    what,
                    maybe_done: false,
                    answers,
                }
            }
            other @ Failure::Final(_) => other,
        };
        Err((turn, failure))
    }

    /// Whose turn it is.
    pub(super) fn turn(&self) -> usize {
        self.current().turn
    }

    /// The next member, unless somebody was faster.
    pub(super) fn give_up(&self, turn: usize) {
        let mut current = self.current();
        if current.turn == turn {
            current.turn = turn.wrapping_add(1);
            current.client = None;
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn endpoint(&self, turn: usize) -> &str {
        let index = turn % self.url.endpoints.len().max(1);
        self.url.endpoints.get(index).map_or("", String::as_str)
    }

    fn url_of(&self, endpoint: &str) -> String {
        format!("etcd://{endpoint}{}", self.url.prefix)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Completes when it is closed.
    pub(super) async fn until_closed(&self) {
        let mut closing = std::pin::pin!(self.closing.notified());
        closing.as_mut().enable();
        if !self.is_closed() {
            closing.await;
        }
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.closing.notify_waiters();
        self.current().client = None;
    }
}

async fn read_password(path: &Path) -> Result<String, StoreError> {
    let bytes = read_file(path).await?;
    let text = String::from_utf8(bytes).map_err(|_| credentials(path, "it is not UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(credentials(path, "it has no password"));
    }
    Ok(text.to_owned())
}

async fn read_tls(files: &TlsFiles) -> Result<TlsOptions, StoreError> {
    let mut tls = TlsOptions::new();
    tls = match &files.ca {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read_pem(path).await?)),
        None => tls.with_native_roots(),
    };
    if let Some((cert, key)) = &files.identity {
        let (cert, key) = (read_pem(cert).await?, read_pem(key).await?);
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    if let Some(name) = &files.server_name {
        tls = tls.domain_name(name);
    }
    Ok(tls)
}

/// Text that has at least the look of PEM: the error comes before the first connection.
async fn read_pem(path: &Path) -> Result<Vec<u8>, StoreError> {
    let bytes = read_file(path).await?;
    let has_begin = bytes.windows(11).any(|window| window == b"-----BEGIN ");
    if has_begin {
        Ok(bytes)
    } else {
        Err(credentials(path, "it is not PEM"))
    }
}

async fn read_file(path: &Path) -> Result<Vec<u8>, StoreError> {
    use tokio::io::AsyncReadExt as _;
    let failed = |error: std::io::Error| credentials(path, &error.to_string());
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut bytes = Vec::new();
    let mut reader = file.take(FILE_BYTES_MAX + 1);
    reader.read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(credentials(path, "it is over the limit of 1 MiB"));
    }
    Ok(bytes)
}

fn credentials(path: &Path, what: &str) -> StoreError {
    StoreError::Credentials {
        path: path.to_owned(),
        what: what.to_owned(),
    }
}
