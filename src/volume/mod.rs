//! Volumes of a pod on the host: set up before its containers start, torn down after they have ended.
//!
//! Everything here blocks (mounts, directories with many files, a slow disk): callers use a thread that may wait. Each
//! call can be repeated; what is already there stays.

mod empty_dir;
mod error;
mod host_path;
pub mod mount_table;
pub mod remove;
pub mod shm;
mod tear_down;

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{HostPathVolumeSource, Volume};

pub use self::{
    error::VolumeError,
    tear_down::{sweep, tear_down},
};
use crate::{api::unsupported::volume_kind, store::layout::PodDirs};

/// A volume that containers can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedVolume {
    /// Absolute path on the host without symbolic links: a directory, or with hostPath anything.
    pub host_path: PathBuf,
    /// No container may write, whatever its mount says.
    pub readonly: bool,
}

/// What a volume has to know of its pod and node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeContext {
    /// Group that owns the pod's own volumes.
    pub fs_group: Option<u32>,
    /// Memory limit of the pod as a whole, in bytes (`runtime::limits::pod_limits`).
    pub memory_limit: Option<u64>,
    /// Memory pods may use on this node, in bytes: the size of a volume in memory that nothing else bounds.
    pub node_memory: u64,
}

/// A kind of volume, or a detail of one, that berth does not provide.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Unsupported {
    /// Field below the volume: `nfs`, `emptyDir.medium`.
    pub field: String,
    /// What is the matter.
    pub message: String,
}

/// Whether berth can provide `volume`. [`crate::api::unsupported`] says the same with the path within the pod.
pub fn supported(volume: &Volume) -> Result<(), Unsupported> {
    let (kind, supported) = volume_kind(volume);
    if !supported {
        let message = format!("volumes of the kind {kind} are not supported yet");
        return Err(Unsupported { field: kind.to_owned(), message });
    }
    match volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref()) {
        None | Some("" | "Memory") => Ok(()),
        Some(other) => Err(Unsupported {
            field: "emptyDir.medium".to_owned(),
            message: format!("medium {other:?} is not supported yet"),
        }),
    }
}

/// Makes a volume available and says where. The pod's directory exists.
///
/// emptyDir: a directory of the pod, or a tmpfs mounted there. hostPath: the path itself, after its type has been
/// checked and it has been created if its type says so.
pub fn set_up(volume: &Volume, dirs: &PodDirs, context: &VolumeContext) -> Result<MountedVolume, VolumeError> {
    supported(volume)?;
    if let (None, Some(HostPathVolumeSource { path, type_ })) = (&volume.empty_dir, &volume.host_path) {
        let host_path = host_path::resolve(path, type_.as_deref().unwrap_or_default())?;
        return Ok(MountedVolume { host_path, readonly: false });
    }
    let source = volume.empty_dir.clone().unwrap_or_default();
    let host_path = empty_dir::set_up(&volume.name, &source, dirs, context)?;
    Ok(MountedVolume { host_path, readonly: false })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_empty_dir_and_host_path_are_provided() {
        let check = |source: Value| {
            let mut source = source;
            source["name"] = json!("v");
            supported(&serde_json::from_value(source).unwrap()).map_err(|error| error.to_string())
        };
        assert_eq!(check(json!({"emptyDir": {}})), Ok(()));
        assert_eq!(check(json!({"emptyDir": {"medium": "Memory"}})), Ok(()));
        assert_eq!(check(json!({"hostPath": {"path": "/"}})), Ok(()));
        assert_eq!(check(json!({})), Ok(()));
        let nfs = json!({"nfs": {"server": "s", "path": "/"}});
        assert_eq!(check(nfs), Err("nfs: volumes of the kind nfs are not supported yet".to_owned()));
        let pages = json!({"emptyDir": {"medium": "HugePages"}});
        assert_eq!(check(pages), Err("emptyDir.medium: medium \"HugePages\" is not supported yet".to_owned()));
    }
}
