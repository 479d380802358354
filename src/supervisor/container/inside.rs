//! The start of a container in the pod's user namespace.
//!
//! Two processes take part. One is the container's: a child of the supervisor that is in the user namespace before its
//! PID and mount namespaces are made, so that these belong to it. From then on it is nobody on the host. The other
//! stays the host's root, and [`provide`]s what needs that.

use std::{
    convert::Infallible,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{
    ChildStdio, LaunchContext, Spawned,
    error::{Failure, Step},
    finish,
    init::{self, Parts},
    label, masks,
    parent::{clone_in_pid_namespace, fail, open_cgroup},
    provide,
    status::{Reporter, StatusOutcome, decode_status},
};
use crate::{
    supervisor::{
        spec::{LaunchSpec, PidMode, StartError},
        user_namespace::clone_by_helper,
    },
    sys::{
        exec, mount, pidfd,
        process::{self, clone_running, flags},
        seqpacket,
        session::{self, namespace},
        stream,
    },
};

/// SIGKILL.
const KILL: i32 = 9;

/// As [`super::spawn`], in the user namespace behind `users`.
pub(super) fn spawn(
    spec: &LaunchSpec,
    stdio: ChildStdio,
    users: BorrowedFd<'_>,
    context: &LaunchContext<'_>,
) -> Result<Spawned, StartError> {
    let (status, status_writer) = process::pipe().step(|| "make the status pipe")?;
    let (console_socket, console) = match &stdio {
        ChildStdio::Terminal => {
            let (ours, theirs) = seqpacket::pair().step(|| "make the console socket")?;
            (Some(ours), Some(theirs))
        }
        ChildStdio::Pipes { .. } => (None, None),
    };
    let (giving, taking) = seqpacket::pair().step(|| "make the socket for mounts")?;
    let cgroup = spec.cgroup.unified.as_deref().map(open_cgroup).transpose()?;
    let cgroup = cgroup.as_ref().map(AsFd::as_fd);
    let provider_writer = status_writer.try_clone().step(|| "copy the status pipe")?;

    let enter = Enter { spec, users, taking, console, context };
    let joined = match &spec.pid {
        PidMode::Container => None,
        PidMode::Pod => Some((context.pause, "the pod's pause process")),
        PidMode::Target(container) => Some((context.target, container.as_str())),
        PidMode::Host => {
            return Err(Failure::refused("clone", "the host's PID namespace does not go with a user namespace").into());
        }
    };
    let child = match joined {
        None => {
            let namespaces = flags::NEWNS | flags::NEWPID;
            let prepare = |helper: BorrowedFd<'_>| enter.prepare(stdio, Some(helper), status_writer);
            clone_by_helper(namespaces, cgroup, prepare, Inside::run).step(|| "clone")?
        }
        Some((process, name)) => {
            let clone = || {
                clone_running(0, cgroup, || match enter.prepare(stdio, None, status_writer) {
                    Ok(inside) => inside.with_own_mounts(),
                    Err(code) => code,
                })
            };
            Some(clone_in_pid_namespace(process, name, context.own_pid_ns, clone)?)
        }
    };
    let Some(child) = child else {
        drop(provider_writer);
        return Err(reported(status));
    };
    let provider = clone_running(flags::NEWNS, cgroup, || {
        let mut reporter = Reporter::new(provider_writer, context.received);
        match provide::provide(spec, users, giving.as_fd(), &mut reporter) {
            Ok(()) => 0,
            Err(failure) => fail(Err(failure), &mut reporter),
        }
    });
    // Reaped like any child when it has ended; nobody asks for its exit code.
    if let Err(error) = provider {
        // Ignored: it ends by itself, too, without its mounts.
        let _ = pidfd::send_signal(child.pidfd.as_fd(), KILL);
        let failed: std::io::Result<()> = Err(error);
        failed.step(|| "clone the process that makes the mounts")?;
    }
    Ok(Spawned { pid: child.pid, pidfd: child.pidfd, status, console_socket })
}

/// What a helper that ended without a child has said over the status pipe.
fn reported(status: OwnedFd) -> StartError {
    let mut bytes = Vec::new();
    // All writers are gone: this does not wait.
    while let Ok(1..) = stream::read_spare(
        {
            bytes.reserve(512);
            status.as_fd()
        },
        &mut bytes,
    ) {}
    match decode_status(&bytes) {
        StatusOutcome::Failed(error) => error,
        _ => Failure::refused("clone", "the helper was killed").into(),
    }
}

/// A process on its way into the user namespace.
struct Enter<'a> {
    spec: &'a LaunchSpec,
    users: BorrowedFd<'a>,
    taking: OwnedFd,
    console: Option<OwnedFd>,
    context: &'a LaunchContext<'a>,
}

