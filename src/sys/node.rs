//! Files of all kinds, made and examined relative to an open directory.

use std::{
    ffi::{CStr, OsString},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
};

use libc::{c_int, dev_t};
use nix::{
    NixPath,
    fcntl::AtFlags,
    sys::stat::{Mode, SFlag},
    unistd::{Gid, Uid},
};

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Directory.
    Directory,
    /// Regular file.
    Regular,
    /// Symbolic link.
    Link,
    /// Character device.
    CharacterDevice,
    /// Block device.
    BlockDevice,
    /// Pipe, named or not.
    Fifo,
    /// Socket.
    Socket,
}

/// What fstat(2) says of a file, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, set-user-ID, set-group-ID and sticky bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Major and minor number of the device that this node stands for; zeroes for other files.
    pub device: (u32, u32),
}

/// fstat(2).
///
/// # Errors
/// EBADF.
pub fn status(file: BorrowedFd<'_>) -> io::Result<Status> {
    Ok(nix::sys::stat::fstat(file)?.into())
}

/// fstatat(2) of `name` in `directory`, itself when it is a symbolic link.
///
/// # Errors
/// ENOENT and the like.
pub fn status_at(directory: BorrowedFd<'_>, name: &Path) -> io::Result<Status> {
    Ok(nix::sys::stat::fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.into())
}

impl From<libc::stat> for Status {
    fn from(stat: libc::stat) -> Status {
        Status {
            kind: match stat.st_mode & libc::S_IFMT {
                libc::S_IFDIR => Kind::Directory,
                libc::S_IFLNK => Kind::Link,
                libc::S_IFCHR => Kind::CharacterDevice,
                libc::S_IFBLK => Kind::BlockDevice,
                libc::S_IFIFO => Kind::Fifo,
                libc::S_IFSOCK => Kind::Socket,
                _ => Kind::Regular,
            },
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            device: (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)),
        }
    }
}

/// Whether a file lies on procfs.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_on_proc(file: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(nix::sys::statfs::fstatfs(file)?.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

/// Whether a file lies on a devpts instance.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_on_devpts(file: BorrowedFd<'_>) -> io::Result<bool> {
    const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
    Ok(nix::sys::statfs::fstatfs(file)?.filesystem_type().0 as i64 == DEVPTS_SUPER_MAGIC)
}

/// Whether `path` is the root of a mount. `None` when the kernel does not tell (before Linux 5.8).
///
/// # Errors
/// Those of statx(2).
pub fn is_mount_root(path: &Path) -> io::Result<Option<bool>> {
    let status = path.with_nix_path(|path| extended_status(libc::AT_FDCWD, path, 0))??;
    let root = libc::STATX_ATTR_MOUNT_ROOT as u64;
    Ok((status.stx_attributes_mask & root != 0).then_some(status.stx_attributes & root != 0))
}

/// The number of the mount that a file is in, as in the first column of /proc/self/mountinfo.
///
/// # Errors
/// Unsupported before Linux 5.8.
pub fn mount_id(file: BorrowedFd<'_>) -> io::Result<u64> {
    let status = extended_status(file.as_raw_fd(), c"", libc::STATX_MNT_ID)?;
    if status.stx_mask & libc::STATX_MNT_ID == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(status.stx_mnt_id)
}

/// What a file takes on disk, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the blocks it has.
    pub bytes: u64,
    /// It is a directory.
    pub is_directory: bool,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// How many names it has.
    pub links: u32,
    /// Number of the inode.
    pub inode: u64,
    /// Major and minor number of the device that the file system is on.
    pub device: (u32, u32),
    /// Number of the mount; 0 before Linux 5.8.
    pub mount: u64,
}

