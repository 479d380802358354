//! Taking volumes away: unmount, then remove.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use super::{
    VolumeError,
    error::io_error,
    mount_table::{self, Mount},
    remove::{RemoveError, remove_tree},
};
use crate::store::layout::{Layout, PodDirs};

/// Unmounts and removes all volumes of a pod. None of its containers runs any more. What is mounted where berth mounts
/// is unmounted without reading the mount table, which grows with every pod of the node; the table is read only when
/// something else turns out to be mounted in a volume.
pub fn tear_down(dirs: &PodDirs) -> Result<(), VolumeError> {
    tear_down_in(&dirs.volumes())
}

/// As [`tear_down`], for a directory of volumes.
pub fn tear_down_in(volumes: &Path) -> Result<(), VolumeError> {
    for plugin in entries(volumes)? {
        for volume in entries(&plugin)? {
            unmount_known(&volume)?;
        }
    }
    match remove_tree(volumes) {
        Err(RemoveError::MountPoint { .. }) => {
            unmount_beneath(volumes)?;
            Ok(remove_tree(volumes)?)
        }
        result => Ok(result?),
    }
}

/// Takes the mounts of servers that do not answer off a pod's volumes, so that [`tear_down`] does not wait for them:
/// what is mounted vanishes from the tree now, and for good when its server lets it go.
pub fn detach_remote(dirs: &PodDirs) -> Result<(), VolumeError> {
    let volumes = dirs.volumes();
    if !volumes.exists() {
        return Ok(());
    }
    beneath(&canonical(&volumes)?)?.iter().filter(|mount| mount.is_remote).try_for_each(detach)
}

/// Unmounts what is left of pods that are not in `keep` (by UID) and returns their UIDs in order. Their directories
/// stay, for the caller to remove when it has seen to everything else in them.
pub fn sweep(layout: &Layout, keep: &HashSet<String>) -> Result<Vec<String>, VolumeError> {
    let mut left: Vec<String> = Vec::new();
    for pod in entries(&layout.pods())? {
        // A name that is not text cannot be a UID of ours.
        if let Some(uid) = pod.file_name().and_then(|name| name.to_str())
            && !keep.contains(uid)
        {
            left.push(uid.to_owned());
        }
    }
    left.sort();
    if left.is_empty() {
        return Ok(left);
    }
    let pods = canonical(&layout.pods())?;
    let of_left = |point: &Path| {
        let below = point.strip_prefix(&pods).ok();
        let uid = below.and_then(|below| below.iter().next()).and_then(|uid| uid.to_str());
        uid.is_some_and(|uid| left.iter().any(|left| left == uid))
    };
    let mounts = beneath(&pods)?.into_iter().filter(|mount| of_left(&mount.point)).collect::<Vec<_>>();
    unmount_all(&mounts)?;
    Ok(left)
}

/// What is in a directory; nothing when it does not exist or is none.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let list = match fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        result => result.map_err(io_error("list", directory))?,
    };
    list.map(|entry| Ok(entry.map_err(io_error("list", directory))?.path())).collect()
}

/// Unmounts what is mounted at a volume's own place, if anything is. What cannot be unmounted yet (something else is
/// mounted on top) is left to [`unmount_beneath`].
fn unmount_known(volume: &Path) -> Result<(), VolumeError> {
    loop {
        match umount2(volume, MntFlags::UMOUNT_NOFOLLOW) {
            // There may have been another one below it.
            Ok(()) => {}
            // No mount point, or already gone.
            Err(Errno::EINVAL | Errno::ENOENT | Errno::EBUSY) => return Ok(()),
            Err(source) => return Err(VolumeError::Unmount { path: volume.to_owned(), source }),
        }
    }
}

/// Unmounts everything at or below a directory.
fn unmount_beneath(directory: &Path) -> Result<(), VolumeError> {
    unmount_all(&beneath(&canonical(directory)?)?)
}

/// The path as the mount table writes it.
fn canonical(path: &Path) -> Result<PathBuf, VolumeError> {
    fs::canonicalize(path).map_err(io_error("resolve", path))
}

fn beneath(directory: &Path) -> Result<Vec<Mount>, VolumeError> {
    mount_table::beneath(directory).map_err(io_error("read mount table for", directory))
}

