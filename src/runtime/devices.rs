//! Block volumes (`volumeDevices`) and devices of plugins: the nodes a container gets, and what it may do with them.

use std::{collections::BTreeMap, path::Path};

use super::{config_error::ConfigError, container_ref::ContainerRef};
use crate::{
    cgroup::{
        devices::{DeviceRule, default_rules},
        limits::DeviceAccess,
    },
    supervisor::spec::{DeviceSpec, MountSpec},
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
            host_path: None,
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

impl VolumeDevice {
    /// What the container may do with it.
    pub fn rule(&self) -> DeviceRule {
        DeviceRule {
            block: true,
            major: Some(self.node.major),
            minor: Some(self.node.minor),
            read: true,
            write: self.writable,
            make: self.writable,
        }
    }
}

/// What a container is given for the devices of plugins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// Variables that the container's own go before.
    pub env: Vec<(String, String)>,
    /// Variables that go before the container's own.
    pub cdi_env: Vec<(String, String)>,
    /// Binds; what is mounted at the same path for a volume goes before them.
    pub mounts: Vec<MountSpec>,
    /// Device nodes.
    pub nodes: Vec<DeviceSpec>,
    /// What it may do with them.
    pub rules: Vec<DeviceRule>,
    /// Further groups of its processes.
    pub groups: Vec<u32>,
}

/// What the container's cgroup allows: what it would without `more`, and that.
pub fn device_access(without: DeviceAccess, more: impl IntoIterator<Item = DeviceRule>) -> DeviceAccess {
    let mut more = more.into_iter().peekable();
    if more.peek().is_none() || without == DeviceAccess::All {
        return without;
    }
    let mut rules = match without {
        DeviceAccess::Only(rules) => rules,
        _ => default_rules().to_vec(),
    };
    for rule in more {
        let same =
            |known: &&mut DeviceRule| (known.block, known.major, known.minor) == (rule.block, rule.major, rule.minor);
        // v1 keeps one entry for a device, and v2 looks at one rule at a time.
        match rules.iter_mut().find(same) {
            Some(known) => {
                known.read |= rule.read;
                known.write |= rule.write;
                known.make |= rule.make;
            }
            None => rules.push(rule),
        }
    }
    DeviceAccess::Only(rules)
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
        let all = || devices.iter().map(VolumeDevice::rule);
        let DeviceAccess::Only(rules) = device_access(DeviceAccess::Default, all()) else { panic!("rules") };
        assert_eq!(rules.len(), default_rules().len() + 2);
        let added: Vec<_> = rules[default_rules().len()..].iter().map(|rule| (rule.minor, rule.write)).collect();
        assert_eq!(added, [(Some(1), true), (Some(2), false)]);
        assert_eq!(device_access(DeviceAccess::All, all()), DeviceAccess::All);
        assert_eq!(device_access(DeviceAccess::Default, []), DeviceAccess::Default);
        // Asked for twice it is one rule that allows both.
        let DeviceAccess::Only(twice) = device_access(DeviceAccess::Default, all().chain(all())) else {
            panic!("rules")
        };
        assert_eq!(twice, rules);
        let mut written = devices[1].rule();
        (written.read, written.write) = (false, true);
        let DeviceAccess::Only(both) = device_access(DeviceAccess::Only(rules), [written]) else { panic!("rules") };
        let last = both.last().unwrap();
        assert_eq!((both.len(), last.read, last.write, last.make), (default_rules().len() + 2, true, true, false));
        volumes.insert("disk".to_owned(), MountedVolume::at("/v".into(), false));
        let error = volume_devices(app, &volumes).unwrap_err().to_string();
        assert!(error.contains("has volumeMode Filesystem, but is specified in volumeDevices"), "{error}");
    }
}
