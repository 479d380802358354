//! Everything that runs in a container's process between clone3 and execve, and the joining of a running container
//! for exec.
//!
//! [`spawn`] clones a process into its cgroup and new namespaces and returns at once. The child walks through
//! `init` (for exec: `join`), one step after the other, and ends in `finish`, which both share: limits, user,
//! capabilities, seccomp, execve. It answers over a pipe: one record when it is ready to exec, another if a step
//! fails; [`decode_status`] reads them once the pipe is at its end.
//!
//! What holds throughout:
//! - Whatever comes from the host (bind sources, the host's /dev/null, cgroup directories) is opened first and by
//!   descriptor. Once the container's root is in place, no path is resolved except beneath it (`target`).
//! - A mount is made detached, gets its flags, and is then attached to a descriptor ([`crate::sys::mount`]): nothing in
//!   an image can redirect it between check and use.
//! - The child is never dumpable, holds no descriptor of the supervisor beyond what it needs, and its executable is
//!   the supervisor's sealed memfd.
//! - Linux 5.12 is the oldest that will do (mount_setattr); what later ones do better has a fallback.
//! - The caller is single-threaded, so that ordinary code may run in the child.

pub(super) mod bind;
mod cgroup;
mod command;
mod console;
pub(super) mod devices;
pub(super) mod error;
mod finish;
mod init;
mod inside;
mod join;
mod label;
mod masks;
mod mounts;
mod parent;
mod passwd;
mod provide;
mod reaper;
pub(super) mod rootfs;
pub(super) mod status;
pub(super) mod target;
pub(super) mod user;

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    time::Instant,
};

pub use parent::{exec, spawn};
pub use reaper::TAKE_ALL;
pub use status::{StatusOutcome, decode_status};

/// Where the standard streams of the new process come from.
#[derive(Debug)]
pub enum ChildStdio {
    /// Three descriptors; both sides of the choice (a pipe, /dev/null, a file) are the caller's. Pipes and sockets are
    /// given to the container's user, so that it can open /dev/stdout.
    Pipes {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal of the container's own devpts; its master comes over [`Spawned::console_socket`].
    Terminal,
}

/// What the supervisor has that a spec cannot carry.
#[derive(Debug, Clone, Copy)]
pub struct LaunchContext<'a> {
    /// pidfd of the pod's `pause`, for `PidMode::Pod`.
    pub pause: Option<BorrowedFd<'a>>,
    /// pidfd of the targeted container's first process, for `PidMode::Target`.
    pub target: Option<BorrowedFd<'a>>,
    /// The pod's user namespace, unless that is the host's.
    pub users: Option<BorrowedFd<'a>>,
    /// The supervisor's own PID namespace (`/proc/self/ns/pid`), to return to after a clone into another one.
    pub own_pid_ns: BorrowedFd<'a>,
    /// When the request arrived: stages are counted from here.
    pub received: Instant,
    /// The program is executed when a byte can be read here, and not at all when it is closed without one.
    pub gate: Option<BorrowedFd<'a>>,
    /// For [`exec`]: uid, gid and groups that the container was started with ([`StatusOutcome::Started`]). Without
    /// them names are looked up again, in files that the container may have changed meanwhile.
    pub user: Option<&'a (u32, u32, Vec<u32>)>,
}

/// A process on its way to execve.
#[derive(Debug)]
pub struct Spawned {
    /// Process id in the supervisor's PID namespace.
    pub pid: i32,
    /// Names the process; readable once it has ended.
    pub pidfd: OwnedFd,
    /// Read end of the status pipe, blocking. At its end, which execve or the end of the process brings about,
    /// [`decode_status`] says what happened.
    pub status: OwnedFd,
    /// For [`ChildStdio::Terminal`]: a SOCK_SEQPACKET socket, non-blocking, on which one message with the terminal's
    /// master arrives before the status pipe ends; closed without one when a step failed earlier.
    pub console_socket: Option<OwnedFd>,
}
