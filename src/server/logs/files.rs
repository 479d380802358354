//! The files of one attempt: `<attempt>.log`, and beside it what was rotated away, `<attempt>.log.<time>`, whose
//! names sort by age; all of these but the newest become `<attempt>.log.<time>.gz` in time.
//!
//! The writer renames the current file and makes a new one, and the oldest are deleted; the time in a rotated name
//! never changes. Which file follows one that a reader holds open is told by its name: for the file that was the
//! current one when it was opened the kernel knows what it is called now, or was when it was deleted.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use flate2::bufread::MultiGzDecoder;

use crate::sys::memfd;

/// How often a file that vanished between being listed and being opened is tried again; each round means that the
/// writer rotated in between, which takes it a whole file.
const RETRIES: usize = 64;

/// What a file beside the current one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// As it was written.
    Plain,
    /// Compressed, complete.
    Compressed,
    /// In the making, or left behind by a crash while it was.
    Temporary,
}

/// The name of a rotated file, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotatedName<'a> {
    /// Name of the current file it was once: `0.log`.
    pub current: &'a str,
    /// When it was rotated: `20060102-150405`.
    pub time: &'a str,
    /// What it is.
    pub form: Form,
}

impl<'a> RotatedName<'a> {
    /// `None` when it is another file's name.
    pub fn parse(name: &'a str) -> Option<RotatedName<'a>> {
        let time = name.find(".log.")? + ".log.".len();
        let (current, rest) = (&name[..time - 1], &name[time..]);
        let (time, form) = if let Some(time) = rest.strip_suffix(".gz") {
            (time, Form::Compressed)
        } else if let Some(time) = rest.strip_suffix(".tmp") {
            (time, Form::Temporary)
        } else {
            (rest, Form::Plain)
        };
        let is_time = time.starts_with(|c: char| c.is_ascii_digit())
            && time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        is_time.then_some(RotatedName { current, time, form })
    }
}

/// The files of one attempt.
#[derive(Debug, Clone)]
pub struct LogFiles {
    directory: PathBuf,
    current: String,
}

/// One open file of a log; reads as what was written to it, compressed or not.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    /// The time in its name; `None`: it was the current file when it was opened.
    time: Option<String>,
    modified: SystemTime,
    inode: u64,
    content: Content,
    /// What could not be unpacked, and why, once that was found out.
    damage: Option<String>,
}

#[derive(Debug)]
enum Content {
    Plain(File),
    Compressed(Box<MultiGzDecoder<BufReader<File>>>),
}

/// What has become of a file that is held open.
enum Standing {
    /// It is the one being written.
    Current,
    /// It was rotated at this time; deleted since, perhaps.
    Rotated(String),
    /// It was deleted while it was the current one.
    Gone,
}

impl LogFiles {
    /// The files of `attempt` in `directory`; neither has to exist.
    pub fn new(directory: &Path, attempt: u32) -> LogFiles {
        LogFiles { directory: directory.to_owned(), current: format!("{attempt}.log") }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Times of the rotated files, oldest first.
    fn rotated(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut times = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str().and_then(RotatedName::parse) else { continue };
            if name.current == self.current && name.form != Form::Temporary {
                times.push(name.time.to_owned());
            }
        }
        times.sort();
        // Of a file that has just been compressed both forms are there.
        times.dedup();
        Ok(times)
    }

    fn open_current(&self) -> io::Result<Option<Part>> {
        Part::open(self.directory.join(&self.current), None)
    }

    fn open_rotated(&self, time: &str) -> io::Result<Option<Part>> {
        // In this order: the compressed file is complete before the other is removed.
        for extension in ["", ".gz"] {
            let path = self.directory.join(format!("{}.{time}{extension}", self.current));
            if let Some(part) = Part::open(path, Some(time))? {
                return Ok(Some(part));
            }
        }
        Ok(None)
    }

