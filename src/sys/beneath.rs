//! Opening things beneath a directory that somebody else filled, and the extended attributes nix has no call for.

use std::{
    ffi::CStr,
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

/// Opens `path` as if `root` were `/` (openat2(2), RESOLVE_IN_ROOT): absolute and relative symbolic links and `..`
/// stay beneath `root`, mount points and magic links are not crossed. `O_CLOEXEC` is added to `flags`.
///
/// ENOSYS before Linux 5.6.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    open_with(root, path, flags, ResolveFlag::RESOLVE_IN_ROOT)
}

/// Like [`open_in_root`], but a symbolic link anywhere in `path` is an error (ELOOP).
pub fn open_in_root_without_links(root: impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    open_with(root, path, flags, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS)
}

fn open_with(root: impl AsFd, path: &Path, flags: OFlag, resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV);
    // EAGAIN: a rename elsewhere on the system made the kernel unsure that `..` stayed inside. Asking again is the
    // documented answer; the bound only stops a rename storm from holding us for ever.
    let mut last = Errno::EAGAIN;
    for _ in 0..64 {
        match openat2(root.as_fd(), path, how) {
            Err(error @ (Errno::EAGAIN | Errno::EINTR)) => last = error,
            other => return other,
        }
    }
    Err(last)
}

/// Sets an extended attribute on an open file or directory (fsetxattr(2)); `fd` must not be `O_PATH`.
pub fn set_xattr(fd: impl AsFd, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: `name` is NUL-terminated and `value` is readable for the length given; both outlive the call and the
    // kernel only reads them.
    let result =
        unsafe { libc::fsetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(result).map(drop)
}

/// Reads an extended attribute of at most `limit` bytes (fgetxattr(2)); `None` when it is not set.
pub fn get_xattr(fd: impl AsFd, name: &CStr, limit: usize) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = vec![0u8; limit];
    // SAFETY: `name` is NUL-terminated, `value` is writable for `limit` bytes, and the kernel writes at most that.
    let length =
        unsafe { libc::fgetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match Errno::result(length) {
        Ok(length) => {
            value.truncate(length as usize);
            Ok(Some(value))
        }
        Err(Errno::ENODATA) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a directory by path, for use as a `root` above.
pub fn open_directory(path: &Path) -> std::io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC).open(path)?;
    Ok(file.into())
}
