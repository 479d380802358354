//! Files that change together: a reader of the directory sees the old set or the new one, never some of each.
//!
//! The layout is the kubelet's (`pkg/volume/util/atomic_writer.go`), on which programs that watch such volumes rely:
//!
//! ```text
//! ..2026_01_31_12_00_00.123456789/     one generation, with all files
//! ..data -> ..2026_01_31_12_00_00.123456789
//! name -> ..data/name                  one link for each first component of a path
//! ```
//!
//! A generation is written completely, then `..data` is replaced by rename(2), then links are added and taken away, and
//! at last the old generation is removed. Whatever is interrupted is made good by the next write of the same files.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use k8s_openapi::jiff::Timestamp;
use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, readlinkat, renameat},
    sys::stat::{Mode, fchmod, fstat, fstatat, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, symlinkat, unlinkat},
};

use super::{VolumeError, remove::remove_tree};
use crate::{
    api::content::{ContentFile, Payload},
    sys::beneath::{open_directory, open_in_root_without_links},
};

/// The link to the present generation.
const DATA: &str = "..data";
/// The link that is about to become it.
const NEW_DATA: &str = "..data_tmp";

/// What fsGroup adds to files and directories of a volume that containers cannot write: read for the group, and for
/// directories a way through and the set-group-id bit.
const GROUP_FILE: u32 = 0o440;
const GROUP_DIRECTORY: u32 = 0o2550;
const DIRECTORY: u32 = 0o755;

/// Whether a complete generation is in `directory`.
pub fn is_written(directory: &Path) -> bool {
    directory.join(DATA).is_dir()
}

/// Makes `payload` what is to be seen in `directory`, which exists and which nobody else writes to; `group` owns it
/// all (fsGroup). Says whether anything had to be changed. `now` becomes part of a name, no more.
pub fn write(directory: &Path, payload: &Payload, group: Option<u32>, now: Timestamp) -> Result<bool, VolumeError> {
    let top = open_directory(directory).map_err(failed_io("open", directory))?;
    let writer = Writer { directory, top, group };
    let current = writer.current()?;
    let fresh = match &current {
        Some(current) if writer.is_same(current, payload) => None,
        _ => {
            // What was never finished may take the room this one needs.
            writer.sweep(current.as_deref())?;
            Some(writer.write_generation(payload, now)?)
        }
    };
    let changed = fresh.is_some();
    if let Some(fresh) = &fresh {
        writer.switch(fresh)?;
    }
    let relinked = writer.link(payload)?;
    writer.sweep(fresh.or(current).as_deref())?;
    Ok(changed || relinked)
}

struct Writer<'a> {
    directory: &'a Path,
    top: OwnedFd,
    group: Option<u32>,
}