    /// All files there are now, oldest first. The last one is the current file, unless a rotation is under way.
    pub fn all(&self) -> io::Result<Vec<Part>> {
        // Opened before the others are listed: what is rotated in between is then seen twice rather than never.
        let current = self.open_current()?;
        let times = self.rotated()?;
        let mut files = Vec::new();
        for time in &times {
            files.extend(self.open_rotated(time)?);
        }
        if let Some(current) = current {
            match self.standing(&current)? {
                Standing::Rotated(time) if times.contains(&time) => {}
                _ => files.push(current),
            }
        }
        Ok(files)
    }

    /// The oldest file that may hold something written since `since`.
    pub fn first(&self, since: Option<SystemTime>) -> io::Result<Option<Part>> {
        let part = self.all()?.into_iter().find(|part| since.is_none_or(|since| part.modified >= since));
        if part.is_some() { Ok(part) } else { self.open_current() }
    }

    /// The file that follows `part`; `None` while that is still the one being written (or the next does not exist
    /// yet). Once there is one, nothing is written to `part` any more.
    pub fn successor(&self, part: &Part) -> io::Result<Option<Part>> {
        for _ in 0..RETRIES {
            let standing = self.standing(part)?;
            // Opened before the rotated ones are listed: if it is rotated away in between, it is found in that list.
            let current = self.open_current()?;
            let time = match standing {
                Standing::Gone => return Ok(current),
                Standing::Current if current.as_ref().is_some_and(|current| current.inode == part.inode) => {
                    return Ok(None);
                }
                // Rotated since we asked.
                Standing::Current => continue,
                Standing::Rotated(time) => time,
            };
            match self.rotated()?.into_iter().find(|other| *other > time) {
                Some(next) => match self.open_rotated(&next)? {
                    Some(next) => return Ok(Some(next)),
                    None => continue,
                },
                None => return Ok(current),
            }
        }
        Ok(None)
    }

    fn standing(&self, part: &Part) -> io::Result<Standing> {
        let file = match (&part.time, &part.content) {
            (Some(time), _) => return Ok(Standing::Rotated(time.clone())),
            (None, Content::Plain(file)) => file,
            (None, Content::Compressed(_)) => return Ok(Standing::Gone),
        };
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (name, deleted) = match name.strip_suffix(" (deleted)") {
            Some(name) => (name, true),
            None => (&*name, false),
        };
        Ok(match RotatedName::parse(name) {
            Some(rotated) if rotated.current == self.current => Standing::Rotated(rotated.time.to_owned()),
            _ if name == self.current && !deleted => Standing::Current,
            _ => Standing::Gone,
        })
    }
}

impl Part {
    fn open(path: PathBuf, time: Option<&str>) -> io::Result<Option<Part>> {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let content = if path.extension().is_some_and(|extension| extension == "gz") {
            Content::Compressed(Box::new(MultiGzDecoder::new(BufReader::with_capacity(64 * 1024, file))))
        } else {
            Content::Plain(file)
        };
        let (modified, inode) = (metadata.modified()?, metadata.ino());
        Ok(Some(Part { path, time: time.map(str::to_owned), modified, inode, content, damage: None }))
    }

    /// What was found to be damaged, with the name of the file; once.
    pub fn take_damage(&mut self) -> Option<String> {
        self.damage.take()
    }

    /// The content as a file that can be read from any offset: a compressed one is unpacked, into a file without a
    /// name, for as long as the part lives.
    ///
    /// # Errors
    /// It cannot be read, or there is no room for it.
    pub fn file(&mut self) -> io::Result<&mut File> {
        if let Content::Compressed(_) = self.content {
            let directory = self.path.parent().unwrap_or(Path::new("/"));
            let unnamed = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_TMPFILE)
                .mode(0o600)
                .open(directory)
                // Some file systems have no files without a name.
                .or_else(|_| memfd::unnamed(c"log"))?;
            io::copy(self, &mut &unnamed)?;
            (&unnamed).seek(SeekFrom::Start(0))?;
            self.content = Content::Plain(unnamed);
        }
        match &mut self.content {
            Content::Plain(file) => Ok(file),
            Content::Compressed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Read for Part {
    /// A compressed file ends where it cannot be unpacked any further: the rest of the log is not lost with it.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.content {
            Content::Plain(file) => file.read(buffer),
            Content::Compressed(decoder) => decoder.read(buffer).or_else(|error| {
                self.damage.get_or_insert_with(|| format!("{}: {error}", self.path.display()));
                Ok(0)
            }),
        }
    }
}

