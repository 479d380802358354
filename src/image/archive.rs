//! Reads members of an image archive: a tar file, or the same tree as a directory.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::OFlag;

use super::{
    error::ImageError,
    unpack::{CleanPath, Decompressor, Kind, TarReader},
};
use crate::sys::beneath;

const BUFFER: usize = 256 * 1024;
/// Members of an archive: a few per layer. More is not an image.
const MEMBER_LIMIT: usize = 100_000;
/// Links from one member to another (old `docker save` writes them for repeated layers).
const LINK_LIMIT: usize = 8;

/// An image archive, opened.
pub(super) struct Archive {
    /// For errors.
    pub name: String,
    place: Place,
}

enum Place {
    Directory(OwnedFd),
    Tar { file: Arc<File>, members: HashMap<String, Member> },
}

enum Member {
    Data { offset: u64, size: u64 },
    Link(String),
}

impl Archive {
    /// Opens a directory, or a tar file, which may be compressed: then it is first unpacked into the file `spool` makes.
    pub(super) fn open_path(path: &Path, spool: &dyn Fn() -> PathBuf) -> Result<Archive, ImageError> {
        let name = path.display().to_string();
        let failed = |error: io::Error| ImageError::Archive { path: name.clone(), problem: error.to_string() };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Ok(Archive { name, place: Place::Directory(file.into()) });
        }
        Archive::open_file(name, file, spool)
    }

    /// Like [`Archive::open_path`] for an open file, read from its start.
    pub(super) fn open_file(name: String, mut file: File, spool: &dyn Fn() -> PathBuf) -> Result<Archive, ImageError> {
        let failed = |problem: String| ImageError::Archive { path: name.clone(), problem };
        if file.rewind().is_err() {
            // A pipe cannot be read twice.
            file = spooled(&mut file, spool).map_err(ImageError::io("spool", name.as_str()))?;
        }
        let reader = BufReader::with_capacity(BUFFER, &file);
        let mut decompressor = Decompressor::new(reader).map_err(|error| failed(error.to_string()))?;
        if !decompressor.is_plain() {
            let unpacked = spooled(&mut decompressor, spool).map_err(ImageError::io("decompress", name.as_str()))?;
            drop(decompressor);
            file = unpacked;
        }
        file.rewind().map_err(|error| failed(error.to_string()))?;
        let length = file.metadata().map_err(|error| failed(error.to_string()))?.len();
        let members = scan(&file, length).map_err(failed)?;
        Ok(Archive { name, place: Place::Tar { file: Arc::new(file), members } })
    }

    /// Whether there is a member of this name.
    pub(super) fn has(&self, member: &str) -> bool {
        self.locate(member).is_ok()
    }

    /// A member's content.
    pub(super) fn open(&self, member: &str) -> Result<Box<dyn BufRead + Send>, ImageError> {
        Ok(match self.locate(member)? {
            Found::File(file) => Box::new(BufReader::with_capacity(BUFFER, file)),
            Found::Part { file, offset, size } => {
                Box::new(BufReader::with_capacity(BUFFER, Part { file, position: offset, end: offset + size }))
            }
        })
    }

    /// A small member's content.
    pub(super) fn read(&self, member: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let read = self.open(member)?.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.failed(format!("{member}: {error}")))?;
        if bytes.len() as u64 > limit {
            return Err(self.failed(format!("{member} is larger than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// An error about this archive.
    pub(super) fn failed(&self, problem: impl ToString) -> ImageError {
        ImageError::Archive { path: self.name.clone(), problem: problem.to_string() }
    }

    fn locate(&self, member: &str) -> Result<Found, ImageError> {
        let clean = |name: &str| {
            let path = CleanPath::new(name.as_bytes()).map_err(|error| self.failed(error))?;
            String::from_utf8(path.as_bytes().to_vec()).map_err(|error| self.failed(error))
        };
        let mut name = clean(member)?;
        let missing = || self.failed(format!("{member} is missing"));
        match &self.place {
            Place::Directory(root) => {
                // Names come from the layout's own files: they may not lead out of it.
                let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
                let file: File = beneath::open_in_root(root, Path::new(&name), flags).map_err(|_| missing())?.into();
                match file.metadata() {
                    Ok(metadata) if metadata.is_file() => Ok(Found::File(file)),
                    _ => Err(missing()),
                }
            }
            Place::Tar { file, members } => {
                for _ in 0..LINK_LIMIT {
                    match members.get(&name) {
                        Some(Member::Data { offset, size }) => {
                            return Ok(Found::Part { file: Arc::clone(file), offset: *offset, size: *size });
                        }
                        Some(Member::Link(target)) => name = clean(target)?,
                        None => return Err(missing()),
                    }
                }
                Err(missing())
            }
        }
    }
}

enum Found {
    File(File),
    Part { file: Arc<File>, offset: u64, size: u64 },
}

/// A range of a file, read by position so that several threads can read the one file.
struct Part {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.end - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..length], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// Where each member is.
fn scan(file: &File, length: u64) -> Result<HashMap<String, Member>, String> {
    let mut archive = TarReader::seekable(BufReader::with_capacity(16 * 1024, file));
    let mut members = HashMap::new();
    while let Some(entry) = archive.next_entry().map_err(|error| error.to_string())? {
        if members.len() >= MEMBER_LIMIT {
            return Err(format!("more than {MEMBER_LIMIT} members: not an image"));
        }
        let Ok(name) = String::from_utf8(entry.path) else { continue };
        let Ok(path) = CleanPath::new(name.as_bytes()) else { continue };
        let path = String::from_utf8_lossy(path.as_bytes()).into_owned();
        let link = String::from_utf8_lossy(&entry.link).into_owned();
        let member = match entry.kind {
            Kind::File if entry.sparse.is_none() => {
                let offset = archive.position().map_err(|error| error.to_string())?;
                if offset.checked_add(entry.size).is_none_or(|end| end > length) {
                    return Err(format!("the archive is truncated within {path}"));
                }
                Member::Data { offset, size: entry.size }
            }
            Kind::Hardlink => Member::Link(link),
            // Relative to the link's own directory.
            Kind::Symlink if link.starts_with('/') => Member::Link(link),
            Kind::Symlink => Member::Link(format!("{}/../{link}", path)),
            _ => continue,
        };
        members.insert(path, member);
    }
    // Jumping past the end looks like the end.
    match archive.position() {
        Ok(position) if position > length => Err("the archive is truncated".to_owned()),
        _ => Ok(members),
    }
}

/// Copies everything into a file without a name.
fn spooled(reader: &mut dyn Read, spool: &dyn Fn() -> PathBuf) -> io::Result<File> {
    let mut file = spool_file(&spool())?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => file.write_all(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// A new file that has no name any more, so that nothing is left of it whatever happens.
pub(super) fn spool_file(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}
