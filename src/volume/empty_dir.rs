//! emptyDir: a directory of the pod, on its disk or in memory.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

use super::{VolumeContext, VolumeError, error::io_error};
use crate::{api::quantity::Quantity, store::layout::PodDirs};

/// Upstream's name of the plug-in, part of the path.
const PLUGIN: &str = "kubernetes.io/empty-dir";

/// Whoever a container runs as may write.
const MODE: u32 = 0o777;

/// Where an emptyDir is, whatever it is made of.
pub fn path(dirs: &PodDirs, name: &str) -> PathBuf {
    dirs.volume(PLUGIN, name)
}

/// Makes the directory and, for medium Memory, the tmpfs on it.
pub fn set_up(
    name: &str,
    source: &EmptyDirVolumeSource,
    dirs: &PodDirs,
    context: &VolumeContext,
) -> Result<PathBuf, VolumeError> {
    let path = path(dirs, name);
    let in_memory = source.medium.as_deref() == Some("Memory");
    let size = in_memory.then(|| memory_size(source, context)).transpose()?;
    make(&path, size, context.fs_group)?;
    Ok(path)
}

/// Makes the directory, mounts a tmpfs on it if it is to have a size (in bytes), and gives it to the pod's group. A
/// directory that is complete already (its mode is set last) is left as the pod's containers have made it.
pub(super) fn make(path: &Path, size: Option<u64>, group: Option<u32>) -> Result<(), VolumeError> {
    let created = create(path)?;
    // With the set-group-id bit what is created inside belongs to the group as well.
    let mode = if group.is_some() { MODE | 0o2000 } else { MODE };
    if let Some(size) = size {
        if !created && is_mount_point(path)? {
            return Ok(());
        }
        // Group and mode come with the mount, so that it is never seen half set up.
        let group = group.map(|group| format!(",gid={group}")).unwrap_or_default();
        let options = format!("mode={mode:o}{group},size={size}");
        // What is in memory often must not reach a disk. Kernels before 6.4 cannot promise that.
        return match mount_tmpfs(path, &format!("{options},noswap"), MsFlags::empty()) {
            Err(VolumeError::Mount { source: Errno::EINVAL, .. }) => mount_tmpfs(path, &options, MsFlags::empty()),
            result => result,
        };
    }
    if !created && is_complete(path, group)? {
        return Ok(());
    }
    if let Some(group) = group {
        chown(path, None, Some(group)).map_err(io_error("change group of", path))?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error("change mode of", path))
}

/// Makes the directory and those above it; whether it was missing.
pub(super) fn create(path: &Path) -> Result<bool, VolumeError> {
    let mut builder = DirBuilder::new();
    builder.mode(0o750);
    match builder.create(path) {
        Ok(()) => return Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("create directory", path)(error)),
    }
    builder.recursive(true).create(path).map_err(io_error("create directory", path))?;
    Ok(true)
}

/// Whether set-up has finished before: the owner of the root directory and its mode are the last things it changes.
fn is_complete(path: &Path, group: Option<u32>) -> Result<bool, VolumeError> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("examine", path))?;
    // A container may have changed the mode since; only the mode `create` gives says that set-up was interrupted.
    let fresh = metadata.mode() & 0o7777 == 0o750;
    let owned = group.is_none_or(|group| metadata.gid() == group);
    Ok(!fresh && owned)
}

/// Whether something is mounted on the directory.
pub(super) fn is_mount_point(path: &Path) -> Result<bool, VolumeError> {
    let device = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.dev());
    let own = device(path).map_err(io_error("examine", path))?;
    let above = path.parent().unwrap_or(path);
    // A tmpfs is a file system of its own, so the device tells.
    Ok(own != device(above).map_err(io_error("examine", above))?)
}

/// Size of a volume in memory: the least of sizeLimit, the pod's memory limit and what the node has.
fn memory_size(source: &EmptyDirVolumeSource, context: &VolumeContext) -> Result<u64, VolumeError> {
    let invalid = |message: String| VolumeError::Invalid { field: "emptyDir.sizeLimit", message };
    let limit = match &source.size_limit {
        Some(limit) => {
            let limit = Quantity::try_from(limit).map_err(|error| invalid(format!("{:?}: {error}", limit.0)))?;
            Some(u64::try_from(limit.value()).map_err(|_| invalid(format!("{limit} is negative")))?)
        }
        None => None,
    };
    let bounds = [limit, context.memory_limit, Some(context.node_memory)];
    // 0 means that nothing is known or asked for; to tmpfs it would mean no limit at all.
    bounds
        .into_iter()
        .flatten()
        .filter(|bound| *bound > 0)
        .min()
        .ok_or_else(|| invalid("neither a limit nor the node's memory is known".to_owned()))
}

/// Mounts a tmpfs.
pub(super) fn mount_tmpfs(path: &Path, options: &str, flags: MsFlags) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::Mount { path: path.to_owned(), options: options.to_owned(), source };
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

    use super::*;
    use crate::volume::tear_down::testing::dirs;

    #[test]
    fn a_directory_is_for_everybody_and_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let dirs = dirs(root.path(), "u");
        let context = VolumeContext::default();
        let source = EmptyDirVolumeSource::default();
        let path = set_up("scratch", &source, &dirs, &context).unwrap();
        assert_eq!(path, dirs.dir.join("volumes/kubernetes.io~empty-dir/scratch"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
        fs::write(path.join("file"), "x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        assert_eq!(set_up("scratch", &source, &dirs, &context).unwrap(), path);
        assert!(path.join("file").exists());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        // An interrupted set-up is finished.
        fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
        set_up("scratch", &source, &dirs, &context).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
    }

    #[test]
    fn the_least_bound_is_the_size() {
        let size = |limit: Option<&str>, pod: Option<u64>, node: u64| {
            let size_limit = limit.map(|limit| ApiQuantity(limit.to_owned()));
            let context = VolumeContext { fs_group: None, memory_limit: pod, node_memory: node };
            memory_size(&EmptyDirVolumeSource { size_limit, ..Default::default() }, &context).ok()
        };
        assert_eq!(size(None, None, 1000), Some(1000));
        assert_eq!(size(Some("100"), None, 1000), Some(100));
        assert_eq!(size(Some("1Ki"), None, 1000), Some(1000));
        assert_eq!(size(Some("100"), Some(50), 1000), Some(50));
        assert_eq!(size(Some("0"), Some(500), 1000), Some(500));
        assert_eq!(size(None, None, 0), None);
        assert_eq!(size(Some("-1"), None, 1000), None);
        assert_eq!(size(Some("x"), None, 1000), None);
    }
}
