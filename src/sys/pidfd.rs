//! Processes by descriptor: no signal and no wait can hit a stranger that was given a used process id.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use libc::{c_int, c_long};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It called exit with this code (0-255).
    Exited(i32),
    /// This signal ended it (real-time signals included).
    Signaled(i32),
}

impl Ended {
    /// The code a shell would show: 128 + signal number for a signal.
    pub fn code(self) -> i32 {
        match self {
            Ended::Exited(code) => code,
            Ended::Signaled(signal) => 128 + signal,
        }
    }

    /// The signal, if one ended it.
    pub fn signal(self) -> Option<i32> {
        match self {
            Ended::Exited(_) => None,
            Ended::Signaled(signal) => Some(signal),
        }
    }
}

/// A child that has been reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its process id, free for reuse from now on.
    pub pid: i32,
    /// How it ended.
    pub ended: Ended,
}

/// pidfd_open(2); close-on-exec.
///
/// # Errors
/// ESRCH when there is no such process.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: integer arguments only.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as c_long, 0 as c_long) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as c_int) })
}

/// The number of the process behind a pidfd, in the PID namespace of /proc.
///
/// # Errors
/// NotFound once it has been reaped.
pub fn number(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    line.and_then(|pid| pid.trim().parse().ok()).filter(|pid| *pid > 0).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// pidfd_send_signal(2).
///
/// # Errors
/// ESRCH when the process has ended and been reaped; EPERM.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is given; the other arguments are integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd() as c_long,
            signal as c_long,
            ptr::null::<libc::siginfo_t>(),
            0 as c_long,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reaps the child behind `pidfd`. With `block` it waits for the end; otherwise `None` means that the child still runs.
///
/// # Errors
/// ECHILD when it is not (or no longer) a child of ours.
pub fn wait(pidfd: BorrowedFd<'_>, block: bool) -> io::Result<Option<Exit>> {
    wait_id(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, block)
}

/// Reaps any child that has ended, without waiting. `None`: none has.
///
/// # Errors
/// ECHILD when there are no children at all.
pub fn wait_any() -> io::Result<Option<Exit>> {
    wait_id(libc::P_ALL, 0, false)
}

/// Reaps any child, and waits for one to end.
///
/// # Errors
/// ECHILD when there are no children at all.
pub fn wait_next() -> io::Result<Exit> {
    // Without WNOHANG there is always one.
    wait_id(libc::P_ALL, 0, true)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
}

fn wait_id(kind: libc::idtype_t, id: libc::id_t, block: bool) -> io::Result<Option<Exit>> {
    let options = libc::WEXITED | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: siginfo_t is plain data for which zero is a value; the kernel writes it, and it outlives the call.
        let (result, info) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            (libc::waitid(kind, id, &raw mut info, options), info)
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        // SAFETY: waitid fills in the SIGCHLD member of the union, or leaves the zeroes when no child has ended.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return Ok(None);
        }
        let ended = if info.si_code == libc::CLD_EXITED { Ended::Exited(status) } else { Ended::Signaled(status) };
        return Ok(Some(Exit { pid, ended }));
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd, process::Command};

    use super::*;

    #[test]
    #[expect(clippy::zombie_processes, reason = "reaped by the function under test")]
    fn a_signal_reaches_the_process_and_is_seen_in_its_end() {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = open(child.id() as i32).unwrap();
        assert_eq!(wait(pidfd.as_fd(), false).unwrap(), None);
        assert_eq!(number(pidfd.as_fd()).unwrap(), child.id() as i32);
        // A real-time signal: beyond what nix's `Signal` can name.
        send_signal(pidfd.as_fd(), libc::SIGRTMIN() + 3).unwrap();
        let exit = wait(pidfd.as_fd(), true).unwrap().unwrap();
        assert_eq!(exit, Exit { pid: child.id() as i32, ended: Ended::Signaled(libc::SIGRTMIN() + 3) });
        assert_eq!(exit.ended.code(), 128 + libc::SIGRTMIN() + 3);
        assert_eq!(send_signal(pidfd.as_fd(), 0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(number(pidfd.as_fd()).is_err());
    }
}
