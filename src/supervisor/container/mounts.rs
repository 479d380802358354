//! The mounts of a container, in the order of its spec.

use std::{
    ffi::{CStr, OsStr},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::{
    bind,
    cgroup::{self, Leaf},
    error::{Failure, Step},
    target::{self, Missing},
};
use crate::{
    supervisor::spec::{LaunchSpec, MountKind, MountSpec},
    sys::{
        mount::{self, FileSystem, attribute},
        node, openat2,
    },
};

/// What a mount needs from the host, opened before anything of the container exists.
pub(super) enum HostPart {
    /// Nothing: the file system is made when its turn comes.
    None,
    /// The source of a bind.
    Source(bind::Source),
    /// The container's directories in the cgroup hierarchies of version 1 (and the hybrid's unified one).
    Leaves(Vec<Leaf>),
}

/// Opens the host's part of every mount, in order. With `users` binds show their files as that user namespace has them.
pub(super) fn open_host_parts(spec: &LaunchSpec, users: Option<BorrowedFd<'_>>) -> Result<Vec<HostPart>, Failure> {
    let open = |mount: &MountSpec| match &mount.kind {
        MountKind::Bind { source, sub_path } => {
            bind::open(mount, source, sub_path.as_deref(), users).map(HostPart::Source)
        }
        MountKind::Cgroup if !spec.cgroup.v1.is_empty() => {
            cgroup::open_leaves(&spec.cgroup, bind::attributes(mount)).map(HostPart::Leaves)
        }
        _ => Ok(HostPart::None),
    };
    spec.mounts.iter().map(open).collect()
}

/// Makes and attaches one mount beneath `root`.
pub(super) fn attach(root: BorrowedFd<'_>, spec: &MountSpec, host: HostPart) -> Result<(), Failure> {
    match (&spec.kind, host) {
        (MountKind::Proc, _) => attach_kernel_view(root, spec, c"proc"),
        (MountKind::Sysfs, _) => attach_kernel_view(root, spec, c"sysfs"),
        (MountKind::Tmpfs { options }, _) => attach_new(root, spec, c"tmpfs", options),
        // gid 5 is `tty` in every distribution; newinstance has no meaning any more, but is what mount tables show.
        (MountKind::Devpts, _) => attach_new(root, spec, c"devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        (MountKind::Mqueue, _) => attach_new(root, spec, c"mqueue", ""),
        (MountKind::Cgroup, HostPart::Leaves(leaves)) => {
            // Writable until the leaves are in it.
            let attributes = bind::attributes(spec);
            let tree = make(spec, c"tmpfs", "mode=755", attributes & !attribute::RDONLY)?;
            attach_tree(root, spec, c"tmpfs", tree.as_fd())?;
            cgroup::attach_leaves(tree.as_fd(), leaves, attributes & attribute::RDONLY)
        }
        (MountKind::Cgroup, _) => attach_new(root, spec, c"cgroup2", ""),
        (MountKind::Bind { source, .. }, HostPart::Source(opened)) => attach_bind(root, spec, source, opened),
        (MountKind::Bind { source, .. }, _) => {
            Err(Failure::refused(format!("bind {} on {}", source.display(), spec.target.display()), "not opened"))
        }
    }
}

fn step(spec: &MountSpec, kind: &CStr) -> String {
    format!("mount {} on {}", kind.to_string_lossy(), spec.target.display())
}

/// A new file system, mounted nowhere yet.
fn make(spec: &MountSpec, kind: &CStr, options: &str, attributes: u64) -> Result<OwnedFd, Failure> {
    let file_system = FileSystem::open(kind).step(|| step(spec, kind))?;
    let configured = configure(&file_system, kind, options).and_then(|()| file_system.mount(attributes));
    configured.map_err(|source| Failure::of_file_system(step(spec, kind), source, &file_system))
}

fn configure(file_system: &FileSystem, kind: &CStr, options: &str) -> io::Result<()> {
    // What the first column of a mount table shows.
    file_system.option("source", OsStr::from_bytes(kind.to_bytes()))?;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => file_system.option(key, OsStr::new(value))?,
            None => file_system.flag(option)?,
        }
    }
    Ok(())
}

