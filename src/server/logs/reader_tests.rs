//! The reader against a writer that splits, interleaves and rotates as a supervisor does.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::{super::compress::compress_directory, *};

/// Writes the log of attempt 0 and remembers what a reader ought to see.
struct Writer {
    directory: PathBuf,
    file: File,
    rotations: u32,
    lines: u32,
}

impl Writer {
    fn new(directory: &Path) -> Writer {
        let file = fs::File::create(directory.join("0.log")).unwrap();
        Writer { directory: directory.to_owned(), file, rotations: 0, lines: 0 }
    }

    fn time(&self) -> String {
        format!("2026-01-01T00:{:02}:{:02}.000000000Z", self.lines / 60 % 60, self.lines % 60)
    }

    fn raw(&mut self, text: &str) {
        self.file.write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self, stream: &str, tag: &str, content: &str) {
        let time = self.time();
        self.lines += 1;
        self.raw(&format!("{time} {stream} {tag} {content}\n"));
    }

    fn rotate(&mut self) {
        self.rotations += 1;
        let old = self.directory.join("0.log");
        fs::rename(&old, self.directory.join(format!("0.log.20260101-{:06}", self.rotations))).unwrap();
        self.file = fs::File::create(old).unwrap();
    }

    fn remove_oldest(&mut self) {
        let mut names: Vec<_> = fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        // The current file sorts first.
        if names.len() > 1 {
            fs::remove_file(&names[1]).unwrap();
        }
    }
}

fn reader(directory: &Path, query: LogQuery) -> LogReader {
    LogReader::new(LogFiles::new(directory, 0), query)
}

fn drain(reader: &mut LogReader) -> String {
    let mut out = Vec::new();
    while reader.read(&mut out, usize::MAX).unwrap() == Progress::More {}
    String::from_utf8(out).unwrap()
}

fn read_all(directory: &Path, query: LogQuery) -> String {
    let mut reader = reader(directory, query);
    let mut text = drain(&mut reader);
    let mut rest = Vec::new();
    reader.finish(&mut rest);
    text.push_str(&String::from_utf8(rest).unwrap());
    text
}

#[test]
fn split_lines_are_joined_per_stream() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(directory.path());
    writer.line("stdout", "P", "ab");
    writer.line("stderr", "F", "middle");
    writer.line("stdout", "P", "cd");
    writer.line("stdout", "F", "ef");
    writer.line("stdout", "F", "");
    writer.line("stderr", "P", "no end");
    assert_eq!(read_all(directory.path(), LogQuery::default()), "middle\nabcdef\n\nno end");
    let timestamps = LogQuery { timestamps: true, ..LogQuery::default() };
    assert!(read_all(directory.path(), timestamps).contains("2026-01-01T00:00:00.000000000Z abcdef\n"));
}

#[test]
fn a_tail_counts_joined_lines_and_begins_with_a_whole_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(directory.path());
    writer.line("stdout", "F", "one");
    writer.line("stdout", "P", "tw");
    writer.rotate();
    writer.line("stderr", "F", "between");
    writer.line("stdout", "F", "o");
    writer.line("stdout", "F", "three");
    let tail = |lines| read_all(directory.path(), LogQuery { tail: Some(lines), ..LogQuery::default() });
    assert_eq!(tail(0), "");
    assert_eq!(tail(1), "three\n");
    assert_eq!(tail(2), "two\nthree\n", "the beginning of the line is in another file, before another stream's line");
    assert_eq!(tail(3), "between\ntwo\nthree\n");
    assert_eq!(tail(4), "one\nbetween\ntwo\nthree\n");
    assert_eq!(tail(1000), "one\nbetween\ntwo\nthree\n");
}

