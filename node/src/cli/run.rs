//! `node --role …`: runs a node until it is told to end.

use std::io::IsTerminal as _;
use std::thread;

use clap::Args;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::CliError;
use super::config::SourceArgs;
use crate::app::{self, Bound, Parts, Runtimes};
use crate::config::{self, LogConfig, LogFormat, Sources};

/// Arguments of a node.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    source: SourceArgs,
}

/// Runs a node to its end.
///
/// # Errors
/// Wrong configuration, or a node that could not start.
pub fn run(args: &RunArgs) -> Result<(), CliError> {
    let sources = args.source.sources();
    let loaded = config::load(&sources).map_err(|errors| CliError::Usage(errors.to_string()))?;
    init_log(&loaded.config.common().log)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let shards = loaded.config.common().quic.shards;
    let threads = Threads::start(shards)?;
    let outcome = threads.main.block_on(async {
        let mut signals = Signals::new()?;
        // SIGHUP has a node read its config anew.
        let mut hangups = signal(SignalKind::hangup())
            .map_err(|error| CliError::Failed(format!("cannot listen for signals: {error}")))?;
        let parts = Parts {
            runtimes: threads.runtimes(),
            ..Parts::current()
        };
        let mut bound = app::build_with(loaded.config, parts)
            .await
            .map_err(|error| CliError::Failed(error.to_string()))?;
        loop {
            tokio::select! {
                biased;
                name = signals.next() => {
                    tracing::info!(signal = name, "ending; a second signal ends at once");
                    break;
                }
                Some(()) = hangups.recv() => {
                    reload(&bound, &sources).await;
                    continue;
                }
                () = bound.drain_asked() => {}
            }
            tokio::select! {
                biased;
                name = signals.next() => {
                    tracing::info!(signal = name, "ending; a second signal ends at once");
                    break;
                }
                goes_on = bound.notice() => if goes_on {
                    tracing::info!("ending, as asked over the admin API; a signal ends at once");
                    break;
                },
            }
        }
        tokio::select! {
            biased;
            _ = bound.shutdown() => Ok(()),
            name = signals.next() => Err(CliError::Failed(format!(
                "ended at once by a second signal ({name}), without waiting for streams"
            ))),
        }
    });
    threads.stop();
    outcome
}

/// Reads the config anew and takes over what can be; an error leaves everything as it is.
async fn reload(bound: &Bound, sources: &Sources) {
    let sources = sources.clone();
    #[expect(
        clippy::disallowed_methods,
        reason = "files may lie on a slow disk, and this thread serves connections"
    )]
    let loaded = tokio::task::spawn_blocking(move || config::load(&sources)).await;
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            tracing::error!(%error, "reading the config anew failed; nothing has changed");
            return;
        }
    };
    let warnings = loaded
        .as_ref()
        .map(|loaded| loaded.warnings.clone())
        .unwrap_or_default();
    match bound.reload(loaded.map(|loaded| loaded.config)) {
        Ok(change) => {
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            let named = |clusters: &[mesh_proto::name::Cluster]| {
                let names: Vec<&str> = clusters.iter().map(|cluster| cluster.as_str()).collect();
                names.join(",")
            };
            tracing::info!(
                trust_added = named(&change.added),
                trust_removed = named(&change.removed),
                trust_changed = named(&change.changed),
                "reloaded [[trust]] of the config; other sections take effect at the next start"
            );
        }
        Err(error) => {
            tracing::error!(
                error = %error.to_string().replace('\n', "; "),
                "the config was not reloaded, and nothing has changed"
            );
        }
    }
}

/// Starts logging to standard error.
///
/// # Errors
/// When the filter is malformed, or logging was started before.
pub(super) fn init_log(config: &LogConfig) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|error| CliError::Usage(format!("log.level: {error}")))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.format {
        LogFormat::Text => builder.try_init(),
        // Not flattened: a field may be called as one of the line's own (`target`), and an object
        // with two keys of one name is read in as many ways as there are readers.
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| CliError::Failed(format!("cannot start logging: {error}")))
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CliError::Failed(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The node's threads: this one runs the first shard, each further shard has one, and the admin
/// and metrics listeners have one.
struct Threads {
    main: Runtime,
    others: Vec<Handle>,
    stop: CancellationToken,
    joins: Vec<thread::JoinHandle<()>>,
}

impl Threads {
    fn start(shards: u16) -> Result<Self, CliError> {
        let failed =
            |error: std::io::Error| CliError::Failed(format!("cannot start a thread: {error}"));
        let stop = CancellationToken::new();
        let (mut others, mut joins) = (Vec::new(), Vec::new());
        let names = std::iter::once("admin".to_owned())
            .chain((1..shards).map(|shard| format!("shard-{shard}")));
        for name in names {
            let runtime = single_threaded().map_err(failed)?;
            others.push(runtime.handle().clone());
            let stopped = stop.clone().cancelled_owned();
            #[expect(
                clippy::disallowed_methods,
                reason = "this is main, which makes the threads"
            )]
            let join = thread::Builder::new()
                .name(name)
                .spawn(move || runtime.block_on(stopped))
                .map_err(failed)?;
            joins.push(join);
        }
        Ok(Self {
            main: single_threaded().map_err(failed)?,
            others,
            stop,
            joins,
        })
    }

    fn runtimes(&self) -> Runtimes {
        let (admin, shards) = match self.others.split_first() {
            Some((admin, shards)) => (admin.clone(), shards),
            None => (self.main.handle().clone(), &[][..]),
        };
        let shards = std::iter::once(self.main.handle().clone())
            .chain(shards.iter().cloned())
            .collect();
        Runtimes { shards, admin }
    }

    fn stop(self) {
        self.stop.cancel();
        for join in self.joins {
            // A panic there was reported by its task's owner.
            let _ = join.join();
        }
    }
}

/// Runs a verb that is not a node.
///
/// # Errors
/// Those of the verb, or when there is no runtime for it.
pub(super) fn block_on<T>(verb: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    single_threaded()
        .map_err(|error| CliError::Failed(format!("cannot start: {error}")))?
        .block_on(verb)
}

pub(super) fn single_threaded() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
