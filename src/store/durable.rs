//! Durable files: written to a temporary name, fsynced, renamed, directory fsynced. A reader sees the old
//! content or the new, never half of it, also after a power cut.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::sys::file::begin_writing;

/// A file of ours could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A step of the write or read failed.
    #[error("{step} {path}")]
    Io {
        /// `create`, `write`, `sync`, `rename`, `open directory`, `read`.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The content is not what it should be.
    #[error("decode {path}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
}

impl StoreError {
    /// Whether the content ends before it is complete: a record that was placed, and not synced when the power went.
    pub fn is_incomplete(&self) -> bool {
        matches!(self, StoreError::Decode { source, .. } if source.is_eof())
    }
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { step, path, source }
}

/// Writes `bytes` to `path` durably, mode 0600. The directory must exist.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    replace(path, bytes, true)?;
    sync_parent(path)
}

/// A record that every process sees, whole, and that is not yet durable.
#[derive(Debug)]
#[must_use = "it is durable after `sync` only"]
pub struct Placed {
    file: File,
    path: PathBuf,
}

impl Placed {
    /// One that was placed before, perhaps by a process that has ended since.
    pub fn open(path: &Path) -> Result<Placed, StoreError> {
        let file = File::open(path).map_err(io_error("open", path))?;
        Ok(Placed { file, path: path.to_owned() })
    }

    /// Makes it durable.
    pub fn sync(self) -> Result<(), StoreError> {
        Placed::sync_all(vec![self])
    }

    /// Makes several durable: hardly longer than one takes, as the writing of all is begun first, and the file system then
    /// commits what belongs to them together.
    pub fn sync_all(records: Vec<Placed>) -> Result<(), StoreError> {
        for record in &records {
            // A hint: what follows waits for it, or does it all.
            let _ = begin_writing(record.file.as_fd());
        }
        for record in &records {
            // Content and size. Not the times: somebody who has read the file meanwhile has changed those, and there would
            // be another commit to wait for.
            record.file.sync_data().map_err(io_error("sync", &record.path))?;
        }
        // The names, last: an entry never tells of a file that is not there yet.
        let parents: BTreeSet<&Path> = records.iter().map(|record| parent(&record.path)).collect();
        parents.into_iter().try_for_each(sync_directory)
    }
}

/// A reader sees the old content or the new; what of it survives a power cut is the caller's business.
fn replace(path: &Path, bytes: &[u8], synced: bool) -> Result<File, StoreError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io_error("create", &temporary))?;
    file.write_all(bytes).map_err(io_error("write", &temporary))?;
    if synced {
        file.sync_all().map_err(io_error("sync", &temporary))?;
    }
    fs::rename(&temporary, path).map_err(io_error("rename", &temporary))?;
    Ok(file)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes the directory entry of `path` durable.
pub fn sync_parent(path: &Path) -> Result<(), StoreError> {
    sync_directory(parent(path))
}

/// Makes the entries of a directory durable.
pub fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = File::open(path).map_err(io_error("open directory", path))?;
    directory.sync_all().map_err(io_error("sync", path))
}

/// Writes `value` as JSON, durably.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    write(path, &encode(path, value)?)
}

/// Writes `value` as JSON so that every process sees it at once; [`Placed::sync`] then makes it durable, while other
/// work goes on, and in one commit of the file system where [`write_json`] takes two.
///
/// After a power cut in between there may be a file that cannot be read. So this is for records whose reader takes that
/// as none, and that nothing relies on before they are synced.
pub fn place_json(path: &Path, value: &impl Serialize) -> Result<Placed, StoreError> {
    Ok(Placed { file: replace(path, &encode(path, value)?, false)?, path: path.to_owned() })
}

/// Writes `value` as JSON where nothing outlives a reboot: whole for every reader, and not synced at all.
pub fn write_json_until_reboot(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    replace(path, &encode(path, value)?, false).map(drop)
}

fn encode(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|source| StoreError::Decode { path: path.to_owned(), source })
}

/// Reads JSON; `None` when the file does not exist.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| StoreError::Decode { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placed_record_is_seen_at_once_and_replaces_nothing_by_half() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        let placed = place_json(&path, &[1, 2]).unwrap();
        assert_eq!(read_json::<Vec<i32>>(&path).unwrap(), Some(vec![1, 2]));
        placed.sync().unwrap();
        write_json(&path, &[3]).unwrap();
        assert_eq!(read_json::<Vec<i32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_power_cut_leaves_is_told_from_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        let error = |content: &str| {
            fs::write(&path, content).unwrap();
            read_json::<Vec<i32>>(&path).unwrap_err()
        };
        assert!(error("").is_incomplete());
        assert!(error("[1,").is_incomplete());
        assert!(!error("{}").is_incomplete());
        assert!(!error("nonsense").is_incomplete());
    }
}
