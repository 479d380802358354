//! The pod's /dev/shm: one tmpfs that all its containers see and that outlives each of them.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::PodSpec;
use nix::mount::MsFlags;

use super::{
    VolumeError,
    empty_dir::{create, is_mount_point, mount_tmpfs},
};
use crate::store::layout::PodDirs;

/// 64 MiB, as every runtime gives.
const SIZE: u64 = 64 << 20;

/// The host's, for pods that share its IPC namespace.
pub const HOST: &str = "/dev/shm";

/// Where the pod's tmpfs is mounted: among its volumes, so that it goes with them.
pub fn path(dirs: &PodDirs) -> PathBuf {
    dirs.volume("berth/shm", "shm")
}

/// Whether a pod has one of its own: one in the host's IPC namespace sees [`HOST`].
pub fn is_needed(spec: &PodSpec) -> bool {
    spec.host_ipc != Some(true)
}

/// Mounts it if it is not there yet. To be done before the first container of a pod that needs it.
pub fn set_up(dirs: &PodDirs) -> Result<PathBuf, VolumeError> {
    let path = path(dirs);
    if create(&path)? || !is_mount_point(&path)? {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount_tmpfs(&path, &format!("mode=1777,size={SIZE}"), flags)?;
    }
    Ok(path)
}
