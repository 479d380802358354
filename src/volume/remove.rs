//! Removing a directory tree that a container may have filled: never through a symbolic link, never across a mount
//! (a bind mount of the same file system included), at any depth, and with what chattr(1) has locked.

use std::{
    ffi::{CStr, CString, OsStr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2, renameat},
    sys::stat::{Mode, SFlag, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::sys::inode_flags;

/// A directory deeper than this is moved up to the top before it is emptied, so that neither the stack nor the number
/// of open files grows with what a container has made.
const MAX_DEPTH: u32 = 64;

/// How often a directory that is filled again while it is emptied is tried.
const MAX_PASSES: u32 = 8;

/// Why a tree is still there, at least in part.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Something is mounted in it. Nothing beyond was touched.
    #[error("{path} is a mount point")]
    MountPoint {
        /// Where.
        path: PathBuf,
    },
    /// A step failed.
    #[error("{step} {path}")]
    Step {
        /// `open`, `list`, `remove`, …
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: Errno,
    },
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(Errno) -> RemoveError {
    let path = path.to_owned();
    move |source| match source {
        Errno::EBUSY | Errno::EXDEV => RemoveError::MountPoint { path },
        source => RemoveError::Step { step, path, source },
    }
}

/// Removes whatever is at `path` (a symbolic link itself, not what it points to). Ok when there is nothing. The
/// directories above `path` are the agent's own and are trusted.
pub fn remove_tree(path: &Path) -> Result<(), RemoveError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(RemoveError::Step { step: "remove", path: path.to_owned(), source: Errno::EINVAL });
    };
    let parent = match open(parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        result => result.map_err(failed("open directory of", path))?,
    };
    let name = CString::new(name.as_bytes()).map_err(|_| failed("remove", path)(Errno::EINVAL))?;
    match remove_file(parent.as_fd(), &name) {
        Ok(()) => return Ok(()),
        Err(Errno::EISDIR) => {}
        Err(error) => return Err(failed("remove", path)(error)),
    }
    if remove_empty_directory(parent.as_fd(), &name).map_err(failed("remove", path))? {
        return Ok(());
    }
    let top = open_directory(parent.as_fd(), &name).map_err(failed("open", path))?;
    let mut removal = Removal { top: top.as_fd(), moved: 0 };
    for _ in 0..MAX_PASSES {
        // What is moved up during a pass may have been missed by it, and each level of a deep tree takes one.
        loop {
            let moved = removal.moved;
            removal.empty(top.as_fd(), path, 0)?;
            if removal.moved == moved {
                break;
            }
        }
        if remove_empty_directory(parent.as_fd(), &name).map_err(failed("remove", path))? {
            return Ok(());
        }
    }
    Err(failed("remove", path)(Errno::ENOTEMPTY))
}

/// Removes what is in the directory `path`, and leaves the directory. What is mounted in it stays, and is an error.
pub fn empty_directory(path: &Path) -> Result<(), RemoveError> {
    let top = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    let top = top.map_err(failed("open", path))?;
    let mut removal = Removal { top: top.as_fd(), moved: 0 };
    for _ in 0..MAX_PASSES {
        let moved = removal.moved;
        removal.empty(top.as_fd(), path, 0)?;
        if removal.moved == moved {
            return Ok(());
        }
    }
    Err(failed("empty", path)(Errno::ENOTEMPTY))
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    /// Directories moved up so far; part of their new names.
    moved: u64,
}

