//! Mounts by descriptor (Linux 5.2, mount_setattr 5.12): a mount is made detached, given its flags, and only then put
//! in place, so that it is never seen half-made and its place is never looked up twice.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::File,
    io,
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    ptr,
};

use libc::{c_int, c_long, c_uint};
use nix::{
    NixPath,
    mount::{MntFlags, MsFlags},
};

// linux/mount.h; not in libc.
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: c_uint = 0x40;

/// Flags of a mount (`MOUNT_ATTR_*` of linux/mount.h), to be or-ed together.
pub mod attribute {
    /// Read-only.
    pub const RDONLY: u64 = 0x01;
    /// set-user-ID bits and file capabilities count for nothing.
    pub const NOSUID: u64 = 0x02;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = 0x04;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x08;
}

/// The longest string that fsconfig(2) takes as a value, without the terminating zero.
pub const MAX_OPTION: usize = 255;

/// A file system being configured (fsopen(2)).
#[derive(Debug)]
pub struct FileSystem {
    context: OwnedFd,
}

impl FileSystem {
    /// Starts with a type as in /proc/filesystems.
    ///
    /// # Errors
    /// ENODEV for an unknown type, EPERM without CAP_SYS_ADMIN.
    pub fn open(kind: &CStr) -> io::Result<FileSystem> {
        // SAFETY: `kind` is a C string that the kernel only reads.
        let context = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
        Ok(FileSystem { context: descriptor(context)? })
    }

    /// Sets an option without a value.
    ///
    /// # Errors
    /// EINVAL for one that the file system does not know.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        self.configure(FSCONFIG_SET_FLAG, Some(&CString::new(key)?), None)
    }

    /// Sets an option to a value of at most [`MAX_OPTION`] bytes.
    ///
    /// # Errors
    /// EINVAL for an unknown option, a bad value or one that is too long.
    pub fn option(&self, key: &str, value: &OsStr) -> io::Result<()> {
        self.configure(FSCONFIG_SET_STRING, Some(&CString::new(key)?), Some(&CString::new(value.as_bytes())?))
    }

    /// Makes the file system and a detached mount of it with flags of [`attribute`]. The descriptor is the mount's
    /// root, detached or (later) in place; the mount vanishes with it when it was never attached.
    ///
    /// # Errors
    /// Those of mount(2); [`FileSystem::complaint`] may know more.
    pub fn mount(&self, attributes: u64) -> io::Result<OwnedFd> {
        self.configure(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: integer arguments only.
        let mount = unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                self.context.as_raw_fd() as c_long,
                FSMOUNT_CLOEXEC as c_long,
                attributes as c_long,
            )
        };
        descriptor(mount)
    }

    /// What the file system itself said of the last failure, if it said anything.
    pub fn complaint(&self) -> Option<String> {
        let mut text = [0; 512];
        let length = File::from(self.context.try_clone().ok()?).read(&mut text).ok()?;
        // `e overlay: …`: a level, a space, the text.
        let text = String::from_utf8_lossy(&text[..length]);
        Some(text.trim_end().get(2..)?.to_owned())
    }

    fn configure(&self, command: c_uint, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are C strings or null, as the command wants them; the kernel only reads them.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.context.as_raw_fd() as c_long,
                command as c_long,
                pointer(key),
                pointer(value),
                0 as c_long,
            )
        })
    }
}

/// A detached copy of the mount that `place` is in, with `place` as its root: a bind mount not yet in its place. With
/// `recursive` the mounts beneath come along.
///
/// # Errors
/// EINVAL when the mount belongs to another mount namespace; EPERM without CAP_SYS_ADMIN.
pub fn clone_tree(place: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::O_CLOEXEC as c_uint
        | libc::AT_EMPTY_PATH as c_uint
        | if recursive { libc::AT_RECURSIVE as c_uint } else { 0 };
    // SAFETY: the path is an empty C string; the rest is numbers.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, place.as_raw_fd() as c_long, c"".as_ptr(), flags) })
}

