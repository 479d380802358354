//! Devices of plugins, on this machine: asking their plugins, and working out what a container needs for them.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Pod, ResourceStatus};

use super::{
    execute::Host,
    host::ActionError,
    manager::DeviceTrouble,
    shared::{RealHosts, Shared},
};
use crate::{
    api::container_ref::ContainerRef,
    cgroup::devices::DeviceRule,
    device::{
        PluginError,
        cdi::{self, CdiDevice},
    },
    obs::chain::Chain,
    pod::{
        Grants,
        devices::{self, ArtifactDevice, ArtifactMount, Artifacts, Question},
        grants::Grant,
    },
    runtime::devices::Granted,
    supervisor::spec::{DeviceSpec, MountKind, MountSpec, Propagation, RecursiveReadOnly},
    sys::node,
};

const CREATE: &str = "CreateContainerError";
/// A plugin's directory of device nodes is shallow; a limit keeps a loop of mounts from being walked for ever.
const MAX_DEPTH: usize = 8;

impl From<PluginError> for DeviceTrouble {
    fn from(error: PluginError) -> DeviceTrouble {
        DeviceTrouble { message: error.to_string(), gone: error.is_gone() }
    }
}

fn gone(resource: &str) -> DeviceTrouble {
    DeviceTrouble { message: format!("endpoint {resource} has been stopped"), gone: true }
}

impl Shared {
    /// Which devices a plugin would rather have chosen.
    ///
    /// # Errors
    /// It does not say.
    pub async fn preferred_devices(&self, question: &Question) -> Result<Vec<String>, DeviceTrouble> {
        let plugin = self.devices.plugin(&question.resource).ok_or_else(|| gone(&question.resource))?;
        plugin.preferred(question).await.map_err(|error| {
            let trouble = DeviceTrouble::from(error);
            let message = format!("device plugin GetPreferredAllocation rpc failed with err: {}", trouble.message);
            DeviceTrouble { message, ..trouble }
        })
    }

    /// Has the devices that a new pod was given made ready, container by container, and notes what each needs for them.
    ///
    /// # Errors
    /// A plugin cannot.
    pub async fn allocate_devices(&self, pod: &Pod, mut grants: Grants) -> Result<Grants, DeviceTrouble> {
        for container in ContainerRef::all(pod) {
            let Some(grant) = grants.containers.get_mut(container.name()) else { continue };
            for (resource, devices) in &grant.devices {
                let plugin = self.devices.plugin(resource).ok_or_else(|| gone(resource))?;
                let ids = devices.iter().map(|device| device.id.clone()).collect();
                grant.artifacts.insert(resource.clone(), plugin.allocate(ids).await?);
            }
        }
        Ok(grants)
    }
}

impl RealHosts {
    /// Resources of `pod` that a plugin on this node would have to offer and none does now.
    pub(super) fn awaited(&self, pod: &Pod) -> Vec<String> {
        let wanted = devices::all_wanted(pod);
        if wanted.is_empty() {
            return Vec::new();
        }
        let offers = self.0.devices.offers();
        let offered = |resource: &String| offers.get(resource).is_some_and(devices::Offer::is_current);
        wanted.into_iter().filter(|resource| !offered(resource)).collect()
    }
}

impl Host {
    /// The health of the devices that containers have.
    pub(super) fn device_health(&self) -> BTreeMap<String, Vec<ResourceStatus>> {
        if self.grants.containers.values().all(|grant| grant.devices.is_empty()) {
            return BTreeMap::new();
        }
        let offers = self.shared.devices.offers();
        let health = |name: &String| Some((name.clone(), devices::statuses(&self.grants, &offers, name)?));
        self.grants.containers.keys().filter_map(health).collect()
    }

