//! configMap, secret, downwardAPI and projected: a directory of the pod whose files the agent writes and, when what
//! they were made from changes, writes anew.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::{
    api::core::v1::{Pod, Volume},
    jiff::Timestamp,
};
use nix::{
    mount::{MsFlags, mount},
    sys::statvfs::statvfs,
};

use super::{MountedVolume, VolumeContext, VolumeError, atomic_writer, empty_dir, error::io_error};
use crate::{
    api::{container_ref::ContainerRef, content::Payload},
    store::layout::PodDirs,
};

/// Least size of a volume in memory, bytes. Nobody but the agent writes to it, and it takes only what its files take.
const LEAST_SIZE: u64 = 1 << 20;

/// What a file takes beside its bytes, rounded up: the rest of its last page.
const PAGE: u64 = 4096;

/// Where the volume is, and whether in memory: everything but config maps, which may be large and are no secret.
fn place(volume: &Volume, dirs: &PodDirs) -> (PathBuf, bool) {
    let (plugin, in_memory) = match volume {
        Volume { config_map: Some(_), .. } => ("kubernetes.io/configmap", false),
        Volume { secret: Some(_), .. } => ("kubernetes.io/secret", true),
        Volume { downward_api: Some(_), .. } => ("kubernetes.io/downward-api", true),
        _ => ("kubernetes.io/projected", true),
    };
    (dirs.volume(plugin, &volume.name), in_memory)
}

/// The volume as an earlier set-up has left it, if it was completed.
pub fn present(volume: &Volume, dirs: &PodDirs) -> Option<MountedVolume> {
    let (host_path, _) = place(volume, dirs);
    atomic_writer::is_written(&host_path).then_some(MountedVolume::at(host_path, true))
}

/// Makes the files of `payload` those of the volume. Done again with the same files it changes nothing.
pub fn set_up(
    volume: &Volume,
    pod: &Pod,
    payload: &Payload,
    dirs: &PodDirs,
    context: &VolumeContext,
) -> Result<MountedVolume, VolumeError> {
    let (host_path, in_memory) = place(volume, dirs);
    let room = payload.values().map(|file| (file.bytes.len() as u64).next_multiple_of(PAGE)).sum::<u64>();
    // Two generations are there while one takes the place of the other.
    let size = in_memory.then_some((2 * room).max(LEAST_SIZE));
    empty_dir::make(&host_path, size, context.fs_group)?;
    if in_memory {
        ensure_room(&host_path, room)?;
    }
    let nested = nested_mount_points(&volume.name, pod);
    for first in nested.iter().filter_map(|path| path.iter().next()) {
        let wanted = payload.keys().any(|path| Path::new(path).starts_with(first));
        if wanted && host_path.join(first).symlink_metadata().is_ok_and(|found| found.is_dir()) {
            let message = format!("{first:?} is the place of another volume and cannot become a file");
            return Err(VolumeError::Invalid { field: "name", message });
        }
    }
    atomic_writer::write(&host_path, payload, context.fs_group, Timestamp::now())?;
    for path in &nested {
        make_mount_point(&host_path, path)?;
    }
    Ok(MountedVolume::at(host_path, true))
}

/// Lets a volume in memory grow when what it is to hold has grown.
fn ensure_room(path: &Path, room: u64) -> Result<(), VolumeError> {
    let statistics = statvfs(path).map_err(|error| io_error("examine", path)(error.into()))?;
    let free = statistics.blocks_free() * statistics.fragment_size();
    if free >= room {
        return Ok(());
    }
    let size = statistics.blocks() * statistics.fragment_size() + room - free;
    let options = format!("size={size}");
    mount(None::<&str>, path, None::<&str>, MsFlags::MS_REMOUNT, Some(options.as_str()))
        .map_err(|source| VolumeError::Mount { kind: "tmpfs", path: path.to_owned(), options, source })
}

/// Where, within the volume, containers mount something else: the volume is read-only to them, so these directories
/// have to be there before. Of two such places one below the other only the upper one counts.
fn nested_mount_points(name: &str, pod: &Pod) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for container in ContainerRef::all(pod) {
        let mounts = container.volume_mounts();
        let mut targets: Vec<PathBuf> = mounts.iter().filter_map(|mount| target(&mount.mount_path)).collect();
        targets.sort();
        for own in mounts.iter().filter(|mount| mount.name == name) {
            // Beneath a part of the volume it is for that part's own content to have the place.
            let is_part = |path: &Option<String>| path.as_deref().is_some_and(|path| !path.is_empty());
            if is_part(&own.sub_path) || is_part(&own.sub_path_expr) {
                continue;
            }
            let Some(own) = target(&own.mount_path) else { continue };
            for place in &targets {
                let Ok(below) = place.strip_prefix(&own) else { continue };
                let covered = found.iter().any(|upper: &PathBuf| below.starts_with(upper));
                if below != Path::new("") && !covered {
                    found.push(below.to_owned());
                }
            }
        }
    }
    found
}

