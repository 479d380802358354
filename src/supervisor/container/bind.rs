//! Bind mounts: the source, opened on the host's side and turned into a detached mount with all its flags.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path},
};

use super::error::{Failure, Reason, Step};
use crate::{
    supervisor::spec::{MountSpec, Propagation, RecursiveReadOnly},
    sys::{
        mount::{self, PropagationType, attribute},
        node::{self, Kind},
        openat2::{Scope, is_link_refused, openat2, purpose},
    },
};

/// A detached mount of something on the host.
pub(in crate::supervisor) struct Source {
    /// The mount.
    pub(in crate::supervisor) tree: OwnedFd,
    /// It is a directory.
    pub(in crate::supervisor) is_directory: bool,
    /// It lies on procfs.
    pub(super) is_proc: bool,
}

/// Opens `path` (and `sub_path` within it) on the host and makes the detached mount, mapped to `users`.
pub(in crate::supervisor) fn open(
    spec: &MountSpec,
    path: &Path,
    sub_path: Option<&Path>,
    users: Option<BorrowedFd<'_>>,
) -> Result<Source, Failure> {
    // Intermediate and final links of the host are followed, as hostPath promises; the links of /proc that jump into
    // other processes' roots are not.
    let mut place = openat2(mount::here(), path, purpose::PLACE, 0, Scope::NoMagicLinks)
        .step(|| format!("open {} for {}", path.display(), spec.target.display()))?;
    if let Some(sub_path) = sub_path {
        place = open_sub_path(place.as_fd(), sub_path).map_err(|source| sub_path_failure(spec, sub_path, source))?;
    }
    let step = || format!("bind {} on {}", path.display(), spec.target.display());
    let is_directory = node::status(place.as_fd()).step(step)?.kind == Kind::Directory;
    let is_proc = node::is_on_proc(place.as_fd()).step(step)?;
    require_propagation(place.as_fd(), path, spec)?;
    let tree = mount::clone_tree(place.as_fd(), true).step(step)?;
    apply(tree.as_fd(), spec).step(|| format!("set the flags of {}", spec.target.display()))?;
    if let Some(users) = users {
        map(tree.as_fd(), users, spec, path)?;
    }
    Ok(Source { tree, is_directory, is_proc })
}

/// Maps owners to the pod's user namespace: of all mounts of the tree, or where one beneath cannot be mapped of the top
/// one, as upstream. (Whatever is not mapped belongs to nobody inside.)
fn map(tree: BorrowedFd<'_>, users: BorrowedFd<'_>, spec: &MountSpec, path: &Path) -> Result<(), Failure> {
    let mapped = mount::set_id_map(tree, true, users).or_else(|_| mount::set_id_map(tree, false, users));
    let what = spec.volume.as_ref().map_or_else(String::new, |name| format!("volume {name:?}, "));
    let step = || format!("map the owners of {what}{} on {}", path.display(), spec.target.display());
    mapped.step(step).map_err(|failure| {
        let is_unknown = failure.source.as_ref().is_some_and(|source| source.kind() == io::ErrorKind::InvalidInput);
        let message = is_unknown.then(|| {
            "its file system does not support idmapped mounts, which a pod with hostUsers: false needs".to_owned()
        });
        Failure { message, ..failure }
    })
}

/// Events can only be passed on where the host's mount passes them on: anything else would silently be a private mount
/// (the same condition as in containerd's `ensureShared` and `ensureSharedOrSlave`).
fn require_propagation(place: BorrowedFd<'_>, path: &Path, spec: &MountSpec) -> Result<(), Failure> {
    let (enough, wanted): (&[PropagationType], &str) = match spec.propagation {
        Propagation::Private => return Ok(()),
        Propagation::Slave => (&[PropagationType::Shared, PropagationType::Slave], "a shared or slave mount"),
        Propagation::Shared => (&[PropagationType::Shared], "a shared mount"),
    };
    let step = || format!("bind {} on {}", path.display(), spec.target.display());
    let surroundings = mount::surroundings(place).step(step)?;
    if enough.contains(&surroundings.propagation) {
        return Ok(());
    }
    let point = surroundings.mount_point;
    let message = format!("path {path:?} is mounted on {point:?} but it is not {wanted}");
    Err(Failure::refused(step(), message).because(Reason::Create))
}

/// Flags and propagation of a bind. What the source's mount already forbids stays forbidden.
fn apply(tree: BorrowedFd<'_>, spec: &MountSpec) -> io::Result<()> {
    let propagation = Some(match spec.propagation {
        Propagation::Private => PropagationType::Private,
        Propagation::Slave => PropagationType::Slave,
        Propagation::Shared => PropagationType::Shared,
    });
    let mut top = attributes(spec);
    if spec.readonly && spec.recursive_readonly != RecursiveReadOnly::Disabled {
        match mount::set_attributes(tree, true, attribute::RDONLY, propagation) {
            Ok(()) => {
                top &= !attribute::RDONLY;
                return if top == 0 { Ok(()) } else { mount::set_attributes(tree, false, top, None) };
            }
            Err(error) if spec.recursive_readonly == RecursiveReadOnly::Enabled => return Err(error),
            // IfPossible: only the top mount then.
            Err(_) => {}
        }
    }
    mount::set_attributes(tree, true, 0, propagation)?;
    if top == 0 { Ok(()) } else { mount::set_attributes(tree, false, top, None) }
}

