//! One inotify instance over the manifest path: it tells which files to look at, and when to look at everything.
//!
//! A directory is watched for its entries; a single file through the directory it is in, since it may be replaced.
//! While the path does not exist, the nearest ancestor that does is watched for the way to it to appear.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

use super::scan::Manifests;

/// Room for about a hundred events with ordinary names; more are read in turns.
const BUFFER: usize = 8 << 10;

/// What has happened since the last time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Files with new content: to be read whatever their stamp says, for two writes within one tick of the clock can
    /// leave the same stamp.
    pub written: BTreeSet<PathBuf>,
    /// Files about which something else has changed (mode, link): to be read if their stamp says so.
    pub touched: BTreeSet<PathBuf>,
    /// Files that are gone.
    pub removed: BTreeSet<PathBuf>,
    /// Look at everything, and read everything again: events were lost, or the watch is on another directory now.
    pub everything: bool,
}

impl Changes {
    /// Whether nothing has happened.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

/// What the one watch is on.
enum Watched {
    /// The directory with the manifests; entries are filtered by `only` for a single file.
    Directory { descriptor: WatchDescriptor, directory: PathBuf, only: Option<OsString>, identity: (u64, u64) },
    /// An ancestor of the path, which itself does not exist.
    Ancestor { descriptor: WatchDescriptor, directory: PathBuf },
    /// Nothing could be watched; the resync has to do.
    Nothing,
}

pub(super) struct Watcher {
    inotify: Inotify,
    path: PathBuf,
    watched: Watched,
}

impl Watcher {
    /// Watches `path`, which need not exist.
    pub fn new(path: PathBuf) -> io::Result<Watcher> {
        let mut watcher = Watcher { inotify: Inotify::init()?, path, watched: Watched::Nothing };
        watcher.establish();
        Ok(watcher)
    }

    /// Becomes readable when something has happened.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Whether the watch is where it should be; if not it is moved, and everything has to be looked at again. Asked at
    /// every resync, for some changes make no event (a symbolic link on the way that leads elsewhere).
    pub fn check(&mut self) -> bool {
        let right = match &self.watched {
            Watched::Directory { directory, identity, only, .. } => {
                let target = Watcher::target(&self.path);
                target.is_some_and(|target| target == (directory.clone(), only.clone()))
                    && identity_of(directory) == Some(*identity)
            }
            Watched::Ancestor { directory, .. } => self.is_nearest(directory),
            Watched::Nothing => false,
        };
        if !right {
            self.establish();
        }
        right
    }

    /// The directory to watch and, for a single file, the name in it; `None` if there is none.
    fn target(path: &Path) -> Option<(PathBuf, Option<OsString>)> {
        if path.is_dir() {
            return Some((path.to_owned(), None));
        }
        // A file, or nothing: then it may become a file, and its directory tells either way.
        let (parent, name) = (path.parent()?, path.file_name()?);
        parent.is_dir().then(|| (parent.to_owned(), Some(name.to_owned())))
    }

    fn establish(&mut self) {
        let old = match &self.watched {
            Watched::Directory { descriptor, .. } | Watched::Ancestor { descriptor, .. } => Some(descriptor.clone()),
            Watched::Nothing => None,
        };
        if let Some(old) = old {
            // Fails when the directory is gone and the kernel has ended the watch itself.
            let _ = self.inotify.watches().remove(old);
        }
        self.watched = self.watch_target().or_else(|| self.watch_ancestor()).unwrap_or(Watched::Nothing);
    }

    fn watch_target(&mut self) -> Option<Watched> {
        let (directory, only) = Watcher::target(&self.path)?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR
            | WatchMask::EXCL_UNLINK;
        let identity = identity_of(&directory)?;
        let descriptor = self.inotify.watches().add(&directory, mask).ok()?;
        Some(Watched::Directory { descriptor, directory, only, identity })
    }

    fn watch_ancestor(&mut self) -> Option<Watched> {
        let mask = WatchMask::CREATE
            | WatchMask::MOVED_TO
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let directory = nearest_ancestor(&self.path)?.to_owned();
        let descriptor = self.inotify.watches().add(&directory, mask).ok()?;
        Some(Watched::Ancestor { descriptor, directory })
    }

    /// Whether an ancestor is still the right one to watch.
    fn is_nearest(&self, ancestor: &Path) -> bool {
        Watcher::target(&self.path).is_none() && nearest_ancestor(&self.path) == Some(ancestor)
    }

    /// Everything that has happened, without waiting.
    pub fn changes(&mut self) -> io::Result<Changes> {
        let mut changes = Changes::default();
        let mut buffer = [0; BUFFER];
        let mut misplaced = false;
        loop {
            let events = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    changes.everything = true;
                    continue;
                }
                match &self.watched {
                    Watched::Directory { descriptor, directory, only, .. } if *descriptor == event.wd => {
                        if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
                            misplaced = true;
                            continue;
                        }
                        let Some(name) = event.name else { continue };
                        if only.as_deref().is_some_and(|only| only != name) {
                            continue;
                        }
                        // What was a file, or nothing, may have become the directory to watch.
                        misplaced |= only.is_some() && event.mask.contains(EventMask::ISDIR);
                        note(&mut changes, directory, name, event.mask);
                    }
                    Watched::Ancestor { descriptor, .. } if *descriptor == event.wd => misplaced = true,
                    // An event of a watch that has been given up.
                    _ => {}
                }
            }
        }
        // A chain of directories may appear faster than each can be watched: go on until nothing moves any more.
        while misplaced {
            self.establish();
            changes.everything = true;
            misplaced = match &self.watched {
                Watched::Ancestor { directory, .. } => !self.is_nearest(directory),
                _ => false,
            };
        }
        Ok(changes)
    }
}

fn nearest_ancestor(path: &Path) -> Option<&Path> {
    path.ancestors().skip(1).find(|ancestor| ancestor.is_dir())
}

fn note(changes: &mut Changes, directory: &Path, name: &OsStr, mask: EventMask) {
    if !Manifests::is_manifest_name(name.as_bytes()) {
        return;
    }
    let path = directory.join(name);
    if mask.intersects(EventMask::MOVED_FROM | EventMask::DELETE) {
        changes.written.remove(&path);
        changes.touched.remove(&path);
        changes.removed.insert(path);
        return;
    }
    changes.removed.remove(&path);
    if mask.intersects(EventMask::MOVED_TO | EventMask::CLOSE_WRITE) {
        changes.touched.remove(&path);
        changes.written.insert(path);
    } else if mask.contains(EventMask::CREATE) {
        // A new file is read when its writer closes it, not half-written before. A symbolic or second hard link has no
        // writer, and a directory is to be complained about.
        let complete = path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file() || metadata.nlink() > 1);
        if complete {
            changes.written.insert(path);
        }
    } else if !changes.written.contains(&path) {
        changes.touched.insert(path);
    }
}

fn identity_of(directory: &Path) -> Option<(u64, u64)> {
    let metadata = directory.metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}
