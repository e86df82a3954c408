//! What nodes in this process log, as JSON lines that a test can look through.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

/// Captured lines of the whole test process. Tests run side by side: look for what is yours (an
/// agent's name, an address).
#[derive(Debug, Clone, Default)]
pub struct Logs(Arc<Mutex<Vec<u8>>>);

/// Starts capturing, once per process, at the level `debug` for the mesh.
pub fn capture() -> Logs {
    static LOGS: OnceLock<Logs> = OnceLock::new();
    LOGS.get_or_init(|| {
        let logs = Logs::default();
        let subscriber = tracing_subscriber::fmt()
            .json()
            // That of a simulated scenario is named as the scenario.
            .with_thread_names(true)
            .with_env_filter("info,node=debug,access=info")
            .with_writer(logs.clone())
            .finish();
        // Fails when a test has set another one, which then gets the lines.
        let _ = tracing::subscriber::set_global_default(subscriber);
        logs
    })
    .clone()
}

impl Logs {
    /// The lines that contain all of `parts`; their fields stand beside the level and the like,
    /// and before them where they have one name.
    #[must_use]
    pub fn lines_with(&self, parts: &[&str]) -> Vec<Value> {
        let bytes = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        String::from_utf8_lossy(&bytes)
            .lines()
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .filter_map(|line| serde_json::from_str(line).ok().map(lifted))
            .collect()
    }
}

/// The part of a line that tells which simulated scenario it comes from.
#[must_use]
pub fn of_scenario(name: &str) -> String {
    format!("\"threadName\":\"{name}\"")
}

fn lifted(mut line: Value) -> Value {
    if let Value::Object(object) = &mut line
        && let Some(Value::Object(fields)) = object.remove("fields")
    {
        object.extend(fields);
    }
    line
}

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
