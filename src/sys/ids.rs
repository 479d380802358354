//! User and group ids of the calling process. The raw calls change one thread: only for single-threaded processes.

use std::io;

use libc::{c_long, gid_t};

/// setgroups(2): the supplementary groups, exactly these.
///
/// # Errors
/// EPERM without CAP_SETGID, EINVAL for more than 65536.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and length describe `groups`, which the kernel copies; gid_t is u32.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len() as c_long, groups.as_ptr().cast::<gid_t>()) })
}

/// setresgid(2): real, effective and saved group id.
///
/// # Errors
/// EPERM without CAP_SETGID.
pub fn set_group(gid: u32) -> io::Result<()> {
    // SAFETY: integer arguments only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })
}

/// setresuid(2): real, effective and saved user id.
///
/// # Errors
/// EPERM without CAP_SETUID; EAGAIN beyond RLIMIT_NPROC in some kernels.
pub fn set_user(uid: u32) -> io::Result<()> {
    // SAFETY: integer arguments only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
}

/// setfsuid(2) and setfsgid(2): as whom files are made and opened. Effective capabilities over files go when the user was
/// root before; the permitted ones stay.
///
/// # Errors
/// InvalidInput when an id is none of the user namespace's.
pub fn set_file_system_ids(uid: u32, gid: u32) -> io::Result<()> {
    for (call, id) in [(libc::SYS_setfsgid, gid), (libc::SYS_setfsuid, uid)] {
        // SAFETY: integer arguments only. The calls return the id before; asked again, they tell the present one.
        let now = unsafe {
            libc::syscall(call, id);
            libc::syscall(call, id)
        };
        if now as u32 != id {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    Ok(())
}

fn check(result: c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
