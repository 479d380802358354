//! What the child tells its parent over the status pipe: one JSON record per line.

use std::{
    fs::File,
    io,
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::error::Failure;
use crate::supervisor::spec::StartError;

/// How a start went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatusOutcome {
    /// The program runs.
    Started {
        /// Stages in order with the microseconds from the arrival of the request to their end: `clone`, `cgroup`,
        /// `rootfs`, `mounts`, `user`, `exec` (ready to exec; the rest is the kernel's).
        stages: Vec<(String, u64)>,
        /// uid, gid and supplementary groups.
        user: (u32, u32, Vec<u32>),
        /// What could not be done though it should have been, and was not worth failing for.
        warnings: Vec<String>,
    },
    /// A step failed; the process is about to end.
    Failed(StartError),
    /// The process ended without a word: killed (by the OOM killer, by its own seccomp filter) before execve.
    Died,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Record {
    Ready { stages: Vec<(String, u64)>, user: (u32, u32, Vec<u32>), warnings: Vec<String> },
    Failed(StartError),
}

/// Reads what came over the status pipe up to its end. A record that cannot be understood counts as none: only the
/// child writes here, and a torn record means that it was killed while writing.
pub fn decode_status(bytes: &[u8]) -> StatusOutcome {
    let mut outcome = StatusOutcome::Died;
    for line in bytes.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Record::Ready { stages, user, warnings }) => {
                outcome = StatusOutcome::Started { stages, user, warnings };
            }
            Ok(Record::Failed(error)) => return StatusOutcome::Failed(error),
            Err(_) => {}
        }
    }
    outcome
}

/// The child's end of the pipe, with what it has gathered so far.
pub(in crate::supervisor) struct Reporter {
    pipe: File,
    received: Instant,
    stages: Vec<(String, u64)>,
    warnings: Vec<String>,
}

impl Reporter {
    pub(in crate::supervisor) fn new(pipe: OwnedFd, received: Instant) -> Reporter {
        Reporter { pipe: File::from(pipe), received, stages: Vec::with_capacity(6), warnings: Vec::new() }
    }

    /// The end of a stage.
    pub(in crate::supervisor) fn stage(&mut self, name: &str) {
        self.stages.push((name.to_owned(), self.received.elapsed().as_micros() as u64));
    }

    /// Something that was left undone.
    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// Said last before execve, while any seccomp filter still allows it.
    pub(in crate::supervisor) fn ready(&mut self, user: (u32, u32, Vec<u32>)) -> io::Result<()> {
        let stages = std::mem::take(&mut self.stages);
        let warnings = std::mem::take(&mut self.warnings);
        self.write(&Record::Ready { stages, user, warnings })
    }

    /// Said last before the end. An error is ignored: there is nobody else to tell, and an empty pipe tells the
    /// parent as much.
    pub(in crate::supervisor) fn failed(&mut self, failure: Failure) {
        let _ = self.write(&Record::Failed(failure.into()));
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.pipe.write_all(&line)
    }
}

impl AsFd for Reporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn reported(talk: impl FnOnce(&mut Reporter)) -> Vec<u8> {
        let (mut read, write) = std::io::pipe().unwrap();
        let mut reporter = Reporter::new(write.into(), Instant::now());
        talk(&mut reporter);
        drop(reporter);
        let mut bytes = Vec::new();
        read.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn ready_is_success_and_a_later_failure_outweighs_it() {
        let bytes = reported(|reporter| {
            reporter.stage("clone");
            reporter.warn("no CAP_SYS_RESOURCE".to_owned());
            reporter.ready((1000, 1000, vec![1000])).unwrap();
        });
        let StatusOutcome::Started { stages, user, warnings } = decode_status(&bytes) else {
            panic!("{}", String::from_utf8_lossy(&bytes));
        };
        assert_eq!((stages.len(), stages[0].0.as_str()), (1, "clone"));
        assert_eq!((user, warnings), ((1000, 1000, vec![1000]), vec!["no CAP_SYS_RESOURCE".to_owned()]));

        let bytes = reported(|reporter| {
            reporter.ready((0, 0, vec![0])).unwrap();
            reporter.failed(Failure::refused("exec \"nope\"", "not found"));
        });
        assert!(matches!(decode_status(&bytes), StatusOutcome::Failed(error) if error.message == "not found"));
    }

    #[test]
    fn silence_and_a_torn_record_are_an_early_death() {
        assert_eq!(decode_status(b""), StatusOutcome::Died);
        assert_eq!(decode_status(b"{\"ready\":{\"sta"), StatusOutcome::Died);
    }
}
