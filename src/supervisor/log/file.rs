//! One container's log file: whole records only, rotated by its writer, who alone knows how long it is.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{Rfc3339, Stream, Tag, file_suffix, next_record, now};
use crate::{supervisor::spec::LogSpec, sys::stream};

/// Records handed to the kernel at once: three parts each, and IOV_MAX is 1024.
const BATCH: usize = 256;

/// What the agent adds to a rotated file's name when it compresses it.
const COMPRESSED: [&str; 2] = [".gz", ".tmp"];

/// `<time> <stream> <tag> `: the part of a record before its content.
const HEADER: usize = 30 + 1 + 6 + 1 + 1 + 1;

/// An open log. Readers never see a record torn in two, except for the moment between a write that filled the disk and
/// its repair.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    path: PathBuf,
    /// Length of the file, all of it whole records.
    size: u64,
    max_size: u64,
    max_files: u32,
    /// Unix second in the name of the latest rotated file.
    rotated_at: i64,
    /// Bytes of output dropped since the last record that could be written.
    lost: u64,
    /// Bytes of output dropped in all.
    lost_total: u64,
    /// What the kernel said when they were.
    trouble: Option<io::Error>,
}

/// Records on their way to the file, referring to the buffer they were read into.
struct Batch<'a> {
    parts: Vec<IoSlice<'a>>,
    /// Of each record: its length in the file and the bytes of output it stands for.
    records: Vec<(u32, u32)>,
    length: u64,
}

