//! A further process in a running container (exec), from its birth to its program.

use std::{
    convert::Infallible,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::{
    ChildStdio,
    command::Command,
    console,
    error::{Failure, Step},
    finish::{self, Program},
    label,
    status::Reporter,
    target,
    user::{self, Files},
};
use crate::{
    supervisor::spec::{CgroupPlacement, ExecSpec, LaunchSpec},
    sys::{
        mount,
        session::{self, namespace},
    },
};

/// The running container that an exec joins.
pub(super) struct Joined<'a> {
    /// What it was started with.
    pub(super) launch: &'a LaunchSpec,
    /// Its first process.
    pub(super) init: BorrowedFd<'a>,
    /// Whom that was started as.
    pub(super) user: Option<&'a (u32, u32, Vec<u32>)>,
    /// Where the exec goes: cgroups of the container, or below them.
    pub(super) placement: &'a CgroupPlacement,
}

/// The namespaces to join, beside that of PIDs.
pub(super) fn kinds(launch: &LaunchSpec) -> i32 {
    let users = if launch.users.is_some() { namespace::USER } else { 0 };
    namespace::MOUNT | namespace::CGROUP | namespace::IPC | namespace::NET | namespace::UTS | users
}

/// Runs in the child, which was born in the container's PID namespace and in the unified cgroup of its placement.
pub(super) fn run(
    spec: &ExecSpec,
    container: &Joined<'_>,
    stdio: ChildStdio,
    console: Option<OwnedFd>,
    reporter: &mut Reporter,
) -> Result<Infallible, Failure> {
    let Joined { launch, init, user, placement } = *container;
    reporter.stage("clone");
    let keep: Vec<BorrowedFd<'_>> = console.iter().map(AsFd::as_fd).chain([init]).collect();
    finish::begin(launch, placement, stdio, &keep, reporter)?;
    if launch.users.is_none() {
        finish::start_session()?;
    }
    let label = label::open(launch)?;
    reporter.stage("cgroup");

    // All namespaces in one step: there is no moment with one foot outside. Root and working directory are then the
    // container's root.
    session::join(init, kinds(launch)).step(|| format!("join container {}", launch.container))?;
    if launch.users.is_some() {
        finish::become_root_inside(reporter)?;
        finish::start_session()?;
    }
    let root = mount::open_place(Path::new("/")).step(|| "open the container's root")?;
    reporter.stage("rootfs");

    if let Some(socket) = &console {
        console::open(root.as_fd())?.take(socket.as_fd())?;
    }
    // The container may have put anything there by now; nothing is made for it, and nothing leads outside.
    let path = spec.cwd.as_deref().unwrap_or(&launch.cwd);
    let directory = target::resolve(root.as_fd(), path).step(|| format!("change to {}", path.display()))?;
    reporter.stage("mounts");

    let files = Files::read(root.as_fd())?;
    let identity = match user {
        Some(user) => user::identity_of(user, &files),
        None => user::identify(&launch.user, &files)?,
    };
    let command = Command::new(&spec.args, &environment(spec, launch), &identity.home)?;
    reporter.stage("user");

    let program = Program {
        spec: launch,
        command,
        identity,
        directory: (directory, path),
        label,
        has_own_terminal: console.is_some(),
    };
    finish::execute(program, reporter)
}

/// The container's variables, those of the exec instead or added, and what a terminal is expected to be.
fn environment(spec: &ExecSpec, launch: &LaunchSpec) -> Vec<(String, String)> {
    let is_set = |name: &str| spec.env.iter().any(|(other, _)| other == name);
    let kept = launch.env.iter().filter(|(name, _)| !is_set(name));
    let mut environment: Vec<_> = kept.chain(&spec.env).cloned().collect();
    if spec.tty && !environment.iter().any(|(name, _)| name == "TERM") {
        environment.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    environment
}
