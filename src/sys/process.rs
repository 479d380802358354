//! Making processes with clone3(2), and what /proc says of one.

use std::{
    ffi::CStr,
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    ptr,
};

use libc::{c_int, c_uint, pid_t};

/// Flags of clone3(2), as its 64-bit field wants them (libc's constants are `c_int`, and the newer ones do not fit).
pub mod flags {
    /// New mount namespace.
    pub const NEWNS: u64 = libc::CLONE_NEWNS as u64;
    /// New PID namespace.
    pub const NEWPID: u64 = libc::CLONE_NEWPID as u64;
    /// New user namespace: made before all others of the same call, which then belong to it.
    pub const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
    /// New network namespace.
    pub const NEWNET: u64 = libc::CLONE_NEWNET as u64;
    /// New IPC namespace.
    pub const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
    /// New UTS namespace.
    pub const NEWUTS: u64 = libc::CLONE_NEWUTS as u64;
    /// New cgroup namespace.
    pub const NEWCGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// The child's parent is the caller's parent. No exit signal may be chosen with it.
    pub const PARENT: u64 = libc::CLONE_PARENT as u64;
    /// Signal handlers of the parent become the default action in the child (Linux 5.5).
    pub const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    /// Put the child into a cgroup of the unified hierarchy (Linux 5.7).
    pub(in crate::sys) const INTO_CGROUP: u64 = 0x2_0000_0000;
}

/// A child process and the descriptor that names it without doubt, also after it has ended.
#[derive(Debug)]
pub struct Child {
    /// Process id in the caller's PID namespace.
    pub pid: i32,
    /// Readable once the process has ended; close-on-exec.
    pub pidfd: OwnedFd,
}

/// The two returns of [`clone3`].
#[derive(Debug)]
pub enum Cloned {
    /// In the caller.
    Parent(Child),
    /// In the new process.
    Child,
}

/// `struct clone_args` of linux/sched.h, up to and including `cgroup` (CLONE_ARGS_SIZE_VER2).
#[repr(C, align(8))]
#[derive(Default)]
pub(super) struct CloneArgs {
    pub(super) flags: u64,
    pub(super) pidfd: u64,
    pub(super) child_tid: u64,
    pub(super) parent_tid: u64,
    pub(super) exit_signal: u64,
    pub(super) stack: u64,
    pub(super) stack_size: u64,
    pub(super) tls: u64,
    pub(super) set_tid: u64,
    pub(super) set_tid_size: u64,
    pub(super) cgroup: u64,
}

/// clone3(2) with the semantics of fork: the child continues on a copy of the caller's memory. `flags` are those of
/// [`flags`], CLONE_PIDFD is always added; `cgroup` is an open directory of the unified hierarchy to be born in.
/// SIGCHLD is the exit signal unless CLONE_PARENT forbids one.
///
/// # Errors
/// As clone3(2): EPERM without CAP_SYS_ADMIN for namespaces, EBUSY or EOPNOTSUPP for a cgroup that takes no processes.
///
/// # Safety
/// In the child only the calling thread exists, and locks held by others stay locked for ever. Where the caller has
/// other threads, the child must call nothing but async-signal-safe functions (signal-safety(7)) until it execs or
/// `_exit`s. `flags` must not contain CLONE_VM, CLONE_SETTLS or CLONE_THREAD.
pub unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: c_int = -1;
    let mut arguments = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        exit_signal: if flags & flags::PARENT == 0 { libc::SIGCHLD as u64 } else { 0 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= flags::INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `arguments` is laid out as the kernel's structure and its size is passed along; the kernel writes only
    // `pidfd`, which outlives the call. Without a new stack the child returns here on its own copy of this one.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        // SAFETY: the kernel has just made this descriptor for us and nothing else knows its number.
        pid => Ok(Cloned::Parent(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })),
    }
}

/// Runs `body` in a child process made by [`clone3`], which ends with the exit code `body` returns. The caller must
/// be single-threaded, so that the child may run ordinary code.
///
/// # Errors
/// Those of [`clone3`]; EDEADLK when the caller has more than one thread.
pub fn clone_running(flags: u64, cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce() -> i32) -> io::Result<Child> {
    // The link count of the task directory is the number of threads plus two. Test harnesses are always threaded;
    // there the tests' bodies keep to what is safe.
    if !cfg!(test) && fs::metadata("/proc/self/task")?.nlink() > 3 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    // SAFETY: there is no other thread, so no lock can be held by one, and the child may do all that the caller may.
    match unsafe { clone3(flags, cgroup) }? {
        Cloned::Parent(child) => Ok(child),
        Cloned::Child => {
            // A panic must not unwind into the copy of the caller's frames: that would be a second supervisor.
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(127);
            exit_now(code)
        }
    }
}

/// `_exit(2)`: no destructors, no atexit handlers, no flushing of buffers copied from the parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing runs afterwards.
    unsafe { libc::_exit(code) }
}

/// pipe2(2), close-on-exec: the read end, then the write end.
///
/// # Errors
/// EMFILE or ENFILE.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// Sets the name of the calling thread, as `ps` shows it (at most 15 bytes are kept).
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel copies at most 16 bytes of a null-terminated string. It cannot fail.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Asks for `signal` when the parent dies (PR_SET_PDEATHSIG). The setting is lost when the user ids change and when
/// a set-user-ID program is executed. The parent may already be gone: compare getppid(2) afterwards.
///
/// # Errors
/// EINVAL for a number that is no signal.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    // SAFETY: integer arguments only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) })
}

/// Orphans among the descendants of this process become its children (PR_SET_CHILD_SUBREAPER), as far as they are in its
/// PID namespace. Not inherited by children.
///
/// # Errors
/// None in practice.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: integer arguments only.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) })
}

/// Forbids or allows that others of the same user trace this process or read its memory (PR_SET_DUMPABLE).
///
/// # Errors
/// None in practice.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    // SAFETY: integer arguments only.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, c_int::from(dumpable)) })
}

/// Closes every descriptor from `first` up. Errors (a kernel before 5.9) are ignored: there is nobody to tell.
pub fn close_all_from(first: u32) {
    // SAFETY: the caller gives up every descriptor it has; used in a child that will own none.
    unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, 0 as c_uint) };
}

/// Sends `signal` to a process group.
///
/// # Errors
/// ESRCH when no process is in it.
pub fn kill_group(group: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integer arguments only.
    check(unsafe { libc::killpg(group as pid_t, signal) })
}

/// Sends `signal` to a process by number: only for numbers just read from a cgroup, where no pidfd can be had sooner.
///
/// # Errors
/// ESRCH when it has ended.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integer arguments only.
    check(unsafe { libc::kill(pid as pid_t, signal) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// When a process started: field 22 of /proc/PID/stat, in clock ticks since boot. With the pid it names a process
/// for as long as the machine runs.
///
/// # Errors
/// NotFound when there is no such process; InvalidData when the line cannot be understood.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat")))
}

/// Field 22; the fields are counted from the last `)`, as the command name in field 2 may hold anything.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_survives_a_hostile_command_name() {
        let line = "42 (a) b) R 1 2) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3";
        assert_eq!(parse_start_time(line), Some(98765));
        assert_eq!(parse_start_time("42 (short) S 1"), None);
    }
}
