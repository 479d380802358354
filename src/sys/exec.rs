//! The last steps of a process before it becomes another program: descriptors, signals, execve(2).

use std::{
    ffi::{CStr, CString, c_char},
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use libc::{c_int, c_long, c_uint};

/// A null-terminated array of C strings, as execve(2) wants its arguments.
pub struct Strings {
    pointers: Vec<*const c_char>,
    /// What the pointers point to: heap blocks that do not move with this structure.
    strings: Vec<CString>,
}

impl Strings {
    /// Takes the strings as they are.
    pub fn new(strings: Vec<CString>) -> Strings {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Strings { pointers, strings }
    }

    /// The strings.
    pub fn as_slice(&self) -> &[CString] {
        &self.strings
    }
}

/// execve(2). Returns only when it fails.
pub fn execve(path: &CStr, arguments: &Strings, environment: &Strings) -> io::Error {
    // SAFETY: both arrays are null-terminated and point to C strings that live as long as they do.
    unsafe { libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Waits until somebody writes a byte into the pipe.
///
/// # Errors
/// Those of read(2); UnexpectedEof when all writers have closed it without a byte.
pub fn wait_for_byte(pipe: BorrowedFd<'_>) -> io::Result<()> {
    let mut byte = [0];
    loop {
        match nix::unistd::read(pipe, &mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes these the standard descriptors 0, 1 and 2, whatever numbers they have now.
///
/// # Errors
/// Those of dup(2).
pub fn set_standard_streams(streams: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    // Out of the way of 0..=2 first: a source may itself be one of them.
    let mut high = [-1; 3];
    for (slot, stream) in high.iter_mut().zip(streams) {
        // SAFETY: integer arguments only; the copy is used and closed below.
        *slot = check(unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) })?;
    }
    for (number, descriptor) in high.into_iter().enumerate() {
        // SAFETY: the standard descriptors are nobody's property, and the copy is ours and closed once.
        unsafe {
            check(libc::dup2(descriptor, number as c_int))?;
            libc::close(descriptor);
        }
    }
    Ok(())
}

/// Closes every descriptor except 0, 1, 2 and `keep`. For a child process that has just been made: the owners of the
/// others, in the memory copied from the parent, must never be used or dropped there.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|descriptor| descriptor.as_raw_fd() as u32).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for number in keep {
        if number > first {
            close_range(first, number - 1, 0)?;
        }
        first = number + 1;
    }
    close_range(first, c_uint::MAX, 0)
}

/// Every descriptor from 3 up closes at execve.
///
/// # Errors
/// ENOSYS before Linux 5.9, EINVAL before 5.11.
pub fn close_others_on_exec() -> io::Result<()> {
    close_range(3, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> io::Result<()> {
    // SAFETY: integer arguments; the callers are in a child process that owns what it closes.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the other end of a pipe is gone (for a write end: there is no reader any more).
///
/// # Errors
/// Those of poll(2).
pub fn is_broken(pipe: BorrowedFd<'_>) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    check(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
    Ok(poll.revents & (libc::POLLERR | libc::POLLHUP) != 0)
}

/// Default action for every signal and an empty mask, as a new program expects: an ignored signal and the mask would
/// outlive execve. The two that the C library keeps for itself (32 and 33) are among them, which it would refuse.
pub fn reset_signals() {
    // `struct sigaction` as the kernel has it (handler, flags, restorer, mask), all zero: SIG_DFL and nothing else.
    let default_action = [0_u64; 4];
    let no_signals = 0_u64;
    // SAFETY: the kernel reads structures of the size it is told, from memory that outlives the calls. It refuses
    // SIGKILL and SIGSTOP without effect. No handler can run any more.
    unsafe {
        for signal in 1..=64 as c_long {
            let nowhere = ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default_action.as_ptr(), nowhere, size_of::<u64>());
        }
        let how = libc::SIG_SETMASK as c_long;
        libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const no_signals, ptr::null_mut::<u64>(), size_of::<u64>());
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
