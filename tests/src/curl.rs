//! curl, as it is installed here.

use std::ffi::OsStr;
use std::process::Command;

use crate::Result;
use crate::programs::{Finished, Sha256, command, run, run_fed, run_piped};
use crate::web;

/// `curl`, silent but for errors, without the user's `.curlrc`.
///
/// # Errors
/// When it is not installed.
pub fn curl<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut command = command("curl")?;
    // `-q` counts as the first argument alone.
    command
        .args(["-q", "--silent", "--show-error", "--noproxy", "*"])
        .args(args);
    Ok(command)
}

/// Runs curl to its success and returns what it wrote.
///
/// # Errors
/// When it fails.
pub fn curled(args: &[&str]) -> Result<String> {
    Ok(run(&mut curl(args)?)?.must()?.text())
}

/// Runs curl to its success and digests what it writes, without keeping it; returns how many bytes
/// there were, and the digest.
///
/// # Errors
/// When it fails.
pub fn download(args: &[&str]) -> Result<(u64, String)> {
    let (mut bytes, mut sha256) = (0, Sha256::default());
    let taken = |piece: &[u8]| {
        bytes += piece.len() as u64;
        sha256.update(piece);
    };
    run_piped(&mut curl(args)?, |_| Ok(()), taken)?.must()?;
    Ok((bytes, sha256.finish()))
}

/// Runs curl to its success with `bytes` of [`crate::services::pattern`] on its standard input;
/// returns what it wrote, and the digest of what it was given.
///
/// # Errors
/// When it fails.
pub fn upload(args: &[&str], bytes: u64) -> Result<(Finished, String)> {
    let mut sha256 = Sha256::default();
    let finished = run_fed(&mut curl(args)?, |stdin| {
        for piece in web::pieces(bytes) {
            sha256.update(&piece);
            stdin.write_all(&piece)?;
        }
        Ok(())
    })?;
    Ok((finished.must()?, sha256.finish()))
}
