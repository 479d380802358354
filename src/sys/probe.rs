//! Which system calls the kernel has, found out by calling each in a way that cannot do anything.

use std::io;

use nix::errno::Errno;

/// A system call that old kernels lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Linux 5.3.
    Clone3,
    /// Linux 5.3.
    PidfdOpen,
    /// Linux 5.6.
    Openat2,
    /// Linux 5.2.
    MoveMount,
    /// Linux 5.9.
    CloseRange,
    /// Linux 5.12.
    MountSetattr,
}

/// Whether the kernel knows `call` (and no filter hides it).
///
/// # Errors
/// EPERM and the like, from a filter that forbids it.
pub fn has(call: Call) -> io::Result<bool> {
    let nothing = std::ptr::null::<u8>();
    // SAFETY: every call gets arguments that the kernel refuses before it does anything: descriptor -1, a null
    // pointer of size 0, flags that do not exist, or a range whose end lies before its beginning.
    let result = unsafe {
        match call {
            Call::Clone3 => libc::syscall(libc::SYS_clone3, nothing, 0),
            Call::PidfdOpen => libc::syscall(libc::SYS_pidfd_open, -1, 0),
            Call::Openat2 => libc::syscall(libc::SYS_openat2, -1, nothing, nothing, 0),
            Call::MoveMount => libc::syscall(libc::SYS_move_mount, -1, nothing, -1, nothing, u32::MAX),
            Call::CloseRange => libc::syscall(libc::SYS_close_range, u32::MAX, 0, 0),
            Call::MountSetattr => libc::syscall(libc::SYS_mount_setattr, -1, nothing, u32::MAX, nothing, 0),
        }
    };
    match Errno::result(result) {
        Err(Errno::ENOSYS) => Ok(false),
        // Container runtimes' filters answer EPERM for what they do not know.
        Err(error @ Errno::EPERM) => Err(error.into()),
        _ => Ok(true),
    }
}

/// Whether seccomp filters can be installed.
pub fn has_seccomp_filter() -> bool {
    const SECCOMP_GET_ACTION_AVAIL: u32 = 2;
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel only reads `action`, which outlives the call.
    unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_does_nothing_and_finds_what_every_supported_kernel_has() {
        for call in
            [Call::Clone3, Call::PidfdOpen, Call::Openat2, Call::MoveMount, Call::CloseRange, Call::MountSetattr]
        {
            assert!(has(call).unwrap(), "{call:?}");
        }
        assert!(has_seccomp_filter());
    }
}