impl Writer<'_> {
    /// The generation `..data` points to, if that is a name it can have.
    fn current(&self) -> Result<Option<OsString>, VolumeError> {
        match readlinkat(&self.top, DATA) {
            Ok(target) if is_ours(&target) && !target.as_bytes().contains(&b'/') => Ok(Some(target)),
            Ok(_) | Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(failed("read link", &self.directory.join(DATA))(error)),
        }
    }

    /// Whether a generation holds exactly these files. One that cannot be read is written anew.
    fn is_same(&self, generation: &OsStr, payload: &Payload) -> bool {
        let Ok(directory) = open_in_root_without_links(&self.top, Path::new(generation), OFlag::O_DIRECTORY) else {
            return false;
        };
        let same = |(path, file): (&String, &ContentFile)| self.is_same_file(&directory, path, file).unwrap_or(false);
        payload.iter().all(same) && count(&directory, payload.len()) == Ok(payload.len())
    }

    fn is_same_file(&self, generation: &OwnedFd, path: &str, file: &ContentFile) -> Result<bool, Errno> {
        // A pipe or a device would not be ours; opening must not wait for one all the same.
        let opened = open_in_root_without_links(generation, Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        let status = fstat(&opened)?;
        let owned = file.owner.is_none_or(|owner| status.st_uid == owner)
            && self.group.is_none_or(|group| status.st_gid == group);
        let length = u64::try_from(status.st_size).unwrap_or_default();
        if !owned || status.st_mode & 0o7777 != self.mode(file) || length != file.bytes.len() as u64 {
            return Ok(false);
        }
        let mut bytes = Vec::with_capacity(file.bytes.len());
        let read = File::from(opened).take(length + 1).read_to_end(&mut bytes);
        Ok(read.is_ok() && bytes == file.bytes)
    }

    fn mode(&self, file: &ContentFile) -> u32 {
        if self.group.is_some() { file.mode | GROUP_FILE } else { file.mode }
    }

    /// Writes all files into a directory of their own and returns its name.
    fn write_generation(&self, payload: &Payload, now: Timestamp) -> Result<OsString, VolumeError> {
        let name = self.make_generation(now)?;
        let path = self.directory.join(&name);
        let generation = self.open_made(&self.top, Path::new(&name), &path)?;
        let mut made = BTreeSet::new();
        for (file_path, file) in payload {
            let relative = Path::new(file_path);
            let parents: Vec<&Path> = relative.ancestors().skip(1).filter(|path| *path != Path::new("")).collect();
            for parent in parents.into_iter().rev() {
                if made.insert(parent.to_owned()) {
                    let full = path.join(parent);
                    self.make_directory(&generation, parent, &full)?;
                }
            }
            self.write_file(&generation, relative, file, &path.join(relative))?;
        }
        Ok(name)
    }

    /// An empty directory with a name nothing has had.
    fn make_generation(&self, now: Timestamp) -> Result<OsString, VolumeError> {
        let second = now.strftime("%Y_%m_%d_%H_%M_%S").to_string();
        let mut last = Errno::EEXIST;
        for attempt in 0..100 {
            let name = format!("..{second}.{:09}", (now.subsec_nanosecond() + attempt) % 1_000_000_000);
            match mkdirat(&self.top, name.as_str(), Mode::from_bits_truncate(DIRECTORY)) {
                Ok(()) => return Ok(name.into()),
                Err(error @ Errno::EEXIST) => last = error,
                Err(error) => return Err(failed("create directory", &self.directory.join(name))(error)),
            }
        }
        Err(failed("create a generation in", self.directory)(last))
    }

    fn make_directory(&self, generation: &OwnedFd, relative: &Path, full: &Path) -> Result<(), VolumeError> {
        let parent = relative.parent().filter(|parent| *parent != Path::new(""));
        let name = relative.file_name().unwrap_or_default();
        let parent = open_in_root_without_links(generation, parent.unwrap_or(Path::new(".")), OFlag::O_DIRECTORY)
            .map_err(failed("open directory of", full))?;
        mkdirat(&parent, name, Mode::from_bits_truncate(DIRECTORY)).map_err(failed("create directory", full))?;
        self.open_made(&parent, Path::new(name), full).map(drop)
    }

    /// Opens a directory just made and gives it its mode, whatever the umask is, and its group.
    fn open_made(&self, parent: &OwnedFd, name: &Path, full: &Path) -> Result<OwnedFd, VolumeError> {
        let directory = open_in_root_without_links(parent, name, OFlag::O_DIRECTORY).map_err(failed("open", full))?;
        let mode = if self.group.is_some() { DIRECTORY | GROUP_DIRECTORY } else { DIRECTORY };
        self.own(&directory, None, mode, full)?;
        Ok(directory)
    }

    fn write_file(
        &self,
        generation: &OwnedFd,
        relative: &Path,
        file: &ContentFile,
        full: &Path,
    ) -> Result<(), VolumeError> {
        // Made without any permission: nobody reads it before it is whole and has its owner.
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let opened = open_in_root_without_links(generation, relative, flags).map_err(failed("create", full))?;
        let mut opened = File::from(opened);
        opened.write_all(&file.bytes).map_err(failed_io("write", full))?;
        self.own(&opened.into(), file.owner, self.mode(file), full)
    }

    /// Owner first: changing it takes set-group-id bits away.
    fn own(&self, made: &OwnedFd, owner: Option<u32>, mode: u32, full: &Path) -> Result<(), VolumeError> {
        if owner.is_some() || self.group.is_some() {
            let (owner, group) = (owner.map(Uid::from_raw), self.group.map(Gid::from_raw));
            fchown(made, owner, group).map_err(failed("change owner of", full))?;
        }
        fchmod(made, Mode::from_bits_truncate(mode)).map_err(failed("change mode of", full))
    }

    /// From here on the new generation is what is seen.
    fn switch(&self, generation: &OsStr) -> Result<(), VolumeError> {
        let path = self.directory.join(NEW_DATA);
        match unlinkat(&self.top, NEW_DATA, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(failed("remove", &path)(error)),
        }
        symlinkat(generation, &self.top, NEW_DATA).map_err(failed("create link", &path))?;
        renameat(&self.top, NEW_DATA, &self.top, DATA).map_err(failed("rename", &path))
    }

    /// Makes the link of each path's first component and takes those away that lead nowhere any more.
    fn link(&self, payload: &Payload) -> Result<bool, VolumeError> {
        let wanted: BTreeSet<&OsStr> =
            payload.keys().filter_map(|path| path.split('/').next()).map(OsStr::new).collect();
        let mut changed = false;
        for name in &wanted {
            changed |= self.link_one(name)?;
        }
        for (name, kind) in self.entries()? {
            let stale = kind == Some(Type::Symlink) && !is_ours(&name) && !wanted.contains(name.as_os_str());
            // A link that is not ours would be somebody's mistake, and not ours to remove.
            if stale && readlinkat(&self.top, name.as_os_str()).is_ok_and(|target| target == data_of(&name)) {
                let path = self.directory.join(&name);
                unlinkat(&self.top, name.as_os_str(), UnlinkatFlags::NoRemoveDir).map_err(failed("remove", &path))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    fn link_one(&self, name: &OsStr) -> Result<bool, VolumeError> {
        let (path, target) = (self.directory.join(name), data_of(name));
        match symlinkat(target.as_os_str(), &self.top, name) {
            Ok(()) => return Ok(true),
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed("create link", &path)(error)),
        }
        if readlinkat(&self.top, name).is_ok_and(|present| present == target) {
            return Ok(false);
        }
        // An empty directory was made for a subPath when the file was not there yet.
        unlinkat(&self.top, name, UnlinkatFlags::RemoveDir).map_err(failed("make room for", &path))?;
        symlinkat(target.as_os_str(), &self.top, name).map_err(failed("create link", &path))?;
        Ok(true)
    }

    /// Removes what earlier writes have left: old generations, and one that was never finished.
    fn sweep(&self, current: Option<&OsStr>) -> Result<(), VolumeError> {
        for (name, _) in self.entries()? {
            if is_ours(&name) && name != DATA && Some(name.as_os_str()) != current {
                remove_tree(&self.directory.join(name))?;
            }
        }
        Ok(())
    }

    /// Names in the directory, with what they are.
    fn entries(&self) -> Result<Vec<(OsString, Option<Type>)>, VolumeError> {
        list(&self.top).map_err(failed("list", self.directory))
    }
}

/// Names that begin with two dots are the writer's.
fn is_ours(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"..")
}

fn data_of(name: &OsStr) -> PathBuf {
    Path::new(DATA).join(name)
}

fn list(directory: &OwnedFd) -> Result<Vec<(OsString, Option<Type>)>, Errno> {
    // A descriptor of its own: a shared one would have a shared position.
    let mut listing =
        Dir::openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut found = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let kind = match entry.file_type() {
            Some(kind) => Some(kind),
            // Not every file system says it in its listing.
            None => fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .ok()
                .and_then(|status| (status.st_mode & libc::S_IFMT == libc::S_IFLNK).then_some(Type::Symlink)),
        };
        found.push((name.to_owned(), kind));
    }
    Ok(found)
}

/// How many files there are in a tree; counting ends beyond `enough`.
fn count(directory: &OwnedFd, enough: usize) -> Result<usize, Errno> {
    let mut files = 0;
    for (name, _) in list(directory)? {
        match open_in_root_without_links(directory, Path::new(&name), OFlag::O_DIRECTORY) {
            Ok(below) => files += count(&below, enough)?,
            Err(_) => files += 1,
        }
        if files > enough {
            break;
        }
    }
    Ok(files)
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(Errno) -> VolumeError {
    let failed = failed_io(step, path);
    move |error| failed(error.into())
}

fn failed_io(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VolumeError {
    super::error::io_error(step, path)
}

#[cfg(test)]
#[path = "atomic_writer_tests.rs"]
mod tests;
