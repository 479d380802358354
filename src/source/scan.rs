//! The manifests of a directory (or a single file) as they were last read, and reading again what has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::content::Content;
use crate::{
    api::{manifest::MAX_BYTES, problem::ManifestProblem, static_pod::Origin},
    pod::desired::{SourceId, SourceUpdate},
};

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A file that was read.
#[derive(Debug, Default)]
struct Manifest {
    /// State in which it was read; `None` when it could not be.
    stamp: Option<Stamp>,
    content: Content,
}

/// The manifests beneath a path, cached file by file.
pub(super) struct Manifests {
    path: PathBuf,
    node: String,
    files: BTreeMap<PathBuf, Manifest>,
    /// Why the path as a whole cannot be read.
    trouble: Option<Trouble>,
    /// Files opened and read so far.
    reads: u64,
}

/// Something about the path as a whole.
#[derive(Debug, Clone)]
enum Trouble {
    /// It does not exist: nothing is wanted, as upstream has it.
    Missing,
    /// It cannot be read: everything stays as it is.
    Unreadable(String),
}

impl Manifests {
    /// Nothing read yet. `path` is absolute, a directory or a file; `node` is the name of this node.
    pub fn new(path: PathBuf, node: String) -> Manifests {
        Manifests { path, node, files: BTreeMap::new(), trouble: None, reads: 0 }
    }

    /// How many files were read so far.
    #[cfg(test)]
    pub fn reads(&self) -> u64 {
        self.reads
    }

    /// Whether a name in a manifest directory is that of a manifest: upstream takes every file whose name does not
    /// begin with a dot.
    pub fn is_manifest_name(name: &[u8]) -> bool {
        !name.is_empty() && !name.starts_with(b".")
    }

    /// Looks at everything. Files are read only if they are not what they were, or all of them with `force`.
    pub fn scan(&mut self, force: bool, now: Timestamp) {
        self.trouble = None;
        let found = match self.find() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.trouble = Some(Trouble::Missing);
                BTreeSet::new()
            }
            Err(error) => {
                self.trouble = Some(Trouble::Unreadable(format!("the manifest path cannot be read: {error}")));
                return;
            }
        };
        self.files.retain(|path, _| found.contains(path));
        for path in found {
            self.look_at(&path, force, now);
        }
    }

    /// The paths that may be manifests.
    fn find(&self) -> io::Result<BTreeSet<PathBuf>> {
        if !self.path.metadata()?.is_dir() {
            return Ok(BTreeSet::from([self.path.clone()]));
        }
        let mut found = BTreeSet::new();
        for entry in self.path.read_dir()? {
            let entry = entry?;
            if Manifests::is_manifest_name(entry.file_name().as_bytes()) {
                found.insert(entry.path());
            }
        }
        Ok(found)
    }

    /// Looks at one file: forgets it if it is gone, reads it if it has changed (or with `force`).
    pub fn look_at(&mut self, path: &Path, force: bool, now: Timestamp) {
        let metadata = match path.metadata() {
            Ok(metadata) => metadata,
            // Also a symbolic link that leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files.remove(path);
                return;
            }
            Err(error) => return self.failed(path, format!("cannot be read: {error}")),
        };
        if !metadata.is_file() {
            return self.failed(path, not_a_file(&metadata).to_owned());
        }
        let known = self.files.get(path).and_then(|manifest| manifest.stamp);
        if !force && known == Some(Stamp::of(&metadata)) {
            return;
        }
        self.reads += 1;
        match read(path) {
            Ok((stamp, bytes)) => {
                let name = path.to_string_lossy();
                let manifest = self.files.entry(path.to_owned()).or_default();
                manifest.content = manifest.content.updated(&bytes, Origin::File(&name), &self.node, now);
                manifest.stamp = Some(stamp);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files.remove(path);
            }
            Err(error) => self.failed(path, format!("cannot be read: {error}")),
        }
    }

    fn failed(&mut self, path: &Path, message: String) {
        let name = path.to_string_lossy();
        let manifest = self.files.entry(path.to_owned()).or_default();
        manifest.content = manifest.content.unreadable(Origin::File(&name), message);
        manifest.stamp = None;
    }

    /// Forgets a file that was removed or moved away.
    pub fn remove(&mut self, path: &Path) {
        self.files.remove(path);
    }

    /// The set these manifests make.
    pub fn update(&self) -> SourceUpdate {
        let mut update = SourceUpdate::empty(SourceId::File);
        for (path, manifest) in &self.files {
            update.pods.extend(manifest.content.pods.iter().cloned());
            update.objects.extend(manifest.content.objects.iter().cloned());
            update.problems.extend(manifest.content.problems.iter().cloned());
            if manifest.content.unusable {
                update.unusable.insert(format!("file:{}", path.display()));
            }
        }
        let (warning, message) = match &self.trouble {
            None => return update,
            Some(Trouble::Missing) => (true, "the manifest path does not exist".to_owned()),
            Some(Trouble::Unreadable(message)) => (false, message.clone()),
        };
        update.incomplete = matches!(self.trouble, Some(Trouble::Unreadable(_)));
        let source = format!("file:{}", self.path.display());
        update.problems.push(ManifestProblem { source, document: None, pod: None, warning, message });
        update
    }
}

fn not_a_file(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_dir() {
        "is a directory, and manifest directories are not searched recursively"
    } else if kind.is_fifo() || kind.is_socket() {
        "is a pipe or socket, not a file"
    } else {
        "is not a regular file"
    }
}

/// Reads a file whole, with its state from before: a write that comes later makes another state.
fn read(path: &Path) -> io::Result<(Stamp, Vec<u8>)> {
    // Should the path be a pipe by now, opening it must not wait for a writer.
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other(not_a_file(&metadata)));
    }
    let mut bytes = Vec::with_capacity(metadata.len().min(MAX_BYTES as u64) as usize + 1);
    // One byte over the limit is enough for the decoder to refuse it.
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok((Stamp::of(&metadata), bytes))
}