#[test]
fn nothing_of_the_past_with_tail_zero_but_everything_that_comes() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(directory.path());
    writer.line("stdout", "F", "old");
    writer.raw("2026-01-01T00:00:01Z stdout F ha");
    let mut reader = reader(directory.path(), LogQuery { tail: Some(0), ..LogQuery::default() });
    assert_eq!(drain(&mut reader), "");
    writer.raw("lf\n");
    writer.line("stdout", "F", "new");
    assert_eq!(drain(&mut reader), "half\nnew\n");
}

#[test]
fn a_log_that_appears_later_is_read_from_its_beginning() {
    let directory = tempfile::tempdir().unwrap();
    let mut reader = reader(directory.path(), LogQuery { tail: Some(0), ..LogQuery::default() });
    assert_eq!(drain(&mut reader), "");
    let mut writer = Writer::new(directory.path());
    writer.line("stdout", "F", "first");
    assert_eq!(drain(&mut reader), "first\n");
}

#[test]
fn since_leaves_out_older_lines_and_the_limit_cuts() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(directory.path());
    for index in 0..5 {
        writer.line("stdout", "F", &format!("line {index}"));
    }
    let since = LogQuery { since: Some("2026-01-01T00:00:03Z".parse().unwrap()), ..LogQuery::default() };
    assert_eq!(read_all(directory.path(), since), "line 3\nline 4\n");
    let limit = LogQuery { limit_bytes: Some(9), ..LogQuery::default() };
    assert_eq!(read_all(directory.path(), limit), "line 0\nli");
    let mut limited = reader(directory.path(), limit);
    let mut out = Vec::new();
    assert_eq!(limited.read(&mut out, usize::MAX).unwrap(), Progress::Limit);
    assert_eq!(limited.read(&mut out, usize::MAX).unwrap(), Progress::Limit);
    assert_eq!(out.len(), 9);
}

#[test]
fn an_endless_line_is_handed_on_in_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(directory.path());
    let part = "x".repeat(16 * 1024);
    for _ in 0..100 {
        writer.line("stdout", "P", &part);
    }
    let mut reader = reader(directory.path(), LogQuery { timestamps: true, ..LogQuery::default() });
    let piece = drain(&mut reader);
    assert!(piece.len() > MAX_GATHERED && piece.len() < 2 * MAX_GATHERED);
    writer.line("stdout", "F", "end");
    let rest = drain(&mut reader);
    assert!(rest.ends_with("xend\n") && !rest.contains('Z'), "the time is there once");
}

#[test]
fn what_a_crash_tore_is_left_out_and_the_next_file_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(directory.path());
    writer.line("stdout", "F", "one");
    writer.raw("2026-01-01T00:0");
    writer.rotate();
    writer.line("stdout", "F", "two");
    assert_eq!(read_all(directory.path(), LogQuery::default()), "one\ntwo\n");
}

