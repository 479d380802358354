//! Volumes of a pod on the host: set up before its containers start, torn down after they have ended.
//!
//! Everything here blocks (mounts, directories with many files, a slow disk): callers use a thread that may wait. Each
//! call can be repeated; what is already there stays.

mod atomic_writer;
mod content;
pub mod empty_dir;
mod error;
mod host_path;
pub mod mount_table;
pub mod remove;
pub mod shm;
mod tear_down;
pub mod usage;

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Pod, Volume};

pub use self::{
    content::present,
    error::VolumeError,
    tear_down::{sweep, tear_down},
};
use crate::{
    api::{content::Payload, objects::Objects, unsupported::volume_kind},
    store::layout::PodDirs,
};

/// A volume that containers can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedVolume {
    /// Absolute path on the host without symbolic links: a directory, or with hostPath anything.
    pub host_path: PathBuf,
    /// No container may write, whatever its mount says.
    pub readonly: bool,
}

/// A volume, and what it may be made from.
#[derive(Debug, Clone, Copy)]
pub struct VolumeInput<'a> {
    /// The volume of the pod.
    pub volume: &'a Volume,
    /// The pod, with its defaults.
    pub pod: &'a Pod,
    /// The objects it may refer to.
    pub objects: &'a Objects,
    /// The files of a volume whose content comes from objects; nothing to other kinds.
    pub content: Option<&'a Payload>,
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

/// Makes a volume available and says where. The pod's directory exists. Each kind has a file of its own:
///
/// emptyDir: a directory of the pod, or a tmpfs mounted there. hostPath: the path itself, after its type has been
/// checked and it has been created if its type says so. configMap, secret, downwardAPI, projected: a directory (in
/// memory, but for configMap) with the files that were computed for it.
pub fn set_up(input: &VolumeInput<'_>, dirs: &PodDirs, context: &VolumeContext) -> Result<MountedVolume, VolumeError> {
    let volume = input.volume;
    supported(volume)?;
    let writable = |host_path| MountedVolume { host_path, readonly: false };
    match volume_kind(volume).0 {
        "configMap" | "secret" | "downwardAPI" | "projected" => {
            let none = Payload::new();
            content::set_up(volume, input.pod, input.content.unwrap_or(&none), dirs, context)
        }
        "hostPath" => host_path::set_up(&volume.host_path.clone().unwrap_or_default()).map(writable),
        // A volume that names no kind is one, too.
        _ => {
            let source = volume.empty_dir.clone().unwrap_or_default();
            empty_dir::set_up(&volume.name, &source, dirs, context).map(writable)
        }
    }
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
