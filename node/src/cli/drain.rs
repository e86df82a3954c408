//! `node drain`: lets a running node leave in order.

use std::time::Duration;

use clap::Args;
use http::Method;

use super::CliError;
use super::client::{self, AdminArgs, ClientError};
use crate::report::{DrainRequest, Status};

/// How often `--wait` looks whether the node is still there.
const WAIT_INTERVAL: Duration = Duration::from_millis(500);

/// Arguments of `node drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Return when the node has ended.
    #[arg(long, conflicts_with = "cancel")]
    wait: bool,
    /// Bounds everything, the notice included, instead of the config's drain_deadline.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "cancel")]
    deadline: Option<Duration>,
    /// Take back a drain that is in its notice (proxy.drain_notice).
    #[arg(long)]
    cancel: bool,
}

/// Asks for a drain, or takes one back.
///
/// # Errors
/// When the node does not answer, or refuses.
pub fn run(args: &DrainArgs) -> Result<(), CliError> {
    client::ask(&args.admin, async |client| {
        if !client.is_one() {
            return Err(CliError::Usage(
                "--proxy names several proxies, and it would be chance which one drains: name one"
                    .into(),
            ));
        }
        if args.cancel {
            client
                .request(Method::DELETE, "/api/v1/drain", None)
                .await?;
            return Ok(());
        }
        let request = DrainRequest {
            deadline_seconds: args.deadline.map(|deadline| deadline.as_secs_f64()),
        };
        let body =
            serde_json::to_vec(&request).map_err(|error| CliError::Failed(error.to_string()))?;
        client
            .request(Method::POST, "/api/v1/drain", Some(body))
            .await?;
        if !args.wait {
            return Ok(());
        }
        loop {
            tokio::time::sleep(WAIT_INTERVAL).await;
            match client.get::<Status>("/api/v1/status").await {
                Ok(status) if matches!(status.state.as_str(), "serving" | "joining") => {
                    return Err(CliError::Failed("the drain was cancelled".into()));
                }
                Ok(_) => {}
                Err(ClientError::Unreachable { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    })
}
