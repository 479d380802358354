//! What the records on disk say of a pod's attempts, and the message a container left behind.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use k8s_openapi::jiff::Timestamp;

use crate::{
    pod::observed::{Attempt, AttemptState, Ended, User},
    store::{
        durable::{self, StoreError},
        layout::{AttemptDirs, PodDirs},
    },
    supervisor::spec::{ExitRecord, LaunchSpec},
};

/// Longest termination message (upstream `MaxContainerTerminationMessageLength`), bytes.
const MESSAGE: usize = 4096;
/// Longest message taken from a log (upstream `MaxContainerTerminationMessageLogLength`), bytes.
const LOG_MESSAGE: usize = 2048;
/// Most lines taken from a log (upstream `MaxContainerTerminationMessageLogLines`).
const LOG_LINES: usize = 80;

/// An attempt as its records have it.
pub struct Recorded {
    /// What was launched.
    pub launch: LaunchSpec,
    /// How it ended; `None`: there is no record (yet).
    pub exit: Option<ExitRecord>,
}

/// A Unix time in nanoseconds; `None` for 0, which stands for never.
pub fn timestamp(nanos: i64) -> Option<Timestamp> {
    (nanos != 0).then(|| Timestamp::from_nanosecond(i128::from(nanos)).ok()).flatten()
}

/// Reads the records of one attempt; `None` when it was never launched.
pub fn read(dirs: &AttemptDirs) -> Result<Option<Recorded>, StoreError> {
    let Some(launch) = durable::read_json(&dirs.launch_file())? else { return Ok(None) };
    Ok(Some(Recorded { launch, exit: durable::read_json(&dirs.exit_file())? }))
}

/// All attempts of all containers that have a directory, in no particular order.
pub fn attempts(dirs: &PodDirs) -> Vec<AttemptDirs> {
    let containers = directories(&dirs.containers());
    containers.iter().flat_map(|container| directories(container)).map(|attempt| AttemptDirs::at(&attempt)).collect()
}

/// The records of all attempts, in no particular order; `None` for one that was never launched.
pub fn read_all(dirs: &PodDirs) -> Vec<(AttemptDirs, Result<Option<Recorded>, StoreError>)> {
    attempts(dirs)
        .into_iter()
        .map(|attempt| {
            let recorded = read(&attempt);
            (attempt, recorded)
        })
        .collect()
}

fn directories(parent: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// The attempt that `launch` describes, in a given state and as the user it was started with, if that is known.
pub fn attempt(launch: &LaunchSpec, state: AttemptState, user: Option<(u32, u32, Vec<u32>)>) -> Attempt {
    let known = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    Attempt {
        number: launch.attempt,
        generation: launch.generation,
        epoch: launch.epoch,
        id: launch.id.clone(),
        image_id: launch.image_id.clone(),
        image_ref: known(&launch.image_ref).unwrap_or_else(|| launch.image_id.clone()),
        stop_signal: launch.stop_signal,
        user: user.map(|(uid, gid, groups)| Box::new(User { uid, gid, groups })),
        state,
    }
}

impl Recorded {
    /// The attempt in a given state.
    pub fn attempt(&self, state: AttemptState, user: Option<(u32, u32, Vec<u32>)>) -> Attempt {
        attempt(&self.launch, state, user)
    }

    /// The attempt as ended: by its record, or unknown when there is none (never success).
    pub fn ended(&self, dirs: &AttemptDirs, fall_back_to_logs: bool, now: Timestamp) -> Attempt {
        let ended = match &self.exit {
            Some(record) => ended(record, &self.message(dirs, record, fall_back_to_logs), now),
            None => Ended::unknown(None, now),
        };
        let user = self.exit.as_ref().and_then(|record| record.user.clone());
        self.attempt(AttemptState::Ended(ended), user)
    }

    /// The termination message: the file, else with FallbackToLogsOnError the end of the log.
    fn message(&self, dirs: &AttemptDirs, record: &ExitRecord, fall_back_to_logs: bool) -> String {
        let file = read_start(&dirs.termination_log(), MESSAGE).unwrap_or_default();
        if file.is_empty() && fall_back_to_logs && record.exit_code != 0 {
            return log_tail(&self.launch.log.path).unwrap_or_default();
        }
        file
    }
}

fn ended(record: &ExitRecord, message: &str, now: Timestamp) -> Ended {
    let finished_at = timestamp(record.finished_at).unwrap_or(now);
    if let Some(error) = &record.start_error {
        return Ended {
            exit_code: record.exit_code,
            signal: None,
            reason: error.reason.clone(),
            message: error.sentence(),
            started_at: timestamp(record.started_at),
            finished_at,
        };
    }
    let reason = match (record.oom_killed, record.exit_code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    Ended {
        exit_code: record.exit_code,
        // Upstream's runtimes report signals as 128 + n in the exit code and leave this field 0.
        signal: None,
        reason: reason.to_owned(),
        message: message.to_owned(),
        started_at: timestamp(record.started_at),
        finished_at,
    }
}

/// The first `limit` bytes of a file the container may have written, invalid UTF-8 replaced.
fn read_start(path: &Path, limit: usize) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The contents of the last lines of a CRI log.
fn log_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // A record carries about 40 bytes beside its content.
    let start = length.saturating_sub((LOG_MESSAGE + LOG_LINES * 64) as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take((LOG_MESSAGE + LOG_LINES * 64) as u64).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let skip = usize::from(start > 0); // the first record may be cut
    let lines: Vec<&str> = text.lines().skip(skip).filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let mut message = String::new();
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        message.push_str(line);
        message.push('\n');
    }
    let mut cut = message.len().saturating_sub(LOG_MESSAGE);
    while !message.is_char_boundary(cut) {
        cut += 1;
    }
    Ok(message.split_off(cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::spec::{StartError, VERSION};

    fn record(exit_code: i32) -> ExitRecord {
        ExitRecord {
            version: VERSION,
            id: "aa".to_owned(),
            exit_code,
            signal: None,
            oom_killed: false,
            started_at: 1_000_000_000,
            finished_at: 2_000_000_000,
            start_error: None,
            user: None,
        }
    }

    #[test]
    fn reasons_follow_the_record() {
        let now = Timestamp::now();
        assert_eq!(ended(&record(0), "", now).reason, "Completed");
        assert_eq!(ended(&record(3), "", now).reason, "Error");
        assert_eq!(ended(&ExitRecord { oom_killed: true, ..record(137) }, "", now).reason, "OOMKilled");
        let error = StartError {
            step: "mount proc on /proc".to_owned(),
            errno: 2,
            message: "no such file".to_owned(),
            reason: "StartError".to_owned(),
        };
        let failed = ended(&ExitRecord { start_error: Some(error), started_at: 0, ..record(128) }, "", now);
        assert_eq!(
            (failed.reason.as_str(), failed.message.as_str()),
            ("StartError", "mount proc on /proc: no such file")
        );
        assert_eq!(failed.started_at, None);
    }

    #[test]
    fn the_tail_of_a_log_is_at_most_80_lines_and_2048_bytes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("0.log");
        let line = |n: usize, text: &str| format!("2026-01-01T00:00:00.000000000Z stdout F {n} {text}\n");
        fs::write(&path, (0..500).map(|n| line(n, "x")).collect::<String>()).expect("write");
        let tail = log_tail(&path).expect("read");
        assert_eq!(tail.lines().count(), 80);
        assert!(tail.ends_with("499 x\n"));
        fs::write(&path, (0..50).map(|n| line(n, &"y".repeat(200))).collect::<String>()).expect("write");
        assert_eq!(log_tail(&path).expect("read").len(), 2048);
    }
}