impl<'a> Enter<'a> {
    /// The last steps on the host, and the step inside. A failure has been reported.
    fn prepare(self, stdio: ChildStdio, helper: Option<BorrowedFd<'_>>, status: OwnedFd) -> Result<Inside<'a>, i32> {
        let Enter { spec, users, taking, console, context } = self;
        let mut reporter = Reporter::new(status, context.received);
        reporter.stage("clone");
        let keep: Vec<BorrowedFd<'_>> =
            console.iter().map(AsFd::as_fd).chain([users, taking.as_fd()]).chain(helper).chain(context.gate).collect();
        let entered = finish::begin(spec, &spec.cgroup, stdio, &keep, &mut reporter)
            .and_then(|()| session::join(users, namespace::USER).step(|| "enter the pod's user namespace"));
        match entered {
            Ok(()) => Ok(Inside { spec, taking, console, gate: context.gate, reporter }),
            Err(failure) => Err(fail(Err(failure), &mut reporter)),
        }
    }
}

/// A process inside.
struct Inside<'a> {
    spec: &'a LaunchSpec,
    taking: OwnedFd,
    console: Option<OwnedFd>,
    gate: Option<BorrowedFd<'a>>,
    reporter: Reporter,
}

impl Inside<'_> {
    /// For one whose PID namespace is another's: only the mount namespace is its own.
    fn with_own_mounts(mut self) -> i32 {
        match session::leave(namespace::MOUNT).step(|| "unshare the mount namespace") {
            Ok(()) => self.run(),
            Err(failure) => fail(Err(failure), &mut self.reporter),
        }
    }

    /// The rest of the process's life. Its mount namespace belongs to the user namespace.
    fn run(mut self) -> i32 {
        let outcome = start(self.spec, self.taking, (self.console, self.gate), &mut self.reporter);
        fail(outcome, &mut self.reporter)
    }
}

fn start(
    spec: &LaunchSpec,
    taking: OwnedFd,
    (console, gate): (Option<OwnedFd>, Option<BorrowedFd<'_>>),
    reporter: &mut Reporter,
) -> Result<Infallible, Failure> {
    // Beyond these the helper had the namespace's descriptor and its own way to the supervisor.
    let own = [taking.as_fd(), reporter.as_fd()];
    let keep: Vec<_> = console.iter().map(AsFd::as_fd).chain(gate).chain(own).collect();
    exec::close_all_but(&keep).step(|| "close inherited descriptors")?;
    finish::become_root_inside(reporter)?;
    finish::start_session()?;
    let label = label::open(spec)?;
    if spec.new_cgroup_ns {
        session::leave(namespace::CGROUP).step(|| "unshare the cgroup namespace")?;
    }
    reporter.stage("cgroup");

    let null = if spec.masked_paths.is_empty() { None } else { Some(masks::open_null()?) };
    mount::make_all_slave().step(|| "make all mounts slaves")?;
    let (root, host) = provide::take(spec, taking.as_fd())?;
    drop(taking);
    // The attempt's own directory cannot be reached any more, and any place will do until the host's tree is given up.
    let anywhere = mount::open_place(std::path::Path::new("/")).step(|| "open /")?;
    mount::attach(root.as_fd(), anywhere.as_fd()).step(|| "mount the overlay")?;
    reporter.stage("rootfs");
    init::build(spec, Parts { root, host, null, label }, (console, gate), reporter)
}