    /// What has to be done for a container's devices before each of its starts: it waits for plugins that have not been
    /// there since the machine was started, and those that want to know are told.
    pub(super) async fn prepare_devices(&self, container: &str) -> Result<(), ActionError> {
        let Some(grant) = self.grants.of(container) else { return Ok(()) };
        let failed = |message: String| ActionError { reason: "CreateContainerConfigError".to_owned(), message };
        for (resource, devices) in &grant.devices {
            let registry = &self.shared.devices;
            if !registry.is_known(resource) {
                let message = format!("no device plugin has offered {resource} since the machine was started");
                return Err(failed(message));
            }
            if !grant.artifacts.get(resource).is_some_and(|artifacts| artifacts.pre_start) {
                continue;
            }
            let plugin = registry.plugin(resource).ok_or_else(|| failed(gone(resource).message))?;
            let ids = devices.iter().map(|device| device.id.clone()).collect();
            let told = plugin.pre_start(ids).await;
            told.map_err(|error| failed(format!("device plugin PreStartContainer rpc failed with err: {error}")))?;
        }
        Ok(())
    }
}

/// What a container needs for the devices it was given. `owner` is its user and group, as far as the pod names them.
pub fn granted(
    grant: &Grant,
    cdi_directories: &[PathBuf],
    owner: (Option<u32>, Option<u32>),
) -> Result<Granted, ActionError> {
    let mut granted = Granted::default();
    let mut cdi_names: Vec<String> = Vec::new();
    // Of two resources that say something about the same, the first counts, as upstream.
    for (resource, artifacts) in &grant.artifacts {
        let Artifacts { envs, mounts, devices, annotations: _, cdi_devices, pre_start: _ } = artifacts;
        for (name, value) in envs {
            if !granted.env.iter().any(|(known, _)| known == name) {
                granted.env.push((name.clone(), value.clone()));
            }
        }
        for mount in mounts {
            let mount = bind(resource, mount)?;
            if !granted.mounts.iter().any(|known| known.target == mount.target) {
                granted.mounts.push(mount);
            }
        }
        for device in devices {
            add_nodes(&mut granted, resource, device)?;
        }
        cdi_names.extend(cdi_devices.iter().filter(|name| !cdi_names.contains(name)).cloned().collect::<Vec<_>>());
    }
    let edits = cdi::resolve(cdi_directories, &cdi_names).map_err(|error| ActionError::new(CREATE, &error))?;
    for device in &edits.devices {
        add_cdi_node(&mut granted, device, owner)?;
    }
    for mount in edits.mounts {
        granted.mounts.retain(|known| known.target != mount.container_path);
        granted.mounts.push(MountSpec {
            target: mount.container_path,
            kind: MountKind::Bind { source: mount.host_path, sub_path: None },
            readonly: mount.readonly,
            recursive_readonly: RecursiveReadOnly::Disabled,
            nosuid: mount.nosuid,
            nodev: mount.nodev,
            noexec: mount.noexec,
            propagation: mount.propagation,
            volume: None,
        });
    }
    granted.cdi_env = edits.env;
    granted.groups = edits.groups;
    Ok(granted)
}

fn refused(resource: &str, what: &str) -> ActionError {
    ActionError { reason: CREATE.to_owned(), message: format!("device plugin of {resource}: {what}") }
}

/// A path of the container from a plugin: absolute, and not the root.
fn target(resource: &str, path: &str) -> Result<PathBuf, ActionError> {
    let path = Path::new(path);
    let plain = path.is_absolute()
        && path.components().count() > 1
        && path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    // Without doubled slashes, which would make one path two.
    plain
        .then(|| path.components().collect())
        .ok_or_else(|| refused(resource, &format!("{path:?} is not a path of a container")))
}

fn bind(resource: &str, mount: &ArtifactMount) -> Result<MountSpec, ActionError> {
    Ok(MountSpec {
        target: target(resource, &mount.container_path)?,
        kind: MountKind::Bind { source: PathBuf::from(&mount.host_path), sub_path: None },
        readonly: mount.read_only,
        recursive_readonly: RecursiveReadOnly::Disabled,
        nosuid: false,
        nodev: false,
        noexec: false,
        propagation: Propagation::Private,
        volume: None,
    })
}

