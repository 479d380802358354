//! Compresses rotated logs as the kubelet does: all but the newest of an attempt, each through a temporary file.
//!
//! The supervisors rotate and must not wait for anything, so this is the agent's; what is rotated while there is no
//! agent stays as it is until there is one. One file at a time, on a thread that does nothing else: however many
//! containers write, no more than one processor is busy with it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    fs::{self, File, FileTimes, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
};

use flate2::{Compression, write::GzEncoder};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

use super::files::{Form, RotatedName};
use crate::obs::chain::Chain;

/// Room for a burst of events; more are read in the next round.
const BUFFER: usize = 16 * 1024;

/// The work needs little more than the compressor's tables, which are not on the stack.
const STACK: usize = 256 * 1024;

/// How far below the root containers' directories are: `<root>/<pod>/<container>`.
const DEPTH: u32 = 2;

/// Watches the logs of all pods and compresses what is rotated.
pub struct Compressor {
    root: PathBuf,
    inotify: Inotify,
    /// Watched directories, and how far below the root they are.
    watched: HashMap<WatchDescriptor, (PathBuf, u32)>,
    /// Containers' directories in which there may be something to do.
    pending: BTreeSet<PathBuf>,
}

impl Compressor {
    /// Looks at what is below `root` (`/var/log/pods`), which is created if need be, and begins to watch it.
    ///
    /// # Errors
    /// `root` cannot be created, or the limits of inotify are reached.
    pub fn new(root: &Path) -> io::Result<Compressor> {
        fs::create_dir_all(root)?;
        let mut compressor = Compressor {
            root: root.to_owned(),
            inotify: Inotify::init()?,
            watched: HashMap::new(),
            pending: BTreeSet::new(),
        };
        compressor.add(root.to_owned(), 0)?;
        Ok(compressor)
    }

