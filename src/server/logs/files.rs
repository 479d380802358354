//! The files of one attempt: `<attempt>.log`, and beside it what was rotated away, `<attempt>.log.<time>`, whose
//! names sort by age.
//!
//! The writer renames the current file and makes a new one; a rotated name never changes again, and the oldest are
//! deleted. A reader that holds a file open can therefore always tell which file follows it, by its inode number,
//! which cannot be used again while it is open.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// How often a file that vanished between being listed and being opened is tried again; each round means that the
/// writer rotated in between, which takes it a whole file.
const RETRIES: usize = 64;

/// The files of one attempt.
#[derive(Debug, Clone)]
pub struct LogFiles {
    directory: PathBuf,
    current: String,
}

/// A file and its inode number.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: File,
    /// Its inode number.
    pub inode: u64,
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

    /// Rotated files, oldest first.
    fn rotated(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let suffix = name.strip_prefix(&self.current).and_then(|rest| rest.strip_prefix('.'));
            // Rotated names end in a time; `.tmp` and the like are files in the making.
            if suffix.is_some_and(|suffix| suffix.starts_with(|c: char| c.is_ascii_digit()) && !suffix.contains(".tmp"))
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names.into_iter().map(|name| self.directory.join(name)).collect())
    }

    fn open_current(&self) -> io::Result<Option<Opened>> {
        open(&self.directory.join(&self.current))
    }

    /// All files there are now, oldest first. The last one is the current file, unless a rotation is under way.
    pub fn all(&self) -> io::Result<Vec<Opened>> {
        // Opened before the others are listed: what is rotated in between is then seen twice rather than never.
        let current = self.open_current()?;
        let mut files = Vec::new();
        for path in self.rotated()? {
            files.extend(open(&path)?);
        }
        if let Some(current) = current
            && !files.iter().any(|file| file.inode == current.inode)
        {
            files.push(current);
        }
        Ok(files)
    }

    /// The oldest file that may hold something written since `since`.
    pub fn first(&self, since: Option<SystemTime>) -> io::Result<Option<Opened>> {
        for file in self.all()? {
            let written = file.file.metadata()?.modified()?;
            if since.is_none_or(|since| written >= since) {
                return Ok(Some(file));
            }
        }
        self.open_current()
    }

    /// The file that follows `inode`, which the caller holds open; `None` while that is still the one being written
    /// (or the next does not exist yet). Once there is one, nothing is written to `inode` any more.
    pub fn successor(&self, inode: u64) -> io::Result<Option<Opened>> {
        for _ in 0..RETRIES {
            // Opened before the rotated ones are listed: if it is rotated away in between, it is found in that list.
            let current = self.open_current()?;
            if current.as_ref().is_some_and(|current| current.inode == inode) {
                return Ok(None);
            }
            let rotated = self.rotated()?;
            let position = rotated.iter().position(|path| fs::metadata(path).is_ok_and(|data| data.ino() == inode));
            let next = match position {
                Some(position) => rotated.get(position + 1),
                // Deleted already: everything that is left is newer.
                None => rotated.first(),
            };
            match next {
                Some(path) => match open(path)? {
                    Some(next) => return Ok(Some(next)),
                    None => continue,
                },
                None => return Ok(current),
            }
        }
        Ok(None)
    }
}

fn open(path: &Path) -> io::Result<Option<Opened>> {
    match File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some(Opened { file, inode }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
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
    fn the_successor_is_found_by_inode_also_after_several_rotations() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let files = LogFiles::new(directory.path(), 3);
        assert!(files.first(None).unwrap().is_none());
        fs::write(path("3.log"), "a").unwrap();
        fs::write(path("2.log.20260101-000000"), "other attempt").unwrap();
        fs::write(path("3.log.tmp"), "not ours").unwrap();
        let held = files.first(None).unwrap().unwrap();
        assert!(files.successor(held.inode).unwrap().is_none());
        fs::rename(path("3.log"), path("3.log.20260101-000000")).unwrap();
        assert!(files.successor(held.inode).unwrap().is_none(), "the next file does not exist yet");
        fs::write(path("3.log"), "b").unwrap();
        fs::rename(path("3.log"), path("3.log.20260101-000001")).unwrap();
        fs::write(path("3.log"), "c").unwrap();
        let read = |mut opened: Opened| {
            let mut text = String::new();
            opened.file.read_to_string(&mut text).unwrap();
            (text, opened.inode)
        };
        assert_eq!(read(files.successor(held.inode).unwrap().unwrap()).0, "b");
        fs::remove_file(path("3.log.20260101-000000")).unwrap();
        let (text, inode) = read(files.successor(held.inode).unwrap().unwrap());
        assert_eq!(text, "b", "the held file is gone: the oldest that is left comes next");
        assert_eq!(read(files.successor(inode).unwrap().unwrap()).0, "c");
    }
}