/// A mount path as a path below the root, if it is one.
fn target(path: &str) -> Option<PathBuf> {
    let mut target = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => target.push(name),
            Component::ParentDir => return None,
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(target)
}

/// A directory beside the files; what leads into the files' own directories is left to them.
fn make_mount_point(volume: &Path, path: &Path) -> Result<(), VolumeError> {
    let Some(first) = path.iter().next() else { return Ok(()) };
    let is_link = volume.join(first).symlink_metadata().is_ok_and(|found| found.is_symlink());
    if is_link {
        return Ok(());
    }
    let path = volume.join(path);
    std::fs::create_dir_all(&path).map_err(io_error("create directory", &path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;
    use crate::{api::content::ContentFile, volume::tear_down::testing::dirs};

    fn payload(files: &[&str]) -> Payload {
        let file = |text: &str| ContentFile { bytes: text.as_bytes().to_vec(), mode: 0o644, owner: None };
        files.iter().map(|path| ((*path).to_owned(), file(path))).collect()
    }

    fn pod(mounts: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "app", "volumeMounts": mounts}]}})).unwrap()
    }

    fn config_map() -> Volume {
        serde_json::from_value(json!({"name": "v", "configMap": {"name": "c"}})).unwrap()
    }

    #[test]
    fn a_config_map_is_a_directory_of_the_pod_that_nobody_writes_to() {
        let root = tempfile::tempdir().unwrap();
        let dirs = dirs(root.path(), "u");
        let (volume, context) = (config_map(), VolumeContext::default());
        assert_eq!(present(&volume, &dirs), None);
        let set_up = |payload: &Payload| set_up(&volume, &Pod::default(), payload, &dirs, &context).unwrap();
        let mounted = set_up(&payload(&["a", "b/c"]));
        assert_eq!(mounted.host_path, dirs.dir.join("volumes/kubernetes.io~configmap/v"));
        assert!(mounted.readonly);
        assert_eq!(present(&volume, &dirs), Some(mounted.clone()));
        set_up(&payload(&["a"]));
        assert_eq!(fs::read_to_string(mounted.host_path.join("a")).unwrap(), "a");
        assert!(!mounted.host_path.join("b").exists());
        let empty = set_up(&Payload::new());
        assert_eq!(present(&volume, &dirs), Some(empty));
    }

    #[test]
    fn places_of_other_volumes_are_there_before_they_are_needed() {
        let of = |mounts: Value| {
            let found = nested_mount_points("v", &pod(mounts));
            found.iter().map(|path| path.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let v = json!({"name": "v", "mountPath": "/etc/app/"});
        let other = |path: &str| json!({"name": "w", "mountPath": path});
        assert_eq!(of(json!([v, other("/etc/app/data"), other("/etc/app/data/deep"), other("/etc/apple")])), ["data"]);
        assert_eq!(of(json!([other("etc/app//x/y"), v])), ["x/y"], "relative paths are below the root");
        assert!(of(json!([v, other("/etc"), other("/etc/app/../x")])).is_empty());
        let part = json!({"name": "v", "mountPath": "/etc/app", "subPath": "x"});
        assert!(of(json!([part, other("/etc/app/data")])).is_empty());

        let root = tempfile::tempdir().unwrap();
        let (dirs, volume, context) = (dirs(root.path(), "u"), config_map(), VolumeContext::default());
        let pod = pod(json!([v, other("/etc/app/data/deep"), other("/etc/app/a/x")]));
        let mounted = set_up(&volume, &pod, &payload(&["a/file"]), &dirs, &context).unwrap();
        assert!(mounted.host_path.join("data/deep").is_dir());
        assert!(!mounted.host_path.join("a/x").exists());
        let error = set_up(&volume, &pod, &payload(&["data"]), &dirs, &context).unwrap_err();
        assert!(error.to_string().contains("\"data\" is the place of another volume"), "{error}");
        assert!(mounted.host_path.join("data/deep").is_dir());
    }
}
