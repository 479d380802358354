//! The cgroups of pods: our own cgroupfs driver for v2, v1 and hybrid machines.
//!
//! A *controller* has one *seat*: a v1 hierarchy where one is mounted with it, otherwise the unified hierarchy where
//! that lists it. A hybrid machine is nothing special then: some seats are v1, and the unified hierarchy, wherever it
//! is mounted, carries what belongs to no controller (CLONE_INTO_CGROUP, `cgroup.kill`, `cgroup.events`, CPU time).
//!
//! Making a directory is what costs (measured on Linux 6.18: memory 100-150 µs, cpu 22, unified 21, pids 15,
//! devices 14; a write 6-14), so a pod only gets the v1 directories that say something about it:
//!
//! - `memory` and `cpu`: the pod and each container. The supervisor, which has no limits of its own, sits in the
//!   pod's.
//! - `pids`, `hugetlb`, `cpuset`: only where a limit is asked for; otherwise the pod is in `kubepods`.
//! - `devices`: containers with the default devices share one cgroup, which is written once.
//! - `cpuacct`, `freezer`: only without a unified hierarchy that counts CPU time and kills.
//!
//! A container is cloned by the supervisor and so starts in the supervisor's cgroups; its placement lists only those
//! it has of its own.
//!
//! Every effect may be repeated. All functions block (up to their deadline): call them off the async threads.

mod apply;
mod cpuset;
pub mod devices;
mod error;
mod files;
mod in_force;
mod kill;
pub mod limits;
mod mounts;
pub mod path;
mod remove;
mod tree;
mod usage;

#[cfg(test)]
mod fake_tests;
#[cfg(test)]
mod rootful_tests;

use std::{
    collections::BTreeMap,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::OnceLock,
};

pub use self::{
    error::CgroupError,
    in_force::{InForce, Share},
    limits::{
        ClassTotals, CpuLimits, CpuSet, DeviceAccess, HugePageLimit, LeafLimits, MemoryQuality, NodeLimits, PodLimits,
    },
    usage::Usage,
};
use self::{
    kill::KillWay,
    mounts::{Mount, Mounts},
};
use crate::api::qos::QosClass;

/// A controller berth uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPU shares and quota.
    Cpu,
    /// CPU time (v1).
    Cpuacct,
    /// CPUs and memory nodes.
    Cpuset,
    /// Memory limit and OOM events.
    Memory,
    /// Number of processes.
    Pids,
    /// Device access (v1; v2 uses eBPF).
    Devices,
    /// Freezing (v1; v2 has `cgroup.freeze`).
    Freezer,
    /// Huge pages.
    Hugetlb,
}

impl Controller {
    const ALL: [Controller; 8] = [
        Controller::Cpu,
        Controller::Cpuacct,
        Controller::Cpuset,
        Controller::Memory,
        Controller::Pids,
        Controller::Devices,
        Controller::Freezer,
        Controller::Hugetlb,
    ];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Cpuacct => "cpuacct",
            Controller::Cpuset => "cpuset",
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Devices => "devices",
            Controller::Freezer => "freezer",
            Controller::Hugetlb => "hugetlb",
        }
    }
}

/// How the machine has its hierarchies mounted, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// v2 only.
    Unified,
    /// v1 controllers and a unified hierarchy.
    Hybrid,
    /// v1 only.
    Legacy,
}

