//! The first process of a container, from its birth to its program.

use std::{
    convert::Infallible,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{
    ChildStdio,
    command::Command,
    console, devices,
    error::{Failure, Step},
    finish::{self, Program},
    label::{self, Label},
    masks,
    mounts::{self, HostPart},
    rootfs,
    status::Reporter,
    target::{self, Missing},
    user::{self, Files},
};
use crate::{
    supervisor::spec::LaunchSpec,
    sys::{
        exec,
        mount::{self, attribute},
        session::{self, namespace},
    },
};

/// What a container is built from.
pub(super) struct Parts<'a> {
    /// Its root: a mount in its mount namespace.
    pub(super) root: OwnedFd,
    /// What each of its mounts needs from the host.
    pub(super) host: Vec<HostPart>,
    /// The null device, if anything is to be covered with it.
    pub(super) null: Option<OwnedFd>,
    /// The AppArmor profile of its program.
    pub(super) label: Option<Label<'a>>,
}

/// Runs in the child, which has its own mount namespace and is where it belongs among PID namespaces and in the
/// unified cgroup hierarchy. `console` is where the master of a terminal goes, `gate` what the program waits for.
pub(super) fn run(
    spec: &LaunchSpec,
    stdio: ChildStdio,
    (console, gate): (Option<OwnedFd>, Option<BorrowedFd<'_>>),
    reporter: &mut Reporter,
) -> Result<Infallible, Failure> {
    reporter.stage("clone");
    let keep: Vec<BorrowedFd<'_>> = console.iter().map(AsFd::as_fd).chain(gate).collect();
    finish::begin(spec, &spec.cgroup, stdio, &keep, reporter)?;
    finish::start_session()?;
    let label = label::open(spec)?;

    // The cgroups just joined become the roots of the container's view.
    if spec.new_cgroup_ns {
        session::leave(namespace::CGROUP).step(|| "unshare the cgroup namespace")?;
    }
    reporter.stage("cgroup");

    // All that is wanted from the host is opened through the host's root, while mounts still belong to the groups
    // that their propagation is to follow.
    let null = if spec.masked_paths.is_empty() { None } else { Some(masks::open_null()?) };
    let host = mounts::open_host_parts(spec, None)?;

    // From here on no mount of ours reaches the host.
    mount::make_all_slave().step(|| "make all mounts slaves")?;
    let root = rootfs::mount_overlay(&spec.rootfs)?;
    reporter.stage("rootfs");
    build(spec, Parts { root, host, null, label }, (console, gate), reporter)
}

/// From a root and what is to be mounted in it to the program.
pub(super) fn build(
    spec: &LaunchSpec,
    parts: Parts<'_>,
    (console, gate): (Option<OwnedFd>, Option<BorrowedFd<'_>>),
    reporter: &mut Reporter,
) -> Result<Infallible, Failure> {
    let Parts { root, host: host_parts, null, label } = parts;
    // In order; each may lie within an earlier one.
    for (mount, host_part) in spec.mounts.iter().zip(host_parts) {
        mounts::attach(root.as_fd(), mount, host_part)?;
    }
    let dev_is_ours = devices::are_ours(spec);
    if dev_is_ours {
        devices::populate(root.as_fd(), spec)?;
    }
    let terminal = match &console {
        Some(_) => Some(console::open(root.as_fd())?),
        None => None,
    };
    if let Some(terminal) = terminal.as_ref().filter(|_| dev_is_ours) {
        terminal.bind(root.as_fd())?;
    }

    // Made while the root can still be written to, and found while every link in the way is resolved inside it.
    let step = || format!("change to {}", spec.cwd.display());
    let directory = target::resolve_or_create(root.as_fd(), &spec.cwd, Missing::Directory).step(step)?;

    // After all mounts, so that none can uncover anything.
    if let Some(null) = &null {
        masks::hide(root.as_fd(), &spec.masked_paths, null.as_fd())?;
    }
    masks::protect(root.as_fd(), &spec.readonly_paths)?;
    if spec.rootfs.readonly {
        mount::set_attributes(root.as_fd(), false, attribute::RDONLY, None).step(|| "make the root read-only")?;
    }

    // The host's file systems are gone with this.
    rootfs::enter(root.as_fd(), &spec.rootfs)?;
    reporter.stage("mounts");

    let has_own_terminal = terminal.is_some();
    if let (Some(terminal), Some(socket)) = (terminal, &console) {
        terminal.take(socket.as_fd())?;
    }
    let files = Files::read(root.as_fd())?;
    let identity = user::identify(&spec.user, &files)?;
    let command = Command::new(&spec.args, &spec.env, &identity.home)?;
    reporter.stage("user");

    // All that does not depend on the network, or on records being durable, is done.
    if let Some(gate) = gate {
        exec::wait_for_byte(gate).step(|| "wait for the word to go")?;
    }

    let program = Program { spec, command, identity, directory: (directory, &spec.cwd), label, has_own_terminal };
    finish::execute(program, reporter)
}
