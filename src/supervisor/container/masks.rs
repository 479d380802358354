//! Paths that a container must not see, or must not write to.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    error::{Failure, Step},
    target,
};
use crate::sys::{
    mount::{self, FileSystem, attribute},
    node::{self, Kind},
    openat2::{Scope, openat2, purpose},
};

/// Opens the host's /dev/null for covering files with, and makes sure that it is the null device: a container's own
/// may be anything its image says (CVE-2025-31133).
pub(super) fn open_null() -> Result<OwnedFd, Failure> {
    let step = || "open /dev/null";
    let null = openat2(mount::here(), Path::new("/dev/null"), purpose::PLACE, 0, Scope::NoMagicLinks).step(step)?;
    let status = node::status(null.as_fd()).step(step)?;
    if (status.kind, status.device) != (Kind::CharacterDevice, (1, 3)) {
        return Err(Failure::refused(step(), "it is not the null device"));
    }
    Ok(null)
}

/// Covers each of `paths` that exists: a directory with an empty one, anything else with the null device.
pub(super) fn hide(root: BorrowedFd<'_>, paths: &[PathBuf], null: BorrowedFd<'_>) -> Result<(), Failure> {
    // One empty file system is enough for all directories: the first is a mount of it, the others are binds.
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let step = || format!("mask {}", path.display());
        let Some(place) = existing(root, path).step(step)? else { continue };
        if node::status(place.as_fd()).step(step)?.kind != Kind::Directory {
            let cover = mount::clone_tree(null, false).step(step)?;
            mount::attach(cover.as_fd(), place.as_fd()).step(step)?;
        } else if let Some(empty) = &empty {
            let cover = mount::clone_tree(empty.as_fd(), false).step(step)?;
            mount::attach(cover.as_fd(), place.as_fd()).step(step)?;
        } else {
            let cover = make_empty().step(step)?;
            mount::attach(cover.as_fd(), place.as_fd()).step(step)?;
            empty = Some(cover);
        }
    }
    Ok(())
}

/// Makes each of `paths` that exists, with what is mounted beneath, read-only.
pub(super) fn protect(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<(), Failure> {
    for path in paths {
        let step = || format!("make {} read-only", path.display());
        let Some(place) = existing(root, path).step(step)? else { continue };
        let cover = mount::clone_tree(place.as_fd(), true).step(step)?;
        mount::set_attributes(cover.as_fd(), true, attribute::RDONLY, None).step(step)?;
        mount::attach(cover.as_fd(), place.as_fd()).step(step)?;
    }
    Ok(())
}

fn make_empty() -> io::Result<OwnedFd> {
    let file_system = FileSystem::open(c"tmpfs")?;
    for (key, value) in [("nr_blocks", "1"), ("nr_inodes", "1"), ("mode", "555")] {
        file_system.option(key, value.as_ref())?;
    }
    file_system.mount(attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC)
}

/// What does not exist need not be hidden. (A kernel without that feature, or a path through a file.)
fn existing(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    match target::resolve(root, path) {
        Ok(place) => Ok(Some(place)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}
