//! The directory a layer is unpacked into, and the only ways to reach into it.
//!
//! Nobody else can enter the directory while it is filled (its parent is private), so what is checked stays true.
//! Every name of an archive is split into a parent and a last component. The parent is opened with openat2(2) as if the
//! layer were the root, so symbolic links the archive itself made are followed but never out of it; the last component
//! is only ever given to calls that do not follow it.

use std::{
    collections::{HashMap, VecDeque},
    ffi::{CString, OsStr},
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::Path,
    rc::Rc,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, readlinkat, renameat},
    sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::UnpackError;
use crate::sys::beneath;

/// Parents kept open. Archives go through a tree depth first, so a few dozen hit nearly always; more would only hold
/// descriptors.
const CACHE_LIMIT: usize = 64;
/// Symbolic links followed for one name, as the kernel's own limit.
const LINK_LIMIT: usize = 40;

/// An absolute path within a layer without `.`, `..` and empty components; the root is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CleanPath(Vec<u8>);

impl CleanPath {
    /// Cleans a name of an archive. A name that climbs above the root is refused: no honest builder writes one.
    pub fn new(name: &[u8]) -> Result<CleanPath, UnpackError> {
        let mut clean: Vec<u8> = Vec::with_capacity(name.len());
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => match clean.iter().rposition(|byte| *byte == b'/') {
                    Some(slash) => clean.truncate(slash),
                    None if clean.is_empty() => {
                        return Err(UnpackError::Escape(String::from_utf8_lossy(name).into_owned()));
                    }
                    None => clean.clear(),
                },
                component => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(component);
                }
            }
        }
        Ok(CleanPath(clean))
    }

    /// The root of the layer itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Parent and last component. Not for the root.
    pub fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a relative path; `.` for the root.
    pub fn as_path(&self) -> &Path {
        bytes_as_path(&self.0)
    }
}

impl std::fmt::Display for CleanPath {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "/{}", String::from_utf8_lossy(&self.0))
    }
}

fn bytes_as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes }))
}

/// The tree being made.
pub struct Tree {
    root: OwnedFd,
    /// Where replaced directories are moved, outside of the root.
    trash: OwnedFd,
    trashed: u64,
    /// Opened parents by their path as written. Emptied whenever a directory or link is removed, because any of them
    /// may lead through it.
    cache: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Directories made because something was put into them, not by an entry of their own.
    implied: Vec<Vec<u8>>,
}

impl Tree {
    /// `root` and `trash` are existing directories of one file system.
    pub fn new(root: &Path, trash: &Path) -> std::io::Result<Tree> {
        Ok(Tree {
            root: beneath::open_directory(root)?,
            trash: beneath::open_directory(trash)?,
            trashed: 0,
            cache: HashMap::new(),
            implied: Vec::new(),
        })
    }

    /// The root directory.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Paths of directories that were made without an entry of their own, in order.
    pub fn implied(&self) -> &[Vec<u8>] {
        &self.implied
    }

    /// Opens the parent of `path`, making missing directories; the last component is returned ready for `*at` calls.
    pub fn parent(&mut self, path: &CleanPath) -> Result<(Rc<OwnedFd>, CString), UnpackError> {
        let (parent, name) = path.split();
        let name = CString::new(name).map_err(|_| UnpackError::Malformed("a name contains a NUL byte".into()))?;
        Ok((self.directory(parent)?, name))
    }

    /// Opens a directory for `*at` calls, making it when missing.
    pub fn directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, UnpackError> {
        if let Some(found) = self.cache.get(path) {
            return Ok(Rc::clone(found));
        }
        let opened = match beneath::open_in_root(&self.root, bytes_as_path(path), OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(opened) => opened,
            Err(Errno::ENOENT) => self.make_directories(path)?,
            Err(errno) => return Err(UnpackError::step("open the directory", path, errno)),
        };
        if self.cache.len() >= CACHE_LIMIT {
            self.cache.clear();
        }
        let opened = Rc::new(opened);
        self.cache.insert(path.to_vec(), Rc::clone(&opened));
        Ok(opened)
    }

    /// Opens an existing directory for reading its attributes and changing its mode and times; symbolic links in the
    /// last component are not followed.
    pub fn open_existing(&self, path: &CleanPath) -> Result<OwnedFd, Errno> {
        beneath::open_in_root(
            &self.root,
            path.as_path(),
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK,
        )
    }

