//! What is done to a container for its CDI devices.

use std::path::{Path, PathBuf};

use super::spec::{ContainerEdits, DeviceNode, Mount};
use crate::supervisor::spec::Propagation;

/// Everything for one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// Variables; they take the place of the container's own.
    pub env: Vec<(String, String)>,
    /// Device nodes.
    pub devices: Vec<CdiDevice>,
    /// Binds.
    pub mounts: Vec<CdiMount>,
    /// Further groups of its processes.
    pub groups: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdiDevice {
    /// In the container.
    pub path: PathBuf,
    /// On the host: what it is follows from there, as far as it is not given.
    pub host_path: PathBuf,
    /// Block device, major and minor number.
    pub number: Option<(bool, u32, u32)>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
    /// Owner; else the container's user.
    pub uid: Option<u32>,
    /// Group; else the container's.
    pub gid: Option<u32>,
}

/// A bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdiMount {
    /// On the host.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// `ro`.
    pub readonly: bool,
    /// `nosuid`.
    pub nosuid: bool,
    /// `nodev`.
    pub nodev: bool,
    /// `noexec`.
    pub noexec: bool,
    /// `rslave`, `rshared`, or private.
    pub propagation: Propagation,
}

impl Edits {
    /// Adds those of a device, or of a specification. Of two nodes or mounts at one path the later counts.
    pub(super) fn add(&mut self, edits: &ContainerEdits) -> Result<(), String> {
        let ContainerEdits { env, device_nodes, net_devices, hooks, mounts, intel_rdt, additional_gids } = edits;
        if let Some(hook) = hooks.first() {
            return Err(format!("{} hooks are not run here ({})", hook.hook_name, hook.path.display()));
        }
        if !net_devices.is_empty() {
            return Err("netDevices are not moved into containers here".to_owned());
        }
        if intel_rdt.is_some() {
            return Err("intelRdt is not set here".to_owned());
        }
        for variable in env {
            let Some((name, value)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
                return Err(format!("invalid environment variable {variable:?}"));
            };
            self.env.retain(|(known, _)| known != name);
            self.env.push((name.to_owned(), value.to_owned()));
        }
        for node in device_nodes {
            let device = device(node)?;
            self.devices.retain(|known| known.path != device.path);
            self.devices.push(device);
        }
        for mount in mounts {
            let mount = bind(mount)?;
            self.mounts.retain(|known| known.container_path != mount.container_path);
            self.mounts.push(mount);
        }
        // Of the root group everybody could be, and nobody is asked to.
        self.groups.extend(additional_gids.iter().filter(|gid| **gid != 0));
        Ok(())
    }
}

fn absolute(path: &Path) -> Result<(), String> {
    if path.is_absolute() { Ok(()) } else { Err(format!("{} is not an absolute path", path.display())) }
}

fn device(node: &DeviceNode) -> Result<CdiDevice, String> {
    absolute(&node.path)?;
    let block = match node.kind.as_str() {
        "" => None,
        "b" => Some(true),
        "c" | "u" => Some(false),
        other => return Err(format!("{}: device nodes of type {other:?} are not made here", node.path.display())),
    };
    if !node.permissions.chars().all(|c| "rwm".contains(c)) {
        return Err(format!("{}: invalid permissions {:?}", node.path.display(), node.permissions));
    }
    Ok(CdiDevice {
        path: node.path.clone(),
        host_path: node.host_path.clone().unwrap_or_else(|| node.path.clone()),
        // As in the specification's own library, major 0 stands for "as on the host".
        number: block.filter(|_| node.major != 0).map(|block| (block, node.major, node.minor)),
        mode: node.file_mode.map(|mode| mode & 0o7777),
        permissions: if node.permissions.is_empty() { "rwm".to_owned() } else { node.permissions.clone() },
        uid: node.uid,
        gid: node.gid,
    })
}

fn bind(mount: &Mount) -> Result<CdiMount, String> {
    absolute(&mount.container_path)?;
    absolute(&mount.host_path)?;
    let at = mount.container_path.display();
    if !matches!(mount.kind.as_str(), "" | "bind" | "none") {
        return Err(format!("{at}: mounts of type {:?} are not made here", mount.kind));
    }
    let mut bind = CdiMount {
        host_path: mount.host_path.clone(),
        container_path: mount.container_path.clone(),
        readonly: false,
        nosuid: false,
        nodev: false,
        noexec: false,
        propagation: Propagation::Private,
    };
    for option in &mount.options {
        match option.as_str() {
            "bind" | "rbind" => {}
            "ro" => bind.readonly = true,
            "rw" => bind.readonly = false,
            "nosuid" => bind.nosuid = true,
            "suid" => bind.nosuid = false,
            "nodev" => bind.nodev = true,
            "dev" => bind.nodev = false,
            "noexec" => bind.noexec = true,
            "exec" => bind.noexec = false,
            "private" | "rprivate" => bind.propagation = Propagation::Private,
            "slave" | "rslave" => bind.propagation = Propagation::Slave,
            "shared" | "rshared" => bind.propagation = Propagation::Shared,
            // How times of access are kept is the source's affair.
            "relatime" | "noatime" | "strictatime" | "nodiratime" => {}
            other => return Err(format!("{at}: the mount option {other:?} is not known here")),
        }
    }
    Ok(bind)
}
