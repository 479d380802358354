//! emptyDir: a directory of the pod, on its disk or in memory.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};

use super::{VolumeContext, VolumeError, error::io_error};
use crate::{
    api::{
        quantity::Quantity,
        resources::{HUGEPAGES_PREFIX, requests},
    },
    store::layout::PodDirs,
};

/// Upstream's name of the plug-in, part of the path.
const PLUGIN: &str = "kubernetes.io/empty-dir";

/// Media of huge pages begin so; `HugePages-2Mi` names the size.
const HUGE_PAGES: &str = "HugePages";

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
    pod: &Pod,
    dirs: &PodDirs,
    context: &VolumeContext,
) -> Result<PathBuf, VolumeError> {
    let path = path(dirs, name);
    if let Some(medium) = source.medium.as_deref().filter(|medium| medium.starts_with(HUGE_PAGES)) {
        let page = huge_page_size(medium, pod)?;
        mount_huge_pages(&path, page, size_limit(source)?, context.fs_group)?;
        return Ok(path);
    }
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

/// Mounts huge pages (of `page` bytes each), unless they are there.
fn mount_huge_pages(path: &Path, page: u64, size: Option<u64>, group: Option<u32>) -> Result<(), VolumeError> {
    if create(path)? || !is_mount_point(path)? {
        mount_pages(path, page, size, group)?;
    }
    // The mount takes the permissions alone. They are as it made them until this, or a container, has changed them.
    let mode = fs::symlink_metadata(path).map_err(io_error("examine", path))?.mode() & 0o7777;
    if group.is_some() && mode == MODE {
        let wanted = Permissions::from_mode(MODE | 0o2000);
        fs::set_permissions(path, wanted).map_err(io_error("change mode of", path))?;
    }
    Ok(())
}

fn mount_pages(path: &Path, page: u64, size: Option<u64>, group: Option<u32>) -> Result<(), VolumeError> {
    let group = group.map(|group| format!(",gid={group}")).unwrap_or_default();
    let mut options = format!("mode={MODE:o}{group},pagesize={page}");
    // Without one, as upstream: what the containers may have of huge pages bounds what they can put here.
    if let Some(size) = size.filter(|size| *size > 0) {
        options.push_str(&format!(",size={size}"));
    }
    mount_file_system("hugetlbfs", path, &options, MsFlags::MS_NODEV)
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

/// Bytes of the pages of a medium: of the size that it names, or of the only one that the pod's containers ask for
/// (upstream's `getPageSizeMountOption`).
fn huge_page_size(medium: &str, pod: &Pod) -> Result<u64, VolumeError> {
    let invalid = |message: String| VolumeError::Invalid { field: "emptyDir.medium", message };
    let bytes = |text: &str| {
        let size = Quantity::parse(text).map_err(|error| invalid(format!("{text:?}: {error}")))?;
        u64::try_from(size.value()).map_err(|_| invalid(format!("{text:?} is negative")))
    };
    let wanted = match medium.strip_prefix(HUGE_PAGES).unwrap_or_default().strip_prefix('-') {
        Some(size) => Some(bytes(size)?),
        None => None,
    };
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let names = containers.flat_map(|container| requests(container.resources.as_ref()).into_keys());
    let sizes: BTreeSet<u64> = names.filter_map(|name| bytes(name.strip_prefix(HUGEPAGES_PREFIX)?).ok()).collect();
    match (wanted, sizes.len()) {
        (Some(wanted), _) if sizes.contains(&wanted) => Ok(wanted),
        (None, 1) => Ok(sizes.into_iter().sum()),
        (None, 2..) => {
            Err(invalid(format!("medium {medium} can't be used if container requests multiple huge page sizes")))
        }
        _ => Err(invalid(format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        ))),
    }
}

/// Size of a volume in memory: the least of sizeLimit, the pod's memory limit and what the node has.
fn memory_size(source: &EmptyDirVolumeSource, context: &VolumeContext) -> Result<u64, VolumeError> {
    let bounds = [size_limit(source)?, context.memory_limit, Some(context.node_memory)];
    // 0 means that nothing is known or asked for; to tmpfs it would mean no limit at all.
    bounds
        .into_iter()
        .flatten()
        .filter(|bound| *bound > 0)
        .min()
        .ok_or_else(|| invalid_size("neither a limit nor the node's memory is known".to_owned()))
}

/// sizeLimit in bytes.
fn size_limit(source: &EmptyDirVolumeSource) -> Result<Option<u64>, VolumeError> {
    let Some(limit) = &source.size_limit else { return Ok(None) };
    let limit = Quantity::try_from(limit).map_err(|error| invalid_size(format!("{:?}: {error}", limit.0)))?;
    u64::try_from(limit.value()).map(Some).map_err(|_| invalid_size(format!("{limit} is negative")))
}

fn invalid_size(message: String) -> VolumeError {
    VolumeError::Invalid { field: "emptyDir.sizeLimit", message }
}

/// Mounts a tmpfs.
pub(super) fn mount_tmpfs(path: &Path, options: &str, flags: MsFlags) -> Result<(), VolumeError> {
    mount_file_system("tmpfs", path, options, flags)
}

fn mount_file_system(kind: &'static str, path: &Path, options: &str, flags: MsFlags) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::Mount { kind, path: path.to_owned(), options: options.to_owned(), source };
    mount(Some(kind), path, Some(kind), flags, Some(options)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

    use super::*;
    use crate::volume::tear_down::testing::{dirs, with_own_mounts};

    #[test]
    fn a_directory_is_for_everybody_and_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let dirs = dirs(root.path(), "u");
        let context = VolumeContext::default();
        let source = EmptyDirVolumeSource::default();
        let path = set_up("scratch", &source, &Pod::default(), &dirs, &context).unwrap();
        assert_eq!(path, dirs.dir.join("volumes/kubernetes.io~empty-dir/scratch"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
        fs::write(path.join("file"), "x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        assert_eq!(set_up("scratch", &source, &Pod::default(), &dirs, &context).unwrap(), path);
        assert!(path.join("file").exists());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        // An interrupted set-up is finished.
        fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
        set_up("scratch", &source, &Pod::default(), &dirs, &context).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
    }

    #[test]
    fn pages_are_of_the_size_that_is_named_or_the_only_one_asked_for() {
        let pages = |medium: &str, sizes: &[&str]| {
            let requests: serde_json::Map<_, _> =
                sizes.iter().map(|size| (format!("hugepages-{size}"), "2Gi".into())).collect();
            let container = serde_json::json!({"name": "a", "resources": {"requests": requests}});
            let pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [container]}})).unwrap();
            huge_page_size(medium, &pod).map_err(|error| error.to_string())
        };
        assert_eq!(pages("HugePages", &["2Mi"]), Ok(2 << 20));
        assert_eq!(pages("HugePages-1Gi", &["2Mi", "1Gi"]), Ok(1 << 30));
        assert!(pages("HugePages", &["2Mi", "1Gi"]).unwrap_err().contains("multiple huge page sizes"));
        for (medium, sizes) in [("HugePages", &[][..]), ("HugePages-1Gi", &["2Mi"]), ("HugePages-", &["2Mi"])] {
            assert!(pages(medium, sizes).is_err(), "{medium}");
        }
    }

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn huge_pages_are_a_file_system_of_their_own() {
        with_own_mounts(|root| {
            let container = serde_json::json!({"name": "a", "resources": {"requests": {"hugepages-2Mi": "4Mi"}}});
            let pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [container]}})).unwrap();
            let source = serde_json::json!({"medium": "HugePages", "sizeLimit": "4Mi"});
            let source = serde_json::from_value(source).unwrap();
            let context = VolumeContext { fs_group: Some(7), ..VolumeContext::default() };
            let dirs = dirs(root, "u");
            let path = set_up("pages", &source, &pod, &dirs, &context).unwrap();
            let found = nix::sys::statfs::statfs(&path).unwrap();
            assert_eq!(found.filesystem_type(), nix::sys::statfs::HUGETLBFS_MAGIC);
            assert_eq!((found.block_size(), found.blocks()), (2 << 20, 2));
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.gid(), metadata.mode() & 0o7777), (7, 0o2777));
            assert_eq!(set_up("pages", &source, &pod, &dirs, &context).unwrap(), path);
            assert_eq!(crate::volume::mount_table::beneath(&path).unwrap().len(), 1);
            crate::volume::tear_down(&dirs).unwrap();
            assert!(!path.exists());
        });
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
