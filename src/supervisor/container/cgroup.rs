//! cgroups from the container's side: going into them, and showing them under /sys/fs/cgroup.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::error::{Failure, Step};
use crate::{
    supervisor::spec::CgroupPlacement,
    sys::{
        mount::{self, PropagationType, attribute},
        node,
        openat2::{Scope, openat2, purpose},
    },
};

/// Where every machine has its hierarchies.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Puts the calling process into its version 1 cgroups (it was born in the unified one). `0` is the writer itself.
pub(super) fn join(placement: &CgroupPlacement) -> Result<(), Failure> {
    for directory in &placement.v1 {
        let tasks = directory.join("tasks");
        File::options()
            .write(true)
            .open(&tasks)
            .and_then(|mut file| file.write_all(b"0"))
            .step(|| format!("join cgroup {}", directory.display()))?;
    }
    Ok(())
}

/// A container's own directory in one hierarchy, as a detached mount.
pub(super) struct Leaf {
    /// Name of the hierarchy under /sys/fs/cgroup: `memory`, `cpu,cpuacct`, `unified`.
    pub(super) name: OsString,
    pub(super) tree: OwnedFd,
}

/// Opens the leaf of every hierarchy on the host's side. Beyond `attributes` they never allow programs or devices.
pub(super) fn open_leaves(placement: &CgroupPlacement, attributes: u64) -> Result<Vec<Leaf>, Failure> {
    let open = |directory: &std::path::PathBuf| {
        let step = || format!("bind cgroup {}", directory.display());
        let name = hierarchy_name(directory).step(step)?;
        let place = openat2(mount::here(), directory, purpose::DIRECTORY, 0, Scope::NoMagicLinks).step(step)?;
        let tree = mount::clone_tree(place.as_fd(), false).step(step)?;
        let attributes = attributes | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
        mount::set_attributes(tree.as_fd(), false, attributes, Some(PropagationType::Private)).step(step)?;
        Ok(Leaf { name, tree })
    };
    placement.v1.iter().chain(&placement.unified).map(open).collect()
}

/// The name under which a hierarchy is mounted.
fn hierarchy_name(leaf: &Path) -> io::Result<OsString> {
    if let Some(name) = leaf.strip_prefix(CGROUP_ROOT).ok().and_then(|inside| inside.iter().next()) {
        return Ok(name.to_owned());
    }
    // Mounted elsewhere: the nearest mount point above is the hierarchy's root.
    for directory in leaf.ancestors() {
        if node::is_mount_root(directory)? != Some(false) {
            return directory.file_name().map(OsStr::to_owned).ok_or_else(|| io::ErrorKind::NotFound.into());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Attaches the leaves beneath the tmpfs `root` and makes that read-only if `attributes` says so.
pub(super) fn attach_leaves(root: BorrowedFd<'_>, leaves: Vec<Leaf>, attributes: u64) -> Result<(), Failure> {
    for leaf in leaves {
        let name = Path::new(&leaf.name);
        let step = || format!("mount cgroup hierarchy {}", name.display());
        node::make_directory(root, name, 0o755).step(step)?;
        // The name is one component that we have just made ourselves: no link can be there.
        mount::attach_at(leaf.tree.as_fd(), root, name).step(step)?;
        // Controllers mounted together have a link each, as the host has: `cpu` and `cpuacct` for `cpu,cpuacct`.
        for controller in joint_controllers(&leaf.name) {
            node::make_link(name, root, Path::new(controller)).step(step)?;
        }
    }
    if attributes == 0 {
        return Ok(());
    }
    mount::set_attributes(root, false, attributes, None).step(|| "make /sys/fs/cgroup read-only")
}

fn joint_controllers(name: &OsStr) -> impl Iterator<Item = &str> {
    name.to_str().filter(|name| name.contains(',')).into_iter().flat_map(|name| name.split(','))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_keep_their_names_and_joint_controllers_get_links() {
        let name = hierarchy_name(Path::new("/sys/fs/cgroup/cpu,cpuacct/kubepods/pod1/c1")).unwrap();
        assert_eq!(name, "cpu,cpuacct");
        assert_eq!(joint_controllers(&name).collect::<Vec<_>>(), ["cpu", "cpuacct"]);
        assert_eq!(joint_controllers(OsStr::new("memory")).count(), 0);
        // Elsewhere the mount point names it: /proc is one on every machine.
        assert_eq!(hierarchy_name(Path::new("/proc/sys/kernel")).unwrap(), "proc");
    }
}
