//! What containers write, as log files in the CRI's format: `<time> <stream> <tag> <content>\n`, one line each.
//!
//! A line longer than [`CONTENT_LIMIT`] becomes several records tagged `P` (partial) and a last one tagged `F` (full).
//! Output that ends without a newline ends with a `P`, as with containerd: the concatenated contents, with a newline
//! after each `F`, are the output to the byte.

mod file;
mod timestamp;

pub use file::LogFile;
pub use timestamp::{Rfc3339, file_suffix, now};

use crate::sys::stream::find_byte;

/// The most content a record carries, bytes (containerd's `max_container_log_line_size`).
pub const CONTENT_LIMIT: usize = 16 * 1024;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and everything from a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As in the log.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Whether a record ends its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// It does.
    Full,
    /// The line goes on in the next record of the same stream, or the output ended without a newline.
    Partial,
}

/// A record cut from the front of some output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Whether it ends its line.
    pub tag: Tag,
    /// Without the newline.
    pub content: &'a [u8],
}

impl Record<'_> {
    /// How many bytes of the output it stands for.
    pub fn consumed(&self) -> usize {
        self.content.len() + usize::from(self.tag == Tag::Full)
    }
}

/// The next record of `output`; `None` when more has to be read to know it. With `ended` nothing more will come.
pub fn next_record(output: &[u8], ended: bool) -> Option<Record<'_>> {
    // A line of exactly the limit is one full record, so look one byte further for its newline.
    let window = &output[..output.len().min(CONTENT_LIMIT + 1)];
    match find_byte(window, b'\n') {
        Some(length) => Some(Record { tag: Tag::Full, content: &output[..length] }),
        None if window.len() > CONTENT_LIMIT => Some(Record { tag: Tag::Partial, content: &output[..CONTENT_LIMIT] }),
        None if ended && !output.is_empty() => Some(Record { tag: Tag::Partial, content: output }),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(output: &[u8], ended: bool) -> Option<(Tag, usize)> {
        next_record(output, ended).map(|record| (record.tag, record.content.len()))
    }

    #[test]
    fn lines_are_cut_where_containerd_cuts_them() {
        let long = vec![b'x'; 3 * CONTENT_LIMIT];
        let line = |length: usize| [&long[..length], b"\n"].concat();
        assert_eq!(record(b"", true), None);
        assert_eq!(record(b"\nrest", false), Some((Tag::Full, 0)));
        assert_eq!(record(b"abc\nrest", false), Some((Tag::Full, 3)));
        assert_eq!(record(b"abc", false), None);
        assert_eq!(record(b"abc", true), Some((Tag::Partial, 3)));
        assert_eq!(record(&line(CONTENT_LIMIT), false), Some((Tag::Full, CONTENT_LIMIT)));
        assert_eq!(record(&line(CONTENT_LIMIT + 1), false), Some((Tag::Partial, CONTENT_LIMIT)));
        assert_eq!(record(&long[..CONTENT_LIMIT], false), None);
        assert_eq!(record(&long[..CONTENT_LIMIT], true), Some((Tag::Partial, CONTENT_LIMIT)));
        assert_eq!(record(&long, false), Some((Tag::Partial, CONTENT_LIMIT)));
    }
}
