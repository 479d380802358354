//! Process 1 of a PID namespace that the containers of a pod share: it adopts, reaps, and is nothing else.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use nix::unistd::{Gid, Uid};

use super::user_namespace::{self, UserNamespace};
use crate::sys::{
    mount::{self, FileSystem, attribute},
    process::{self, Child},
    session, signal,
};

/// The user it runs as: nobody's, and what the upstream pause image uses.
const USER: u32 = 65_535;

/// Starts it, in new PID and mount namespaces and in the cgroup of the caller; with `users` these namespaces belong to
/// that user namespace, in which it is then. `directory` is any existing directory: an empty root is mounted on it, in the
/// new mount namespace only.
///
/// # Errors
/// clone3(2) failed. Trouble within the child ends it, which is seen like any other end of it.
pub fn start(directory: &Path, users: Option<&UserNamespace>) -> io::Result<Child> {
    let flags = process::flags::NEWPID | process::flags::NEWNS;
    let Some(users) = users else { return process::clone_running(flags, None, || run(directory)) };
    // In there the directory could not be reached by its path, whose upper parts are the host's root's alone.
    let prepare = |_: BorrowedFd<'_>| {
        let entered =
            session::join(users.as_fd(), session::namespace::USER).and_then(|()| user_namespace::become_root());
        entered.map_err(|error| {
            eprintln!("berth-pause: enter the user namespace: {error}");
            1
        })
    };
    let child = user_namespace::clone_by_helper(flags, None, prepare, |()| run(Path::new("/")))?;
    child.ok_or_else(|| io::Error::other("its helper could not enter the user namespace"))
}

fn run(directory: &Path) -> i32 {
    process::set_name(c"berth-pause");
    signal::restore_defaults();
    match confine(directory) {
        Ok(()) => rest(),
        Err(error) => {
            eprintln!("berth-pause: {error}");
            1
        }
    }
}

/// A container that may trace everybody would find the host's files under /proc/1/root, and could act with this
/// process's capabilities: so it has an empty root, no user and no capabilities.
fn confine(directory: &Path) -> io::Result<()> {
    mount::make_all_slave()?;
    let file_system = FileSystem::open(c"tmpfs")?;
    for (key, value) in [("source", "pause"), ("size", "4k"), ("nr_inodes", "2"), ("mode", "0555")] {
        file_system.option(key, value.as_ref())?;
    }
    let root = file_system.mount(attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC)?;
    mount::attach(root.as_fd(), mount::open_place(directory)?.as_fd())?;
    mount::enter_root(root.as_fd())?;
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(Gid::from_raw(USER), Gid::from_raw(USER), Gid::from_raw(USER))?;
    // From root to another user the kernel clears all capabilities, and forbids tracing.
    nix::unistd::setresuid(Uid::from_raw(USER), Uid::from_raw(USER), Uid::from_raw(USER))?;
    Ok(())
}

fn rest() -> i32 {
    // After the change of user, which would have cleared it.
    if process::set_parent_death_signal(libc::SIGKILL).is_err() {
        return 1;
    }
    // An ignored SIGCHLD makes the kernel reap whatever is adopted here.
    signal::ignore(libc::SIGCHLD);
    process::close_all_from(0);
    signal::wait_for_ever()
}