/// The flags that a spec asks for, as bits of [`attribute`].
pub(super) fn attributes(spec: &MountSpec) -> u64 {
    let flags = [
        (spec.readonly, attribute::RDONLY),
        (spec.nosuid, attribute::NOSUID),
        (spec.nodev, attribute::NODEV),
        (spec.noexec, attribute::NOEXEC),
    ];
    flags.into_iter().filter(|(wanted, _)| *wanted).fold(0, |bits, (_, bit)| bits | bit)
}

/// Opens `path` in a volume. A link that leaves the volume, even an absolute one that would come back, is refused, as
/// in the kubelet. A missing directory is made with the owner and mode of the volume itself, so that a container
/// that may write to the volume may write there too.
fn open_sub_path(volume: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let mut left = SWITCHES;
    loop {
        match openat2(volume, path, purpose::PLACE, 0, Scope::Beneath) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        if left == 0 || !leads_through_link(volume, path) {
            break;
        }
        left -= 1;
    }
    let model = node::status(volume)?;
    let mut directory = openat2(volume, Path::new("."), purpose::DIRECTORY, 0, Scope::Beneath)?;
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => Path::new(name),
            Component::CurDir => continue,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        // Followed component by component, a link would be resolved beneath its own directory only; one that stays in
        // the volume and exists was found above already.
        directory = match openat2(directory.as_fd(), name, purpose::DIRECTORY, 0, Scope::NoLinks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_like(directory.as_fd(), name, &model)?;
                openat2(directory.as_fd(), name, purpose::DIRECTORY, 0, Scope::NoLinks)?
            }
            found => found?,
        };
    }
    Ok(directory)
}

/// How often a look-up is repeated that has found nothing behind a link. The files of a config map and the like lie
/// behind one that is switched to a new directory when they change, and the old directory goes at once: a look-up that
/// was on its way then finds nothing. The next one sees the new directory.
const SWITCHES: usize = 16;

/// Whether a symbolic link is the first component of `path`.
fn leads_through_link(volume: BorrowedFd<'_>, path: &Path) -> bool {
    let first = path.components().find(|component| *component != Component::CurDir);
    first.is_some_and(|first| node::read_link(volume, Path::new(first.as_os_str())).is_ok())
}

fn make_like(directory: BorrowedFd<'_>, name: &Path, model: &node::Status) -> io::Result<()> {
    match node::make_directory(directory, name, 0o700) {
        // Another container of the pod was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    // Not a place handle: fchmod(2) wants an open directory.
    let made = openat2(directory, name, purpose::READ, 0, Scope::NoLinks)?;
    node::change_owner(made.as_fd(), Some(model.uid), Some(model.gid))?;
    node::change_mode(made.as_fd(), model.mode)
}

fn sub_path_failure(spec: &MountSpec, sub_path: &Path, source: io::Error) -> Failure {
    let escapes = source.kind() == io::ErrorKind::CrossesDevices || is_link_refused(&source);
    let failed: io::Result<()> = Err(source);
    let failure = failed.step(|| format!("prepare subPath {} for {}", sub_path.display(), spec.target.display()));
    let failure = failure.unwrap_err().because(Reason::Config);
    if escapes {
        let message = format!("subPath {:?} leads out of its volume through a symbolic link", sub_path.display());
        return Failure { message: Some(message), ..failure };
    }
    failure
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::symlink,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    /// Puts generation `number` of a file in the place of the one before, as the writer of config maps does.
    fn switch(volume: &Path, number: u32) {
        let name = format!("..{number}");
        fs::create_dir(volume.join(&name)).unwrap();
        fs::write(volume.join(&name).join("key"), number.to_string()).unwrap();
        symlink(&name, volume.join("..data_tmp")).unwrap();
        let before = fs::read_link(volume.join("..data")).ok();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        if let Some(before) = before {
            fs::remove_dir_all(volume.join(before)).unwrap();
        }
    }

    #[test]
    fn a_file_behind_a_link_is_found_however_often_the_link_is_switched() {
        let volume = tempfile::tempdir().unwrap();
        let path = volume.path();
        switch(path, 0);
        symlink("..data/key", path.join("key")).unwrap();
        let opened = File::open(path).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (1..).take_while(|_| !done.load(Ordering::Relaxed)).for_each(|number| switch(path, number));
            });
            for _ in 0..5_000 {
                let found = open_sub_path(opened.as_fd(), Path::new("key"));
                let kind = found.and_then(|found| node::status(found.as_fd())).map(|status| status.kind);
                if !matches!(kind, Ok(Kind::Regular)) {
                    done.store(true, Ordering::Relaxed);
                    panic!("{kind:?}");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(!path.join("key").is_dir());
    }

    #[test]
    fn a_link_to_nothing_is_not_waited_for() {
        let volume = tempfile::tempdir().unwrap();
        symlink("..data/key", volume.path().join("key")).unwrap();
        let opened = File::open(volume.path()).unwrap();
        assert!(open_sub_path(opened.as_fd(), Path::new("key")).is_err());
    }
}
