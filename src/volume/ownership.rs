//! fsGroup: gives a volume, with everything in it, to a group (`pkg/volume/volume_linux.go` upstream).
//!
//! Who has written the volume may still be at it, so every step is made on a descriptor: no name is looked up twice, no
//! link is followed, and no other file system is entered.

use std::{
    ffi::CStr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat},
    unistd::{Gid, fchownat},
};
use serde::{Deserialize, Serialize};

use super::{VolumeError, error::io_error};

/// Whose a volume becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// `fsGroup`.
    pub group: u32,
    /// fsGroupChangePolicy OnRootMismatch: a volume whose root is right already is taken to be right as a whole.
    pub on_root_mismatch: bool,
}

/// Group and others of the group read and write files; directories can be entered, and pass the group on.
const FILE: u32 = 0o660;
const DIRECTORY: u32 = 0o2770;

/// Deeper trees are refused: each level holds two descriptors open. (A path of that depth is already longer than most
/// programs take.)
const MAX_DEPTH: usize = 400;

/// Gives `root` and everything below it to the group. The root is changed last, so that an interrupted change is taken
/// up again even by OnRootMismatch.
pub fn change(root: &Path, wanted: Ownership) -> Result<(), VolumeError> {
    let failed = |step: &'static str| move |error: Errno| io_error(step, root)(error.into());
    let how = OpenHow::new().flags(PLACE).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let place = openat2(AT_FDCWD, root, how).map_err(failed("open"))?;
    if wanted.on_root_mismatch && is_right(&place, wanted.group).map_err(failed("examine"))? {
        return Ok(());
    }
    Change { group: wanted.group }.entry(&place, root, 0)
}

const PLACE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Upstream's `requiresPermissionChange`, the other way round.
fn is_right(place: &OwnedFd, group: u32) -> Result<bool, Errno> {
    let stat = fstat(place)?;
    let is_directory = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    Ok(is_directory && stat.st_gid == group && stat.st_mode & DIRECTORY == DIRECTORY)
}

struct Change {
    group: u32,
}

impl Change {
    /// Changes what is in a directory, then itself; anything else at once. `path` is for errors.
    fn entry(&self, place: &OwnedFd, path: &Path, depth: usize) -> Result<(), VolumeError> {
        let failed = |step: &'static str| move |error: Errno| io_error(step, path)(error.into());
        let stat = fstat(place).map_err(failed("examine"))?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR {
            if depth > MAX_DEPTH {
                return Err(failed("change group of what is this deep in")(Errno::ELOOP));
            }
            self.directory(place, path, depth)?;
        }
        let group = Some(Gid::from_raw(self.group));
        fchownat(place, c"", None, group, AtFlags::AT_EMPTY_PATH).map_err(failed("change group of"))?;
        if kind == SFlag::S_IFLNK {
            return Ok(());
        }
        // The set-user-ID bits that chown(2) takes away come back with the mode, as upstream.
        let mode = stat.st_mode & 0o7777 | if kind == SFlag::S_IFDIR { DIRECTORY } else { FILE };
        set_mode(place.as_fd(), mode).map_err(failed("change mode of"))
    }

    fn directory(&self, place: &OwnedFd, path: &Path, depth: usize) -> Result<(), VolumeError> {
        let failed = |step: &'static str| move |error: Errno| io_error(step, path)(error.into());
        let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
        let listing = openat2(place, c".", how).and_then(Dir::from_fd);
        let mut listing = listing.map_err(failed("list"))?;
        for entry in listing.iter() {
            let entry = entry.map_err(failed("list"))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let below = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            match open_beneath(place, name) {
                Ok(child) => self.entry(&child, &below, depth + 1)?,
                // Gone meanwhile, or something is mounted there that is not of this volume.
                Err(Errno::ENOENT | Errno::EXDEV) => {}
                Err(error) => return Err(io_error("open", &below)(error.into())),
            }
        }
        Ok(())
    }
}

fn open_beneath(directory: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let scope = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV;
    openat2(directory, name, OpenHow::new().flags(PLACE).resolve(scope))
}

/// chmod(2) of what a place handle stands for. It has no call of its own before Linux 6.6; the link in /proc leads to
/// the file itself, whatever its name is by now.
fn set_mode(place: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let link = format!("/proc/self/fd/{}", place.as_raw_fd());
    fchmodat(AT_FDCWD, link.as_str(), Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use super::*;

    const GROUP: u32 = 4321;

    fn of(path: &Path) -> (u32, u32) {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.gid(), metadata.mode() & 0o7777)
    }

    fn give(root: &Path, on_root_mismatch: bool) {
        change(root, Ownership { group: GROUP, on_root_mismatch }).unwrap();
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn everything_in_a_volume_becomes_the_groups_and_nothing_outside() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volume");
        let outside = directory.path().join("outside");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "").unwrap();
        fs::write(&outside, "").unwrap();
        for (path, mode) in [("a", 0o700), ("a/b", 0o755), ("a/b/file", 0o4600)] {
            fs::set_permissions(root.join(path), Permissions::from_mode(mode)).unwrap();
        }
        fs::set_permissions(&outside, Permissions::from_mode(0o600)).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        give(&root, false);
        assert_eq!(of(&root), (GROUP, 0o2775));
        assert_eq!(of(&root.join("a")), (GROUP, 0o2770));
        assert_eq!(of(&root.join("a/b")), (GROUP, 0o2775));
        assert_eq!(of(&root.join("a/b/file")), (GROUP, 0o4660));
        assert_eq!(of(&root.join("link")).0, GROUP, "a link is changed as a link");
        assert_eq!(of(&outside), (fs::metadata(directory.path()).unwrap().gid(), 0o600));
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn on_root_mismatch_believes_the_root_and_the_root_is_last() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("volume");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), "").unwrap();
        give(&root, true);
        assert_eq!(of(&root.join("file")).0, GROUP, "a root of another group is a mismatch");
        fs::write(root.join("new"), "").unwrap();
        std::os::unix::fs::chown(root.join("new"), None, Some(0)).unwrap();
        give(&root, true);
        assert_eq!(of(&root.join("new")).0, 0, "the root is right, so nothing is looked at");
        give(&root, false);
        assert_eq!(of(&root.join("new")).0, GROUP);
        // Without the bit that passes the group on, the root is not right.
        fs::write(root.join("newer"), "").unwrap();
        std::os::unix::fs::chown(root.join("newer"), None, Some(0)).unwrap();
        fs::set_permissions(&root, Permissions::from_mode(0o770)).unwrap();
        give(&root, true);
        assert_eq!(of(&root.join("newer")).0, GROUP);
    }
}
