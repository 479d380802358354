//! How much disk a tree takes: what du(1) would say, without leaving the file system it is on and without waiting for
//! a server that does not answer.

use std::{
    collections::HashSet,
    ffi::CStr,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
};

use crate::sys::node::{self, Extent};

/// Directories deeper than this are counted, but not what is in them: each level holds two descriptors open.
const MAX_DEPTH: usize = 128;

/// Bytes of all blocks that the files at and below `root` have; a file with several names counts once. Neither
/// symbolic links nor mounts are followed, and what vanishes meanwhile counts for nothing. `None` once `stop` is set.
///
/// # Errors
/// `root` (one that does not exist takes nothing) or a directory below it cannot be read.
pub fn disk_usage(root: &Path, stop: &AtomicBool) -> io::Result<Option<u64>> {
    let how = OpenHow::new().flags(FLAGS).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let top = match openat2(AT_FDCWD, root, how) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(Some(0)),
        Err(error) => return Err(error.into()),
    };
    let place = node::extent(top.as_fd(), c"")?;
    let mut walk = Walk { stop, place, counted: HashSet::new(), bytes: place.bytes };
    let complete = walk.directory(&top, 0)?;
    Ok(complete.then_some(walk.bytes))
}

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

struct Walk<'a> {
    stop: &'a AtomicBool,
    /// Of the top: device and mount are where the walk stays.
    place: Extent,
    /// Files with several names that have been counted.
    counted: HashSet<u64>,
    bytes: u64,
}

impl Walk<'_> {
    /// Counts what is in a directory; false when told to stop.
    fn directory(&mut self, directory: &OwnedFd, depth: usize) -> io::Result<bool> {
        let mut listing = Dir::from_fd(directory.try_clone()?)?;
        for entry in listing.iter() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if self.is_directory_of_ours(directory, name)?
                && depth < MAX_DEPTH
                && let Some(below) = open_beneath(directory, name)?
                && !self.directory(&below, depth + 1)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Counts an entry, and tells whether there may be more below it.
    fn is_directory_of_ours(&mut self, directory: &OwnedFd, name: &CStr) -> io::Result<bool> {
        let extent = match node::extent(directory.as_fd(), name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            extent => extent?,
        };
        // What is mounted there belongs to somebody else.
        if (extent.device, extent.mount) != (self.place.device, self.place.mount) {
            return Ok(false);
        }
        if extent.is_directory || extent.links < 2 || self.counted.insert(extent.inode) {
            self.bytes = self.bytes.saturating_add(extent.bytes);
        }
        Ok(extent.is_directory)
    }
}

/// `None` when it is no directory any more, or something has been mounted on it.
fn open_beneath(directory: &OwnedFd, name: &CStr) -> io::Result<Option<OwnedFd>> {
    let scope = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    match openat2(directory, name, OpenHow::new().flags(FLAGS).resolve(scope)) {
        Ok(below) => Ok(Some(below)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, symlink},
    };

    use super::*;

    #[test]
    fn every_block_counts_once_and_nothing_outside() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let running = AtomicBool::new(false);
        let usage = || disk_usage(&root, &running).unwrap();
        assert_eq!(usage(), Some(0), "nothing is there yet");
        fs::create_dir_all(root.join("a/b")).unwrap();
        let empty = usage().unwrap();
        let file = root.join("a/b/file");
        fs::write(&file, vec![1; 1 << 20]).unwrap();
        let blocks = fs::metadata(&file).unwrap().blocks() * 512;
        assert!(blocks >= 1 << 20);
        assert_eq!(usage(), Some(empty + blocks));
        fs::hard_link(&file, root.join("again")).unwrap();
        assert_eq!(usage(), Some(empty + blocks), "a second name is no second file");
        fs::write(directory.path().join("outside"), vec![1; 1 << 20]).unwrap();
        symlink(directory.path(), root.join("link")).unwrap();
        assert!(usage().unwrap() < empty + 2 * blocks, "a link is not followed");
        // A hole takes nothing.
        fs::File::create(root.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        assert!(usage().unwrap() < empty + 2 * blocks);
    }

    #[test]
    fn a_walk_ends_when_it_is_told_to() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "x").unwrap();
        assert_eq!(disk_usage(root.path(), &AtomicBool::new(true)).unwrap(), None);
    }
}