/// Which of reading, writing and making `permissions` allow; `None`: they are not a set of `r`, `w` and `m`.
fn access(permissions: &str) -> Option<[bool; 3]> {
    let known = !permissions.is_empty() && permissions.chars().all(|letter| "rwm".contains(letter));
    known.then(|| ['r', 'w', 'm'].map(|letter| permissions.contains(letter)))
}

fn add(granted: &mut Granted, node: DeviceSpec, [read, write, make]: [bool; 3]) {
    let (block, major, minor) = (node.block, Some(node.major), Some(node.minor));
    granted.rules.push(DeviceRule { block, major, minor, read, write, make });
    granted.nodes.push(node);
}

/// A device node of the host, as it is now, for a path of the container; `None` when it is another kind of file.
fn inspect(host: &Path, path: &Path) -> io::Result<Option<DeviceSpec>> {
    // Through links, as a vendor's udev rules make them; the node itself is what is bound in the end.
    let host = fs::canonicalize(host)?;
    let metadata = fs::metadata(&host)?;
    let (block, character) = (metadata.file_type().is_block_device(), metadata.file_type().is_char_device());
    if !block && !character {
        return Ok(None);
    }
    let (major, minor) = node::device_number(metadata.rdev());
    Ok(Some(DeviceSpec {
        path: path.to_owned(),
        host_path: Some(host),
        block,
        major,
        minor,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    }))
}

fn add_nodes(granted: &mut Granted, resource: &str, device: &ArtifactDevice) -> Result<(), ActionError> {
    let (host, path) = (Path::new(&device.host_path), target(resource, &device.container_path)?);
    let access = access(&device.permissions).ok_or_else(|| {
        refused(resource, &format!("{}: invalid permissions {:?}", host.display(), device.permissions))
    })?;
    if granted.nodes.iter().any(|known| known.path == path) {
        return Ok(());
    }
    let nodes = all_nodes(host, &path, 0)
        .map_err(|error| refused(resource, &format!("device {}: {}", host.display(), Chain(&error))))?;
    if nodes.is_empty() {
        return Err(refused(resource, &format!("{} is no device, and no directory of any", host.display())));
    }
    nodes.into_iter().for_each(|node| add(granted, node, access));
    Ok(())
}

/// The node at `host`, or all that are in the directory there.
fn all_nodes(host: &Path, path: &Path, depth: usize) -> io::Result<Vec<DeviceSpec>> {
    if !fs::metadata(host)?.is_dir() {
        return Ok(inspect(host, path)?.into_iter().collect());
    }
    let mut nodes = Vec::new();
    if depth < MAX_DEPTH {
        for entry in fs::read_dir(host)? {
            let entry = entry?;
            nodes.extend(all_nodes(&entry.path(), &path.join(entry.file_name()), depth + 1)?);
        }
    }
    nodes.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(nodes)
}

fn add_cdi_node(
    granted: &mut Granted,
    device: &CdiDevice,
    (user, group): (Option<u32>, Option<u32>),
) -> Result<(), ActionError> {
    let failed = |what: String| ActionError {
        reason: CREATE.to_owned(),
        message: format!("CDI device injection failed: {}: {what}", device.host_path.display()),
    };
    let found = match device.number {
        Some((block, major, minor)) => DeviceSpec {
            path: device.path.clone(),
            host_path: Some(device.host_path.clone()),
            block,
            major,
            minor,
            mode: device.mode.unwrap_or(0o666),
            uid: 0,
            gid: 0,
        },
        None => {
            let found = inspect(&device.host_path, &device.path).map_err(|error| failed(error.to_string()))?;
            found.ok_or_else(|| failed("not a device node".to_owned()))?
        }
    };
    // As the library of the specification has it: a device that is nobody's is the container's user's.
    let node = DeviceSpec {
        mode: device.mode.unwrap_or(found.mode),
        uid: device.uid.or(user).unwrap_or(0),
        gid: device.gid.or(group).unwrap_or(0),
        ..found
    };
    granted.nodes.retain(|known| known.path != node.path);
    let access = access(&device.permissions).ok_or_else(|| failed("invalid permissions".to_owned()))?;
    add(granted, node, access);
    Ok(())
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