/// Unmounts in the given order; what is still in use after that is detached, so that it vanishes with its last user.
/// What a server answers for is detached at once: nobody may have to wait for it.
fn unmount_all(mounts: &[Mount]) -> Result<(), VolumeError> {
    let mut left = Vec::new();
    for mount in mounts {
        if mount.is_remote {
            detach(mount)?;
            continue;
        }
        match umount2(&mount.point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(_) => left.push(mount),
        }
    }
    left.into_iter().try_for_each(detach)
}

fn detach(mount: &Mount) -> Result<(), VolumeError> {
    match umount2(&mount.point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(source) => Err(VolumeError::Unmount { path: mount.point.clone(), source }),
    }
}

#[cfg(test)]
pub(super) mod testing {
    use std::panic::resume_unwind;

    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };

    use super::*;

    /// The directories of a pod `uid` of an agent that lives in `root`.
    pub fn dirs(root: &Path, uid: &str) -> PodDirs {
        layout(root).pod(uid, "default", "pod")
    }

    pub fn layout(root: &Path) -> Layout {
        Layout { root: root.join("root"), run: root.join("run"), log: root.join("log") }
    }

    /// Runs `test` on a thread with mounts of its own, which vanish with it.
    pub fn with_own_mounts(test: impl FnOnce(&Path) + Send + 'static) {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            let root = tempfile::tempdir().unwrap();
            test(&root.path().canonicalize().unwrap());
        });
        if let Err(panic) = thread.join() {
            resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use k8s_openapi::api::core::v1::Pod;
    use nix::{
        mount::{MsFlags, mount},
        sys::statfs::{TMPFS_MAGIC, statfs},
    };
    use serde_json::{Value, json};

    use super::{
        testing::{dirs, layout, with_own_mounts},
        *,
    };
    use crate::{
        api::{
            content::{ContentFile, Payload},
            objects::Objects,
        },
        volume::{MountedVolume, VolumeContext, VolumeInput, set_up, shm},
    };

    fn points(root: &Path) -> Vec<PathBuf> {
        mount_table::beneath(root).unwrap().into_iter().map(|mount| mount.point).collect()
    }

    fn bind(source: &Path, target: &Path) {
        mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }

    fn volume(source: Value, dirs: &PodDirs) -> MountedVolume {
        let mut source = source;
        source["name"] = json!("v");
        let context = VolumeContext { fs_group: Some(1234), memory_limit: Some(8 << 20), node_memory: 1 << 30 };
        let volume = serde_json::from_value(source).unwrap();
        let input = VolumeInput { volume: &volume, pod: &Pod::default(), objects: &Objects::default(), content: None };
        set_up(&input, dirs, &context).unwrap()
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn a_secret_is_in_memory_takes_what_it_needs_and_goes() {
        with_own_mounts(|root| {
            let dirs = dirs(root, "u");
            let volume = serde_json::from_value(json!({"name": "v", "secret": {"secretName": "s"}})).unwrap();
            let set_up = |size: usize| {
                let file = ContentFile { bytes: vec![7; size], mode: 0o400, owner: Some(99) };
                let payload = Payload::from([("key".to_owned(), file)]);
                let objects = Objects::default();
                let pod = Pod::default();
                let input = VolumeInput { volume: &volume, pod: &pod, objects: &objects, content: Some(&payload) };
                set_up(&input, &dirs, &VolumeContext { fs_group: Some(1234), ..VolumeContext::default() }).unwrap()
            };
            let mounted = set_up(5);
            assert!(mounted.readonly);
            let path = mounted.host_path;
            assert_eq!(path, dirs.dir.join("volumes/kubernetes.io~secret/v"));
            let size = || {
                let found = statfs(&path).unwrap();
                assert_eq!(found.filesystem_type(), TMPFS_MAGIC);
                found.blocks() * found.block_size() as u64
            };
            assert_eq!(size(), 1 << 20);
            let metadata = fs::metadata(path.join("key")).unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o440, 99, 1234));
            // Both generations fit, however large the new one is; and nothing is mounted twice.
            for length in [900_000, 3_000_000, 10] {
                set_up(length);
                assert_eq!(fs::metadata(path.join("key")).unwrap().len(), length as u64);
            }
            assert!((3_000_000..6_000_000).contains(&size()), "{}", size());
            assert_eq!(points(root), [path]);
            tear_down(&dirs).unwrap();
            assert!(!dirs.volumes().exists());
        });
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn a_volume_in_memory_is_a_bounded_tmpfs_and_goes() {
        with_own_mounts(|root| {
            let dirs = dirs(root, "u");
            let source = json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}});
            let path = volume(source.clone(), &dirs).host_path;
            let size = || statfs(&path).unwrap();
            assert_eq!(size().filesystem_type(), TMPFS_MAGIC);
            assert_eq!(size().blocks() * size().block_size() as u64, 1 << 20);
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o2777, 1234));
            fs::write(path.join("file"), "x").unwrap();
            // Again: the same mount with what is in it.
            assert_eq!(volume(source, &dirs).host_path, path);
            assert!(path.join("file").exists());
            assert_eq!(points(root), [path]);

            let shm = shm::set_up(&dirs).unwrap();
            assert_eq!(shm::set_up(&dirs).unwrap(), shm);
            assert_eq!(fs::metadata(&shm).unwrap().mode() & 0o7777, 0o1777);
            assert_eq!(points(root).len(), 2);

            tear_down(&dirs).unwrap();
            assert_eq!(points(root), Vec::<PathBuf>::new());
            assert!(!dirs.volumes().exists());
            tear_down(&dirs).unwrap();
        });
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn the_pods_memory_limit_bounds_a_volume_without_one() {
        with_own_mounts(|root| {
            let path = volume(json!({"emptyDir": {"medium": "Memory"}}), &dirs(root, "u")).host_path;
            let found = statfs(&path).unwrap();
            assert_eq!(found.blocks() * found.block_size() as u64, 8 << 20);
        });
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn tear_down_never_reaches_through_a_mount_or_a_link() {
        with_own_mounts(|root| {
            let precious = root.join("precious");
            fs::create_dir_all(precious.join("data")).unwrap();
            fs::write(precious.join("file"), "").unwrap();
            let dirs = dirs(root, "u");
            let disk = volume(json!({"emptyDir": {}}), &dirs).host_path;
            let memory = dirs.volume("kubernetes.io/empty-dir", "memory");
            fs::create_dir_all(&memory).unwrap();
            mount(Some("tmpfs"), &memory, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            // As a container with Bidirectional propagation leaves them: the same file system bound into a volume, a
            // file bound on a file, a mount on a mount.
            for place in [disk.join("a/b"), memory.join("c")] {
                fs::create_dir_all(&place).unwrap();
                bind(&precious, &place);
            }
            fs::write(disk.join("file"), "").unwrap();
            bind(&precious.join("file"), &disk.join("file"));
            bind(&precious, &memory.join("c/data"));
            symlink(&precious, disk.join("link")).unwrap();

            let error = remove_tree(&dirs.dir).unwrap_err();
            assert!(matches!(error, RemoveError::MountPoint { .. }), "{error}");
            tear_down(&dirs).unwrap();
            assert_eq!(points(root), Vec::<PathBuf>::new());
            assert!(!dirs.volumes().exists());
            assert!(precious.join("data").exists() && precious.join("file").exists());
        });
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn a_mount_that_is_in_use_is_detached() {
        with_own_mounts(|root| {
            let dirs = dirs(root, "u");
            let path = volume(json!({"emptyDir": {"medium": "Memory"}}), &dirs).host_path;
            let user = fs::File::create(path.join("file")).unwrap();
            tear_down(&dirs).unwrap();
            assert_eq!(points(root), Vec::<PathBuf>::new());
            assert!(!dirs.volumes().exists());
            drop(user);
        });
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn a_sweep_unmounts_what_nobody_keeps_and_names_it() {
        with_own_mounts(|root| {
            let memory = json!({"emptyDir": {"medium": "Memory"}});
            let kept = volume(memory.clone(), &dirs(root, "kept")).host_path;
            volume(memory.clone(), &dirs(root, "left"));
            volume(json!({"emptyDir": {}}), &dirs(root, "also"));
            let keep = HashSet::from(["kept".to_owned()]);
            assert_eq!(sweep(&layout(root), &keep).unwrap(), ["also", "left"]);
            assert_eq!(points(root), [kept]);
            assert_eq!(sweep(&layout(&root.join("none")), &keep).unwrap(), Vec::<String>::new());
        });
    }
}