/// Puts a detached mount onto the file or directory behind `target`.
///
/// # Errors
/// ENOTDIR when one is a directory and the other is not; EINVAL when `target` is not in our mount namespace.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    move_mount(mount, target, c"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
}

/// Puts a detached mount onto `name` in `directory`. A final symbolic link is not followed; earlier ones are.
///
/// # Errors
/// As [`attach`], and those of the look-up.
pub fn attach_at(mount: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    name.with_nix_path(|name| move_mount(mount, directory, name, MOVE_MOUNT_F_EMPTY_PATH))?
}

fn move_mount(mount: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr, flags: c_uint) -> io::Result<()> {
    // SAFETY: both paths are C strings; the rest is numbers.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd() as c_long,
            c"".as_ptr(),
            directory.as_raw_fd() as c_long,
            name.as_ptr(),
            flags,
        )
    })
}

/// How mount and unmount events travel between copies of a mount (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropagationType {
    /// Neither in nor out.
    Private,
    /// In, not out.
    Slave,
    /// Both ways.
    Shared,
}

/// The mount that a place is in: where it is mounted, and how events travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Mount point.
    pub mount_point: PathBuf,
    /// A mount that is both shared and a slave counts as shared.
    pub propagation: PropagationType,
}

/// Looks up the mount that `place` is in. Reads the whole mount table, so not for every mount.
///
/// # Errors
/// NotFound when the table does not list it (a detached mount); those of statx(2) and of reading /proc.
pub fn surroundings(place: BorrowedFd<'_>) -> io::Result<Surroundings> {
    let id = super::node::mount_id(place)?;
    let table = std::fs::read("/proc/self/mountinfo")?;
    table
        .split(|byte| *byte == b'\n')
        .find_map(|line| parse_mount(line, id))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("mount {id} is not in /proc/self/mountinfo")))
}

/// A line of mountinfo (proc_pid_mountinfo(5)): `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`.
fn parse_mount(line: &[u8], id: u64) -> Option<Surroundings> {
    let mut fields = line.split(|byte| *byte == b' ');
    if str::from_utf8(fields.next()?).ok()?.parse() != Ok(id) {
        return None;
    }
    let mount_point = PathBuf::from(OsStr::from_bytes(fields.nth(3)?));
    let mut propagation = PropagationType::Private;
    for tag in fields.skip(1).take_while(|tag| *tag != b"-") {
        if tag.starts_with(b"shared:") {
            propagation = PropagationType::Shared;
        } else if tag.starts_with(b"master:") && propagation == PropagationType::Private {
            propagation = PropagationType::Slave;
        }
    }
    Some(Surroundings { mount_point, propagation })
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Adds flags of [`attribute`] to a mount, and sets its propagation. Flags that it already has stay, whether asked for
/// or not: a bind of a `nosuid` mount is never more permissive than its source. With `recursive` all mounts beneath
/// change, or none.
///
/// # Errors
/// EINVAL, EPERM (flags locked by another user namespace), ENOSYS before Linux 5.12.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    propagation: Option<PropagationType>,
) -> io::Result<()> {
    let attributes = MountAttributes {
        set,
        propagation: match propagation {
            None => 0,
            Some(PropagationType::Private) => libc::MS_PRIVATE,
            Some(PropagationType::Slave) => libc::MS_SLAVE,
            Some(PropagationType::Shared) => libc::MS_SHARED,
        },
        ..MountAttributes::default()
    };
    apply(mount, recursive, &attributes)
}