    /// Walks to `path` component by component, making what is missing. Needed besides openat2 because a symbolic link
    /// may point to a directory that is in a lower layer, and so not here: it is made where the link points.
    fn make_directories(&mut self, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        let mut rest: VecDeque<Vec<u8>> = components(path).collect();
        let mut reached: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(component) = rest.pop_front() {
            if component == b".." {
                reached.pop();
                continue;
            }
            let parent = self.open_reached(&reached)?;
            let name = OsStr::from_bytes(&component);
            let failed = |step, errno| UnpackError::step(step, path, errno);
            match mkdirat(&parent, name, Mode::S_IRWXU) {
                Ok(()) => {
                    reached.push(component);
                    self.implied.push(reached.join(&b'/'));
                    continue;
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed("make the directory", errno)),
            }
            let existing = fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|errno| failed("look at a component of", errno))?;
            match file_type(&existing) {
                SFlag::S_IFDIR => reached.push(component),
                SFlag::S_IFLNK => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(failed("follow links to", Errno::ELOOP));
                    }
                    let target = readlinkat(&parent, name)
                        .map_err(|errno| failed("read a link on the way to", errno))?
                        .into_vec();
                    if target.starts_with(b"/") {
                        reached.clear();
                    }
                    for part in components(&target).collect::<Vec<_>>().into_iter().rev() {
                        rest.push_front(part);
                    }
                    if rest.len() > 4096 {
                        return Err(failed("follow links to", Errno::ENAMETOOLONG));
                    }
                }
                // What was hidden in the layers below comes back as a new, empty directory.
                _ if is_whiteout(&existing) => {
                    unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir)
                        .and_then(|()| mkdirat(&parent, name, Mode::S_IRWXU))
                        .map_err(|errno| failed("replace a whiteout on the way to", errno))?;
                    reached.push(component);
                    let joined = reached.join(&b'/');
                    self.set_opaque(&joined)?;
                    self.implied.push(joined);
                }
                _ => return Err(failed("a component is not a directory:", Errno::ENOTDIR)),
            }
        }
        self.open_reached(&reached)
    }

    fn open_reached(&self, reached: &[Vec<u8>]) -> Result<OwnedFd, UnpackError> {
        let joined = reached.join(&b'/');
        beneath::open_in_root_without_links(&self.root, bytes_as_path(&joined), OFlag::O_PATH | OFlag::O_DIRECTORY)
            .map_err(|errno| UnpackError::step("open the directory", &joined, errno))
    }

    /// Hides everything the layers below have in this directory.
    pub fn set_opaque(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let directory = beneath::open_in_root(&self.root, bytes_as_path(path), OFlag::O_RDONLY | OFlag::O_DIRECTORY)
            .map_err(|errno| UnpackError::step("open the directory", path, errno))?;
        beneath::set_xattr(&directory, c"trusted.overlay.opaque", b"y")
            .map_err(|errno| UnpackError::step("make opaque", path, errno))
    }

    /// Removes whatever has this name. Directories are moved out of the tree, to be deleted with the trash.
    pub fn remove(&mut self, parent: &OwnedFd, name: &CString, path: &CleanPath) -> Result<(), UnpackError> {
        let existing = match fstatat(parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(existing) => existing,
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(UnpackError::step("look at", path.as_bytes(), errno)),
        };
        let result = match file_type(&existing) {
            SFlag::S_IFDIR => {
                self.cache.clear();
                self.trashed += 1;
                renameat(parent, name.as_c_str(), &self.trash, self.trashed.to_string().as_str())
            }
            kind => {
                if kind == SFlag::S_IFLNK {
                    self.cache.clear();
                }
                unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir)
            }
        };
        result.map_err(|errno| UnpackError::step("replace", path.as_bytes(), errno))
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec)
}

/// The file type bits of a mode.
pub fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Overlay's mark for "nothing here": a character device 0:0.
pub fn is_whiteout(stat: &FileStat) -> bool {
    file_type(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_cleaned_and_may_not_climb_out() {
        for (name, clean) in [("a/b", "a/b"), ("/a//./b/", "a/b"), ("./", ""), ("a/../b", "b"), ("a/b/../c", "a/c")] {
            assert_eq!(CleanPath::new(name.as_bytes()).unwrap().as_bytes(), clean.as_bytes(), "{name}");
        }
        for name in ["..", "../a", "a/../../b", "/..", "./../x"] {
            assert!(matches!(CleanPath::new(name.as_bytes()), Err(UnpackError::Escape(_))), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_clean_path_has_no_dots_and_no_empty_components(name in "[a./]{0,24}") {
            if let Ok(clean) = CleanPath::new(name.as_bytes()) {
                prop_assert!(clean.is_root()
                    || clean.as_bytes().split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b"..")));
            }
        }
    }
}
