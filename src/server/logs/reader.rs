//! Reads the log of one attempt, across its rotated files, and keeps its place between calls.

use std::{
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    time::SystemTime,
};

use jiff::Timestamp;

use super::{
    files::{LogFiles, Part, ReverseLines},
    line::Line,
};

/// A line that never ends is handed on in pieces of this many bytes rather than gathered for ever.
const MAX_GATHERED: usize = 1 << 20;

/// How many physical lines before the cut of a tail are searched for the beginning of a split line.
const MAX_LOOK_BACK: usize = 256;

/// What is asked of a log.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogQuery {
    /// Only the last so many lines (before what is still to come).
    pub tail: Option<u64>,
    /// Only lines written at or after this time.
    pub since: Option<Timestamp>,
    /// Put each line's time before it.
    pub timestamps: bool,
    /// Stop after this many bytes.
    pub limit_bytes: Option<u64>,
}

/// Where a reader has got to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is more to read now.
    More,
    /// Everything that is written has been read.
    CaughtUp,
    /// The limit is reached: there will be nothing more.
    Limit,
}

/// The reader.
#[derive(Debug)]
pub struct LogReader {
    files: LogFiles,
    query: LogQuery,
    place: Option<Place>,
    started: bool,
    /// Per stream, a line whose end has not come yet.
    gathered: [Gathered; 2],
    /// Bytes handed out so far.
    handed_out: u64,
    /// Files of which not everything could be read, and why.
    damaged: Vec<String>,
}

#[derive(Debug)]
struct Place {
    file: BufReader<Part>,
    /// A physical line whose end has not been read yet.
    unfinished: Vec<u8>,
    /// The file that follows, once it is known: when this one is then read to its end, it is done with.
    next: Option<Part>,
}

#[derive(Debug, Default)]
struct Gathered {
    time: String,
    content: Vec<u8>,
    /// Part of the line has been handed out already.
    begun: bool,
    /// The line is too old, all its parts are left out.
    skipped: bool,
    open: bool,
}

/// Adds what was found wrong with a file. A tail reads files once backwards and once more forwards.
fn note(damaged: &mut Vec<String>, part: &mut Part) {
    damaged.extend(part.take_damage().filter(|damage| !damaged.contains(damage)));
}

impl LogReader {
    /// A reader at the beginning (or wherever the query says).
    pub fn new(files: LogFiles, query: LogQuery) -> LogReader {
        LogReader {
            files,
            query,
            place: None,
            started: false,
            gathered: Default::default(),
            handed_out: 0,
            damaged: Vec::new(),
        }
    }

    /// Appends to `out` what can be read, until about `enough` bytes are in it.
    ///
    /// # Errors
    /// A file could not be opened or read.
    pub fn read(&mut self, out: &mut Vec<u8>, enough: usize) -> io::Result<Progress> {
        if self.limit_reached() {
            return Ok(Progress::Limit);
        }
        if self.place.is_none() && !self.start()? {
            return Ok(Progress::CaughtUp);
        }
        while out.len() < enough {
            let Some(place) = &mut self.place else { return Ok(Progress::CaughtUp) };
            place.file.read_until(b'\n', &mut place.unfinished)?;
            if place.unfinished.last() == Some(&b'\n') {
                let line = std::mem::take(&mut place.unfinished);
                self.take(&line[..line.len() - 1], out);
                // Its allocation serves the next line.
                if let Some(place) = &mut self.place {
                    place.unfinished = line;
                    place.unfinished.clear();
                }
                if self.limit_reached() {
                    return Ok(Progress::Limit);
                }
                continue;
            }
            // The end of this file, for now or for good.
            if let Some(next) = place.next.take() {
                let torn = std::mem::take(&mut place.unfinished);
                note(&mut self.damaged, place.file.get_mut());
                self.place = Some(Place::new(next));
                self.take(&torn, out);
            } else {
                place.next = self.files.successor(place.file.get_ref())?;
                if place.next.is_none() {
                    return Ok(Progress::CaughtUp);
                }
                // What was written between our reaching its end and its rotation is still to be read.
            }
        }
        Ok(Progress::More)
    }