/// Where a controller's files are.
#[derive(Debug, Clone, Copy)]
enum Seat<'a> {
    V1(&'a Path),
    Unified(&'a Path),
}

/// The cgroup tree of one agent.
#[derive(Debug)]
pub struct Cgroups {
    /// Cgroup root, relative to every mount; empty for `/`.
    parent: PathBuf,
    unified: Option<Mount>,
    /// Controllers the unified hierarchy offers.
    offered: Vec<Controller>,
    v1: BTreeMap<Controller, PathBuf>,
    /// v1 mounts the agent is not at the top of: a pod's supervisor moves into their `kubepods`, so that nothing of
    /// the agent's own cgroup (a systemd service's TasksMax, its end) limits or kills the pod.
    moved_out: Vec<Mount>,
    /// Further v1 mounts, in which other runtimes make cgroups of the same names: only to be tidied up.
    others: Vec<PathBuf>,
    /// What all pods may have together; `None`: all there is.
    node_limits: Option<NodeLimits>,
    kill_way: OnceLock<KillWay>,
    /// v1 `memory.memsw.*` exists (swap accounting).
    memsw: OnceLock<bool>,
    /// v2: the program for the default devices, loaded once.
    default_devices: OnceLock<OwnedFd>,
}

impl Cgroups {
    /// Finds the hierarchies of this machine. `cgroup_root` is the parent of `kubepods` in each of them (`/` or
    /// `/some/slice`). Nothing is made yet: see [`Cgroups::ensure_tree`].
    pub fn detect(cgroup_root: &Path) -> Result<Cgroups, CgroupError> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|source| CgroupError::ReadMounts { path: PathBuf::from(path), source })
        };
        let (mountinfo, own) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
        Self::from_mounts(mounts::parse(Path::new("/"), &mountinfo, &own), cgroup_root)
    }

    fn from_mounts(mounts: Mounts, cgroup_root: &Path) -> Result<Cgroups, CgroupError> {
        let parent: PathBuf = cgroup_root
            .components()
            .filter_map(|component| match component {
                std::path::Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        let offered = match &mounts.unified {
            Some(mount) => {
                let names = files::read(&mount.path, "cgroup.controllers")?;
                let is_offered = |controller: &Controller| names.split(' ').any(|name| name == controller.name());
                Controller::ALL.into_iter().filter(is_offered).collect()
            }
            None => Vec::new(),
        };
        let mut v1 = BTreeMap::new();
        let mut moved_out = Vec::new();
        let mut others = Vec::new();
        for mount in mounts.v1 {
            others.push(mount.path.clone());
            for controller in Controller::ALL {
                if mount.controllers.iter().any(|name| name == controller.name()) {
                    v1.insert(controller, mount.path.clone());
                }
            }
            if !mount.agent_at_top {
                moved_out.push(mount);
            }
        }
        let cgroups = Cgroups {
            parent,
            unified: mounts.unified,
            offered,
            v1,
            moved_out,
            others,
            node_limits: None,
            kill_way: OnceLock::new(),
            memsw: OnceLock::new(),
            default_devices: OnceLock::new(),
        };
        for controller in [Controller::Cpu, Controller::Memory] {
            cgroups.require(controller)?;
        }
        Ok(cgroups)
    }

    /// Whether other runtimes make containers in this tree: they use all hierarchies that are mounted. What such a one has
    /// left in an earlier life of the agent counts, too.
    pub fn share_with_runtimes(&mut self, share: bool) {
        let kubepods = self.parent.join(path::KUBEPODS);
        self.others.retain(|mount| share || mount.join(&kubepods).exists());
    }

    /// The cgroup of a container by its name in every hierarchy, from the root of each.
    pub fn leaf_path(&self, qos: QosClass, uid: &str, leaf: &str) -> PathBuf {
        Path::new("/").join(&self.parent).join(path::leaf(qos, uid, leaf))
    }

    /// Limits all pods together from the time when the tree is made.
    pub fn limit_pods(&mut self, limits: NodeLimits) {
        self.node_limits = Some(limits);
    }

    /// How the hierarchies are mounted.
    pub fn layout(&self) -> Layout {
        match (&self.unified, self.v1.is_empty()) {
            (Some(_), true) => Layout::Unified,
            (Some(_), false) => Layout::Hybrid,
            (None, _) => Layout::Legacy,
        }
    }

    /// Whether limits of this kind can be set here.
    pub fn has(&self, controller: Controller) -> bool {
        self.seat(controller).is_some()
    }

    fn seat(&self, controller: Controller) -> Option<Seat<'_>> {
        if let Some(mount) = self.v1.get(&controller) {
            return Some(Seat::V1(mount));
        }
        let mount = self.unified.as_ref()?;
        self.offered.contains(&controller).then_some(Seat::Unified(&mount.path))
    }

    fn require(&self, controller: Controller) -> Result<Seat<'_>, CgroupError> {
        self.seat(controller).ok_or(CgroupError::MissingController { controller: controller.name() })
    }

    /// `relative` (a name from [`path`]) below a mount.
    fn below(&self, mount: &Path, relative: &Path) -> PathBuf {
        mount.join(&self.parent).join(relative)
    }

    /// `relative` in the hierarchy of a controller.
    fn in_hierarchy_of(&self, controller: Controller, relative: &Path) -> Option<PathBuf> {
        match self.seat(controller)? {
            Seat::V1(mount) | Seat::Unified(mount) => Some(self.below(mount, relative)),
        }
    }

    /// `relative` in the unified hierarchy.
    fn in_unified(&self, relative: &Path) -> Option<PathBuf> {
        self.unified.as_ref().map(|mount| self.below(&mount.path, relative))
    }

    /// `relative` in the hierarchy that has a directory for every leaf, and so can tell what is alive in it.
    fn tracking(&self, relative: &Path) -> PathBuf {
        self.in_unified(relative)
            .or_else(|| self.in_hierarchy_of(Controller::Freezer, relative))
            .or_else(|| self.in_hierarchy_of(Controller::Memory, relative))
            .unwrap_or_default()
    }

    /// `relative` in every hierarchy in which it may exist, each once, the tracking one first.
    fn everywhere(&self, relative: &Path) -> Vec<PathBuf> {
        let mut paths = vec![self.tracking(relative)];
        let mounts = self.v1.values().chain(self.moved_out.iter().map(|mount| &mount.path)).chain(&self.others);
        for mount in mounts {
            let path = self.below(mount, relative);
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        paths
    }
}
