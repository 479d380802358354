//! Stand-in for the container launcher while it is written elsewhere: it runs the program on the host, without
//! namespaces or a root of its own.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::spec::{ExecSpec, LaunchSpec, StartError};
use crate::sys::{pidfd, process};

/// Standard streams of a new process.
pub enum ChildStdio {
    /// Three descriptors.
    Pipes {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal of the container's own devpts.
    Terminal,
}

/// What the supervisor has that a spec cannot carry.
pub struct LaunchContext<'a> {
    /// pidfd of the pod's `pause`, for `PidMode::Pod`.
    pub pause: Option<BorrowedFd<'a>>,
    /// pidfd of the targeted container's first process, for `PidMode::Target`.
    pub target: Option<BorrowedFd<'a>>,
    /// The supervisor's own PID namespace.
    pub own_pid_ns: BorrowedFd<'a>,
    /// When the request arrived.
    pub received: Instant,
    /// For [`exec`]: the user that the container was started with.
    pub user: Option<&'a (u32, u32, Vec<u32>)>,
}

/// A process on its way to exec.
pub struct Spawned {
    /// Process id on the host.
    pub pid: i32,
    /// Its descriptor.
    pub pidfd: OwnedFd,
    /// Read end of the pipe on which its set-up reports; at its end once exec has succeeded or set-up has failed.
    pub status: OwnedFd,
    /// For a terminal: socket over which the pty's master arrives before `status` ends.
    pub console_socket: Option<OwnedFd>,
}

/// How a start went.
pub enum StatusOutcome {
    /// The program runs.
    Started {
        /// Stages.
        stages: Vec<(String, u64)>,
        /// User.
        user: (u32, u32, Vec<u32>),
        /// Warnings.
        warnings: Vec<String>,
    },
    /// A step failed.
    Failed(StartError),
    /// The process ended without a word.
    Died,
}

#[derive(Serialize, Deserialize)]
enum Record {
    Ready { stages: Vec<(String, u64)>, user: (u32, u32, Vec<u32>) },
}

/// Understands what came over [`Spawned::status`].
pub fn decode_status(bytes: &[u8]) -> StatusOutcome {
    match serde_json::from_slice(bytes) {
        Ok(Record::Ready { stages, user }) => StatusOutcome::Started { stages, user, warnings: Vec::new() },
        Err(_) => StatusOutcome::Died,
    }
}

/// Starts a container.
///
/// # Errors
/// The step that failed before there was a process.
pub fn spawn(spec: &LaunchSpec, stdio: ChildStdio, _context: &LaunchContext<'_>) -> Result<Spawned, StartError> {
    run(&spec.args, stdio)
}

/// Starts a further process in a container.
///
/// # Errors
/// The step that failed before there was a process.
pub fn exec(
    spec: &ExecSpec,
    _init: BorrowedFd<'_>,
    _launch: &LaunchSpec,
    stdio: ChildStdio,
    _context: &LaunchContext<'_>,
) -> Result<Spawned, StartError> {
    run(&spec.args, stdio)
}

fn run(args: &[String], stdio: ChildStdio) -> Result<Spawned, StartError> {
    let failed = |step: &str, error: io::Error| StartError {
        step: step.into(),
        errno: error.raw_os_error().unwrap_or(0),
        message: error.to_string(),
        reason: "StartError".into(),
    };
    let ChildStdio::Pipes { stdin, stdout, stderr } = stdio else {
        return Err(failed("open a terminal", io::ErrorKind::Unsupported.into()));
    };
    let child = Command::new(&args[0])
        .args(&args[1..])
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0)
        .spawn()
        .map_err(|error| failed(&format!("exec {}", args[0]), error))?;
    let (status, report) = process::pipe().map_err(|error| failed("pipe", error))?;
    let frame = Record::Ready { stages: vec![("exec".into(), 1)], user: (0, 0, vec![]) };
    let _ = File::from(report).write_all(&serde_json::to_vec(&frame).unwrap_or_default());
    let pid = child.id() as i32;
    let pidfd = pidfd::open(pid).map_err(|error| failed("pidfd_open", error))?;
    Ok(Spawned { pid, pidfd, status, console_socket: None })
}