/// Shows the files of a detached mount with other owners (an idmapped mount, mount_setattr(2)): one that belongs to user
/// 0 on disk belongs to user 0 of the user namespace behind `users`, and so on. With `recursive` all mounts beneath
/// change, or none.
///
/// # Errors
/// EINVAL when the file system does not know such mounts (NFS, procfs, devtmpfs, ...), when the mount is not detached or
/// the mappings are not written yet; EPERM when it is mapped already.
pub fn set_id_map(mount: BorrowedFd<'_>, recursive: bool, users: BorrowedFd<'_>) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let attributes = MountAttributes {
        set: MOUNT_ATTR_IDMAP,
        user_namespace: users.as_raw_fd() as u64,
        ..MountAttributes::default()
    };
    apply(mount, recursive, &attributes)
}

fn apply(mount: BorrowedFd<'_>, recursive: bool, attributes: &MountAttributes) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attributes` has the kernel's layout and the size passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd() as c_long,
            c"".as_ptr(),
            flags as c_long,
            ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    })
}

/// Every mount of the calling process's namespace receives events but sends none any more.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn make_all_slave() -> io::Result<()> {
    Ok(nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?)
}

/// mount(2) of an overlay with a string of options, for kernels whose overlay does not know `lowerdir+` (before 6.8).
/// At most 4095 bytes of options.
///
/// # Errors
/// Those of mount(2).
pub fn mount_overlay(target: &Path, options: &OsStr) -> io::Result<()> {
    Ok(nix::mount::mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options))?)
}

/// Makes the mount at `root` the root of the mount namespace and lets go of the old root with everything in it. The
/// working directory is then the new root.
///
/// # Errors
/// EINVAL when the old root is the initial ramfs or `root` is not a mount; see pivot_root(2).
pub fn enter_root(root: BorrowedFd<'_>) -> io::Result<()> {
    nix::unistd::fchdir(root)?;
    // With both names equal the old root ends on top of the new one, where the next call finds it: no directory in
    // the image has to be used for it (pivot_root(2), "pivot_root(".", ".")").
    nix::unistd::pivot_root(".", ".")?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH)?;
    Ok(nix::unistd::chdir("/")?)
}

/// Takes the topmost mount at `target` off, with what is mounted beneath it, at once for new look-ups and for good when
/// the last user is gone (MNT_DETACH). A final symbolic link is not followed.
///
/// # Errors
/// EINVAL when it is no mount point.
pub fn detach(target: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Opens a place on a file system without opening the file itself: not even a device or FIFO is touched.
///
/// # Errors
/// Those of open(2).
pub fn open_place(path: &Path) -> io::Result<OwnedFd> {
    use nix::{fcntl::OFlag, sys::stat::Mode};
    Ok(nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// The current working directory, for calls that want a descriptor.
pub fn here() -> BorrowedFd<'static> {
    nix::fcntl::AT_FDCWD.as_fd()
}

fn descriptor(result: c_long) -> io::Result<OwnedFd> {
    check(result)?;
    // SAFETY: the caller passes the result of a system call that made a descriptor, known to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(result as c_int) })
}

fn check(result: c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tags_of_a_mount_tell_its_propagation() {
        let parse = |tags: &str| {
            let line = format!("36 35 98:0 / /mnt/a\\040b rw,noatime {tags}- ext4 /dev/shared:1 rw");
            parse_mount(line.as_bytes(), 36).unwrap().propagation
        };
        assert_eq!(parse(""), PropagationType::Private);
        assert_eq!(parse("unbindable "), PropagationType::Private);
        assert_eq!(parse("master:2 "), PropagationType::Slave);
        assert_eq!(parse("master:2 propagate_from:1 "), PropagationType::Slave);
        assert_eq!(parse("shared:3 "), PropagationType::Shared);
        assert_eq!(parse("shared:3 master:2 "), PropagationType::Shared);
        assert_eq!(parse_mount(b"36 35 98:0 / / rw - ext4 x rw", 3), None);
        let root = surroundings(open_place(Path::new("/proc/self")).unwrap().as_fd()).unwrap();
        assert_eq!(root.mount_point, Path::new("/proc"));
    }
}
