//! Volumes of a pod on the host: set up before its containers start, torn down after they have ended.
//!
//! Everything here blocks (mounts, directories with many files, a slow disk): callers use a thread that may wait. Each
//! call can be repeated; what is already there stays.

mod atomic_writer;
mod content;
pub mod empty_dir;
mod error;
pub mod helper;
pub mod host_path;
pub mod image;
pub mod mount_table;
pub mod nfs;
pub mod ownership;
pub mod remove;
pub mod shm;
mod tear_down;
pub mod usage;

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Pod, Volume};

pub use self::{
    content::present,
    error::VolumeError,
    helper::BlockDevice,
    tear_down::{detach_remote, sweep, tear_down},
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
    /// What else no container may, whatever its mount says.
    pub restrictions: Restrictions,
    /// With volumeMode Block: the device. It cannot be mounted, only be given to a container as a device.
    pub device: Option<BlockDevice>,
}

impl MountedVolume {
    /// A volume that can be written unless `readonly`, and has no other restriction.
    pub fn at(host_path: PathBuf, readonly: bool) -> MountedVolume {
        MountedVolume { host_path, readonly, restrictions: Restrictions::default(), device: None }
    }
}

/// Flags that each mount of a volume has (`mountOptions` of a PersistentVolume).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restrictions {
    /// MS_NOSUID.
    pub nosuid: bool,
    /// MS_NODEV.
    pub nodev: bool,
    /// MS_NOEXEC.
    pub noexec: bool,
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
    Ok(())
}

/// Makes a volume of the pod's own available and says where. The pod's directory exists. Each kind has a file of its own:
///
/// emptyDir: a directory of the pod, a tmpfs or huge pages mounted there. configMap, secret, downwardAPI, projected: a
/// directory (in memory, but for configMap) with the files that were computed for it.
///
/// What is somebody else's (hostPath, image, persistent volumes, nfs) is seen to by `worker::far_volumes`, which can
/// wait for it without holding up anybody.
pub fn set_up(input: &VolumeInput<'_>, dirs: &PodDirs, context: &VolumeContext) -> Result<MountedVolume, VolumeError> {
    let volume = input.volume;
    supported(volume)?;
    let writable = |host_path| MountedVolume::at(host_path, false);
    match volume_kind(volume).0 {
        "configMap" | "secret" | "downwardAPI" | "projected" => {
            let none = Payload::new();
            content::set_up(volume, input.pod, input.content.unwrap_or(&none), dirs, context)
        }
        "emptyDir" => {
            let source = volume.empty_dir.clone().unwrap_or_default();
            empty_dir::set_up(&volume.name, &source, input.pod, dirs, context).map(writable)
        }
        kind => {
            let message = format!("volumes of the kind {kind} are not made here");
            Err(Unsupported { field: kind.to_owned(), message }.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_provided_is_what_the_api_says() {
        let check = |source: Value| {
            let mut source = source;
            source["name"] = json!("v");
            supported(&serde_json::from_value(source).unwrap()).map_err(|error| error.to_string())
        };
        assert_eq!(check(json!({"emptyDir": {"medium": "HugePages"}})), Ok(()));
        assert_eq!(check(json!({"hostPath": {"path": "/"}})), Ok(()));
        assert_eq!(check(json!({})), Ok(()));
        let iscsi = json!({"iscsi": {"targetPortal": "s", "iqn": "i", "lun": 0}});
        assert_eq!(check(iscsi), Err("iscsi: volumes of the kind iscsi are not supported yet".to_owned()));
    }
}
