//! Process 1 of a PID namespace that the containers of a pod share: it adopts, reaps, and is nothing else.

use std::{io, path::Path};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{Gid, Uid},
};

use crate::sys::{
    process::{self, Child},
    signal,
};

/// The user it runs as: nobody's, and what the upstream pause image uses.
const USER: u32 = 65_535;

/// Starts it, in new PID and mount namespaces and in the cgroup of the caller. `directory` is any existing directory:
/// an empty root is mounted on it, in the new mount namespace only.
///
/// # Errors
/// clone3(2) failed. Trouble within the child ends it, which is seen like any other end of it.
pub fn start(directory: &Path) -> io::Result<Child> {
    process::clone_running(process::flags::NEWPID | process::flags::NEWNS, None, || {
        process::set_name(c"berth-pause");
        signal::restore_defaults();
        match confine(directory) {
            Ok(()) => rest(),
            Err(error) => {
                eprintln!("berth-pause: {error}");
                1
            }
        }
    })
}

/// A container that may trace everybody would find the host's files under /proc/1/root, and could act with this
/// process's capabilities: so it has an empty root, no user and no capabilities.
fn confine(directory: &Path) -> nix::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("pause"), directory, Some("tmpfs"), flags, Some("size=4k,nr_inodes=2,mode=0555"))?;
    nix::unistd::chdir(directory)?;
    // Both at the same place: the old root ends up on top, and is taken off.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
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
