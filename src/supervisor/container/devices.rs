//! Device nodes and the links that every /dev has.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use super::{
    error::{Failure, Step},
    target::{self, Missing},
};
use crate::{
    supervisor::spec::{DeviceSpec, LaunchSpec, MountKind},
    sys::{
        mount,
        node::{self, Kind},
        openat2::{Scope, openat2, purpose},
    },
};

/// Whether the container's /dev is its own. With the host's /dev bound there, nothing may be made or changed in it.
pub(super) fn are_ours(spec: &LaunchSpec) -> bool {
    let is_dev = |path: &Path| target::relative(path) == Path::new("dev");
    !spec.mounts.iter().any(|mount| is_dev(&mount.target) && matches!(mount.kind, MountKind::Bind { .. }))
}

/// Makes the device nodes of the spec (for a privileged container also all that the host has) and the usual links.
pub(super) fn populate(root: BorrowedFd<'_>, spec: &LaunchSpec) -> Result<(), Failure> {
    let mut directory = Directory { root, open: None };
    if spec.all_devices {
        of_host()?.iter().try_for_each(|device| make(&mut directory, device))?;
    }
    spec.devices.iter().try_for_each(|device| make(&mut directory, device))?;
    link(&mut directory)
}

/// The directory that the last device was made in: almost always /dev, opened once.
struct Directory<'a> {
    root: BorrowedFd<'a>,
    open: Option<(PathBuf, OwnedFd)>,
}

impl Directory<'_> {
    fn get(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        if self.open.as_ref().is_none_or(|(open, _)| open != path) {
            let place = target::resolve_or_create(self.root, path, Missing::Directory)?;
            self.open = Some((path.to_path_buf(), place));
        }
        self.open.as_ref().map(|(_, place)| place.as_fd()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn make(directory: &mut Directory<'_>, device: &DeviceSpec) -> Result<(), Failure> {
    let step = || format!("make device {}", device.path.display());
    let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
        return Err(Failure::refused(step(), "not the path of a file"));
    };
    let (parent, name) = (directory.get(parent).step(step)?, Path::new(name));
    let number = (device.major, device.minor);
    match node::make_device(parent, name, device.block, device.mode, number) {
        // Something is mounted there on purpose, or it is listed twice.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            bind_from_host(parent, name, device).step(step)
        }
        Err(error) => Err(error).step(step),
        Ok(()) if device.uid == 0 && device.gid == 0 => Ok(()),
        Ok(()) => node::change_owner_at(parent, name, Some(device.uid), Some(device.gid)).step(step),
    }
}

/// Where nodes cannot be made (no CAP_MKNOD, device rules) the host's own node does, if it is the right one.
fn bind_from_host(parent: BorrowedFd<'_>, name: &Path, device: &DeviceSpec) -> io::Result<()> {
    let path = device.host_path.as_deref().unwrap_or(&device.path);
    let host = openat2(mount::here(), path, purpose::PLACE, 0, Scope::NoMagicLinks)?;
    let status = node::status(host.as_fd())?;
    let kind = if device.block { Kind::BlockDevice } else { Kind::CharacterDevice };
    if (status.kind, status.device) != (kind, (device.major, device.minor)) {
        return Err(io::Error::other("it cannot be made here, and the host's node of that name is another device"));
    }
    let tree = mount::clone_tree(host.as_fd(), false)?;
    let place = openat2(parent, name, purpose::NEW_FILE, 0o644, Scope::NoLinks)?;
    mount::attach(tree.as_fd(), place.as_fd())
}

/// Links that programs expect in /dev, and where they lead (runtime-spec, "Dev symbolic links"). Their destinations
/// are names inside the container; nothing is looked up here.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

fn link(directory: &mut Directory<'_>) -> Result<(), Failure> {
    let dev = directory.get(Path::new("/dev")).step(|| "open /dev")?;
    for (name, destination) in LINKS {
        match node::make_link(Path::new(destination), dev, Path::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.step(|| format!("link /dev/{name}"))?,
        }
    }
    Ok(())
}

/// What of the host's /dev a privileged container does not get: instances that it has its own of, and the console,
/// which is the machine's.
const SKIPPED: [&str; 7] = ["console", "fd", "mqueue", "ptmx", "pts", "shm", ".udev"];

/// Directories below /dev are shallow; a limit keeps a loop of bind mounts from being walked for ever.
const MAX_DEPTH: usize = 8;

/// All device nodes of the host that a privileged container gets.
pub(in crate::supervisor) fn of_host() -> Result<Vec<DeviceSpec>, Failure> {
    let mut devices = Vec::new();
    list(Path::new("/dev"), 0, &mut devices).step(|| "list the devices in /dev")?;
    Ok(devices)
}

/// All device nodes of the host beneath `directory`. A node that vanishes meanwhile (unplugged) is left out.
fn list(directory: &Path, depth: usize, devices: &mut Vec<DeviceSpec>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name();
        if SKIPPED.iter().any(|skipped| *skipped == name) {
            continue;
        }
        if kind.is_dir() && depth < MAX_DEPTH {
            list(&entry.path(), depth + 1, devices)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let Ok(metadata) = entry.metadata() else { continue };
            let (major, minor) = node::device_number(metadata.rdev());
            devices.push(DeviceSpec {
                path: entry.path(),
                host_path: None,
                block: kind.is_block_device(),
                major,
                minor,
                mode: metadata.mode() & 0o7777,
                uid: metadata.uid(),
                gid: metadata.gid(),
            });
        }
    }
    Ok(())
}
