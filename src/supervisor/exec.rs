//! A further process in a running container.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use super::{
    attempt::{SetUp, Status, start_error},
    container::{self, ChildStdio, LaunchContext, Spawned},
    spec::{ExecSpec, LaunchSpec, StartError},
};
use crate::sys::{pidfd, process};

/// A process started by exec that has not been reaped.
#[derive(Debug)]
pub struct Exec {
    /// The connection that asked, and hears of the end.
    pub connection: u64,
    /// Its request, until that is answered.
    pub request: Option<u64>,
    /// Process id on the host.
    pub pid: i32,
    pidfd: OwnedFd,
    /// The set-up report, until it has ended.
    pub status: Option<Status>,
    /// Where its end is recorded, if it is a hook.
    pub record: Option<PathBuf>,
    /// Why it could not be started: told when the child has been reaped.
    pub failure: Option<StartError>,
}

impl Exec {
    /// Starts the process. `descriptors` are stdin, stdout and stderr, or none for a terminal.
    ///
    /// # Errors
    /// The step that failed; there is no process then.
    pub fn start(
        (connection, request): (u64, u64),
        spec: &ExecSpec,
        descriptors: Vec<OwnedFd>,
        init: BorrowedFd<'_>,
        launch: &LaunchSpec,
        context: &LaunchContext<'_>,
    ) -> Result<Exec, StartError> {
        let stdio = match (spec.tty, <[OwnedFd; 3]>::try_from(descriptors)) {
            (false, Ok([stdin, stdout, stderr])) => ChildStdio::Pipes { stdin, stdout, stderr },
            (true, Err(descriptors)) if descriptors.is_empty() => ChildStdio::Terminal,
            _ => {
                let wrong = io::Error::new(io::ErrorKind::InvalidInput, "three descriptors, or none with a terminal");
                return Err(start_error("take the standard streams", &wrong));
            }
        };
        let Spawned { pid, pidfd, status, console_socket } = container::exec(spec, launch, init, stdio, context)?;
        let status = Status::new(status, console_socket).map_err(|error| start_error("watch the process", &error))?;
        let record = None;
        Ok(Exec { connection, request: Some(request), pid, pidfd, status: Some(status), record, failure: None })
    }

    /// Reads the set-up report; `Some` once, at its end. A failure is kept until the child has been reaped.
    pub fn read_status(&mut self) -> Option<SetUp> {
        if !self.status.as_mut()?.read() {
            return None;
        }
        self.finish_status()
    }

    /// Takes the report as it is: complete, or all that there will be.
    pub fn finish_status(&mut self) -> Option<SetUp> {
        match self.status.take()?.finish() {
            Ok(set_up) => Some(set_up),
            Err(error) => {
                self.failure = Some(error);
                self.kill();
                None
            }
        }
    }

    /// Kills the process and, as far as they stayed in its process group, those that it started.
    pub fn kill(&self) {
        let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        // Not reaped yet, so the number is still its own.
        let _ = process::kill_group(self.pid, libc::SIGKILL);
    }
}
