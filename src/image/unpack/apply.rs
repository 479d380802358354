//! Makes the entries of a layer, one after the other.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr},
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileExt},
    },
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{
            FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev, mkdirat, mknodat,
            utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, fchownat, ftruncate, linkat, symlinkat},
};

use super::{
    BUFFER, LayerSummary, Ownership, UnpackError, UnpackLimits,
    tar::{Entry, Kind},
    tree::{CleanPath, Tree, file_type, is_whiteout},
};
use crate::sys::beneath;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Reserved by aufs for its own files (`.wh..wh.plnk`); nothing to unpack.
const RESERVED: &[u8] = b".wh..wh.";
/// Mode of a directory the archive does not describe.
const IMPLIED_MODE: u32 = 0o755;

/// Mode and time of a directory. Set at the end, because putting something into it changes its time and its mode may
/// forbid it.
struct Later {
    mode: u32,
    mtime: Option<(i64, u32)>,
}

/// Applies entries to a tree.
pub(super) struct Unpacker {
    tree: Tree,
    limits: UnpackLimits,
    ownership: Ownership,
    /// Who new files belong to without a further call.
    creator: (u32, u32),
    buffer: Vec<u8>,
    directories: BTreeMap<CleanPath, Later>,
    directory_names: u64,
    entries: u64,
    bytes: u64,
}

impl Unpacker {
    pub(super) fn new(tree: Tree, limits: UnpackLimits, ownership: Ownership) -> Unpacker {
        Unpacker {
            tree,
            limits,
            ownership,
            creator: (Uid::effective().as_raw(), Gid::effective().as_raw()),
            buffer: vec![0; BUFFER],
            directories: BTreeMap::new(),
            directory_names: 0,
            entries: 0,
            bytes: 0,
        }
    }