#[derive(Debug, Clone)]
enum Step {
    Line { stderr: bool, parts: usize },
    HalfLine,
    Rotate,
    Compress,
    Read(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<bool>(), 0..3_usize).prop_map(|(stderr, parts)| Step::Line { stderr, parts }),
        1 => Just(Step::HalfLine),
        2 => Just(Step::Rotate),
        1 => Just(Step::Compress),
        3 => (1..200_usize).prop_map(Step::Read),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    /// Whatever the writer does between two reads, and however little is read at a time: each line once, in order.
    #[test]
    fn no_line_is_lost_or_repeated(steps in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(directory.path());
        let mut reader = reader(directory.path(), LogQuery::default());
        let (mut expected, mut seen) = (String::new(), Vec::new());
        for (index, step) in steps.iter().enumerate() {
            match step {
                Step::Line { stderr, parts } => {
                    let stream = if *stderr { "stderr" } else { "stdout" };
                    for part in 0..*parts {
                        writer.line(stream, "P", &format!("{index}.{part} "));
                        expected.push_str(&format!("{index}.{part} "));
                    }
                    writer.line(stream, "F", &format!("{index}"));
                    expected.push_str(&format!("{index}\n"));
                }
                Step::HalfLine => {
                    writer.raw("2026-01-01T00:00:00Z stdout F ");
                    let mut out = Vec::new();
                    reader.read(&mut out, usize::MAX).unwrap();
                    seen.append(&mut out);
                    writer.raw(&format!("half {index}\n"));
                    expected.push_str(&format!("half {index}\n"));
                }
                Step::Rotate => writer.rotate(),
                Step::Compress => compress_directory(directory.path()).unwrap(),
                Step::Read(enough) => {
                    let mut out = Vec::new();
                    reader.read(&mut out, *enough).unwrap();
                    seen.append(&mut out);
                }
            }
        }
        seen.extend(drain(&mut reader).into_bytes());
        prop_assert_eq!(String::from_utf8(seen).unwrap(), &*expected);

        // Every tail is the end of the whole.
        let lines: Vec<&str> = expected.split_inclusive('\n').collect();
        for wanted in [0, 1, 2, lines.len() / 2, lines.len(), lines.len() + 1] {
            let query = LogQuery { tail: Some(wanted as u64), ..LogQuery::default() };
            let text = lines[lines.len().saturating_sub(wanted)..].concat();
            prop_assert_eq!(read_all(directory.path(), query), text);
        }
    }
}

/// A writer in another thread that rotates all the time and keeps few files, and a reader that keeps up.
#[test]
fn no_line_is_lost_while_another_thread_rotates() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let (read_up_to, written) = std::sync::mpsc::sync_channel::<()>(0);
    let mut writer = Writer::new(&path);
    let thread = std::thread::spawn(move || {
        for index in 0..3000 {
            writer.line("stdout", "F", &format!("{index}"));
            if index % 7 == 0 {
                writer.rotate();
            }
            if index % 21 == 0 {
                compress_directory(&writer.directory).unwrap();
            }
            // Old files go only when the reader has had a chance to open them, as the size of real files ensures.
            if index % 70 == 0 {
                written.recv().unwrap();
                while writer.rotations > 0 && fs::read_dir(&writer.directory).unwrap().count() > 14 {
                    writer.remove_oldest();
                }
            }
        }
    });
    let mut reader = reader(&path, LogQuery::default());
    let mut seen = String::new();
    loop {
        seen.push_str(&drain(&mut reader));
        if read_up_to.send(()).is_err() {
            break;
        }
    }
    thread.join().unwrap();
    seen.push_str(&drain(&mut reader));
    let expected: String = (0..3000).map(|index| format!("{index}\n")).collect();
    assert_eq!(seen, expected);
}

#[test]
fn a_damaged_file_is_named_and_the_others_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(directory.path());
    for text in ["one", "two", "three"] {
        writer.line("stdout", "F", text);
        writer.rotate();
    }
    writer.line("stdout", "F", "four");
    compress_directory(directory.path()).unwrap();
    let second = directory.path().join("0.log.20260101-000002.gz");
    let whole = fs::read(&second).unwrap();
    let whole_log = |query: LogQuery| {
        let mut reader = reader(directory.path(), query);
        let mut text = drain(&mut reader).into_bytes();
        reader.finish(&mut text);
        (String::from_utf8(text).unwrap(), reader.damaged().to_vec())
    };
    let all = LogQuery::default();
    assert_eq!(whole_log(all), ("one\ntwo\nthree\nfour\n".to_owned(), vec![]));
    for damaged in [&b"not a gzip file"[..], &whole[..whole.len() / 2], &[]] {
        fs::write(&second, damaged).unwrap();
        for query in [all, LogQuery { tail: Some(10), ..all }] {
            let (text, missing) = whole_log(query);
            assert_eq!(text, "one\nthree\nfour\n");
            assert_eq!(missing.len(), 1, "{missing:?}");
            assert!(missing[0].starts_with(&format!("{}: ", second.display())), "{missing:?}");
        }
    }
}
