//! `[store]`

use std::path::{Path, PathBuf};

use super::checker::Checker;
use crate::config::file::StoreShape;
use crate::store::{EtcdUrl, InvalidStoreUrl, Password, StoreUrl};

const URL: &str = "store.url";

/// The store of a proxy. `state_dir` is `None` when it was found to be wrong.
pub(super) fn store(
    check: &mut Checker<'_>,
    shape: &StoreShape,
    state_dir: Option<Option<&Path>>,
    has_peers: bool,
) -> Option<StoreUrl> {
    let text = check.required(
        URL,
        shape.url.as_ref(),
        "write url = \"redb:store.redb\", or \"etcd://host:2379/mesh\" for a fleet, or remove the section",
    )?;
    let url = match text.parse::<StoreUrl>() {
        Ok(url) => url,
        Err(error) => {
            faulty(check, &error);
            return None;
        }
    };
    match url {
        StoreUrl::Redb(path) => {
            let path = file(check, path, state_dir?)?;
            if has_peers {
                check.warn(URL, "a file is of this proxy alone, and proxy.peers names others: tunnels that are stored here are kept by this proxy only; use etcd://… to have them on every proxy");
            }
            Some(StoreUrl::Redb(path))
        }
        StoreUrl::Etcd(_) if !cfg!(feature = "etcd") => {
            check.error(
                URL,
                "this build of node knows no etcd",
                "take a build with `--features etcd`, or write redb:PATH",
            );
            None
        }
        StoreUrl::Etcd(url) => Some(StoreUrl::Etcd(etcd(check, url))),
    }
}

/// What was written is not repeated: there may be a password in it.
fn faulty(check: &mut Checker<'_>, error: &InvalidStoreUrl) {
    for fault in error.faults() {
        let (what, remedy) = fault
            .rsplit_once("; ")
            .unwrap_or((fault, "write redb:PATH, or etcd://host:port/prefix"));
        check.error(URL, format!("names no store: {what}"), remedy);
    }
}

/// A file without a directory is the proxy's own, beside what else it keeps.
fn file(check: &mut Checker<'_>, path: PathBuf, state_dir: Option<&Path>) -> Option<PathBuf> {
    if path.is_absolute() {
        return Some(path);
    }
    let Some(state_dir) = state_dir else {
        check.error(
            URL,
            "the file would be in proxy.state_dir, and that is not set",
            "set proxy.state_dir, or write an absolute path",
        );
        return None;
    };
    Some(state_dir.join(path))
}

/// The files that a URL names are found as those of all other keys are.
fn etcd(check: &Checker<'_>, mut url: EtcdUrl) -> EtcdUrl {
    let found = |path: &mut PathBuf| {
        if let Some(text) = path.to_str() {
            *path = check.path(URL, text);
        }
    };
    if let Password::File(path) = &mut url.password {
        found(path);
    }
    if let Some(tls) = &mut url.tls {
        tls.ca.iter_mut().for_each(found);
        if let Some((cert, key)) = &mut tls.identity {
            found(cert);
            found(key);
        }
    }
    url
}
