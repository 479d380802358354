//! The parent of a bound exec: in the container's PID namespace, so that what the exec leaves to itself becomes its child
//! rather than that of the container's first process, which is an application and reaps nobody. When a probe is killed with
//! all that it started, nothing stays behind, not even a zombie that counts against the limit of processes.
//!
//! It is a copy of the supervisor in the supervisor's own cgroups, and holds on to nothing: no descriptor, no user, no
//! capability, and the container's root as its own.

use std::{convert::Infallible, os::fd::BorrowedFd};

use super::{
    error::{Failure, Step},
    parent,
    status::Reporter,
};
use crate::sys::{
    caps::{self, Sets},
    exec, ids, pidfd,
    process::{self, clone_running},
    session, signal,
};

/// Says that everything in the exec's cgroup has been killed: all of it is waited for, not only the exec itself. The
/// supervisor has it blocked from its start, so that it stays pending whenever it comes.
pub const TAKE_ALL: i32 = libc::SIGUSR1;

/// The user that has nothing.
const USER: u32 = 65_535;

/// SIGKILL.
const KILL: i32 = 9;

/// Runs in the child that was born in the PID namespace: makes `program` its own child, in `cgroup`, and ends with its
/// code. Returns only when there is no such child. `kinds` are the namespaces of the container's first process to join.
pub(super) fn run(
    (init, kinds): (BorrowedFd<'_>, i32),
    cgroup: Option<BorrowedFd<'_>>,
    reporter: &mut Reporter,
    program: impl FnOnce(&mut Reporter) -> Result<Infallible, Failure>,
) -> Result<Infallible, Failure> {
    process::set_dumpable(false).step(|| "become undumpable")?;
    process::set_parent_death_signal(KILL).step(|| "die with the supervisor")?;
    process::adopt_orphans().step(|| "adopt orphans")?;
    let child = clone_running(0, cgroup, || {
        let result = program(reporter);
        parent::fail(result, reporter)
    })
    .step(|| "clone")?;
    let pid = child.pid;
    // The status pipe and the standard streams are the program's alone. (Owners of closed numbers are never dropped here.)
    let confined = exec::close_all_but(&[init]).and_then(|()| confine(init, kinds));
    std::mem::forget(child);
    if confined.is_err() {
        // The container has ended, or is about to. A copy of the supervisor must not stay in there as it is.
        let _ = process::kill(pid, KILL);
    }
    process::exit_now(wait(pid))
}

/// What the supervisor may do is of no use here; what can be reached from here is what the container has.
fn confine(init: BorrowedFd<'_>, kinds: i32) -> std::io::Result<()> {
    process::set_name(c"berth-exec");
    session::join(init, kinds)?;
    exec::close_all_but(&[])?;
    caps::set_no_new_privileges()?;
    // Nobody, as the pod's own process 1: a container that may trace could act as whoever this is. From root to another
    // user the kernel clears the capabilities, and forgets what was asked for before.
    ids::set_groups(&[])?;
    ids::set_group(USER)?;
    ids::set_user(USER)?;
    caps::set(Sets::default())?;
    process::set_dumpable(false)?;
    process::set_parent_death_signal(KILL)
}

/// Reaps until the program has ended, or with [`TAKE_ALL`] until nothing is left. The program's code.
fn wait(program: i32) -> i32 {
    let mut code = None;
    while let Ok(exit) = pidfd::wait_next() {
        if exit.pid == program {
            code = Some(exit.ended.code());
        }
        if code.is_some() && !signal::is_pending(TAKE_ALL) {
            break;
        }
    }
    code.unwrap_or(128 + KILL)
}