    /// Makes what `entry` says; `data` gives its content.
    pub(super) fn apply(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(UnpackError::TooLarge { what: "the number of entries", limit: self.limits.entries });
        }
        self.bytes = self.bytes.saturating_add(entry.size);
        if self.bytes > self.limits.bytes {
            return Err(UnpackError::TooLarge { what: "the unpacked layer", limit: self.limits.bytes });
        }
        let path = CleanPath::new(&entry.path)?;
        if path.is_root() {
            return match entry.kind {
                Kind::Directory => self.root_directory(entry),
                _ => Err(UnpackError::Malformed("the root is not a directory".into())),
            };
        }
        let (directory, name) = path.split();
        if name == OPAQUE {
            let directory = directory.to_vec();
            self.tree.directory(&directory)?;
            return self.tree.set_opaque(&directory);
        }
        if name.starts_with(RESERVED) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&path, hidden);
        }
        let (parent, name) = self.tree.parent(&path)?;
        match entry.kind {
            Kind::Directory => self.directory(entry, path, &parent, &name),
            Kind::File => self.file(entry, &path, &parent, &name, data),
            Kind::Symlink => self.symlink(entry, &path, &parent, &name),
            Kind::Hardlink => self.hardlink(entry, &path, &parent, &name),
            Kind::Character | Kind::Block | Kind::Fifo => self.node(entry, &path, &parent, &name),
        }
    }

    /// Sets what had to wait, and tells what was made.
    pub(super) fn finish(mut self) -> Result<LayerSummary, UnpackError> {
        for implied in self.tree.implied() {
            let path = CleanPath::new(implied)?;
            self.directories.entry(path).or_insert(Later { mode: IMPLIED_MODE, mtime: None });
        }
        // Backwards, so that a directory is done before its parent becomes unreadable (matters without root only).
        for (path, later) in self.directories.iter().rev() {
            let directory = match self.tree.open_existing(path) {
                Ok(directory) => directory,
                // Replaced by a later entry.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
                Err(errno) => return Err(UnpackError::step("open the directory", path.as_bytes(), errno)),
            };
            fchmod(&directory, mode(later.mode))
                .map_err(|errno| UnpackError::step("set the mode of", path.as_bytes(), errno))?;
            if let Some(mtime) = later.mtime {
                let time = time(mtime);
                futimens(&directory, &time, &time)
                    .map_err(|errno| UnpackError::step("set the time of", path.as_bytes(), errno))?;
            }
        }
        let described = |path: &Vec<u8>| {
            CleanPath::new(path)
                .is_ok_and(|path| self.directories.get(&path).is_some_and(|later| later.mtime.is_some()))
        };
        let implied = self.tree.implied().iter().filter(|path| !described(path));
        let implied = implied.map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        Ok(LayerSummary { size: self.bytes, entries: self.entries, implied })
    }

    fn remember(&mut self, path: CleanPath, entry: &Entry) -> Result<(), UnpackError> {
        self.directory_names += path.as_bytes().len() as u64 + 32;
        if self.directory_names > self.limits.directory_names {
            let limit = self.limits.directory_names;
            return Err(UnpackError::TooLarge { what: "the number of directories", limit });
        }
        self.directories.insert(path, Later { mode: entry.mode, mtime: Some(entry.mtime) });
        Ok(())
    }

    fn root_directory(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        self.own(false, |uid, gid, tree| fchown(tree.root(), uid, gid), entry, b"")?;
        let root = CleanPath::new(b"")?;
        self.remember(root, entry)
    }

    fn directory(
        &mut self,
        entry: &Entry,
        path: CleanPath,
        parent: &OwnedFd,
        name: &CString,
    ) -> Result<(), UnpackError> {
        let failed = |errno| UnpackError::step("make the directory", path.as_bytes(), errno);
        let mut fresh = true;
        match mkdirat(parent, name.as_c_str(), Mode::S_IRWXU) {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                fresh = false;
                let existing = fstatat(parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
                if file_type(&existing) != SFlag::S_IFDIR {
                    self.tree.remove(parent, name, &path)?;
                    mkdirat(parent, name.as_c_str(), Mode::S_IRWXU).map_err(failed)?;
                    // Deleted below and made again: nothing of the old directory may shine through.
                    if is_whiteout(&existing) {
                        self.tree.set_opaque(path.as_bytes())?;
                    }
                }
            }
            Err(errno) => return Err(failed(errno)),
        }
        let change = |uid, gid, _: &Tree| fchownat(parent, name.as_c_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW);
        self.own(fresh, change, entry, path.as_bytes())?;
        if !entry.xattrs.is_empty() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let directory = openat(parent, name.as_c_str(), flags, Mode::empty()).map_err(failed)?;
            self.xattrs(entry, &path, &directory)?;
        }
        self.remember(path, entry)
    }

    fn file(
        &mut self,
        entry: &Entry,
        path: &CleanPath,
        parent: &OwnedFd,
        name: &CString,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let create = || openat(parent, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = self.replacing(parent, name, path, "create", create)?;
        let file = std::fs::File::from(file);
        let write_failed = |source| UnpackError::Write { path: path.to_string(), source };
        match &entry.sparse {
            None => self.copy(entry.size, 0, data, &file, &write_failed)?,
            Some(map) => {
                for (offset, length) in map {
                    self.copy(*length, *offset, data, &file, &write_failed)?;
                }
                ftruncate(&file, entry.size.cast_signed())
                    .map_err(|errno| UnpackError::step("set the size of", path.as_bytes(), errno))?;
            }
        }
        // Owner first: changing it clears setuid bits and capabilities.
        self.own(true, |uid, gid, _| fchown(&file, uid, gid), entry, path.as_bytes())?;
        fchmod(&file, mode(entry.mode))
            .map_err(|errno| UnpackError::step("set the mode of", path.as_bytes(), errno))?;
        self.xattrs(entry, path, &file)?;
        let time = time(entry.mtime);
        futimens(&file, &time, &time).map_err(|errno| UnpackError::step("set the time of", path.as_bytes(), errno))
    }

    fn copy(
        &mut self,
        length: u64,
        offset: u64,
        data: &mut impl Read,
        file: &std::fs::File,
        write_failed: &dyn Fn(io::Error) -> UnpackError,
    ) -> Result<(), UnpackError> {
        let mut done = 0;
        while done < length {
            let want = usize::try_from(length - done).unwrap_or(usize::MAX).min(self.buffer.len());
            // Filled first: decompressors give little at a time, and a write costs more than a copy.
            data.read_exact(&mut self.buffer[..want]).map_err(super::tar::read_error)?;
            file.write_all_at(&self.buffer[..want], offset + done).map_err(write_failed)?;
            done += want as u64;
        }
        Ok(())
    }

    fn symlink(
        &mut self,
        entry: &Entry,
        path: &CleanPath,
        parent: &OwnedFd,
        name: &CString,
    ) -> Result<(), UnpackError> {
        let target = OsStr::from_bytes(&entry.link);
        self.replacing(parent, name, path, "make the symbolic link", || symlinkat(target, parent, name.as_c_str()))?;
        let change = |uid, gid, _: &Tree| fchownat(parent, name.as_c_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW);
        self.own(true, change, entry, path.as_bytes())?;
        self.touch(entry, path, parent, name)
    }

    fn hardlink(
        &mut self,
        entry: &Entry,
        path: &CleanPath,
        parent: &OwnedFd,
        name: &CString,
    ) -> Result<(), UnpackError> {
        let target = CleanPath::new(&entry.link)?;
        if target.is_root() {
            return Err(UnpackError::step("link to the root from", path.as_bytes(), Errno::EPERM));
        }
        // A link to itself would remove its own target.
        if target == *path {
            return Ok(());
        }
        let (directory, file) = self.tree.parent(&target)?;
        let step = "make the hard link";
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link is another name of it.
        self.replacing(parent, name, path, step, || {
            linkat(directory.as_fd(), file.as_c_str(), parent, name.as_c_str(), AtFlags::empty())
        })
    }

    fn node(&mut self, entry: &Entry, path: &CleanPath, parent: &OwnedFd, name: &CString) -> Result<(), UnpackError> {
        let kind = match entry.kind {
            Kind::Character => SFlag::S_IFCHR,
            Kind::Block => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        let device = makedev(u64::from(entry.device.0), u64::from(entry.device.1));
        if self.ownership == Ownership::Ignore && kind != SFlag::S_IFIFO {
            return Ok(());
        }
        self.replacing(parent, name, path, "make the device", || {
            mknodat(parent, name.as_c_str(), kind, mode(entry.mode), device)
        })?;
        let change = |uid, gid, _: &Tree| fchownat(parent, name.as_c_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW);
        self.own(true, change, entry, path.as_bytes())?;
        // The umask took part above. The name was made just now, by us and exclusively: it is no link.
        fchmodat(parent, name.as_c_str(), mode(entry.mode), FchmodatFlags::FollowSymlink)
            .map_err(|errno| UnpackError::step("set the mode of", path.as_bytes(), errno))?;
        self.touch(entry, path, parent, name)
    }

    fn whiteout(&mut self, path: &CleanPath, hidden: &[u8]) -> Result<(), UnpackError> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(UnpackError::Malformed(format!("whiteout {path}")));
        }
        let (parent, _) = self.tree.parent(path)?;
        let name = CString::new(hidden).map_err(|_| UnpackError::Malformed("a name contains a NUL byte".into()))?;
        let device = makedev(0, 0);
        match mknodat(parent.as_fd(), name.as_c_str(), SFlag::S_IFCHR, Mode::empty(), device) {
            Ok(()) => Ok(()),
            // A whiteout only hides what is below. What this layer has put here stays; a directory hides what it covers.
            Err(Errno::EEXIST) => {
                let existing = fstatat(parent.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
                    .map_err(|errno| UnpackError::step("look at", path.as_bytes(), errno))?;
                if file_type(&existing) == SFlag::S_IFDIR {
                    let mut directory = path.split().0.to_vec();
                    if !directory.is_empty() {
                        directory.push(b'/');
                    }
                    directory.extend_from_slice(hidden);
                    self.tree.set_opaque(&directory)?;
                }
                Ok(())
            }
            Err(errno) => Err(UnpackError::step("make the whiteout", path.as_bytes(), errno)),
        }
    }

    /// Runs `make`; when the name is taken, removes what has it and runs it again.
    fn replacing<T>(
        &mut self,
        parent: &OwnedFd,
        name: &CString,
        path: &CleanPath,
        step: &'static str,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let result = match make() {
            Err(Errno::EEXIST) => {
                self.tree.remove(parent, name, path)?;
                make()
            }
            other => other,
        };
        result.map_err(|errno| UnpackError::step(step, path.as_bytes(), errno))
    }

    /// Sets owner and group by `change`. `fresh`: it was made just now, so that it belongs to the creator (no parent has
    /// its setgid bit yet).
    fn own(
        &self,
        fresh: bool,
        change: impl Fn(Option<Uid>, Option<Gid>, &Tree) -> Result<(), Errno>,
        entry: &Entry,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        if self.ownership == Ownership::Ignore || fresh && self.creator == (entry.uid, entry.gid) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        change(Some(uid), Some(gid), &self.tree).map_err(|errno| UnpackError::step("set the owner of", path, errno))
    }

    fn touch(&self, entry: &Entry, path: &CleanPath, parent: &OwnedFd, name: &CString) -> Result<(), UnpackError> {
        let time = time(entry.mtime);
        utimensat(parent, name.as_c_str(), &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(|errno| UnpackError::step("set the time of", path.as_bytes(), errno))
    }

    /// Sets the attributes an image may have. `trusted.*` would speak to overlayfs itself, and labels of a security
    /// module belong to the host.
    fn xattrs(&self, entry: &Entry, path: &CleanPath, file: &impl AsFd) -> Result<(), UnpackError> {
        for (name, value) in &entry.xattrs {
            let wanted = name == b"security.capability" && self.ownership == Ownership::Apply
                || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
            let Ok(name) = CString::new(name.as_slice()) else { continue };
            if !wanted {
                continue;
            }
            match beneath::set_xattr(file, &name, value) {
                Ok(()) => {}
                // The file system has no user attributes; the image works without them.
                Err(Errno::EOPNOTSUPP) if name.as_bytes().starts_with(b"user.") => {}
                Err(errno) => return Err(UnpackError::step("set an extended attribute of", path.as_bytes(), errno)),
            }
        }
        Ok(())
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits)
}

fn time((seconds, nanoseconds): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, i64::from(nanoseconds))
}
