//! Block volumes (`volumeDevices`): the device nodes a container gets, and what it may do with them.

use std::{collections::BTreeMap, path::Path};

use super::{config_error::ConfigError, container_ref::ContainerRef};
use crate::{
    cgroup::{
        devices::{DeviceRule, default_rules},
        limits::DeviceAccess,
    },
    supervisor::spec::DeviceSpec,
    volume::MountedVolume,
};

/// A block volume of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeDevice {
    /// The node in the container, owned as the host's is.
    pub node: DeviceSpec,
    /// Whether it may be written.
    pub writable: bool,
}

/// The container's block volumes in order.
pub fn volume_devices(
    container: ContainerRef<'_>,
    volumes: &BTreeMap<String, MountedVolume>,
) -> Result<Vec<VolumeDevice>, ConfigError> {
    let devices = container.volume_devices().iter().enumerate();
    let device = |(index, wanted): (usize, &k8s_openapi::api::core::v1::VolumeDevice)| {
        let name = &wanted.name;
        let failed =
            |message: String| ConfigError::create(format!("{}.volumeDevices[{index}]", container.path()), message);
        let volume = volumes.get(name).ok_or_else(|| failed(format!("cannot find volume {name:?}")))?;
        let device = volume.device.ok_or_else(|| {
            failed(format!("volume {name} has volumeMode Filesystem, but is specified in volumeDevices"))
        })?;
        let path = Path::new("/").join(&wanted.device_path);
        let node = DeviceSpec {
            path,
            block: true,
            major: device.major,
            minor: device.minor,
            mode: device.mode,
            uid: device.uid,
            gid: device.gid,
        };
        Ok(VolumeDevice { node, writable: !volume.readonly })
    };
    devices.map(device).collect()
}

/// What the container's cgroup allows: what it would without block volumes, and those.
pub fn device_access(without: DeviceAccess, devices: &[VolumeDevice]) -> DeviceAccess {
    if devices.is_empty() || without == DeviceAccess::All {
        return without;
    }
    let rule = |device: &VolumeDevice| DeviceRule {
        block: true,
        major: Some(device.node.major),
        minor: Some(device.node.minor),
        open: true,
        write: device.writable,
    };
    let defaults = match without {
        DeviceAccess::Only(rules) => rules,
        _ => default_rules().to_vec(),
    };
    DeviceAccess::Only(defaults.into_iter().chain(devices.iter().map(rule)).collect())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::volume::BlockDevice;

    #[test]
    fn a_block_volume_is_a_node_and_a_rule() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "app", "volumeDevices": [
            {"name": "disk", "devicePath": "/dev/xvda"}, {"name": "fixed", "devicePath": "/data/raw"}]}]}}))
        .unwrap();
        let app = ContainerRef::find(&pod, "app").unwrap();
        let volume = |minor, readonly| {
            let device = BlockDevice { major: 7, minor, mode: 0o660, uid: 0, gid: 6 };
            MountedVolume { device: Some(device), ..MountedVolume::at("/dev/loop".into(), readonly) }
        };
        let mut volumes =
            BTreeMap::from([("disk".to_owned(), volume(1, false)), ("fixed".to_owned(), volume(2, true))]);
        let devices = volume_devices(app, &volumes).unwrap();
        let told: Vec<_> = devices.iter().map(|device| (device.node.path.to_str().unwrap(), device.writable)).collect();
        assert_eq!(told, [("/dev/xvda", true), ("/data/raw", false)]);
        assert_eq!((devices[0].node.major, devices[0].node.minor, devices[0].node.gid), (7, 1, 6));
        let DeviceAccess::Only(rules) = device_access(DeviceAccess::Default, &devices) else { panic!("rules") };
        assert_eq!(rules.len(), default_rules().len() + 2);
        let added: Vec<_> = rules[default_rules().len()..].iter().map(|rule| (rule.minor, rule.write)).collect();
        assert_eq!(added, [(Some(1), true), (Some(2), false)]);
        assert_eq!(device_access(DeviceAccess::All, &devices), DeviceAccess::All);
        assert_eq!(device_access(DeviceAccess::Default, &[]), DeviceAccess::Default);
        volumes.insert("disk".to_owned(), MountedVolume::at("/v".into(), false));
        let error = volume_devices(app, &volumes).unwrap_err().to_string();
        assert!(error.contains("has volumeMode Filesystem, but is specified in volumeDevices"), "{error}");
    }
}
