//! `node config`: check a configuration, or show the effective one.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::CliError;
use crate::config::{Loaded, Role, Sources, load};

/// Arguments of `node config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List everything that is wrong with a configuration, each with its place and remedy.
    Check(SourceArgs),
    /// Print the effective configuration as TOML; secrets appear as the paths of their files.
    Show(SourceArgs),
}

/// Where a configuration comes from, besides the environment (`MESH__SECTION__KEY`).
#[derive(Debug, Clone, Default, Args)]
pub struct SourceArgs {
    /// The config file, TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The role; overrides the file's.
    #[arg(long, value_enum)]
    role: Option<Role>,
    /// Override a key of the configuration, as in `--set quic.listen=127.0.0.1:7443`.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

impl SourceArgs {
    /// These arguments and the environment of this process.
    #[must_use]
    pub fn sources(&self) -> Sources {
        Sources {
            role: self.role,
            file: self.config.clone(),
            // What is not UTF-8 cannot be a key of ours, and its value no TOML.
            env: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((
                        name.into_string().ok()?,
                        value.to_string_lossy().into_owned(),
                    ))
                })
                .collect(),
            set: self.set.clone(),
        }
    }
}

/// Runs `node config`.
///
/// # Errors
/// [`CliError::Usage`] with all errors of the configuration, a line each.
pub fn run(args: ConfigArgs) -> Result<(), CliError> {
    let ConfigArgs { verb } = args;
    let (text, loaded) = match verb {
        Verb::Check(source) => {
            let loaded = loaded(&source)?;
            (summary(&loaded), loaded)
        }
        Verb::Show(source) => {
            let loaded = loaded(&source)?;
            let toml = loaded.to_toml().map_err(|error| {
                CliError::Failed(format!(
                    "the configuration cannot be written as TOML: {error}"
                ))
            })?;
            (toml, loaded)
        }
    };
    let mut warnings = io::stderr().lock();
    for warning in &loaded.warnings {
        written(writeln!(warnings, "warning: {warning}"))?;
    }
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

fn loaded(source: &SourceArgs) -> Result<Loaded, CliError> {
    load(&source.sources()).map_err(|errors| {
        let count = errors.iter().count();
        let noun = if count == 1 { "error" } else { "errors" };
        CliError::Usage(format!("the configuration has {count} {noun}:\n{errors}"))
    })
}

/// What `check` says when all is well.
fn summary(loaded: &Loaded) -> String {
    let common = loaded.config.common();
    format!(
        "the configuration is good: {}\n",
        common.credentials.identity()
    )
}

/// A reader that has gone (`node config show | head`) is no failure.
fn written(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::Failed(format!(
            "the output cannot be written: {error}; check where it goes"
        ))),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| "write KEY=VALUE, as in quic.listen=127.0.0.1:7443".to_owned())?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn a_value_may_hold_equals_signs() {
        assert_eq!(
            key_and_value("ingress=[{kind=\"http\"}]").unwrap(),
            ("ingress".to_owned(), "[{kind=\"http\"}]".to_owned())
        );
        assert_eq!(
            key_and_value("name=").unwrap(),
            ("name".to_owned(), String::new())
        );
        assert!(key_and_value("name").is_err());
    }
}