    /// The log has ended: appends what was gathered of lines that have no end.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if let Some(place) = &mut self.place {
            let torn = std::mem::take(&mut place.unfinished);
            self.take(&torn, out);
        }
        for index in 0..2 {
            if self.gathered[index].open {
                self.hand_out(index, false, out);
            }
        }
    }

    /// What was left out because it could not be read, by file. Complete once everything has been read.
    pub fn damaged(&mut self) -> &[String] {
        if let Some(place) = &mut self.place {
            note(&mut self.damaged, place.file.get_mut());
        }
        &self.damaged
    }

    fn limit_reached(&self) -> bool {
        self.query.limit_bytes.is_some_and(|limit| self.handed_out >= limit)
    }

    /// Finds the place to begin at; false when there is no file yet.
    fn start(&mut self) -> io::Result<bool> {
        // A log that appears only later is all new: nothing of it is to be left out.
        let tail = if self.started { None } else { self.query.tail };
        self.started = true;
        let place = match tail {
            Some(lines) => self.start_of_tail(lines)?,
            None => {
                let since = self.query.since.map(SystemTime::from);
                self.files.first(since)?.map(Place::new)
            }
        };
        self.place = place;
        Ok(self.place.is_some())
    }

    /// Goes backwards until `wanted` lines are found. A split line counts once, whatever was written to the other
    /// stream between its parts.
    fn start_of_tail(&mut self, wanted: u64) -> io::Result<Option<Place>> {
        let mut files = self.files.all()?;
        // Per stream: its last part seen so far (going backwards) was the end or the middle of a line.
        let mut in_line = [false; 2];
        let mut found = 0;
        // Where the wanted lines begin, as index of the file and offset in it.
        let mut cut: Option<(usize, u64)> = None;
        // After the cut: streams of which a split line may reach back beyond it, and the parts found of it.
        let mut reaching = [true; 2];
        let mut parts: [Vec<Vec<u8>>; 2] = Default::default();
        let mut looked_back = 0;
        'files: for index in (0..files.len()).rev() {
            files[index].file()?;
            note(&mut self.damaged, &mut files[index]);
            let file = files[index].file()?;
            let mut end = file.metadata()?.len();
            let mut lines = ReverseLines::new(file)?;
            while let Some((offset, bytes)) = lines.next_line()? {
                let line_end = offset + bytes.len() as u64 + 1;
                let Some(line) = Line::parse(&bytes) else { continue };
                let stream = line.stream.index();
                if cut.is_none() {
                    let begins_another = !line.partial || !in_line[stream];
                    if begins_another && found == wanted {
                        // With nothing wanted, what has no line end yet is new as well: begin after the whole lines.
                        cut = Some((index, line_end.min(end)));
                    } else {
                        found += u64::from(begins_another);
                        in_line[stream] = true;
                        end = line_end;
                        continue;
                    }
                }
                looked_back += 1;
                if line.partial && reaching[stream] {
                    parts[stream].push(bytes);
                } else {
                    reaching[stream] = false;
                }
                if reaching == [false; 2] || looked_back == MAX_LOOK_BACK {
                    break 'files;
                }
            }
        }
        for parts in parts {
            // Oldest first, as if they had just been read; a part alone hands out nothing.
            let mut nothing = Vec::new();
            parts.iter().rev().for_each(|bytes| self.take(bytes, &mut nothing));
        }
        let (index, offset) = cut.unwrap_or((0, 0));
        if index >= files.len() {
            return Ok(None);
        }
        let mut part = files.swap_remove(index);
        part.file()?.seek(SeekFrom::Start(offset))?;
        Ok(Some(Place::new(part)))
    }

    /// One physical line.
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        // A line torn by a crash of the machine, or not ours: there is nobody to tell.
        let Some(line) = Line::parse(bytes) else { return };
        let index = line.stream.index();
        let gathered = &mut self.gathered[index];
        if !gathered.open {
            gathered.open = true;
            gathered.begun = false;
            gathered.time.clear();
            gathered.time.push_str(line.time);
            gathered.skipped = self.query.since.is_some_and(|since| line.timestamp().is_some_and(|time| time < since));
        }
        if !gathered.skipped {
            gathered.content.extend_from_slice(line.content);
        }
        if !line.partial {
            self.hand_out(index, true, out);
            self.gathered[index].open = false;
        } else if gathered.content.len() > MAX_GATHERED {
            self.hand_out(index, false, out);
        }
    }

    fn hand_out(&mut self, index: usize, whole: bool, out: &mut Vec<u8>) {
        let gathered = &mut self.gathered[index];
        if gathered.skipped {
            return;
        }
        let before = out.len();
        if self.query.timestamps && !gathered.begun {
            out.extend_from_slice(gathered.time.as_bytes());
            out.push(b' ');
        }
        gathered.begun = true;
        out.append(&mut gathered.content);
        if whole {
            out.push(b'\n');
        }
        let mut length = (out.len() - before) as u64;
        if let Some(limit) = self.query.limit_bytes {
            length = length.min(limit - self.handed_out.min(limit));
            out.truncate(before + length as usize);
        }
        self.handed_out += length;
    }
}

impl Place {
    fn new(part: Part) -> Place {
        Place { file: BufReader::with_capacity(64 * 1024, part), unfinished: Vec::new(), next: None }
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
