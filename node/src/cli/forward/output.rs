//! What `node forward` writes: a short line for each event, or an object for programs.

use std::io::{self, Write as _};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::CliError;
use crate::user::forward::Listening;
use crate::user::spec::Local;
use crate::user::{Event, Failure};

/// Lines that wait for a reader. Beyond, they are dropped: a terminal that was stopped, or a program
/// that does not read, must not stop the connections.
const LINES_MAX: usize = 1024;

/// How long the last lines may take to be read.
const FINISH_GRACE: Duration = Duration::from_secs(1);

enum Line {
    Out(String),
    Error(String),
}

/// The thread that writes, so that nothing else waits for a reader.
pub(super) struct Output {
    printer: Printer,
    written: Receiver<()>,
}

impl Output {
    pub(super) fn start(json: bool) -> Result<Self, CliError> {
        let (lines, waiting) = mpsc::sync_channel(LINES_MAX);
        let (done, written) = mpsc::sync_channel(1);
        #[expect(
            clippy::disallowed_methods,
            reason = "this is main, which makes the threads"
        )]
        thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                write(&waiting);
                let _ = done.send(());
            })
            .map_err(|error| CliError::Failed(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            printer: Printer { json, lines },
            written,
        })
    }

    pub(super) fn printer(&self) -> Printer {
        self.printer.clone()
    }

    /// Waits a little until all is written. All other printers are gone by now.
    pub(super) fn finish(self) {
        let Self { printer, written } = self;
        drop(printer);
        // A thread that cannot write ends with the process.
        let _ = written.recv_timeout(FINISH_GRACE);
    }
}

fn write(lines: &Receiver<Line>) {
    while let Ok(line) = lines.recv() {
        // A reader that has gone (`node forward … | head`) is no reason to end.
        let _ = match line {
            Line::Out(text) => writeln!(io::stdout().lock(), "{text}"),
            Line::Error(text) => writeln!(io::stderr().lock(), "{text}"),
        };
    }
}

/// Writes events; never waits.
#[derive(Clone)]
pub(super) struct Printer {
    json: bool,
    lines: SyncSender<Line>,
}

impl Printer {
    /// `object` for programs; for people `text`, on standard error if it is `bad` news.
    fn line(&self, bad: bool, text: impl FnOnce() -> String, object: impl FnOnce() -> Value) {
        let line = match (self.json, bad) {
            (true, _) => Line::Out(object().to_string()),
            (false, false) => Line::Out(text()),
            (false, true) => Line::Error(text()),
        };
        let _ = self.lines.try_send(line);
    }

    pub(super) fn ready(&self, listening: &Listening) {
        let Listening { local, spec } = listening;
        let (agent, target) = (&spec.request.agent, &spec.request.target);
        self.line(
            false,
            || format!("ready: {local} leads to {agent}/{target}"),
            || {
                json!({
                    "event": "ready", "local": local.to_string(),
                    "agent": agent.to_string(), "target": target.to_string(),
                })
            },
        );
    }

    pub(super) fn exposed(&self, local: &Local) {
        let message = "other hosts may reach it, and whoever does acts as you";
        self.line(
            true,
            || format!("warning: {local}: {message}"),
            || json!({"event": "warning", "local": local.to_string(), "message": message}),
        );
    }

    pub(super) fn ending(&self, signal: &str, open: usize, grace: Duration) {
        self.line(
            true,
            || format!("{signal}: waiting at most {grace:?} for open connections ({open}); a second one ends at once"),
            || json!({"event": "ending", "signal": signal, "connections": open, "grace_ms": millis(grace)}),
        );
    }

    pub(super) fn ended(&self, cut: usize) {
        self.line(
            cut > 0,
            || match cut {
                0 => "ended".into(),
                _ => format!("ended; connections that were still open and are cut: {cut}"),
            },
            || json!({"event": "ended", "cut": cut}),
        );
    }

    pub(super) fn event(&self, event: &Event) {
        let bad = match event {
            Event::Connected { .. } | Event::Moved { .. } => false,
            Event::Lost { .. }
            | Event::Unreachable { .. }
            | Event::Refused { .. }
            | Event::AcceptFailed { .. } => true,
        };
        self.line(bad, || text(event), || object(event));
    }
}

fn text(event: &Event) -> String {
    match event {
        Event::Connected { proxy, remote } => format!("connected to {proxy} at {remote}"),
        Event::Moved {
            from,
            proxy,
            remote,
            why,
        } => {
            format!("moved to {proxy} at {remote}: {from} {why}")
        }
        Event::Lost { proxy, why } => format!("lost the connection to {proxy}: {why}"),
        Event::Unreachable { failures, retry_in } => {
            let failures: Vec<String> = failures
                .iter()
                .map(|Failure { at, message, .. }| format!("\n  {at}: {message}"))
                .collect();
            format!(
                "no proxy can be connected to, trying again in {:.1} s and from then on:{}",
                retry_in.as_secs_f64(),
                failures.concat()
            )
        }
        Event::Refused {
            local,
            remote,
            reason,
            message,
            untold,
        } => {
            let more = match untold {
                0 => String::new(),
                untold => format!(" ({untold} more like this before)"),
            };
            format!("refused: {local} to {remote}: {reason}: {message}{more}")
        }
        Event::AcceptFailed { local, error } => {
            format!(
                "{local} accepts nothing at the moment, trying again: {error}; is the limit of open files (ulimit -n) reached?"
            )
        }
    }
}

fn object(event: &Event) -> Value {
    match event {
        Event::Connected { proxy, remote } => json!({
            "event": "connected", "proxy": proxy.to_string(), "remote": remote.to_string(),
        }),
        Event::Moved {
            from,
            proxy,
            remote,
            why,
        } => json!({
            "event": "moved", "from": from.to_string(), "proxy": proxy.to_string(),
            "remote": remote.to_string(), "why": why.as_str(),
        }),
        Event::Lost { proxy, why } => json!({
            "event": "lost", "proxy": proxy.to_string(), "message": why,
        }),
        Event::Unreachable { failures, retry_in } => {
            let failures: Vec<Value> = failures
                .iter()
                .map(|Failure { at, kind, message }| {
                    json!({"at": at, "reason": kind.as_str(), "message": message})
                })
                .collect();
            json!({"event": "unreachable", "retry_in_ms": millis(*retry_in), "failures": failures})
        }
        Event::Refused {
            local,
            remote,
            reason,
            message,
            untold,
        } => json!({
            "event": "refused", "local": local, "remote": remote, "reason": reason,
            "message": message, "untold": untold,
        }),
        Event::AcceptFailed { local, error } => json!({
            "event": "accept_failed", "local": local, "message": error,
        }),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