/// The lines of a file from its end to its beginning.
#[derive(Debug)]
pub struct ReverseLines<'a> {
    file: &'a File,
    /// Offset of `buffer` in the file.
    start: u64,
    /// What was read and not yet handed out.
    buffer: Vec<u8>,
}

/// Bytes read at a time; most tails fit in one.
const BLOCK: u64 = 64 * 1024;

impl<'a> ReverseLines<'a> {
    /// Begins at the end of the last whole line.
    pub fn new(file: &'a File) -> io::Result<ReverseLines<'a>> {
        let start = file.metadata()?.len();
        let mut lines = ReverseLines { file, start, buffer: Vec::new() };
        // What has no line end yet is still being written: it is read later, forwards.
        while !lines.buffer.contains(&b'\n') {
            if !lines.read_block()? {
                lines.buffer.clear();
                return Ok(lines);
            }
        }
        let end = lines.buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
        lines.buffer.truncate(end);
        Ok(lines)
    }

    /// Puts the block before the buffer in front of it; false at the beginning of the file.
    fn read_block(&mut self) -> io::Result<bool> {
        if self.start == 0 {
            return Ok(false);
        }
        let size = BLOCK.min(self.start);
        self.start -= size;
        let mut block = vec![0; size as usize];
        let mut file = self.file;
        file.seek(SeekFrom::Start(self.start))?;
        file.read_exact(&mut block)?;
        block.append(&mut self.buffer);
        self.buffer = block;
        Ok(true)
    }

    /// The line before the last one handed out, and the offset at which it begins; without its line end.
    pub fn next_line(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        // Positions within the buffer: its last byte is the line end of the line we are after.
        loop {
            let Some(end) = self.buffer.len().checked_sub(1) else {
                if self.read_block()? {
                    continue;
                }
                return Ok(None);
            };
            if let Some(before) = self.buffer[..end].iter().rposition(|byte| *byte == b'\n') {
                let line = self.buffer[before + 1..end].to_vec();
                self.buffer.truncate(before + 1);
                return Ok(Some((self.start + before as u64 + 1, line)));
            }
            if !self.read_block()? {
                let mut line = std::mem::take(&mut self.buffer);
                line.truncate(end);
                return Ok(Some((0, line)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_come_backwards_whatever_the_block_size_cuts() {
        let mut file = tempfile::tempfile().unwrap();
        let mut expected = Vec::new();
        let mut offset = 0;
        for index in 0..9000_usize {
            let line = format!("{index} {}", "x".repeat(index % 57));
            file.write_all(line.as_bytes()).unwrap();
            file.write_all(b"\n").unwrap();
            expected.push((offset, line.clone().into_bytes()));
            offset += line.len() as u64 + 1;
        }
        file.write_all(b"unfinished").unwrap();
        let mut lines = ReverseLines::new(&file).unwrap();
        for wanted in expected.iter().rev() {
            assert_eq!(lines.next_line().unwrap().as_ref(), Some(wanted));
        }
        assert_eq!(lines.next_line().unwrap(), None);
    }

    #[test]
    fn an_empty_file_and_one_without_a_line_end_have_no_lines() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(ReverseLines::new(&file).unwrap().next_line().unwrap(), None);
        file.write_all(b"abc").unwrap();
        assert_eq!(ReverseLines::new(&file).unwrap().next_line().unwrap(), None);
    }

    #[test]
    fn names_of_rotated_files_are_told_from_others() {
        let parsed = |name| RotatedName::parse(name).map(|name| (name.current, name.time, name.form));
        assert_eq!(parsed("0.log.20260101-000000"), Some(("0.log", "20260101-000000", Form::Plain)));
        assert_eq!(parsed("12.log.20260101-000000.gz"), Some(("12.log", "20260101-000000", Form::Compressed)));
        assert_eq!(parsed("0.log.20260101-000000.tmp"), Some(("0.log", "20260101-000000", Form::Temporary)));
        for other in ["0.log", "0.log.tmp", "0.log.gz", "0.log.2026.bak", "0.log.", "notes"] {
            assert_eq!(parsed(other), None, "{other}");
        }
    }

    /// The text of a file, and the file.
    fn read(mut part: Part) -> (String, Part) {
        let mut text = String::new();
        part.read_to_string(&mut text).unwrap();
        (text, part)
    }

    #[test]
    fn the_successor_is_found_after_several_rotations_and_when_files_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let files = LogFiles::new(directory.path(), 3);
        assert!(files.first(None).unwrap().is_none());
        fs::write(path("3.log"), "a").unwrap();
        fs::write(path("2.log.20260101-000000"), "other attempt").unwrap();
        fs::write(path("3.log.20250101-000000.tmp"), "not ours").unwrap();
        let held = files.first(None).unwrap().unwrap();
        assert!(files.successor(&held).unwrap().is_none());
        fs::rename(path("3.log"), path("3.log.20260101-000000")).unwrap();
        assert!(files.successor(&held).unwrap().is_none(), "the next file does not exist yet");
        fs::write(path("3.log"), "b").unwrap();
        fs::rename(path("3.log"), path("3.log.20260101-000001")).unwrap();
        fs::write(path("3.log"), "c").unwrap();
        assert_eq!(read(files.successor(&held).unwrap().unwrap()).0, "b");
        fs::remove_file(path("3.log.20260101-000000")).unwrap();
        let (text, next) = read(files.successor(&held).unwrap().unwrap());
        assert_eq!(text, "b", "the held file is gone: the oldest that is left comes next");
        let (text, last) = read(files.successor(&next).unwrap().unwrap());
        assert_eq!(text, "c");
        fs::remove_file(path("3.log")).unwrap();
        assert!(files.successor(&last).unwrap().is_none(), "nothing follows what was deleted as the current file");
    }

    #[test]
    fn compressing_changes_neither_the_order_nor_the_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let files = LogFiles::new(directory.path(), 0);
        fs::write(path("0.log"), "a").unwrap();
        let held = files.first(None).unwrap().unwrap();
        for (time, next) in [("000000", "b"), ("000001", "c"), ("000002", "d")] {
            fs::rename(path("0.log"), path(&format!("0.log.20260101-{time}"))).unwrap();
            fs::write(path("0.log"), next).unwrap();
        }
        super::super::compress::compress_directory(directory.path()).unwrap();
        assert!(path("0.log.20260101-000000.gz").exists() && !path("0.log.20260101-000000").exists());
        // A reader that held the first of them before it was rotated still knows where it is.
        let (text, next) = read(files.successor(&held).unwrap().unwrap());
        assert_eq!(text, "b");
        assert_eq!(read(files.successor(&next).unwrap().unwrap()).0, "c");
        let all: Vec<String> = files.all().unwrap().into_iter().map(|part| read(part).0).collect();
        assert_eq!(all, ["a", "b", "c", "d"]);
        let mut first = files.first(None).unwrap().unwrap();
        assert_eq!(first.file().unwrap().metadata().unwrap().len(), 1, "unpacked");
        assert_eq!(read(files.successor(&first).unwrap().unwrap()).0, "b", "unpacked it keeps its place");
    }
}
