//! One physical line of a CRI log: `<RFC 3339 time> <stdout|stderr> <tags> <content>`.
//!
//! A tag of `P` says that the writer split the line and more of it follows on the same stream, `F` that it ends here
//! (<https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md>).

use jiff::Timestamp;

/// Which stream a line was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output (also everything a terminal shows).
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Index for tables with one entry per stream.
    pub fn index(self) -> usize {
        match self {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        }
    }
}

/// A parsed line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// The time as it was written.
    pub time: &'a str,
    /// Where it was written to.
    pub stream: Stream,
    /// More of this line follows.
    pub partial: bool,
    /// What was written, without a line end.
    pub content: &'a [u8],
}

impl<'a> Line<'a> {
    /// Reads one line (without its line end). `None` when it is not one: torn by a crash, or not ours.
    pub fn parse(bytes: &'a [u8]) -> Option<Line<'a>> {
        let (time, rest) = split(bytes)?;
        let (stream, rest) = split(rest)?;
        // The space after the tags is there also when the content is empty; be lenient when it is not.
        let (tags, content) = split(rest).unwrap_or((rest, b""));
        let stream = match stream {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let partial = match tags.split(|byte| *byte == b':').next() {
            Some(b"P") => true,
            Some(b"F") => false,
            _ => return None,
        };
        let time = str::from_utf8(time).ok().filter(|time| time.len() >= "2006-01-02T15:04:05Z".len())?;
        Some(Line { time, stream, partial, content })
    }

    /// The time as a point in time.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..space], &bytes[space + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line = Line::parse(b"2026-01-02T03:04:05.123456789Z stderr P a b  c").unwrap();
        assert_eq!(line.time, "2026-01-02T03:04:05.123456789Z");
        assert_eq!((line.stream, line.partial, line.content), (Stream::Stderr, true, &b"a b  c"[..]));
        assert_eq!(line.timestamp().unwrap().subsec_nanosecond(), 123_456_789);
        let empty = Line::parse(b"2026-01-02T03:04:05+01:00 stdout F:x ").unwrap();
        assert_eq!((empty.stream, empty.partial, empty.content), (Stream::Stdout, false, &b""[..]));
    }

    #[test]
    fn what_is_torn_or_foreign_is_no_line() {
        let samples: [&[u8]; 6] = [
            b"",
            b"2026-01-02T03:04:05Z",
            b"2026-01-02T03:04:05Z stdout",
            b"2026-01-02T03:04:05Z stdin F x",
            b"2026-01-02T03:04:05Z stdout Q x",
            b"{\"log\":\"docker\\n\"}",
        ];
        for sample in samples {
            assert_eq!(Line::parse(sample), None);
        }
    }
}