/// proc and sysfs must be where they say: through a link in the image they would be somewhere else, and the masks
/// that are laid over them afterwards with them (CVE-2019-19921, CVE-2023-27561).
fn attach_kernel_view(root: BorrowedFd<'_>, spec: &MountSpec, kind: &CStr) -> Result<(), Failure> {
    let step = || step(spec, kind);
    let tree = make(spec, kind, "", bind::attributes(spec))?;
    let place = match target::resolve_without_links(root, &spec.target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            target::resolve_or_create(root, &spec.target, Missing::Directory)
        }
        Err(error) if openat2::is_link_refused(&error) => {
            return Err(Failure::refused(step(), "it must be mounted on an ordinary directory, not a symbolic link"));
        }
        found => found,
    };
    mount::attach(tree.as_fd(), place.step(step)?.as_fd()).step(step)
}

fn attach_new(root: BorrowedFd<'_>, spec: &MountSpec, kind: &CStr, options: &str) -> Result<(), Failure> {
    let tree = make(spec, kind, options, bind::attributes(spec))?;
    attach_tree(root, spec, kind, tree.as_fd())
}

fn attach_tree(root: BorrowedFd<'_>, spec: &MountSpec, kind: &CStr, tree: BorrowedFd<'_>) -> Result<(), Failure> {
    let step = || step(spec, kind);
    let place = target::resolve_or_create(root, &spec.target, Missing::Directory).step(step)?;
    refuse_proc(place.as_fd(), spec, false)?;
    mount::attach(tree, place.as_fd()).step(step)
}

fn attach_bind(root: BorrowedFd<'_>, spec: &MountSpec, source: &Path, opened: bind::Source) -> Result<(), Failure> {
    let step = || format!("bind {} on {}", source.display(), spec.target.display());
    let missing = if opened.is_directory { Missing::Directory } else { Missing::File };
    // Whatever takes the place of /proc must be one: what is masked there, and what programs believe, depends on it.
    if target::relative(&spec.target) == Path::new("proc") && !opened.is_proc {
        return Err(Failure::refused(step(), "only a proc file system can be mounted on /proc"));
    }
    let place = target::resolve_or_create(root, &spec.target, missing).step(step)?;
    refuse_proc(place.as_fd(), spec, true)?;
    match mount::attach(opened.tree.as_fd(), place.as_fd()) {
        // The kernel's word for a directory on a file, or the other way round.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            let place_is_directory = node::status(place.as_fd()).step(step)?.kind == node::Kind::Directory;
            let message = match (opened.is_directory, place_is_directory) {
                (true, false) => Some("a directory cannot be mounted on a file".to_owned()),
                (false, true) => Some("a file cannot be mounted on a directory".to_owned()),
                _ => None,
            };
            Err(error).step(step).map_err(|failure| Failure { message, ..failure })
        }
        attached => attached.step(step),
    }
}

/// Files of procfs that may be covered by a bind: those that lxcfs and the like replace with the container's view.
const COVERABLE: [&str; 12] = [
    "proc/cmdline",
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/net/dev",
    "proc/slabinfo",
    "proc/stat",
    "proc/swaps",
    "proc/sys/crypto/fips_enabled",
    "proc/sys/kernel/ns_last_pid",
    "proc/uptime",
];

/// Refuses a mount that lands on procfs, by its own path or by a link in the image: it could make a process write
/// its labels and limits to a file of someone's choosing.
fn refuse_proc(place: BorrowedFd<'_>, spec: &MountSpec, is_bind: bool) -> Result<(), Failure> {
    let step = || format!("mount on {}", spec.target.display());
    let covers_file = is_bind && COVERABLE.iter().any(|path| target::relative(&spec.target) == Path::new(path));
    let replaces_proc = is_bind && target::relative(&spec.target) == Path::new("proc");
    if covers_file || replaces_proc || !node::is_on_proc(place).step(step)? {
        return Ok(());
    }
    Err(Failure::refused(step(), "the place is inside a proc file system"))
}