impl Removal<'_> {
    /// Removes what is in a directory.
    fn empty(&mut self, directory: BorrowedFd<'_>, path: &Path, depth: u32) -> Result<(), RemoveError> {
        // The listing owns its descriptor; reading to its end takes it back to the start for another pass.
        let listing = directory.try_clone_to_owned().map_err(|error| failed("open", path)(errno(&error)))?;
        let mut listing = Dir::from_fd(listing).map_err(failed("list", path))?;
        for entry in listing.iter() {
            let entry = entry.map_err(failed("list", path))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let below = || path.join(OsStr::from_bytes(name.to_bytes()));
            if entry.file_type() != Some(Type::Directory) {
                match remove_file(directory, name) {
                    Ok(()) => continue,
                    Err(Errno::EISDIR) => {}
                    Err(error) => return Err(failed("remove", &below())(error)),
                }
            }
            self.remove_directory(directory, name, &below(), depth + 1)?;
        }
        Ok(())
    }

    fn remove_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        depth: u32,
    ) -> Result<(), RemoveError> {
        if remove_empty_directory(parent, name).map_err(failed("remove", path))? {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            return self.move_up(parent, name, path);
        }
        for _ in 0..MAX_PASSES {
            let directory = match open_directory(parent, name) {
                Err(Errno::ENOENT) => return Ok(()),
                result => result.map_err(failed("open", path))?,
            };
            self.empty(directory.as_fd(), path, depth)?;
            if remove_empty_directory(parent, name).map_err(failed("remove", path))? {
                return Ok(());
            }
        }
        Err(failed("remove", path)(Errno::ENOTEMPTY))
    }

    fn move_up(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<(), RemoveError> {
        loop {
            self.moved += 1;
            let new = format!(".removed-{}", self.moved);
            let moved = unlocking(parent, name, || renameat(parent, name, self.top, new.as_str()));
            match moved {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                // The name is taken by the container's own.
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
                Err(error) => return Err(failed("move", path)(error)),
            }
        }
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Neither through a symbolic link nor onto a mount: EXDEV says that something is mounted there.
fn how() -> OpenHow {
    OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV)
}

fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat2(parent, name, how())
}

/// Unlinks what is not a directory (EISDIR if it is one). EBUSY: something is mounted on it.
fn remove_file(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match unlocking(parent, name, || unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)) {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

/// Whether the directory is gone; false when there is something in it.
fn remove_empty_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    match unlocking(parent, name, || unlinkat(parent, name, UnlinkatFlags::RemoveDir)) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Does `step` and, when it is not permitted, once more after taking the immutable and append-only attributes from
/// `name` and its directory.
fn unlocking(parent: BorrowedFd<'_>, name: &CStr, step: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match step() {
        Err(Errno::EPERM) => {}
        result => return result,
    }
    let mut unlocked = inode_flags::unlock(parent).unwrap_or(false);
    // Only what can be opened without a side effect; a device or a pipe cannot be locked by itself.
    let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFREG || kind == SFlag::S_IFDIR {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
        let file = openat2(parent, name, how)?;
        unlocked |= inode_flags::unlock(&file).unwrap_or(false);
    }
    if unlocked { step() } else { Err(Errno::EPERM) }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{fs::symlink, net::UnixListener},
    };

    use nix::{sys::stat::mkdirat, unistd::mkfifo};

    use super::*;

    #[test]
    fn everything_in_a_tree_goes_and_nothing_a_link_points_to() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir_all(outside.join("kept")).unwrap();
        let tree = root.path().join("tree");
        for number in 0..300 {
            fs::create_dir_all(tree.join(format!("{}/{number}", number % 7))).unwrap();
            fs::write(tree.join(format!("{}/{number}/file", number % 7)), "x").unwrap();
        }
        symlink(&outside, tree.join("link")).unwrap();
        symlink(&outside, tree.join("0/link")).unwrap();
        mkfifo(&tree.join("pipe"), Mode::S_IRWXU).unwrap();
        drop(UnixListener::bind(tree.join("socket")).unwrap());
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
        // Again: nothing to do. A link as the tree itself is removed as a link.
        remove_tree(&tree).unwrap();
        remove_tree(&root.path().join("none/below")).unwrap();
        symlink(&outside, &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(outside.join("kept").exists());
        fs::write(&tree, "a file").unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn a_tree_of_any_depth_goes() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::create_dir(tree.join(".removed-1")).unwrap();
        fs::write(tree.join(".removed-1/taken"), "").unwrap();
        fs::write(tree.join(".removed-2"), "").unwrap();
        // Deeper than a path can be long, and than is gone through in one pass.
        let name = "d".repeat(200);
        let mut directory = open(&tree, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..300 {
            mkdirat(&directory, name.as_str(), Mode::S_IRWXU).unwrap();
            directory = openat2(&directory, name.as_str(), how()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn what_chattr_has_locked_goes_as_well() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir_all(tree.join("locked/below")).unwrap();
        fs::write(tree.join("locked/file"), "").unwrap();
        fs::write(tree.join("append"), "").unwrap();
        let chattr = |flag: &str, path: &str| {
            std::process::Command::new("chattr").arg(flag).arg(tree.join(path)).status().unwrap().success()
        };
        // Not every file system knows the attributes; the test says so instead of passing for nothing.
        assert!(chattr("+i", "locked/file") && chattr("+a", "append") && chattr("+i", "locked/below"));
        assert!(chattr("+i", "locked"));
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
