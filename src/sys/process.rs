//! Making processes: clone3(2), the spawn of a program from the multi-threaded agent, and what /proc says of one.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    ptr,
};

use libc::{c_char, c_int, c_long, c_uint, pid_t};

use super::signal;

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
    pub(super) const INTO_CGROUP: u64 = 0x2_0000_0000;
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
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
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

/// A program to be started by [`spawn`].
pub struct Program<'a> {
    /// The executable (a memfd will do).
    pub executable: BorrowedFd<'a>,
    /// Its arguments, `argv[0]` first.
    pub arguments: &'a [CString],
    /// Its whole environment, `NAME=value`.
    pub environment: &'a [CString],
    /// Descriptors 0, 1 and 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Directory of the unified hierarchy it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A program on its way to exec.
#[derive(Debug)]
pub struct Spawned {
    /// The process.
    pub child: Child,
    /// Read end of a pipe: closed without a word when exec succeeds, else the errno as four native-endian bytes.
    pub failure: OwnedFd,
}

/// Starts a program in a session of its own, from a process that may have other threads: the child makes a few raw
/// system calls and execs, and touches nothing that another thread could have left half-done. Only descriptors 0, 1
/// and 2 reach the program; its signals are all default and unblocked.
///
/// # Errors
/// pipe2(2) or clone3(2) failed. A failing exec is told through [`Spawned::failure`].
pub fn spawn(program: &Program<'_>) -> io::Result<Spawned> {
    let arguments = pointers(program.arguments);
    let environment = pointers(program.environment);
    let (failure, report) = pipe()?;
    let stdio = program.stdio.map(|descriptor| descriptor.as_raw_fd());
    let (executable, report_number) = (program.executable.as_raw_fd(), report.as_raw_fd());
    // A handler of ours must not run in the child: it would act on descriptors shared with us. Blocked from before the
    // clone, and the handlers are gone (CLEAR_SIGHAND) before the child unblocks.
    let blocked = signal::BlockAll::new();
    // SAFETY: the child calls `become_program` alone, which keeps to system calls on memory prepared above.
    let cloned = unsafe { clone3(flags::CLEAR_SIGHAND, program.cgroup) };
    if let Ok(Cloned::Child) = cloned {
        // SAFETY: `arguments` and `environment` are null-terminated arrays of pointers to the borrowed strings.
        unsafe { become_program(executable, arguments.as_ptr(), environment.as_ptr(), stdio, report_number) }
    }
    drop(blocked);
    match cloned? {
        Cloned::Parent(child) => Ok(Spawned { child, failure }),
        Cloned::Child => exit_now(127),
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// The child's side of [`spawn`]: system calls only, no allocation, no unwinding, no return.
///
/// # Safety
/// `arguments` and `environment` must be null-terminated arrays of C strings; runs in a new process only.
unsafe fn become_program(
    executable: c_int,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    stdio: [c_int; 3],
    report: c_int,
) -> ! {
    // SAFETY: system calls on plain numbers and on the caller's pointers, which the kernel only reads. The signal set
    // is initialised by sigemptyset before use.
    unsafe {
        'failed: {
            // Out of the way of 0..=2 first: a source may itself be one of them.
            let mut high = [-1; 3];
            for (slot, descriptor) in high.iter_mut().zip(stdio) {
                *slot = libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3);
                if *slot < 0 {
                    break 'failed;
                }
            }
            for (number, descriptor) in high.into_iter().enumerate() {
                if libc::dup2(descriptor, number as c_int) < 0 {
                    break 'failed;
                }
            }
            // All our descriptors are close-on-exec as it is; this also covers any that a library made otherwise.
            // Ignored where the kernel has no such call (before 5.11).
            let _ = libc::syscall(libc::SYS_close_range, 3 as c_uint, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            libc::setsid();
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::syscall(
                libc::SYS_execveat,
                executable as c_long,
                c"".as_ptr(),
                arguments,
                environment,
                libc::AT_EMPTY_PATH as c_long,
            );
        }
        let errno = *libc::__errno_location();
        libc::write(report, (&raw const errno).cast(), size_of::<c_int>());
        libc::_exit(127)
    }
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

/// Whether this process is the leader of its process group.
pub fn leads_its_group() -> bool {
    // SAFETY: no arguments; neither can fail.
    unsafe { libc::getpgrp() == libc::getpid() }
}

/// Whether anybody still holds the reading end of the pipe that `output` writes to.
pub fn is_heard(output: BorrowedFd<'_>) -> bool {
    let mut asked = libc::pollfd { fd: output.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one entry, which outlives the call; it does not wait.
    unsafe { libc::poll(&raw mut asked, 1, 0) };
    asked.revents & libc::POLLERR == 0
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

/// Bounds the heaps that the threads of this process share out among themselves (glibc: eight for each processor, each
/// keeping what its threads have freed). To be called before the first thread is started.
pub fn limit_heaps(count: u8) {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's under its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, count.into())
    };
}

/// Gives unused heap memory back to the kernel.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own lock and gives back pages that no allocation uses.
    unsafe {
        libc::malloc_trim(0)
    };
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
    use std::{fs::File, io::Read, os::fd::AsFd};

    use super::*;
    use crate::sys::pidfd::{self, Ended};

    #[test]
    fn the_start_time_survives_a_hostile_command_name() {
        let line = "42 (a) b) R 1 2) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3";
        assert_eq!(parse_start_time(line), Some(98765));
        assert_eq!(parse_start_time("42 (short) S 1"), None);
    }

    #[test]
    fn a_spawned_program_gets_its_arguments_and_streams() {
        let shell = File::open("/bin/sh").unwrap();
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let (output, writer) = pipe().unwrap();
        let arguments = [c"sh".to_owned(), c"-c".to_owned(), c"echo \"$1 $NAME\"; ls /proc/self/fd; exit 7".to_owned()]
            .into_iter()
            .chain([c"zero".to_owned(), c"one".to_owned()])
            .collect::<Vec<_>>();
        let program = Program {
            executable: shell.as_fd(),
            arguments: &arguments,
            environment: &[c"NAME=value".to_owned(), c"PATH=/bin:/usr/bin".to_owned()],
            stdio: [null.as_fd(), writer.as_fd(), null.as_fd()],
            cgroup: None,
        };
        let spawned = spawn(&program).unwrap();
        drop(writer);
        let mut failure = Vec::new();
        File::from(spawned.failure).read_to_end(&mut failure).unwrap();
        assert!(failure.is_empty());
        let mut text = String::new();
        File::from(output).read_to_string(&mut text).unwrap();
        // ls itself opens descriptor 3 to list the directory.
        assert_eq!(text, "one value\n0\n1\n2\n3\n");
        let exit = pidfd::wait(spawned.child.pidfd.as_fd(), true).unwrap().unwrap();
        assert_eq!((exit.pid, exit.ended), (spawned.child.pid, Ended::Exited(7)));
    }

    #[test]
    fn a_failing_exec_is_reported_with_its_errno() {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let program = Program {
            executable: null.as_fd(),
            arguments: &[c"nothing".to_owned()],
            environment: &[],
            stdio: [null.as_fd(); 3],
            cgroup: None,
        };
        let spawned = spawn(&program).unwrap();
        let mut failure = Vec::new();
        File::from(spawned.failure).read_to_end(&mut failure).unwrap();
        assert_eq!(failure, libc::EACCES.to_ne_bytes());
        let exit = pidfd::wait(spawned.child.pidfd.as_fd(), true).unwrap().unwrap();
        assert_eq!(exit.ended, Ended::Exited(127));
    }
}