/// What `name` in `directory` takes (an empty name: `directory` itself), without following a link. A server that would
/// have to be asked is not: what is known of the file has to do.
///
/// # Errors
/// Those of statx(2).
pub fn extent(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Extent> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_DONT_SYNC;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    let status = statx(directory.as_raw_fd(), name, flags, mask)?;
    Ok(Extent {
        bytes: status.stx_blocks * 512,
        is_directory: u32::from(status.stx_mode) & libc::S_IFMT == libc::S_IFDIR,
        mode: status.stx_mode.into(),
        links: status.stx_nlink,
        inode: status.stx_ino,
        device: (status.stx_dev_major, status.stx_dev_minor),
        mount: if status.stx_mask & libc::STATX_MNT_ID != 0 { status.stx_mnt_id } else { 0 },
    })
}

/// statx(2) of `path`, or of `directory` itself when that is empty.
fn extended_status(directory: c_int, path: &CStr, mask: u32) -> io::Result<libc::statx> {
    statx(directory, path, 0, mask)
}

fn statx(directory: c_int, path: &CStr, flags: c_int, mask: u32) -> io::Result<libc::statx> {
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    let flags = flags | libc::AT_NO_AUTOMOUNT | libc::AT_EMPTY_PATH;
    // SAFETY: `path` is a C string; the kernel writes only `status`, which is big enough and outlives the call.
    if unsafe { libc::statx(directory, path.as_ptr(), flags, mask, status.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zero is a value for every field, and statx has filled in what it knows.
    Ok(unsafe { status.assume_init() })
}

/// mkdirat(2); `mode` is subject to the umask.
///
/// # Errors
/// Those of mkdir(2).
pub fn make_directory(directory: BorrowedFd<'_>, name: &Path, mode: u32) -> io::Result<()> {
    Ok(nix::sys::stat::mkdirat(directory, name, Mode::from_bits_truncate(mode))?)
}

/// mknodat(2) for a device; `mode` is subject to the umask.
///
/// # Errors
/// EPERM without CAP_MKNOD or where the cgroup's device rules forbid it.
pub fn make_device(
    directory: BorrowedFd<'_>,
    name: &Path,
    block: bool,
    mode: u32,
    (major, minor): (u32, u32),
) -> io::Result<()> {
    let kind = if block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
    let device: dev_t = libc::makedev(major, minor);
    Ok(nix::sys::stat::mknodat(directory, name, kind, Mode::from_bits_truncate(mode), device)?)
}

/// symlinkat(2): `name` in `directory` points to `destination`.
///
/// # Errors
/// Those of symlink(2).
pub fn make_link(destination: &Path, directory: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    Ok(nix::unistd::symlinkat(destination, directory, name)?)
}

/// readlinkat(2).
///
/// # Errors
/// EINVAL when it is no link, ENOENT when there is nothing.
pub fn read_link(directory: BorrowedFd<'_>, name: &Path) -> io::Result<OsString> {
    Ok(nix::fcntl::readlinkat(directory, name)?)
}

/// fchownat(2) without following a link; `None` leaves that id.
///
/// # Errors
/// Those of chown(2).
pub fn change_owner_at(directory: BorrowedFd<'_>, name: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    Ok(nix::unistd::fchownat(directory, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// fchown(2); `None` leaves that id.
///
/// # Errors
/// Those of chown(2).
pub fn change_owner(file: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    Ok(nix::unistd::fchown(file, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?)
}

/// fchmod(2), which the umask does not touch.
///
/// # Errors
/// Those of chmod(2).
pub fn change_mode(file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    Ok(nix::sys::stat::fchmod(file, Mode::from_bits_truncate(mode))?)
}

/// Sets the file mode creation mask of the process.
pub fn set_umask(mask: u32) {
    nix::sys::stat::umask(Mode::from_bits_truncate(mask));
}

/// fchdir(2).
///
/// # Errors
/// ENOTDIR, EACCES.
pub fn change_directory(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: integer argument only.
    if unsafe { libc::fchdir(directory.as_raw_fd()) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the working directory can be reached from the process's root. getcwd(2) of one that cannot yields a path
/// that does not begin with a slash, which the C library reports as ENOENT.
pub fn is_inside_root() -> bool {
    nix::unistd::getcwd().is_ok_and(|path| path.is_absolute())
}

/// Major and minor number of a device as `st_rdev` has it.
pub fn device_number(device: u64) -> (u32, u32) {
    (libc::major(device), libc::minor(device))
}
