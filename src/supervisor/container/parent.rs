//! The supervisor's side of a start: pipes, the right PID namespace, the clone. Nothing here waits for the child.

use std::{
    convert::Infallible,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Instant,
};

use super::{
    ChildStdio, LaunchContext, Spawned,
    error::{Failure, Step},
    init, inside,
    join::{self, Joined},
    reaper,
    status::Reporter,
};
use crate::{
    supervisor::spec::{CgroupPlacement, ExecSpec, LaunchSpec, PidMode, StartError},
    sys::{
        mount,
        openat2::{Scope, openat2, purpose},
        pidfd,
        process::{self, Child, clone_running, flags},
        seqpacket,
        session::{self, namespace},
    },
};

/// SIGKILL.
const KILL: i32 = 9;

/// Starts the first process of a container. Returns as soon as the child exists; how it fares comes over
/// [`Spawned::status`].
///
/// # Errors
/// No child was made: a descriptor, PID namespace or cgroup could not be had.
pub fn spawn(spec: &LaunchSpec, stdio: ChildStdio, context: &LaunchContext<'_>) -> Result<Spawned, StartError> {
    if let Some(users) = context.users {
        return inside::spawn(spec, stdio, users, context);
    }
    let (namespaces, joined) = match &spec.pid {
        PidMode::Container => (flags::NEWNS | flags::NEWPID, None),
        PidMode::Host => (flags::NEWNS, None),
        PidMode::Pod => (flags::NEWNS, Some((context.pause, "the pod's pause process"))),
        PidMode::Target(container) => (flags::NEWNS, Some((context.target, container.as_str()))),
    };
    let place = Place { namespaces, cgroup: spec.cgroup.unified.as_deref(), joined };
    clone_into(&place, stdio, context, |stdio, console, reporter| {
        init::run(spec, stdio, (console, context.gate), reporter)
    })
}

/// Starts a further process in the container whose first process `init` is. `launch` is what that was started with:
/// the new process gets the same user, capabilities, limits and seccomp filter. It goes into the cgroups of `placement`,
/// which are the container's or below them.
///
/// The process of a bound exec has one of ours between it and the supervisor ([`reaper`]), which is what is returned and
/// ends with its code.
///
/// # Errors
/// As [`spawn`]; the container may also have ended.
pub fn exec(
    spec: &ExecSpec,
    launch: &LaunchSpec,
    placement: &CgroupPlacement,
    init: BorrowedFd<'_>,
    stdio: ChildStdio,
    context: &LaunchContext<'_>,
) -> Result<Spawned, StartError> {
    let joined = (launch.pid != PidMode::Host).then_some((Some(init), launch.container.as_str()));
    let container = Joined { launch, init, user: context.user, placement };
    let program = |stdio, console, reporter: &mut Reporter| join::run(spec, &container, stdio, console, reporter);
    if !spec.bound {
        let place = Place { namespaces: 0, cgroup: placement.unified.as_deref(), joined };
        return clone_into(&place, stdio, context, program);
    }
    let cgroup = placement.unified.as_deref().map(open_cgroup).transpose()?;
    let place = Place { namespaces: 0, cgroup: None, joined };
    clone_into(&place, stdio, context, |stdio, console, reporter| {
        reaper::run((init, join::kinds(launch)), cgroup.as_ref().map(AsFd::as_fd), reporter, |reporter| {
            program(stdio, console, reporter)
        })
    })
}

pub(super) fn open_cgroup(path: &Path) -> Result<OwnedFd, Failure> {
    openat2(mount::here(), path, purpose::DIRECTORY, 0, Scope::NoMagicLinks)
        .step(|| format!("open cgroup {}", path.display()))
}

/// Where a child is born.
struct Place<'a> {
    /// New namespaces, as flags of clone3.
    namespaces: u64,
    /// Directory in the unified hierarchy.
    cgroup: Option<&'a Path>,
    /// Whose PID namespace it is born in (and the name of that process for messages); `None`: the supervisor's.
    joined: Option<(Option<BorrowedFd<'a>>, &'a str)>,
}

fn clone_into(
    place: &Place<'_>,
    stdio: ChildStdio,
    context: &LaunchContext<'_>,
    body: impl FnOnce(ChildStdio, Option<OwnedFd>, &mut Reporter) -> Result<Infallible, Failure>,
) -> Result<Spawned, StartError> {
    let (status, status_writer) = process::pipe().step(|| "make the status pipe")?;
    let (console_socket, console) = match &stdio {
        ChildStdio::Terminal => {
            let (ours, theirs) = seqpacket::pair().step(|| "make the console socket")?;
            (Some(ours), Some(theirs))
        }
        ChildStdio::Pipes { .. } => (None, None),
    };
    let cgroup = place.cgroup.map(open_cgroup).transpose()?;
    let received = context.received;
    let clone = || {
        clone_running(place.namespaces, cgroup.as_ref().map(AsFd::as_fd), move || {
            run_child(status_writer, received, |reporter| body(stdio, console, reporter))
        })
    };
    let Child { pid, pidfd } = match place.joined {
        None => clone().step(|| "clone")?,
        Some((process, name)) => clone_in_pid_namespace(process, name, context.own_pid_ns, clone)?,
    };
    Ok(Spawned { pid, pidfd, status, console_socket })
}

/// The child's whole life, should it not become a program.
fn run_child(
    status: OwnedFd,
    received: Instant,
    body: impl FnOnce(&mut Reporter) -> Result<Infallible, Failure>,
) -> i32 {
    let mut reporter = Reporter::new(status, received);
    let result = body(&mut reporter);
    fail(result, &mut reporter)
}

/// Reports why a child does not become a program; the code it ends with.
pub(super) fn fail(result: Result<Infallible, Failure>, reporter: &mut Reporter) -> i32 {
    match result {
        Ok(never) => match never {},
        Err(failure) => {
            reporter.failed(failure);
            // What upstream records for a container that could not be started.
            128
        }
    }
}

/// Clones with another process's PID namespace as that of the child, and comes back.
pub(super) fn clone_in_pid_namespace(
    process: Option<BorrowedFd<'_>>,
    name: &str,
    own: BorrowedFd<'_>,
    clone: impl FnOnce() -> io::Result<Child>,
) -> Result<Child, Failure> {
    let step = || format!("join the PID namespace of {name}");
    let Some(process) = process else {
        return Err(Failure::refused(step(), "it is not running"));
    };
    session::join(process, namespace::PID).step(step)?;
    let child = clone();
    // Every later child of the supervisor would be born in there too.
    let back = session::join(own, namespace::PID).step(|| "return to the own PID namespace");
    let child = child.map_err(|source| {
        // The kernel's word for a namespace whose first process has ended (pid_namespaces(7)).
        let gone = source.kind() == io::ErrorKind::OutOfMemory;
        let failure = Failure { source: Some(source), ..Failure::refused("clone", "") };
        Failure { message: gone.then(|| format!("{name} has ended, or memory is short")), ..failure }
    })?;
    if let Err(failure) = back {
        // Ignored: it may have ended, and is reaped like any other child.
        let _ = pidfd::send_signal(child.pidfd.as_fd(), KILL);
        return Err(failure);
    }
    Ok(child)
}
