//! A further process in a running container.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    attempt::{SetUp, Status, start_error},
    container::{self, ChildStdio, LaunchContext, Spawned, TAKE_ALL},
    exec_group::ExecGroup,
    handler,
    spec::{ExecSpec, LaunchSpec, StartError},
};
use crate::sys::pidfd;

/// How soon an exec that was killed and has not ended is killed again: a process that was just being forked can be missed.
/// Doubled each time.
const KILL_AGAIN: Duration = Duration::from_millis(50);

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
    /// Ends with its connection.
    pub bound: bool,
    /// Its process is one of ours, which waits for the program and kills it when it is told to.
    by_proxy: bool,
    /// Its time was over before it ended.
    pub timed_out: bool,
    group: ExecGroup,
    limit: Option<Instant>,
    /// Once it was killed: when to do it again, and how long to wait after that.
    again: Option<(Instant, Duration)>,
}

impl Exec {
    /// Starts exec `number`. `descriptors` are stdin, stdout and stderr, or none for a terminal.
    ///
    /// # Errors
    /// The step that failed; there is no process then.
    pub fn start(
        number: u64,
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
        let group = ExecGroup::make(&launch.cgroup, number)
            .map_err(|(directory, error)| start_error(&format!("make cgroup {}", directory.display()), &error))?;
        let started = match launch.handler {
            None => container::exec(spec, launch, &group.placement, init, stdio, context),
            Some(_) => handler::exec((spec, number), launch, &group.placement, stdio, context),
        };
        let started = started.and_then(|Spawned { pid, pidfd, status, console_socket }| {
            let status = Status::new(status, console_socket);
            Ok((pid, pidfd, status.map_err(|error| start_error("watch the process", &error))?))
        });
        let (pid, pidfd, status) = match started {
            Ok(started) => started,
            Err(error) => {
                group.remove();
                return Err(error);
            }
        };
        let limit = spec.time_limit.and_then(|limit| context.received.checked_add(Duration::from_millis(limit)));
        Ok(Exec {
            connection,
            request: Some(request),
            pid,
            pidfd,
            status: Some(status),
            record: None,
            failure: None,
            bound: spec.bound,
            by_proxy: spec.bound || launch.handler.is_some(),
            timed_out: false,
            group,
            limit,
            again: None,
        })
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
                self.kill(Instant::now());
                None
            }
        }
    }

    /// Kills the process and all that it started.
    pub fn kill(&mut self, now: Instant) {
        let wait = self.again.map_or(KILL_AGAIN, |(_, wait)| wait);
        self.again = now.checked_add(wait).map(|at| (at, wait.saturating_mul(2)));
        if self.by_proxy {
            // First, as it must not take the end of its child for an ordinary one.
            let _ = pidfd::send_signal(self.pidfd.as_fd(), TAKE_ALL);
        } else {
            let _ = pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        }
        self.group.kill();
    }

    /// When something is due.
    pub fn deadline(&self) -> Option<Instant> {
        match self.again {
            Some((at, _)) => Some(at),
            None => self.limit,
        }
    }

    /// Does what is due.
    pub fn pass_deadline(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.timed_out |= self.again.is_none();
            self.kill(now);
        }
    }

    /// After its end: removes its cgroup. `Some` while something is in it.
    pub fn clean_up(self) -> Option<Leftover> {
        let killed = self.again.is_some();
        if self.group.remove() {
            return None;
        }
        Some(Leftover { group: self.group, killed, looks: 0 })
    }
}

/// The cgroup of an exec that has ended with something still in it. A program may start another that goes on, which then
/// is the container's; what was to be killed is killed until it is gone.
#[derive(Debug)]
pub struct Leftover {
    group: ExecGroup,
    killed: bool,
    looks: u32,
}

impl Leftover {
    /// How soon to look again, without which it is only looked at when another exec ends. The kernel may take a moment
    /// to let go of a process that has been reaped.
    pub fn wait(&self) -> Option<Duration> {
        (self.looks < if self.killed { 10 } else { 2 }).then(|| Duration::from_millis(10 << self.looks))
    }

    /// Looks again; true when it is gone.
    pub fn look(&mut self) -> bool {
        self.looks += 1;
        if self.killed {
            self.group.kill();
        }
        self.group.remove()
    }
}
