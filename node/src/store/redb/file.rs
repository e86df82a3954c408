//! The file of a store: making it, taking it, and refusing what is none.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use redb::{Builder, Database, DatabaseError, StorageError};

use super::data::{Data, Limits};
use super::overlay::Overlay;
use crate::store::StoreError;

/// What a file of redb begins with.
const MAGIC: [u8; 9] = [b'r', b'e', b'd', b'b', 0x1a, 0x0a, 0xa9, 0x0d, 0x0a];

/// How much of the file redb keeps in memory, in bytes.
const CACHE_BYTES: usize = 4 << 20;

/// What a new file is called until it is whole.
const NEW_SUFFIX: &str = ".new";

/// A file that is this process's alone.
pub(super) struct StoreFile {
    path: PathBuf,
    /// It carries the lock, and outlives the handle below it.
    file: File,
    database: Option<Database>,
}

impl StoreFile {
    /// Opens the file at `path`, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        for _ in 0..2 {
            match OpenOptions::new().read(true).write(true).open(path) {
                Ok(file) => return Self::take(path, file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unusable(path, &error)),
            }
            if let Some(made) = Self::make(path)? {
                return Ok(made);
            }
            // Somebody else has made it meanwhile.
        }
        Err(StoreError::InUse {
            path: path.to_owned(),
        })
    }

    /// The database, opened anew after a failure.
    pub(super) fn data(&mut self, limits: Limits) -> Result<Data<'_>, StoreError> {
        let database = match &mut self.database {
            Some(database) => database,
            closed @ None => {
                // The handle took the lock along when it went.
                lock(&self.path, &self.file)?;
                inspect(&self.path, &self.file)?;
                closed.insert(open_database(&self.path, &self.file)?)
            }
        };
        Ok(Data {
            database,
            path: &self.path,
            limits,
        })
    }

    /// Closes the database, but not the file.
    pub(super) fn forget_handle(&mut self) {
        self.database = None;
    }

    fn take(path: &Path, file: File) -> Result<Self, StoreError> {
        lock(path, &file)?;
        inspect(path, &file)?;
        let database = open_database(path, &file)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            database: Some(database),
        })
    }

    /// Makes a store beside the path, and gives it its name when it is whole: whatever happens
    /// meanwhile, what has the name is a store. `None` when there is one already.
    fn make(path: &Path) -> Result<Option<Self>, StoreError> {
        let mut new_path = path.as_os_str().to_owned();
        new_path.push(NEW_SUFFIX);
        let new_path = PathBuf::from(new_path);
        let failed = |error: io::Error| unusable(path, &error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&new_path)
            .map_err(failed)?;
        // Who holds it is making it. What somebody has left half made is ours.
        lock(path, &file)?;
        file.set_len(0).map_err(failed)?;
        let database = open_database(path, &file)?;
        Data {
            database: &database,
            path,
            limits: Limits {
                entries_max: 0,
                history_events_max: 1,
                history_bytes_max: 0,
            },
        }
        .initialise()?;
        file.sync_all().map_err(failed)?;
        match std::fs::hard_link(&new_path, path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                drop(database);
                std::fs::remove_file(&new_path).map_err(failed)?;
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        }
        std::fs::remove_file(&new_path).map_err(failed)?;
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)?;
        Ok(Some(Self {
            path: path.to_owned(),
            file,
            database: Some(database),
        }))
    }
}

/// Makes the file this process's alone.
fn lock(path: &Path, file: &File) -> Result<(), StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(unusable(path, &error)),
    }
}

/// Opens it for writing: from here on, redb may change it.
fn open_database(path: &Path, file: &File) -> Result<Database, StoreError> {
    let file = file.try_clone().map_err(|error| unusable(path, &error))?;
    Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_file(file)
        .map_err(|error| opening_failed(path, error))
}

/// Whether it is a store and whole, without a change to it.
fn inspect(path: &Path, file: &File) -> Result<(), StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    let failed = |error: io::Error| unusable(path, &error);
    let mut start = Vec::new();
    let mut reader = file.try_clone().map_err(failed)?;
    reader.rewind().map_err(failed)?;
    reader
        .take(MAGIC.len() as u64)
        .read_to_end(&mut start)
        .map_err(failed)?;
    if start.is_empty() {
        return Err(corrupt("it is empty"));
    }
    if start != MAGIC {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
            what: "it does not begin as one".to_owned(),
        });
    }
    let overlay = Overlay::new(file.try_clone().map_err(failed)?).map_err(failed)?;
    // Of bytes that nobody has ever written so, redb believes more than it should.
    std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(overlay)
            .map_err(|error| opening_failed(path, error))?;
        let whole = database
            .check_integrity()
            .map_err(|error| opening_failed(path, error))?;
        if !whole {
            return Err(corrupt("its checksums do not fit"));
        }
        Data {
            database: &database,
            path,
            limits: Limits {
                entries_max: 0,
                history_events_max: 1,
                history_bytes_max: 0,
            },
        }
        .check()
    }))
    .unwrap_or_else(|_| Err(corrupt("its pages do not fit together")))
}

fn opening_failed(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse {
            path: path.to_owned(),
        },
        DatabaseError::UpgradeRequired(version) => StoreError::Foreign {
            path: path.to_owned(),
            what: format!("it is of format {version} of redb"),
        },
        // The file is shorter than it says.
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() == io::ErrorKind::UnexpectedEof =>
        {
            StoreError::Corrupt {
                path: path.to_owned(),
                what: "its end is missing".to_owned(),
            }
        }
        error @ (DatabaseError::RepairAborted
        | DatabaseError::TransactionInProgress
        | DatabaseError::Storage(_)
        | _) => failed(path, &error.into()),
    }
}

/// What an error of redb means.
pub(super) fn failed(path: &Path, error: &redb::Error) -> StoreError {
    if let redb::Error::Corrupted(what) = error {
        return StoreError::Corrupt {
            path: path.to_owned(),
            what: what.clone(),
        };
    }
    StoreError::unreachable(format!("{}: {error}", path.display()))
}

fn unusable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::unreachable(format!("cannot open {}: {error}", path.display()))
}
