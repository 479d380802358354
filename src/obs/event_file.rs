//! The events on disk, so that an agent that was replaced knows what happened before.
//!
//! A file of JSON lines, written behind everything else and never synced: the last second before a crash may be missing,
//! and what cannot be read is left out. An event that happened again is written again; the last line counts.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::events::{COMBINED, PodEvent, Recorder};

/// How long events are gathered before they are written: a pod's start is one write.
const GATHER: Duration = Duration::from_secs(1);
/// A line that is longer is none of ours.
const LINE: u64 = 16 * 1024;

/// The file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    /// Most events that are kept; the file has at most three times as many lines.
    kept: usize,
    lines: usize,
    /// Newest revision in it.
    written: u64,
}

impl EventFile {
    /// Reads the file at `path` into `recorder`. One that is not there, or not readable, is an empty one.
    ///
    /// # Errors
    /// It is there and cannot be opened.
    pub fn open(path: PathBuf, kept: usize, recorder: &Recorder) -> (EventFile, io::Result<()>) {
        let (events, lines, result) = match read(&path, kept) {
            Ok((events, lines)) => (events, lines, Ok(())),
            Err(error) => (Vec::new(), 0, Err(error)),
        };
        recorder.restore(events);
        let written = *recorder.subscribe().borrow();
        (EventFile { path, kept, lines, written }, result)
    }

    /// Writes what is new; everything anew when the file has grown too long.
    ///
    /// # Errors
    /// It cannot be written; nothing is lost then but the file's own lines.
    pub fn write(&mut self, recorder: &Recorder) -> io::Result<()> {
        let new = recorder.since(self.written);
        let Some(newest) = new.last().map(|event| event.revision) else { return Ok(()) };
        if self.lines.saturating_add(new.len()) <= self.kept.saturating_mul(3) {
            let mut file = File::options().create(true).append(true).open(&self.path)?;
            file.write_all(&lines(&new))?;
            self.lines += new.len();
        } else {
            let all = recorder.list();
            let temporary = self.path.with_extension("tmp");
            fs::write(&temporary, lines(&all))?;
            fs::rename(&temporary, &self.path)?;
            self.lines = all.len();
        }
        self.written = newest;
        Ok(())
    }
}

fn lines(events: &[PodEvent]) -> Vec<u8> {
    let mut text = Vec::new();
    for event in events {
        // Cannot fail: strings, numbers and times.
        if serde_json::to_writer(&mut text, event).is_ok() {
            text.push(b'\n');
        }
    }
    text
}

fn read(path: &Path, kept: usize) -> io::Result<(Vec<PodEvent>, usize)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    let mut events: Vec<PodEvent> = Vec::new();
    let mut reader = BufReader::new(file);
    let mut count = 0;
    let mut whole = true;
    loop {
        let mut line = Vec::new();
        if io::Read::take(&mut reader, LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        count += 1;
        whole = line.ends_with(b"\n");
        events.extend(serde_json::from_slice::<PodEvent>(&line));
    }
    // The last line of each, in their order.
    let mut seen = HashSet::new();
    events.reverse();
    events.retain(|event| seen.insert(identity(event)));
    events.truncate(kept);
    events.reverse();
    // What would be added to half a line would be lost with it: the file is written anew.
    let lines = if whole { count } else { usize::MAX };
    Ok((events, lines))
}

/// What stays the same of an event that happens again.
fn identity(event: &PodEvent) -> (String, String, String, String) {
    let PodEvent { uid, reason, field_path, message, first, .. } = event;
    // What stands for several changes its message as it goes on.
    let message = if message.starts_with(COMBINED) { "" } else { message };
    (uid.clone(), reason.clone(), field_path.clone(), format!("{first} {message}"))
}

/// Keeps the file as the events come, for as long as the agent runs. Dropping it loses nothing that [`EventFile::write`]
/// does not make up for.
pub async fn keep(file: Arc<Mutex<EventFile>>, recorder: Recorder) {
    let mut news = recorder.subscribe();
    let mut failing = false;
    while news.changed().await.is_ok() {
        tokio::time::sleep(GATHER).await;
        news.mark_unchanged();
        let (file, recorder) = (file.clone(), recorder.clone());
        let result = tokio::task::spawn_blocking(move || write(&file, &recorder)).await;
        match result.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "events are not kept for the next agent, ignoring");
            }
            Err(_) => {}
        }
    }
}

/// Writes what is new.
///
/// # Errors
/// As [`EventFile::write`].
pub fn write(file: &Mutex<EventFile>, recorder: &Recorder) -> io::Result<()> {
    // Whole after every step.
    file.lock().unwrap_or_else(PoisonError::into_inner).write(recorder)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};

    use super::*;
    use crate::obs::events::Severity;

    fn note(recorder: &Recorder, uid: &str, message: &str) {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        recorder.record(&pod, None, Severity::Normal, "Happened", message, Timestamp::UNIX_EPOCH);
    }

    fn messages(recorder: &Recorder) -> Vec<String> {
        recorder.list().into_iter().map(|event| format!("{} x{}", event.message, event.count)).collect()
    }

    #[test]
    fn another_agent_goes_on_where_the_first_one_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let recorder = Recorder::new(3);
        let (mut file, result) = EventFile::open(path.clone(), 3, &recorder);
        result.unwrap();
        note(&recorder, "1", "a");
        note(&recorder, "1", "b");
        file.write(&recorder).unwrap();
        note(&recorder, "1", "a");
        file.write(&recorder).unwrap();
        // Killed in the middle of a line.
        File::options().append(true).open(&path).unwrap().write_all(b"{\"namespace\":\"x").unwrap();

        let next = Recorder::new(3);
        let (mut file, result) = EventFile::open(path.clone(), 3, &next);
        result.unwrap();
        assert_eq!(messages(&next), ["b x1", "a x2"]);
        note(&next, "1", "a");
        assert_eq!(messages(&next), ["b x1", "a x3"]);
        file.write(&next).unwrap();
        let last = Recorder::new(3);
        EventFile::open(path, 3, &last).1.unwrap();
        assert_eq!(messages(&last), ["b x1", "a x3"]);
    }

    #[test]
    fn the_file_does_not_grow_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let recorder = Recorder::new(2);
        let mut file = EventFile::open(path.clone(), 2, &recorder).0;
        for number in 0..100 {
            note(&recorder, &number.to_string(), &number.to_string());
            file.write(&recorder).unwrap();
            assert!(fs::read_to_string(&path).unwrap().lines().count() <= 6);
        }
        let next = Recorder::new(2);
        EventFile::open(path, 2, &next).1.unwrap();
        assert_eq!(messages(&next), ["98 x1", "99 x1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_is_written_a_moment_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let recorder = Recorder::default();
        let file = EventFile::open(path.clone(), 10, &recorder).0;
        let keeping = tokio::spawn(keep(Arc::new(Mutex::new(file)), recorder.clone()));
        tokio::task::yield_now().await;
        note(&recorder, "1", "a");
        let written = async {
            while fs::read_to_string(&path).map_or(0, |text| text.lines().count()) != 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), written).await.expect("written");
        keeping.abort();
    }
}
