//! `--proxy` and `--identity`: whom a verb connects to, as whom.

use std::path::Path;
use std::sync::Arc;

use certs::{Credentials, Kind};

use super::CliError;
use crate::user::spec;

/// Proxies of one command.
const PROXIES_MAX: usize = 16;

/// The proxies of `--proxy`.
///
/// # Errors
/// When there is none, too many, or one that is none.
pub(super) fn proxies(texts: &[String]) -> Result<Vec<String>, CliError> {
    let texts: Vec<&str> = texts
        .iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
        .collect();
    if texts.is_empty() {
        return Err(CliError::Usage(
            "no proxy is named: write --proxy HOST[:PORT], or set MESH_PROXY".into(),
        ));
    }
    if texts.len() > PROXIES_MAX {
        return Err(CliError::Usage(format!(
            "--proxy names more than {PROXIES_MAX} proxies: a DNS name may stand for several"
        )));
    }
    texts
        .into_iter()
        .map(|text| {
            spec::proxy_address(text).map_err(|error| CliError::Usage(format!("--proxy {error}")))
        })
        .collect()
}

/// The credentials of `--identity`, for `verb`.
///
/// # Errors
/// When there are none, or not a user's.
pub(super) fn identity(cert: Option<&Path>, verb: &str) -> Result<Arc<Credentials>, CliError> {
    let cert = cert.filter(|path| !path.as_os_str().is_empty()).ok_or_else(|| {
        CliError::Usage(
            "no identity is named: write --identity alice.pem, or set MESH_IDENTITY; `node certs issue user alice` makes one".into(),
        )
    })?;
    if cert.extension().is_some_and(|extension| extension == "key") {
        return Err(CliError::Usage(format!(
            "--identity {}: name the certificate, {}; its key is found beside it",
            cert.display(),
            cert.with_extension("pem").display()
        )));
    }
    let key = cert.with_extension("key");
    let ca = cert.with_file_name("ca.pem");
    let credentials = Credentials::load(&ca, cert, &key)
        .map_err(|error| CliError::Usage(format!("--identity: {error}")))?;
    let who = credentials.identity();
    if who.kind != Kind::User {
        return Err(CliError::Usage(format!(
            "--identity {}: this certificate is {who}, and `{verb}` takes a user's: issue one with `node certs issue user NAME`",
            cert.display()
        )));
    }
    Ok(Arc::new(credentials))
}
