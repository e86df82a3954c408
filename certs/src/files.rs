//! PEM files: read with a bound, written without ever overwriting one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The most that is read of a PEM file, in bytes.
pub const PEM_BYTES_MAX: u64 = 1 << 20;

/// A file could not be read or written. Nothing was overwritten.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file.
    #[error("{}: there is no such file; check the path (a relative one starts at the directory of whatever names it), or make it with `node certs`", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// It exists already and is left as it was.
    #[error("{}: already exists, and certificates and keys are never overwritten; move it away or choose another directory", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// It is larger than any PEM file of the mesh.
    #[error("{}: larger than {PEM_BYTES_MAX} bytes: this is no certificate or key of the mesh", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("{}: cannot {doing}: {source}; check the permissions of the file and its directory", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// `read`, `create`, `write`.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Who may read a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Its owner alone (0600).
    Private,
    /// Everyone (0644), as far as the umask lets them.
    Public,
}

/// A file to be written.
pub(crate) struct NewFile<'a> {
    pub(crate) path: PathBuf,
    pub(crate) content: &'a [u8],
    pub(crate) access: Access,
}

/// Reads a PEM file of at most [`PEM_BYTES_MAX`].
///
/// # Errors
/// [`FileError`], which names the file: it is missing, too large or cannot be read.
pub fn read_pem(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            FileError::Missing {
                path: path.to_owned(),
            }
        } else {
            FileError::Io {
                path: path.to_owned(),
                doing: "read",
                source,
            }
        }
    };
    let file = File::open(path).map_err(failed)?;
    let mut content = Vec::new();
    file.take(PEM_BYTES_MAX + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > PEM_BYTES_MAX {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(content)
}

/// Writes all of the files, or none: what this call created is removed again when a later one
/// cannot be. Missing directories are made. An existing file is an error, and untouched.
pub(crate) fn write_new(files: &[NewFile<'_>]) -> Result<(), FileError> {
    // Looked at first so that the usual mistake changes nothing at all, not even for a moment.
    for file in files {
        if file.path.symlink_metadata().is_ok() {
            return Err(FileError::Exists {
                path: file.path.clone(),
            });
        }
    }
    for (index, file) in files.iter().enumerate() {
        if let Err(error) = write_one(file) {
            for created in &files[..index] {
                // The first error is the one to tell.
                let _ = fs::remove_file(&created.path);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn write_one(new: &NewFile<'_>) -> Result<(), FileError> {
    let failed = |doing| {
        move |source| FileError::Io {
            path: new.path.clone(),
            doing,
            source,
        }
    };
    if let Some(directory) = new.path.parent() {
        fs::create_dir_all(directory).map_err(failed("create its directory"))?;
    }
    let mode = match new.access {
        Access::Private => 0o600,
        Access::Public => 0o644,
    };
    // `create_new` is O_EXCL: two writers at once cannot both win, and no link is followed. The
    // mode is set at creation: a key is at no time readable by others.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new.path)
        .map_err(|source| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                FileError::Exists {
                    path: new.path.clone(),
                }
            } else {
                failed("create")(source)
            }
        })?;
    let written = file.write_all(new.content).and_then(|()| file.sync_all());
    written.map_err(|source| {
        let _ = fs::remove_file(&new.path);
        failed("write")(source)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn new(path: PathBuf, access: Access) -> NewFile<'static> {
        NewFile {
            path,
            content: b"new",
            access,
        }
    }

    #[test]
    fn modes_are_set_and_directories_made() {
        let dir = tempfile::tempdir().unwrap();
        let (key, cert) = (dir.path().join("x/y/a.key"), dir.path().join("x/y/a.pem"));
        write_new(&[
            new(key.clone(), Access::Private),
            new(cert.clone(), Access::Public),
        ])
        .unwrap();
        assert_eq!(
            fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(read_pem(&cert).unwrap(), b"new");
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_half_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (key, cert) = (dir.path().join("a.key"), dir.path().join("a.pem"));
        fs::write(&cert, b"old").unwrap();
        let error = write_new(&[
            new(key.clone(), Access::Private),
            new(cert.clone(), Access::Public),
        ])
        .unwrap_err();
        assert!(
            matches!(&error, FileError::Exists { path } if *path == cert),
            "{error}"
        );
        assert_eq!(fs::read(&cert).unwrap(), b"old");
        assert!(!key.exists());
    }

    #[test]
    fn a_later_failure_takes_the_earlier_files_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("a.key");
        fs::write(dir.path().join("file"), b"").unwrap();
        let below_a_file = dir.path().join("file/a.pem");
        let error = write_new(&[
            new(key.clone(), Access::Private),
            new(below_a_file, Access::Public),
        ])
        .unwrap_err();
        assert!(matches!(error, FileError::Io { .. }), "{error}");
        assert!(!key.exists());
    }

    #[test]
    fn a_dangling_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("a.key");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert!(matches!(
            write_new(&[new(link, Access::Private)]),
            Err(FileError::Exists { .. })
        ));
        assert!(!dir.path().join("elsewhere").exists());
    }

    #[test]
    fn reading_is_bounded_and_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        fs::write(&path, vec![0; usize::try_from(PEM_BYTES_MAX).unwrap() + 1]).unwrap();
        assert!(matches!(read_pem(&path), Err(FileError::TooLarge { .. })));
        let error = read_pem(&dir.path().join("none")).unwrap_err();
        assert!(matches!(error, FileError::Missing { .. }));
        assert!(error.to_string().contains("none"));
        assert!(matches!(read_pem(dir.path()), Err(FileError::Io { .. })));
    }
}
