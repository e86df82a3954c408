//! `node forward`: local ports that lead to targets of agents.

mod output;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use self::output::Output;
use super::CliError;
use super::identity::{identity, proxies};
use super::run::{Signals, single_threaded};
use crate::clock::WallClock;
use crate::net::{Network, SystemNetwork};
use crate::random::Random;
use crate::user::forward::Forwarder;
use crate::user::spec::{ForwardSpec, Local};
use crate::user::{StartError, UserClient, UserConfig, UserParts};

/// How long connections may go on after the first signal.
const GRACE: Duration = Duration::from_secs(10);

/// Forwards of one command.
const FORWARDS_MAX: usize = 64;

/// Arguments of `node forward`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ForwardArgs {
    /// [BIND:]PORT:AGENT/TARGET, as 5432:a1/10.0.0.7:5432; several are allowed. Port 0 takes a free
    /// one and prints it. Local programs reach it on 127.0.0.1, or where BIND or unix:/path says.
    #[arg(value_name = "FORWARD", required = true)]
    forwards: Vec<String>,
    /// A proxy, HOST[:PORT]; may be repeated, or a list with commas. All addresses of all names are
    /// candidates: one is used, and the others when it is lost.
    #[arg(long, value_name = "ADDR", env = "MESH_PROXY", value_delimiter = ',')]
    proxy: Vec<String>,
    /// The user's certificate, as alice.pem; alice.key and ca.pem lie beside it.
    #[arg(long, value_name = "FILE", env = "MESH_IDENTITY")]
    identity: Option<PathBuf>,
    /// Connections that are forwarded at one time; further ones are refused.
    #[arg(long, value_name = "COUNT", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65536))]
    connections_max: u32,
    /// Write an object a line on standard output, for programs.
    #[arg(long)]
    json: bool,
    /// Not supported: the mesh carries byte streams alone.
    #[arg(long, hide = true)]
    udp: bool,
}

const EXAMPLES: &str = "\
Examples:
  node forward --proxy proxy.example.com --identity alice.pem 5432:db-1/10.0.0.7:5432
  node forward 2222:a1/127.0.0.1:22 0:a1/service:web        (with MESH_PROXY and MESH_IDENTITY)
  node forward unix:/tmp/db.sock:db-1/unix:/run/postgresql/.s.PGSQL.5432

A TARGET is host:port, [v6]:port, unix:/path or service:name, as the agent sees it.";

/// Runs `node forward` until a signal ends it.
///
/// # Errors
/// Wrong arguments or files ([`CliError::Usage`]); an identity that no proxy takes, or a local port
/// that cannot be listened on.
pub fn run(args: &ForwardArgs) -> Result<(), CliError> {
    if args.udp {
        return Err(CliError::Usage(
            "--udp: UDP is not forwarded. The mesh carries byte streams (TCP, Unix sockets) alone; leave --udp out, or reach the service by TCP".into(),
        ));
    }
    let forwards = forwards(&args.forwards)?;
    let config = UserConfig::new(
        identity(args.identity.as_deref(), "forward")?,
        proxies(&args.proxy)?,
    );
    let runtime = single_threaded()
        .map_err(|error| CliError::Failed(format!("cannot start a thread: {error}")))?;
    let output = Output::start(args.json)?;
    let connections_max = usize::try_from(args.connections_max).unwrap_or(usize::MAX);
    let outcome = runtime.block_on(serve(config, &forwards, connections_max, &output));
    // Dropped, it would wait for a resolver that does not answer.
    runtime.shutdown_background();
    output.finish();
    outcome
}

async fn serve(
    config: UserConfig,
    forwards: &[ForwardSpec],
    connections_max: usize,
    output: &Output,
) -> Result<(), CliError> {
    let mut signals = Signals::new()?;
    let network: Arc<dyn Network> = Arc::new(SystemNetwork);
    let printer = output.printer();
    let parts = UserParts {
        network: network.clone(),
        random: Random::system(),
        clock: WallClock::system(),
        on_event: Arc::new(move |event| printer.event(event)),
    };
    let client = UserClient::start(config, parts).map_err(|error| match error {
        StartError::NotAUser(_) | StartError::NoProxy => CliError::Usage(error.to_string()),
        StartError::Endpoint(_) | StartError::Metrics(_) => CliError::Failed(error.to_string()),
    })?;
    let forwarder = Forwarder::start(&client, &*network, forwards, connections_max)
        .map_err(|error| CliError::Failed(error.to_string()))?;
    let printer = output.printer();
    for listening in forwarder.listening() {
        if listening.local.is_exposed() {
            printer.exposed(&listening.local);
        }
    }
    let work = async {
        match client.connected().await {
            Ok(()) => {}
            Err(gave_up) => return gave_up,
        }
        for listening in forwarder.listening() {
            printer.ready(listening);
        }
        client.gave_up().await
    };
    let signal = tokio::select! {
        biased;
        name = signals.next() => name,
        gave_up = work => {
            forwarder.shutdown(Duration::ZERO).await;
            client.shutdown().await;
            return Err(CliError::Failed(gave_up.to_string()));
        }
    };
    forwarder.stop();
    let open = forwarder.open();
    if open > 0 {
        printer.ending(signal, open, GRACE);
    }
    let ended = async {
        let cut = forwarder.shutdown(GRACE).await;
        client.shutdown().await;
        cut
    };
    tokio::select! {
        biased;
        cut = ended => {
            printer.ended(cut);
            Ok(())
        }
        name = signals.next() => Err(CliError::Failed(format!(
            "ended at once by a second signal ({name}), without waiting for connections"
        ))),
    }
}

/// All forwards, or all that is wrong with them.
fn forwards(texts: &[String]) -> Result<Vec<ForwardSpec>, CliError> {
    if texts.len() > FORWARDS_MAX {
        return Err(CliError::Usage(format!(
            "one command has at most {FORWARDS_MAX} forwards: start several"
        )));
    }
    let (mut forwards, mut errors) = (Vec::<ForwardSpec>::new(), Vec::new());
    let mut locals = BTreeSet::new();
    for text in texts {
        match text.parse::<ForwardSpec>() {
            Ok(spec) => {
                let is_chosen = matches!(spec.local, Local::Tcp(address) if address.port() == 0);
                if !is_chosen && !locals.insert(spec.local.clone()) {
                    errors.push(format!(
                        "`{text}`: the local side {} is there twice: give each forward its own, or port 0",
                        spec.local
                    ));
                }
                forwards.push(spec);
            }
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.is_empty() {
        Ok(forwards)
    } else {
        Err(CliError::Usage(errors.join("\nerror: ")))
    }
}