    /// Works for as long as the process lives. What was being compressed when that ends is begun anew by the next.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn spawn(mut self) -> io::Result<()> {
        let work = move || {
            loop {
                self.compress();
                if let Err(error) = self.wait() {
                    tracing::warn!("watch for rotated logs: {error}; they stay uncompressed until the next start");
                    return;
                }
            }
        };
        thread::Builder::new().name("log-compressor".to_owned()).stack_size(STACK).spawn(work).map(drop)
    }

    /// Compresses what there is to be compressed.
    fn compress(&mut self) {
        while let Some(directory) = self.pending.pop_first() {
            if let Err(error) = compress_directory(&directory) {
                tracing::warn!("{}; trying again after the next rotation", Chain(&error));
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> io::Result<()> {
        let mut buffer = [0; BUFFER];
        let events: Vec<_> = self
            .inotify
            .read_events_blocking(&mut buffer)?
            .map(|event| (event.wd.clone(), event.mask, event.name.map(OsStr::to_owned)))
            .collect();
        for (descriptor, mask, name) in events {
            if mask.contains(EventMask::Q_OVERFLOW) {
                // What was lost is not known: everything is looked at again.
                self.add_or_warn(self.root.clone(), 0);
            } else if mask.contains(EventMask::IGNORED) {
                self.watched.remove(&descriptor);
            } else if let (Some((directory, depth)), Some(name)) = (self.watched.get(&descriptor), name) {
                let (directory, depth) = (directory.clone(), *depth);
                if depth < DEPTH {
                    self.add_or_warn(directory.join(name), depth + 1);
                } else if name.to_str().and_then(RotatedName::parse).is_some_and(|name| name.form == Form::Plain) {
                    self.pending.insert(directory);
                }
            }
        }
        Ok(())
    }

    fn add_or_warn(&mut self, directory: PathBuf, depth: u32) {
        let shown = directory.display().to_string();
        if let Err(error) = self.add(directory, depth) {
            tracing::warn!(directory = shown, "watch for rotated logs: {error}; they stay uncompressed");
        }
    }

    /// Watches a directory and what is below it, down to the containers' directories.
    fn add(&mut self, directory: PathBuf, depth: u32) -> io::Result<()> {
        let mask = if depth < DEPTH { WatchMask::CREATE | WatchMask::MOVED_TO } else { WatchMask::MOVED_TO };
        let mask = mask | WatchMask::ONLYDIR | WatchMask::DONT_FOLLOW;
        let descriptor = match self.inotify.watches().add(&directory, mask) {
            Ok(descriptor) => descriptor,
            // Gone again, or no directory: not ours.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.watched.insert(descriptor, (directory.clone(), depth));
        // Listed after the watch was made: what comes later is told.
        if depth == DEPTH {
            self.pending.insert(directory);
            return Ok(());
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            self.add(entry.path(), depth + 1)?;
        }
        Ok(())
    }
}

/// What went wrong with one directory.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// The directory cannot be read.
    #[error("list the logs in {directory}")]
    List {
        /// The container's directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One file cannot be compressed; it stays as it is.
    #[error("compress the log {path}")]
    Compress {
        /// The rotated file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that is of no use any more cannot be removed.
    #[error("remove the unused log {path}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Compresses all rotated files of each attempt but the newest, which somebody may still be reading, and removes what a
/// crash has left half done. May be repeated, by one caller at a time.
///
/// # Errors
/// The first step that failed; what was not compressed is still there.
pub fn compress_directory(directory: &Path) -> Result<(), CompressError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(CompressError::List { directory: directory.to_owned(), source }),
    };
    // Of each attempt, the forms of each rotated file, oldest first.
    let mut attempts: BTreeMap<String, BTreeMap<String, Vec<Form>>> = BTreeMap::new();
    for entry in entries {
        let name = entry.map_err(|source| CompressError::List { directory: directory.to_owned(), source })?.file_name();
        let Some(name) = name.to_str().and_then(RotatedName::parse) else { continue };
        let attempt = attempts.entry(name.current.to_owned()).or_default();
        attempt.entry(name.time.to_owned()).or_default().push(name.form);
    }
    for (current, rotated) in attempts {
        let newest = rotated.keys().next_back().cloned();
        for (time, forms) in rotated {
            let plain = directory.join(format!("{current}.{time}"));
            if forms.contains(&Form::Temporary) {
                remove(&with_suffix(&plain, ".tmp"))?;
            }
            if forms.contains(&Form::Compressed) {
                // Complete, as its name says: the original was to be removed next.
                if forms.contains(&Form::Plain) {
                    remove(&plain)?;
                }
            } else if forms.contains(&Form::Plain) && newest.as_ref() != Some(&time) {
                compress_file(&plain).map_err(|source| CompressError::Compress { path: plain, source })?;
            }
        }
    }
    Ok(())
}

/// Replaces `path` with `path.gz`, of the same mode and time of change. Nothing is done when it has been deleted.
fn compress_file(path: &Path) -> io::Result<()> {
    let source = match File::open(path) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let (temporary, compressed) = (with_suffix(path, ".tmp"), with_suffix(path, ".gz"));
    let result = write_compressed(&source, &temporary).and_then(|()| fs::rename(&temporary, &compressed));
    if let Err(error) = result {
        // Where this fails too, the next round removes it.
        let _ = fs::remove_file(&temporary);
        // Deleted by the supervisor, as one too many, together with the original.
        return if !path.exists() { Ok(()) } else { Err(error) };
    }
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    match fs::remove_file(path) {
        // Deleted meanwhile as one too many; the compressed one is one too many as well.
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::remove_file(&compressed),
        result => result,
    }
}

fn write_compressed(mut source: &File, temporary: &Path) -> io::Result<()> {
    let metadata = source.metadata()?;
    let mode = metadata.permissions().mode() & 0o7777;
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(temporary)?;
    let mut encoder = GzEncoder::new(file, Compression::default());
    io::copy(&mut source, &mut encoder)?;
    let file = encoder.finish()?;
    // `logs --since` tells by it which files it need not read.
    file.set_times(FileTimes::new().set_modified(metadata.modified()?))?;
    file.sync_all()
}

fn remove(path: &Path) -> Result<(), CompressError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| CompressError::Remove { path: path.to_owned(), source }),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        time::{Duration, Instant, SystemTime},
    };

    use flate2::read::GzDecoder;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn unpacked(path: &Path) -> String {
        let mut text = String::new();
        GzDecoder::new(File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn all_rotated_files_but_the_newest_of_each_attempt_are_compressed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for name in ["0.log", "0.log.20260101-000000", "0.log.20260101-000001", "1.log", "1.log.20260101-000002"] {
            fs::write(path(name), format!("of {name}\n")).unwrap();
        }
        let first = File::options().write(true).open(path("0.log.20260101-000000")).unwrap();
        first.set_times(FileTimes::new().set_modified(old)).unwrap();
        first.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        for round in ["once", "again"] {
            compress_directory(directory.path()).unwrap();
            let expected =
                ["0.log", "0.log.20260101-000000.gz", "0.log.20260101-000001", "1.log", "1.log.20260101-000002"];
            assert_eq!(names(directory.path()), expected, "{round}");
        }
        let compressed = path("0.log.20260101-000000.gz");
        assert_eq!(unpacked(&compressed), "of 0.log.20260101-000000\n");
        let metadata = fs::metadata(compressed).unwrap();
        assert_eq!((metadata.modified().unwrap(), metadata.permissions().mode() & 0o777), (old, 0o640));
    }

    #[test]
    fn what_a_crash_left_half_done_is_completed_or_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        // Killed while compressing; killed between the rename and the removal; nothing but a temporary file.
        fs::write(path("0.log.20260101-000000"), "first").unwrap();
        fs::write(path("0.log.20260101-000000.tmp"), "half").unwrap();
        fs::write(path("0.log.20260101-000001"), "second").unwrap();
        compress_directory(directory.path()).unwrap();
        fs::write(path("0.log.20260101-000000"), "first").unwrap();
        fs::write(path("0.log.20250101-000000.tmp"), "half").unwrap();
        compress_directory(directory.path()).unwrap();
        assert_eq!(names(directory.path()), ["0.log.20260101-000000.gz", "0.log.20260101-000001"]);
        assert_eq!(unpacked(&path("0.log.20260101-000000.gz")), "first");
    }

    #[test]
    fn a_failure_leaves_the_original_and_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("0.log.20260101-000000"), "first").unwrap();
        fs::write(path("0.log.20260101-000001"), "second").unwrap();
        // What cannot be replaced by a rename.
        fs::create_dir_all(path("0.log.20260101-000000.gz").join("occupied")).unwrap();
        let error = compress_file(&path("0.log.20260101-000000")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        assert_eq!(fs::read_to_string(path("0.log.20260101-000000")).unwrap(), "first");
        assert!(!path("0.log.20260101-000000.tmp").exists());
        assert!(compress_directory(&path("no such directory")).is_ok());
    }

    #[test]
    fn rotations_are_noticed_in_directories_that_were_there_and_in_new_ones() {
        let root = tempfile::tempdir().unwrap();
        let rotate_twice = |directory: &Path| {
            for time in ["20260101-000000", "20260101-000001"] {
                fs::write(directory.join("0.log"), time).unwrap();
                fs::rename(directory.join("0.log"), directory.join(format!("0.log.{time}"))).unwrap();
            }
        };
        let compressed = |directory: &Path| {
            let deadline = Instant::now() + Duration::from_secs(30);
            while names(directory) != ["0.log.20260101-000000.gz", "0.log.20260101-000001"] {
                assert!(Instant::now() < deadline, "{:?}", names(directory));
                thread::yield_now();
            }
        };
        let [before, known, new] = ["pod/before", "pod/known", "other/new"].map(|name| root.path().join(name));
        fs::create_dir_all(&before).unwrap();
        fs::create_dir_all(&known).unwrap();
        // While there was no agent.
        rotate_twice(&before);
        Compressor::new(root.path()).unwrap().spawn().unwrap();
        compressed(&before);
        rotate_twice(&known);
        compressed(&known);
        fs::create_dir_all(&new).unwrap();
        rotate_twice(&new);
        compressed(&new);
    }
}
