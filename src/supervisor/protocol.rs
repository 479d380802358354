//! The messages between the agent and a supervisor: JSON, one message per SOCK_SEQPACKET packet, descriptors
//! beside them as SCM_RIGHTS. Requests carry an `id` that the reply repeats; events have none.
//!
//! The supervisor is given its listening socket as descriptor 0 by the agent that starts it (so that a connect
//! succeeds at once, before the process runs) and accepts any number of connections: a restarted agent simply
//! connects again. Every reply about state is an observation; events are hints, the records on disk the truth.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::spec::{ExecSpec, StartError};

/// A packet is at most this long; larger things travel as files.
pub const MAX_PACKET: usize = 64 * 1024;

/// Agent to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller, repeated in the reply.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// What can be asked of a supervisor. Every call may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// First message of a connection; answered with [`Answer::Hello`] once the sandbox is complete.
    /// With it comes, for a sandbox with a network namespace of its own, a NETLINK_ROUTE socket opened inside it.
    Hello {
        /// Highest version the agent speaks.
        version: u32,
    },
    /// Start an attempt. `dir` holds `launch.json`; `exit.json` and the like are written there.
    /// Answered when exec has succeeded or failed. Repeating it for a running or ended attempt reports that one.
    Start {
        /// Attempt directory.
        dir: PathBuf,
        /// Set everything up, and wait for [`Call::Release`] before the program is executed.
        #[serde(default)]
        hold: bool,
    },
    /// Let a held attempt execute its program. It may come before the Start that it is about.
    Release {
        /// Attempt directory.
        dir: PathBuf,
    },
    /// Signal the container's first process. Ok when it has already ended.
    Signal {
        /// Container name.
        container: String,
        /// Signal number.
        signal: i32,
    },
    /// SIGKILL for everything in the container's cgroup. Ok when there is nothing.
    Kill {
        /// Container name.
        container: String,
    },
    /// Run a process in a container. Three descriptors come with it (stdin, stdout, stderr) unless `tty`,
    /// for which none comes and the reply carries the pty's master.
    Exec(ExecSpec),
    /// Run a process in a container once, its streams /dev/null, and keep in `record` (a [`super::spec::HookRecord`]) how it
    /// ended before that is told. Repeating it while the process runs joins it: the end is told to whoever asked last.
    /// Repeating it later is answered with [`Answer::HookEnded`].
    Hook {
        /// What to run; without a terminal.
        spec: ExecSpec,
        /// Absolute path of a file in the attempt's directory.
        record: PathBuf,
    },
    /// Kill everything in the cgroup of an exec, if it still runs.
    ExecKill {
        /// From [`Answer::ExecStarted`].
        exec: u64,
    },
    /// Attach to the standard streams of a container: stdin, stdout, stderr descriptors come with it (no stderr
    /// used with a tty). Copies of its output go to them until it ends or they break.
    Attach {
        /// Container name.
        container: String,
    },
    /// The pty of a container that has one: rows and columns.
    Resize {
        /// Container name.
        container: String,
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// Tell the OCI runtime of a container what its limits are now: `resources` is the `linux.resources` of an OCI
    /// configuration. Its cgroup has them already. Ok when the container has ended or has no such runtime.
    Update {
        /// Container name.
        container: String,
        /// As JSON.
        resources: serde_json::Value,
    },
    /// Kill what still runs, write its records, answer, exit.
    Shutdown,
}

/// Supervisor to agent: an answer or an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Answer to the request `id`.
    Reply {
        /// From the request.
        id: u64,
        /// The outcome.
        answer: Answer,
    },
    /// An attempt ended; `exit.json` is on disk.
    Exited {
        /// Container name.
        container: String,
        /// Attempt.
        attempt: u32,
    },
    /// An exec ended.
    ExecExited {
        /// From [`Answer::ExecStarted`].
        exec: u64,
        /// 0-255, 128 + signal.
        exit_code: i32,
        /// Killed as its time was over.
        #[serde(default)]
        timed_out: bool,
    },
}

/// Outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The sandbox is complete.
    Hello(Snapshot),
    /// The container runs.
    Started(RunningContainer),
    /// The container could not be started; an exit record with the error is on disk.
    StartFailed(StartError),
    /// The attempt has ended already (a repeated Start).
    Ended,
    /// An exec runs.
    ExecStarted {
        /// Names it in [`Message::ExecExited`] and [`Call::ExecKill`].
        exec: u64,
        /// Its process id on the host.
        pid: i32,
    },
    /// The hook has ended before; its record says how.
    HookEnded {
        /// `None`: well.
        failure: Option<String>,
    },
    /// Done.
    Ok,
    /// Refused or failed.
    Error {
        /// One line.
        message: String,
    },
}

/// What a supervisor says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Version it speaks.
    pub version: u32,
    /// Its process id on the host.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: tells a reused pid apart.
    pub start_time: u64,
    /// Attempts that run now.
    pub running: Vec<RunningContainer>,
    /// What could not be done though it should have been, in words (no CAP_SYS_RESOURCE, …).
    pub warnings: Vec<String>,
}

/// One running attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningContainer {
    /// Container name.
    pub container: String,
    /// Attempt.
    pub attempt: u32,
    /// Container id.
    pub id: String,
    /// Process id of its first process, on the host.
    pub pid: i32,
    /// Unix time in nanoseconds at which exec succeeded.
    pub started_at: i64,
    /// Stages of the start in microseconds since the request arrived, in order (`clone`, `rootfs`, `mounts`, `exec`).
    pub stages: Vec<(String, u64)>,
    /// uid, gid and supplementary groups it runs with.
    pub user: (u32, u32, Vec<u32>),
}
