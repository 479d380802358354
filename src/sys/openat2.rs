//! openat2(2): path look-up that cannot be led out of a directory, whatever the links and renames beneath it.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

use libc::{c_int, c_long, open_how};
use nix::NixPath;

/// How a path is walked (`RESOLVE_*` of linux/openat2.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The directory is the root: absolute links and `..` stay inside, as after chroot(2). Links of /proc that jump
    /// (`/proc/self/fd/3`, `/proc/1/root`) are refused with ELOOP.
    InRoot,
    /// Whatever would leave the directory is refused with EXDEV; links of /proc that jump with ELOOP.
    Beneath,
    /// As [`Scope::Beneath`], and no component may be a symbolic link: ELOOP.
    NoLinks,
    /// Absolute paths and links are followed as usual, except for the links of /proc that jump: ELOOP.
    NoMagicLinks,
}

impl Scope {
    fn flags(self) -> u64 {
        match self {
            Scope::InRoot => libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
            Scope::Beneath => libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS,
            Scope::NoLinks => libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS,
            Scope::NoMagicLinks => libc::RESOLVE_NO_MAGICLINKS,
        }
    }
}

/// What a place is opened for: flags of open(2), close-on-exec being added.
pub mod purpose {
    /// A handle that reads and writes nothing and does not touch the file: for mounting, fstat(2), `*at` calls.
    pub const PLACE: i32 = libc::O_PATH;
    /// The same, of a directory.
    pub const DIRECTORY: i32 = libc::O_PATH | libc::O_DIRECTORY;
    /// Reading; a FIFO does not block.
    pub const READ: i32 = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    /// Writing.
    pub const WRITE: i32 = libc::O_WRONLY;
    /// A terminal, without making it the controlling one.
    pub const TERMINAL: i32 = libc::O_RDWR | libc::O_NOCTTY;
    /// A file that must not exist yet.
    pub const NEW_FILE: i32 = libc::O_RDONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
}

/// How often a look-up is repeated that raced with renames elsewhere in the tree (EAGAIN with `..` in a path, see
/// openat2(2)). Each try fails only if yet another rename happened meanwhile, so a storm of them ends in the error.
const RACES: usize = 128;

/// Opens `path` relative to `directory`; `flags` are those of [`purpose`], `mode` counts only for a new file
/// and is subject to the umask.
///
/// # Errors
/// Those of open(2), and per [`Scope`]; EAGAIN when renames kept interfering; ENOSYS before Linux 5.6.
pub fn openat2(directory: BorrowedFd<'_>, path: &Path, flags: c_int, mode: u32, scope: Scope) -> io::Result<OwnedFd> {
    // SAFETY: `open_how` is plain numbers, for which zero is a value; it may not be built by name (non-exhaustive).
    let mut how: open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = scope.flags();
    let mut left = RACES;
    loop {
        let descriptor = path.with_nix_path(|path| {
            // SAFETY: `path` is a C string and `how` a structure of the size passed; the kernel only reads them.
            unsafe {
                libc::syscall(
                    libc::SYS_openat2,
                    directory.as_raw_fd() as c_long,
                    path.as_ptr(),
                    &raw const how,
                    size_of::<open_how>(),
                )
            }
        })?;
        if descriptor >= 0 {
            // SAFETY: the kernel has just made it and nothing else knows its number.
            return Ok(unsafe { OwnedFd::from_raw_fd(descriptor as c_int) });
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) if left > 0 => left -= 1,
            _ => return Err(error),
        }
    }
}

/// Opens a place if everything on the way to it is in the kernel's memory: no disk and no server is asked (Linux 5.12).
/// `None`: that is not so, or not known.
pub fn open_remembered(path: &Path) -> Option<OwnedFd> {
    // SAFETY: `open_how` is plain numbers, for which zero is a value; it may not be built by name (non-exhaustive).
    let mut how: open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_CACHED | libc::RESOLVE_NO_MAGICLINKS;
    let descriptor = path.with_nix_path(|path| {
        // SAFETY: `path` is a C string and `how` a structure of the size passed; the kernel only reads them.
        unsafe {
            let here = libc::AT_FDCWD as c_long;
            libc::syscall(libc::SYS_openat2, here, path.as_ptr(), &raw const how, size_of::<open_how>())
        }
    });
    // SAFETY: the kernel has just made it and nothing else knows its number.
    descriptor.ok().filter(|number| *number >= 0).map(|number| unsafe { OwnedFd::from_raw_fd(number as c_int) })
}

/// Whether a look-up failed because of a link: one that is not allowed here, or too many of them (ELOOP).
pub fn is_link_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ELOOP)
}

/// The path by which a descriptor of this process can be given to a system call that only takes names. Needs /proc.
pub fn name_of(descriptor: BorrowedFd<'_>) -> OsString {
    OsString::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::{fs, fs::File, os::fd::AsFd, os::unix::fs::symlink};

    use super::*;

    fn open(root: &File, path: &str, scope: Scope) -> Result<OwnedFd, Option<c_int>> {
        openat2(root.as_fd(), Path::new(path), libc::O_PATH, 0, scope).map_err(|error| error.raw_os_error())
    }

    #[test]
    fn links_stay_inside_or_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        symlink("/etc", directory.path().join("absolute")).unwrap();
        symlink("../../../etc", directory.path().join("upwards")).unwrap();
        symlink("/proc/self/root", directory.path().join("magic")).unwrap();
        let root = File::open(directory.path()).unwrap();

        for path in ["etc", "absolute", "upwards", "/../etc", "absolute/../upwards"] {
            open(&root, path, Scope::InRoot).unwrap();
        }
        assert_eq!(open(&root, "magic", Scope::InRoot).unwrap_err(), Some(libc::ENOENT), "there is no /proc inside");
        assert_eq!(open(&root, "absolute", Scope::Beneath).unwrap_err(), Some(libc::EXDEV));
        assert_eq!(open(&root, "upwards", Scope::Beneath).unwrap_err(), Some(libc::EXDEV));
        assert_eq!(open(&root, "absolute", Scope::NoLinks).unwrap_err(), Some(libc::ELOOP));
        open(&root, "etc", Scope::NoLinks).unwrap();
        assert_eq!(open(&root, "/proc/self/fd/0", Scope::NoMagicLinks).unwrap_err(), Some(libc::ELOOP));
        assert_eq!(open(&root, "/proc/self/root", Scope::NoMagicLinks).unwrap_err(), Some(libc::ELOOP));
    }
}
