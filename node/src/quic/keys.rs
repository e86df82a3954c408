//! What must outlive a restart of a proxy: its epoch, and the keys by which agents notice the restart.
//!
//! A restarted proxy that kept its stateless-reset key *and* its connection-id key answers the
//! packets of its former life with a stateless reset (RFC 9000, section 10.3), so that an idle agent
//! notices within a keepalive instead of an idle timeout.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::RngCore;

/// Secrets of a proxy's QUIC endpoint.
#[derive(Clone)]
pub struct EndpointKeys {
    /// Authenticates stateless resets.
    pub reset: [u8; 64],
    /// Marks connection ids as this proxy's.
    pub connection_id: u64,
    /// Seals Retry and address-validation tokens.
    pub token: [u8; 64],
}

impl std::fmt::Debug for EndpointKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EndpointKeys(…)")
    }
}

impl EndpointKeys {
    /// Bytes of the file.
    const LEN: usize = 64 + 8 + 64;

    /// Keys that nobody has seen.
    pub fn random(rng: &mut dyn RngCore) -> Self {
        let mut bytes = [0; Self::LEN];
        rng.fill_bytes(&mut bytes);
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let mut keys = Self {
            reset: [0; 64],
            connection_id: 0,
            token: [0; 64],
        };
        keys.reset.copy_from_slice(&bytes[..64]);
        let mut id = [0; 8];
        id.copy_from_slice(&bytes[64..72]);
        keys.connection_id = u64::from_be_bytes(id);
        keys.token.copy_from_slice(&bytes[72..]);
        keys
    }

    fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..64].copy_from_slice(&self.reset);
        bytes[64..72].copy_from_slice(&self.connection_id.to_be_bytes());
        bytes[72..].copy_from_slice(&self.token);
        bytes
    }
}

/// The state of one start of a proxy.
#[derive(Debug, Clone)]
pub struct EndpointState {
    /// How often the proxy has started; the higher one of two with one name is the living one.
    pub epoch: u64,
    /// Its keys.
    pub keys: EndpointKeys,
    /// Keeps other processes out of the directory for as long as it lives.
    pub lock: Option<Arc<fs::File>>,
}

/// The state directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file or the directory could not be read or written.
    #[error(
        "cannot use {path} in proxy.state_dir: {error}; let the user of this process own the directory"
    )]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process uses it.
    #[error(
        "another process uses {path}, which is proxy.state_dir: is this proxy running already? Give each proxy a directory of its own"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A file holds something else than this program wrote.
    #[error(
        "{path} is damaged ({why}); remove it: agents then take up to the idle timeout to notice this one restart"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Reads the state of the former start in `dir`, counts the epoch up and writes it back; makes
/// both on the first start.
///
/// # Errors
/// [`StateError`], with the path and the remedy. Nothing is overwritten then.
pub fn load(dir: &Path, rng: &mut dyn RngCore) -> Result<EndpointState, StateError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |error| StateError::Io { path, error }
    };
    if !dir.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io_error(dir))?;
    }
    let lock_path = dir.join("lock");
    let lock = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(io_error(&lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            return Err(StateError::InUse {
                path: dir.to_owned(),
            });
        }
        Err(fs::TryLockError::Error(error)) => {
            return Err(StateError::Io {
                path: lock_path,
                error,
            });
        }
    }
    let keys_path = dir.join("quic.key");
    let keys = match fs::read(&keys_path) {
        Ok(bytes) => {
            let bytes: &[u8; EndpointKeys::LEN] =
                bytes
                    .as_slice()
                    .try_into()
                    .map_err(|_| StateError::Damaged {
                        path: keys_path.clone(),
                        why: "not 136 bytes long",
                    })?;
            EndpointKeys::from_bytes(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let keys = EndpointKeys::random(rng);
            replace(&keys_path, &keys.to_bytes()).map_err(io_error(&keys_path))?;
            keys
        }
        Err(error) => {
            return Err(StateError::Io {
                path: keys_path,
                error,
            });
        }
    };

    let epoch_path = dir.join("epoch");
    let former = match fs::read_to_string(&epoch_path) {
        Ok(text) => text
            .trim()
            .parse::<u64>()
            .map_err(|_| StateError::Damaged {
                path: epoch_path.clone(),
                why: "not a number",
            })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => {
            return Err(StateError::Io {
                path: epoch_path,
                error,
            });
        }
    };
    let epoch = former.saturating_add(1);
    replace(&epoch_path, format!("{epoch}\n").as_bytes()).map_err(io_error(&epoch_path))?;
    Ok(EndpointState {
        epoch,
        keys,
        lock: Some(Arc::new(lock)),
    })
}

/// Writes a file whole or not at all: a crash leaves the former content.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // The rename itself lives in the directory.
    if let Some(dir) = path.parent() {
        fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rng() -> rand::rngs::StdRng {
        crate::random::Random::system().generator()
    }

    #[test]
    fn epoch_rises_and_keys_stay() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let first = load(&dir, &mut rng()).unwrap();
        let error = load(&dir, &mut rng()).unwrap_err().to_string();
        assert!(error.contains("another process uses"), "{error}");
        let EndpointState { epoch, keys, lock } = first;
        drop(lock);
        let second = load(&dir, &mut rng()).unwrap();
        assert_eq!((epoch, second.epoch), (1, 2));
        assert_eq!(keys.to_bytes(), second.keys.to_bytes());
    }

    #[test]
    fn damaged_state_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        load(dir.path(), &mut rng()).unwrap();
        fs::write(dir.path().join("epoch"), "seven").unwrap();
        let error = load(dir.path(), &mut rng()).unwrap_err().to_string();
        assert!(error.contains("epoch is damaged (not a number)"), "{error}");
        assert_eq!(
            fs::read_to_string(dir.path().join("epoch")).unwrap(),
            "seven"
        );

        fs::write(dir.path().join("quic.key"), "short").unwrap();
        let error = load(dir.path(), &mut rng()).unwrap_err().to_string();
        assert!(
            error.contains("quic.key is damaged (not 136 bytes long)"),
            "{error}"
        );
    }

    #[test]
    fn keys_do_not_show() {
        let keys = EndpointKeys::random(&mut rng());
        assert_eq!(format!("{keys:?}"), "EndpointKeys(…)");
    }
}
