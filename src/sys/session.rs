//! What ties a process to its surroundings: session, keyring, controlling terminal, namespaces, limits.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use libc::{c_int, c_long, rlimit64};

/// Namespaces to join or leave, as bits (namespaces(7)).
pub mod namespace {
    /// Mounts.
    pub const MOUNT: i32 = libc::CLONE_NEWNS;
    /// View of the cgroup tree.
    pub const CGROUP: i32 = libc::CLONE_NEWCGROUP;
    /// Process ids of children yet to be made.
    pub const PID: i32 = libc::CLONE_NEWPID;
    /// System V IPC and POSIX message queues.
    pub const IPC: i32 = libc::CLONE_NEWIPC;
    /// Network.
    pub const NET: i32 = libc::CLONE_NEWNET;
    /// Host name.
    pub const UTS: i32 = libc::CLONE_NEWUTS;
    /// Users, groups and capabilities.
    pub const USER: i32 = libc::CLONE_NEWUSER;
}

/// setns(2): joins the namespaces of the process behind a pidfd (or one namespace file). With
/// [`namespace::MOUNT`] root and working directory become the root of that namespace.
///
/// # Errors
/// ESRCH when the process has ended; EPERM without CAP_SYS_ADMIN (and CAP_SYS_CHROOT for mounts).
pub fn join(namespaces: BorrowedFd<'_>, kinds: i32) -> io::Result<()> {
    // SAFETY: integer arguments only.
    check(unsafe { libc::setns(namespaces.as_raw_fd(), kinds) })
}

/// unshare(2): new namespaces of these kinds.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOSPC beyond a limit of /proc/sys/user.
pub fn leave(kinds: i32) -> io::Result<()> {
    // SAFETY: integer arguments only; none of `namespace` touches memory or descriptors.
    check(unsafe { libc::unshare(kinds) })
}

/// setsid(2): a new session without a controlling terminal.
///
/// # Errors
/// EPERM for a process group leader.
pub fn start() -> io::Result<()> {
    // SAFETY: no arguments.
    check(unsafe { libc::setsid() })
}

/// A new, empty session keyring (keyctl_join_session_keyring(3)): keys of whoever started the agent are not ours.
///
/// # Errors
/// EDQUOT beyond /proc/sys/kernel/keys/root_maxkeys; ENOSYS in kernels without keys.
pub fn join_new_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<u8>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a terminal the controlling one of the session that the caller leads.
///
/// # Errors
/// EPERM when the caller leads no session or has a terminal.
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: integer arguments only.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })
}

/// Unlocks the terminal behind a master of /dev/ptmx and opens it, without looking anything up by name: it is the
/// instance of devpts that the master came from, whatever is mounted where by now.
///
/// # Errors
/// ENOTTY when it is no master; EIO when it has been closed.
pub fn open_terminal(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let unlocked: c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags by value.
    let terminal = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    check(terminal)?;
    // SAFETY: the kernel has just made it and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(terminal) })
}

/// A resource limit as (soft, hard).
///
/// # Errors
/// EINVAL for an unknown resource.
pub fn limit(resource: u32) -> io::Result<(u64, u64)> {
    // SAFETY: rlimit64 is two numbers for which zero is a value; the kernel writes it and it outlives the call.
    unsafe {
        let mut limit: rlimit64 = mem::zeroed();
        check(libc::prlimit64(0, resource, ptr::null(), &raw mut limit))?;
        Ok((limit.rlim_cur, limit.rlim_max))
    }
}

/// Sets a resource limit.
///
/// # Errors
/// EPERM when the hard limit would rise without CAP_SYS_RESOURCE; EINVAL when soft is above hard.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel only reads `limit`.
    check(unsafe { libc::prlimit64(0, resource, &raw const limit, ptr::null_mut()) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
