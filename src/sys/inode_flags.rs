//! Inode attributes as chattr(1) shows them (ioctl_iflags(2)).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

mod ioctl {
    nix::ioctl_read!(get, b'f', 1, libc::c_long);
    nix::ioctl_write_ptr!(set, b'f', 2, libc::c_long);
}

/// FS_IMMUTABLE_FL and FS_APPEND_FL: the file cannot be removed, nor anything from the directory.
const LOCKED: libc::c_int = 0x10 | 0x20;

/// Takes the immutable and the append-only attribute from an open file or directory. Ok(false) when it has neither.
/// Needs CAP_LINUX_IMMUTABLE.
pub fn unlock(file: impl AsFd) -> Result<bool, Errno> {
    let descriptor = file.as_fd().as_raw_fd();
    // The number of the call says long, but the kernel reads and writes an int: start from 0 and use the low half.
    let mut flags: libc::c_long = 0;
    // SAFETY: `descriptor` is open for the whole call and `flags` is large enough for what the kernel writes.
    unsafe { ioctl::get(descriptor, (&raw mut flags).cast()) }?;
    let now = flags as libc::c_int;
    if now & LOCKED == 0 {
        return Ok(false);
    }
    let wanted = libc::c_long::from(now & !LOCKED);
    // SAFETY: as above; the kernel only reads `wanted`.
    unsafe { ioctl::set(descriptor, &raw const wanted) }?;
    Ok(true)
}