impl LogFile {
    /// Opens or creates the log at `spec.path` (mode 0640); its directory must exist.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(spec: &LogSpec) -> io::Result<LogFile> {
        let file = create(&spec.path)?;
        let size = file.metadata()?.len();
        Ok(LogFile {
            file,
            path: spec.path.clone(),
            size,
            max_size: spec.max_size,
            max_files: spec.max_files.max(2),
            rotated_at: 0,
            lost: 0,
            lost_total: 0,
            trouble: None,
        })
    }

    /// Writes the records at the front of `output`, read at `time` (Unix nanoseconds), and returns how many bytes of it
    /// are done with; the rest is the beginning of a line, to be presented again with what follows. With `ended` nothing
    /// is left. Output that cannot be written is dropped and counted: a full disk must not stop the container.
    pub fn append(&mut self, stream: Stream, time: i64, output: &[u8], ended: bool) -> usize {
        let time = Rfc3339::new(time);
        let (full, partial) = (header(&time, stream, Tag::Full), header(&time, stream, Tag::Partial));
        let mut batch = Batch { parts: Vec::new(), records: Vec::new(), length: 0 };
        let mut done = 0;
        while let Some(record) = next_record(&output[done..], ended) {
            let length = (HEADER + record.content.len() + 1) as u64;
            let position = self.size + batch.length;
            if self.max_size > 0 && position > 0 && position + length > self.max_size {
                self.write(&mut batch);
                self.rotate();
            }
            let header = if record.tag == Tag::Full { &full } else { &partial };
            batch.parts.extend([IoSlice::new(header), IoSlice::new(record.content), IoSlice::new(b"\n")]);
            batch.records.push((length as u32, record.consumed() as u32));
            batch.length += length;
            done += record.consumed();
            if batch.records.len() == BATCH {
                self.write(&mut batch);
            }
        }
        self.write(&mut batch);
        done
    }

    /// Makes durable what has been written.
    ///
    /// # Errors
    /// As fdatasync(2).
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// A sentence about output that was dropped, if some was.
    pub fn warning(&self) -> Option<String> {
        let trouble = self.trouble.as_ref()?;
        Some(format!("{} bytes of output not written to {}: {trouble}", self.lost_total, self.path.display()))
    }

    /// Writes the batch and empties it.
    fn write(&mut self, batch: &mut Batch<'_>) {
        if batch.records.is_empty() {
            return;
        }
        if self.lost > 0 {
            self.note_loss();
        }
        let mut parts = batch.parts.as_mut_slice();
        let mut written = 0;
        let failure = loop {
            match stream::write_vectored(self.file.as_fd(), parts) {
                Ok(0) => break Some(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    written += count as u64;
                    IoSlice::advance_slices(&mut parts, count);
                    if parts.is_empty() {
                        break None;
                    }
                }
                Err(error) => break Some(error),
            }
        };
        match failure {
            None => self.size += written,
            Some(error) => self.give_up(&batch.records, written, error),
        }
        batch.parts.clear();
        batch.records.clear();
        batch.length = 0;
    }

    /// A write failed after `written` bytes: keep the whole records among them, cut off the rest and count it.
    fn give_up(&mut self, records: &[(u32, u32)], written: u64, error: io::Error) {
        let (mut whole, mut end) = (0, 0);
        for (length, content) in records {
            end += u64::from(*length);
            if end <= written {
                whole = end;
            } else {
                self.lost += u64::from(*content);
                self.lost_total += u64::from(*content);
            }
        }
        self.size += whole;
        if written > whole {
            // Shortening needs no space. Where even that fails the torn record stays, ignoring.
            let _ = self.file.set_len(self.size);
        }
        self.trouble = Some(error);
    }

    /// Says in the log itself how much is missing at this place, if there is room again.
    fn note_loss(&mut self) {
        let cause = self.trouble.as_ref().map(io::Error::to_string).unwrap_or_default();
        let header = header(&Rfc3339::new(now()), Stream::Stderr, Tag::Full);
        let note = format!("berth: {} bytes of output are missing here: {cause}\n", self.lost);
        let length = HEADER + note.len();
        match stream::write_vectored(self.file.as_fd(), &[IoSlice::new(&header), IoSlice::new(note.as_bytes())]) {
            Ok(count) if count == length => {
                self.size += length as u64;
                self.lost = 0;
            }
            Ok(_) => {
                let _ = self.file.set_len(self.size);
            }
            Err(_) => {}
        }
    }

    /// Renames the file as the kubelet does (`0.log.20261121-083000`), starts a new one and deletes the oldest. Where
    /// that fails the old file simply grows on, and the next record tries again.
    fn rotate(&mut self) {
        // Two rotations within a second get the names of two seconds: the order by name stays the order in time.
        let mut second = (now() / 1_000_000_000).max(self.rotated_at + 1);
        let mut rotated = self.rotated_name(second);
        while rotated.exists() || with_suffix(&rotated, COMPRESSED[0]).exists() {
            second += 1;
            rotated = self.rotated_name(second);
        }
        if let Err(error) = fs::rename(&self.path, &rotated) {
            self.trouble = Some(error);
            return;
        }
        match create(&self.path) {
            Ok(file) => {
                self.file = file;
                self.size = 0;
                self.rotated_at = second;
                self.delete_oldest();
            }
            Err(error) => {
                self.trouble = Some(error);
                let _ = fs::rename(&rotated, &self.path);
            }
        }
    }

    fn rotated_name(&self, second: i64) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".");
        name.push(file_suffix(second));
        name.into()
    }

    /// Keeps `max_files`, the current one included. The agent compresses rotated files (`<name>.tmp`, then `<name>.gz`),
    /// perhaps at this moment: all forms of one rotated file count as one and go together. A file that cannot be deleted
    /// stays, ignoring: the next rotation tries again.
    fn delete_oldest(&self) {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else { return };
        let prefix = [name.as_encoded_bytes(), b"."].concat();
        let Ok(entries) = fs::read_dir(directory) else { return };
        let mut rotated: BTreeMap<Vec<u8>, Vec<OsString>> = BTreeMap::new();
        for name in entries.filter_map(|entry| Some(entry.ok()?.file_name())) {
            let bytes = name.as_encoded_bytes();
            if bytes.starts_with(&prefix) {
                let form = COMPRESSED.iter().find_map(|suffix| bytes.strip_suffix(suffix.as_bytes()));
                rotated.entry(form.unwrap_or(bytes).to_vec()).or_default().push(name);
            }
        }
        let excess = rotated.len().saturating_sub(self.max_files as usize - 1);
        for name in rotated.into_values().take(excess).flatten() {
            let _ = fs::remove_file(directory.join(name));
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn header(time: &Rfc3339, stream: Stream, tag: Tag) -> [u8; HEADER] {
    let mut header = [b' '; HEADER];
    header[..30].copy_from_slice(time.as_bytes());
    header[31..37].copy_from_slice(stream.name().as_bytes());
    header[38] = if tag == Tag::Full { b'F' } else { b'P' };
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::supervisor::log::CONTENT_LIMIT;

    fn log(directory: &Path, max_size: u64, max_files: u32) -> LogFile {
        LogFile::open(&LogSpec { path: directory.join("0.log"), max_size, max_files }).unwrap()
    }

    /// Log files, oldest first.
    fn files(directory: &Path) -> Vec<PathBuf> {
        let mut files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        files.sort();
        // The current file's name is a prefix of the others', so it sorts first.
        files.rotate_left(1);
        files
    }

    /// The output that a log's records stand for, each record checked on the way.
    fn output_of(log: &[u8], stream: Stream) -> Vec<u8> {
        let mut output = Vec::new();
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").expect("a torn record");
            let mut fields = line.splitn(4, |byte| *byte == b' ');
            let time = std::str::from_utf8(fields.next().unwrap()).unwrap();
            time.parse::<jiff::Timestamp>().unwrap();
            let (name, tag, content) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
            assert!(content.len() <= CONTENT_LIMIT);
            if name == stream.name().as_bytes() {
                output.extend_from_slice(content);
                output.extend_from_slice(match tag {
                    b"F" => b"\n",
                    b"P" => b"",
                    _ => panic!("tag {tag:?}"),
                });
            }
        }
        output
    }

    /// Feeds `output` in `pieces`, as a pump does.
    fn feed(log: &mut LogFile, stream: Stream, output: &[u8], pieces: &[usize]) {
        let (mut pending, mut offset) = (Vec::new(), 0);
        for size in pieces.iter().copied().cycle() {
            if offset == output.len() {
                break;
            }
            let end = output.len().min(offset + size.max(1));
            pending.extend_from_slice(&output[offset..end]);
            let done = log.append(stream, now(), &pending, false);
            pending.drain(..done);
            offset = end;
        }
        assert_eq!(log.append(stream, now(), &pending, true), pending.len());
    }

    #[test]
    fn a_record_looks_as_the_cri_wants_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 0, 2);
        assert_eq!(log.append(Stream::Stderr, 1_795_249_800_123_456_789, b"one\ntwo", false), 4);
        assert_eq!(log.append(Stream::Stderr, 1_795_249_800_123_456_789, b"two", true), 3);
        let expected = "2026-11-21T08:30:00.123456789Z stderr F one\n2026-11-21T08:30:00.123456789Z stderr P two\n";
        assert_eq!(fs::read_to_string(directory.path().join("0.log")).unwrap(), expected);
    }

    #[test]
    fn rotation_keeps_whole_records_the_size_and_the_number_of_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 1000, 4);
        let output = (0..200).map(|line| format!("line {line}\n")).collect::<String>();
        feed(&mut log, Stream::Stdout, output.as_bytes(), &[100]);
        let files = files(directory.path());
        assert_eq!(files.len(), 4);
        let mut kept = Vec::new();
        for file in &files {
            let content = fs::read(file).unwrap();
            assert!((1..=1000).contains(&content.len()), "{} bytes", content.len());
            kept.extend(output_of(&content, Stream::Stdout));
        }
        // The newest records are all there, in order across files.
        assert!(kept.len() > 500 && output.as_bytes().ends_with(&kept));
        let suffix = files[0].extension().unwrap().to_str().unwrap();
        assert_eq!((suffix.len(), suffix.as_bytes()[8]), (15, b'-'));
    }

    #[test]
    fn a_rotated_file_counts_once_in_whatever_forms_it_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 100, 3);
        let rotated = |name: &str| directory.path().join(format!("0.log.20200101-00000{name}"));
        for name in ["0.gz", "1", "1.tmp", "2", "2.gz"] {
            fs::write(rotated(name), "").unwrap();
        }
        feed(&mut log, Stream::Stdout, &[b'x'; 150], &[150]);
        feed(&mut log, Stream::Stdout, b"rotates\n", &[64]);
        let kept = files(directory.path());
        assert_eq!(kept[..2], [rotated("2"), rotated("2.gz")], "{kept:?}");
        assert_eq!(kept.len(), 4, "what was rotated now, and the current file: {kept:?}");
    }

    #[test]
    fn a_record_longer_than_the_maximum_gets_a_file_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 100, 3);
        feed(&mut log, Stream::Stdout, &[&[b'x'; 500], b"\nshort\n".as_slice()].concat(), &[4096]);
        let lengths = files(directory.path()).iter().map(|file| fs::metadata(file).unwrap().len()).collect::<Vec<_>>();
        assert_eq!(lengths, [HEADER as u64 + 501, HEADER as u64 + 6]);
    }

    #[test]
    fn a_full_disk_loses_output_but_tears_no_record_and_says_so_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 0, 2);
        feed(&mut log, Stream::Stdout, b"before\n", &[64]);
        // A file that takes nothing, as a full file system would not.
        let good = std::mem::replace(&mut log.file, OpenOptions::new().write(true).open("/dev/full").unwrap());
        assert_eq!(log.append(Stream::Stdout, now(), b"lost\nlost too\n", false), 14);
        assert!(log.warning().unwrap().starts_with("14 bytes of output not written"));
        log.file = good;
        feed(&mut log, Stream::Stdout, b"after\n", &[64]);
        let content = fs::read(directory.path().join("0.log")).unwrap();
        assert_eq!(content.len() as u64, log.size);
        assert_eq!(output_of(&content, Stream::Stdout), b"before\nafter\n");
        let note = String::from_utf8(output_of(&content, Stream::Stderr)).unwrap();
        assert!(note.starts_with("berth: 14 bytes of output are missing here: No space left"), "{note}");
    }

    #[test]
    fn a_write_that_stops_within_a_record_is_cut_back_to_whole_ones() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 0, 2);
        feed(&mut log, Stream::Stdout, b"one\ntwo\nthree\n", &[64]);
        let (one, two) = (HEADER as u64 + 4, HEADER as u64 + 4);
        // As if the kernel had taken only the first record and three bytes of the second.
        log.size = 0;
        log.give_up(
            &[(one as u32, 4), (two as u32, 4), (HEADER as u32 + 6, 6)],
            one + 3,
            io::ErrorKind::StorageFull.into(),
        );
        assert_eq!((log.size, log.lost), (one, 10));
        let content = fs::read(directory.path().join("0.log")).unwrap();
        assert_eq!(output_of(&content, Stream::Stdout), b"one\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn the_records_of_any_output_are_the_output(
            lines in prop::collection::vec((0usize..3, 0usize..200, any::<u8>()), 0..40),
            pieces in prop::collection::vec(1usize..20_000, 1..8),
            max_size in prop::sample::select(vec![0u64, 1_000, 50_000]),
            newline in any::<bool>(),
        ) {
            let mut output = Vec::new();
            for (kind, length, fill) in lines {
                // Around the limit, around twice the limit, and short ones.
                let length = kind * CONTENT_LIMIT + length - if kind > 0 { 100 } else { 0 };
                output.extend(std::iter::repeat_n(if fill == b'\n' { b' ' } else { fill }, length));
                output.push(b'\n');
            }
            if !newline {
                output.pop();
            }
            let directory = tempfile::tempdir().unwrap();
            let mut log = log(directory.path(), max_size, 10_000);
            feed(&mut log, Stream::Stdout, &output, &pieces);
            let written = files(directory.path()).iter().flat_map(|file| fs::read(file).unwrap()).collect::<Vec<_>>();
            prop_assert!(output_of(&written, Stream::Stdout) == output);
        }
    }
}
