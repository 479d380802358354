//! How attempts ended: the OOM counter of their cgroup, and the exit record that outlives everybody.

use std::{fs, path::Path};

use super::spec::{CgroupPlacement, ExitRecord, StartError, VERSION};
use crate::store::{
    durable::{self, StoreError},
    layout::AttemptDirs,
};

/// Exit code of an attempt whose process never ran, as containerd and CRI-O report it.
const NEVER_RAN: i32 = 128;

/// The record of an attempt that could not be started.
pub fn of_failure(id: &str, finished_at: i64, error: StartError) -> ExitRecord {
    ExitRecord {
        version: VERSION,
        id: id.to_owned(),
        exit_code: NEVER_RAN,
        signal: None,
        oom_killed: false,
        started_at: 0,
        finished_at,
        start_error: Some(error),
        user: None,
    }
}

/// Writes `exit.json` durably.
///
/// # Errors
/// The step that failed; a full disk above all.
pub fn write(directory: &Path, record: &ExitRecord) -> Result<(), StoreError> {
    durable::write_json(&AttemptDirs::at(directory).exit_file(), record)
}

/// How many processes the OOM killer has taken in this cgroup so far; 0 where nothing counts them.
pub fn oom_kills(cgroup: &CgroupPlacement) -> u64 {
    let Some(path) = &cgroup.oom_events else { return 0 };
    // A cgroup that is gone, or a kernel without the counter (v1 before 4.13), cannot tell.
    fs::read_to_string(path).ok().as_deref().and_then(parse_oom_kills).unwrap_or(0)
}

/// The line `oom_kill N` of `memory.events` or `memory.oom_control`.
fn parse_oom_kills(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_oom_counters_are_understood() {
        let v2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n";
        let v1 = "oom_kill_disable 0\nunder_oom 1\noom_kill 7\n";
        assert_eq!(parse_oom_kills(v2), Some(2));
        assert_eq!(parse_oom_kills(v1), Some(7));
        assert_eq!(parse_oom_kills("oom_kill_disable 0\nunder_oom 1\n"), None);
    }
}
