//! What can go wrong between the agent and a supervisor.

use std::{io, path::PathBuf, time::Duration};

use crate::supervisor::spec::VERSION;

/// Why a supervisor could not be reached or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A descriptor could not be watched.
    #[error("watch the supervisor")]
    Watch(#[source] io::Error),
    /// It could not make the sandbox; the message is its own.
    #[error("make the sandbox: {message}")]
    Sandbox {
        /// Step and cause.
        message: String,
    },
    /// There is none: no socket, nobody listening on it, or left over from before a reboot.
    #[error("no supervisor listens on {path}")]
    NotRunning {
        /// Its socket.
        path: PathBuf,
    },
    /// The socket could not be used.
    #[error("connect to the supervisor at {path}")]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Somebody answered who is not the supervisor that was recorded.
    #[error("the process behind {path} is {found}, not {recorded} as recorded")]
    Identity {
        /// Its socket.
        path: PathBuf,
        /// `pid/start time`.
        found: String,
        /// `pid/start time`.
        recorded: String,
    },
    /// It speaks a version that we do not.
    #[error("the supervisor speaks version {found}, this agent {VERSION} and the one before")]
    Version {
        /// Its version.
        found: u32,
    },
    /// No answer in time. The call may still take effect.
    #[error("the supervisor did not answer to {call} within {} s", .after.as_secs())]
    Deadline {
        /// What was asked.
        call: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// It ended, or the connection did, before there was an answer.
    #[error("the supervisor is gone")]
    Gone,
    /// It refused.
    #[error("the supervisor refused to {call}: {message}")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// Its message.
        message: String,
    },
    /// The attempt that was to be started has ended before: its exit record is on disk.
    #[error("the attempt has already ended")]
    AlreadyEnded,
    /// Its answer makes no sense for the call.
    #[error("the supervisor answered to {call} with something else")]
    Nonsense {
        /// What was asked.
        call: &'static str,
    },
}
