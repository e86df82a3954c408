//! Why a store did not do what was asked.

use std::path::PathBuf;

use super::Revision;

/// A store did not do what was asked. Nothing was changed, unless it says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It does not answer, or cannot be read or written now. To be tried again, later.
    #[error("the store cannot be reached: {what}{}", if *.maybe_done { "; the change may have been made" } else { "" })]
    Unreachable {
        /// Which store, and what it said.
        what: String,
        /// Whether the change may have been made, or may still be.
        maybe_done: bool,
    },
    /// The key's revision is not the expected one: somebody else was faster.
    #[error("{}", conflict(*.current))]
    Conflict {
        /// The key's revision; [`Revision::NONE`] when there is no such key.
        current: Revision,
    },
    /// The store no longer knows all changes since that revision, or was reset. To be listed again.
    #[error("the store does not know all changes from there; list again")]
    Compacted,
    /// What the store holds is damaged.
    #[error("the store {path} is damaged: {what}; it was left as it is: restore it from a backup, or move it away to begin with an empty one", path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It is something else than a store of this program, or of a later version of it.
    #[error("{path} is not a store of this program: {what}; it was left as it is: choose another path", path = .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        what: String,
    },
    /// Another process uses the file.
    #[error("the store {path} is in use by another process: give each proxy a file of its own, or use etcd", path = .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The store does not let us: a wrong password, or a right that is missing.
    #[error("the store refuses: {what}; check its user, password and rights")]
    Denied {
        /// What it said.
        what: String,
    },
    /// Something is larger than a store takes.
    #[error("{what} of {size} {unit} is over the limit of {max}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// What is counted.
        unit: &'static str,
        /// How large it is.
        size: usize,
        /// How large it may be.
        max: usize,
    },
    /// No key: empty, or with control characters.
    #[error("{key:?} is no key: write at least one character, and no control characters")]
    BadKey {
        /// The key, cut.
        key: String,
    },
    /// A certificate or key for the connection to the store cannot be used.
    #[error("{path}: {what}; check store.url", path = .path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// This build has no such engine.
    #[error("this build knows no etcd: build it with `--features etcd`, or use redb:PATH")]
    Unsupported,
}

fn conflict(current: Revision) -> String {
    if current == Revision::NONE {
        "there is no such key".to_owned()
    } else {
        format!("it was changed meanwhile, at revision {current}; look at it again")
    }
}

impl StoreError {
    /// Whether the same may succeed later without anybody doing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Compacted)
    }

    /// Cannot be reached, and nothing was changed.
    pub(super) fn unreachable(what: impl Into<String>) -> Self {
        Self::Unreachable {
            what: what.into(),
            maybe_done: false,
        }
    }
}
