//! Making the tree, pods and leaves, and changing their limits.

use std::path::{Path, PathBuf};

use super::{
    Cgroups, Controller, Seat,
    apply::{Resources, inherit_cpuset},
    devices,
    error::CgroupError,
    files::{make_directory, write},
    limits::{ClassTotals, DeviceAccess, LeafLimits, MIN_SHARES, MemoryQuality, PodLimits, shares},
    path,
};
use crate::{api::qos::QosClass, supervisor::spec::CgroupPlacement};

/// Controllers every pod uses, where they sit in the unified hierarchy.
const ALWAYS: [Controller; 3] = [Controller::Cpu, Controller::Memory, Controller::Pids];

impl Cgroups {
    /// Makes `kubepods`, its classes and what pods share. Running pods are not disturbed.
    pub fn ensure_tree(&self) -> Result<(), CgroupError> {
        let kubepods = Path::new(path::KUBEPODS);
        let classes = path::CLASSES.map(path::class);
        if let Some(mount) = &self.unified {
            self.ensure_parent(&mount.path)?;
            for class in &classes {
                make_directory(&self.below(&mount.path, class))?;
            }
            self.enable_down_to(&mount.path, &classes, &self.always_unified())?;
        }
        for (controller, mount) in &self.v1 {
            if !self.is_used(*controller) {
                continue;
            }
            self.ensure_parent(mount)?;
            for class in &classes {
                make_directory(&self.below(mount, class))?;
            }
        }
        for mount in &self.moved_out {
            self.ensure_parent(&mount.path)?;
            let directory = self.below(&mount.path, kubepods);
            make_directory(&directory)?;
            if mount.controllers.iter().any(|name| name == "cpuset") {
                self.inherit_cpusets(&mount.path, kubepods)?;
            }
        }
        self.apply_shares(&path::class(QosClass::BestEffort), MIN_SHARES)?;
        if let Some(limits) = &self.node_limits {
            self.apply_node_limits(kubepods, limits)?;
        }
        if let Some(Seat::V1(mount)) = self.seat(Controller::Devices) {
            let shared = self.below(mount, &kubepods.join(path::DEFAULT_DEVICES));
            make_directory(&shared)?;
            devices::restrict_v1(&shared, devices::default_rules())?;
        }
        Ok(())
    }

    /// What the classes of pods get together: the weight of Burstable pods and, on v2, the memory that is kept. What is
    /// kept for a cgroup is only kept as far as it is for those above it.
    pub fn update_qos(&self, totals: &ClassTotals) -> Result<(), CgroupError> {
        match self.apply_totals(totals) {
            // The first pod is counted before it is made, and the tree with it.
            Err(error) if error.is_absent() => {
                self.ensure_tree()?;
                self.apply_totals(totals)
            }
            applied => applied,
        }
    }

    fn apply_totals(&self, totals: &ClassTotals) -> Result<(), CgroupError> {
        self.apply_shares(&path::class(QosClass::Burstable), shares(totals.burstable_milli))?;
        let (guaranteed, burstable) = (totals.guaranteed_memory, totals.burstable_memory);
        let quality = |min, low| MemoryQuality { min, low, high: None };
        // Upstream's sums: the topmost cgroup holds what either class has.
        self.apply_quality(Path::new(path::KUBEPODS), &quality(guaranteed + burstable, 0), true)?;
        self.apply_quality(&path::class(QosClass::Burstable), &quality(0, burstable), true)
    }

    /// Makes a pod's cgroup, if need be, and sets its limits.
    pub fn ensure_pod(&self, qos: QosClass, uid: &str, limits: &PodLimits) -> Result<(), CgroupError> {
        check_name(uid)?;
        let pod = path::pod(qos, uid);
        let fresh = match self.make_pod(&pod, limits) {
            // The tree is gone (or was never made): make it and try once more.
            Err(error) if error.is_absent() => {
                self.ensure_tree()?;
                self.make_pod(&pod, limits)?
            }
            other => other?,
        };
        self.apply(&pod, pod_resources(limits), fresh)?;
        self.apply_quality(&pod, &limits.quality, fresh)
    }

    /// Changes a pod's limits. Raise a pod before its containers, lower it after them: on v1 no quota may exceed its
    /// parent's.
    pub fn update_pod(&self, qos: QosClass, uid: &str, limits: &PodLimits) -> Result<(), CgroupError> {
        self.ensure_pod(qos, uid, limits)
    }

    /// Makes the cgroup of a container or of the sandbox ([`path::SANDBOX`]) below its pod's, sets its limits and
    /// says where its processes go.
    pub fn ensure_leaf(
        &self,
        qos: QosClass,
        uid: &str,
        leaf: &str,
        limits: &LeafLimits,
    ) -> Result<CgroupPlacement, CgroupError> {
        check_name(uid)?;
        check_name(leaf)?;
        let (pod, relative) = (path::pod(qos, uid), path::leaf(qos, uid, leaf));
        let sandbox = leaf == path::SANDBOX;
        let mut placement = CgroupPlacement::default();
        let mut fresh = true;
        if let Some(mount) = &self.unified {
            let extra = self.extra_unified(!limits.huge_pages.is_empty(), limits.cpuset.is_some());
            if !extra.is_empty() {
                self.enable_down_to(&mount.path, std::slice::from_ref(&pod), &extra)?;
            }
            let directory = self.below(&mount.path, &relative);
            fresh = make_directory(&directory)?;
            placement.unified = Some(directory);
        }
        let mut own = Vec::new();
        for (controller, mount) in &self.v1 {
            if !self.has_own_leaf(*controller, &relative, limits) {
                continue;
            }
            if matches!(controller, Controller::Pids | Controller::Hugetlb | Controller::Devices) {
                self.ensure_ancestors(mount, &relative)?;
            }
            if *controller == Controller::Cpuset {
                self.inherit_cpusets(mount, &pod)?;
            }
            let directory = self.below(mount, &relative);
            // Co-mounted controllers (`cpu,cpuacct`) share theirs.
            if !own.contains(&mount) {
                fresh &= make_directory(&directory)?;
                own.push(mount);
                placement.v1.push(directory.clone());
            }
            if *controller == Controller::Cpuset {
                inherit_cpuset(&directory)?;
            }
        }
        for (controller, mount) in self.v1.iter().filter(|(_, mount)| !own.contains(mount)) {
            let seat = self.shared_seat(*controller, mount, &pod, sandbox, &limits.devices);
            placement.v1.extend(seat.filter(|directory| !placement.v1.contains(directory)));
        }
        if sandbox {
            for mount in &self.moved_out {
                let kubepods = self.below(&mount.path, Path::new(path::KUBEPODS));
                // A hierarchy in which it has been given a place already.
                if !placement.v1.iter().any(|joined| joined.starts_with(&mount.path)) {
                    placement.v1.push(kubepods);
                }
            }
        }
        if !sandbox {
            self.apply(&relative, leaf_resources(limits), fresh)?;
            self.apply_memory_v2_leaf(&relative, limits, fresh)?;
        }
        self.limit_devices(&relative, &limits.devices)?;
        placement.oom_events = self.oom_events(&relative, &placement);
        Ok(placement)
    }

    /// Changes the limits of a container. Devices and placement stay as they are.
    pub fn update_leaf(&self, qos: QosClass, uid: &str, leaf: &str, limits: &LeafLimits) -> Result<(), CgroupError> {
        check_name(uid)?;
        check_name(leaf)?;
        let relative = path::leaf(qos, uid, leaf);
        self.apply(&relative, leaf_resources(limits), false)?;
        self.apply_memory_v2_leaf(&relative, limits, false)
    }

    fn make_pod(&self, pod: &Path, limits: &PodLimits) -> Result<bool, CgroupError> {
        let mut fresh = true;
        if let Some(mount) = &self.unified {
            let directory = self.below(&mount.path, pod);
            fresh = make_directory(&directory)?;
            enable(&directory, &self.always_unified())?;
            if !limits.huge_pages.is_empty() {
                self.enable_down_to(&mount.path, &[pod.to_owned()], &self.extra_unified(true, false))?;
            }
        }
        let mut made = Vec::new();
        for (controller, mount) in &self.v1 {
            let own = match controller {
                Controller::Cpu | Controller::Memory => true,
                Controller::Pids => limits.pids.is_some(),
                Controller::Hugetlb => !limits.huge_pages.is_empty(),
                Controller::Freezer | Controller::Cpuacct => self.is_used(*controller),
                Controller::Cpuset | Controller::Devices => false,
            };
            if !own || made.contains(&mount) {
                continue;
            }
            if *controller == Controller::Hugetlb {
                self.ensure_ancestors(mount, pod)?;
            }
            fresh &= make_directory(&self.below(mount, pod))?;
            made.push(mount);
        }
        Ok(fresh)
    }

    /// Whether a leaf has a directory of its own in a controller's v1 hierarchy.
    fn has_own_leaf(&self, controller: Controller, relative: &Path, limits: &LeafLimits) -> bool {
        match controller {
            // The sandbox has no limits of its own, and so no directory unless it is how its processes are found.
            Controller::Cpu | Controller::Memory => {
                !relative.ends_with(path::SANDBOX)
                    || self.in_hierarchy_of(controller, relative).is_some_and(|own| own == self.tracking(relative))
            }
            Controller::Pids => limits.pids.is_some(),
            Controller::Hugetlb => !limits.huge_pages.is_empty(),
            Controller::Cpuset => limits.cpuset.is_some(),
            Controller::Devices => matches!(limits.devices, DeviceAccess::Only(_)),
            Controller::Freezer | Controller::Cpuacct => self.is_used(controller),
        }
    }

    /// Where a leaf without a v1 directory of its own goes, if it has to move at all: the supervisor into the pod's,
    /// where there is one; a container into the shared one for devices.
    fn shared_seat(
        &self,
        controller: Controller,
        mount: &Path,
        pod: &Path,
        sandbox: bool,
        devices: &DeviceAccess,
    ) -> Option<PathBuf> {
        let of_pod = self.below(mount, pod);
        match controller {
            Controller::Cpu | Controller::Memory => sandbox.then_some(of_pod),
            Controller::Pids | Controller::Hugetlb => (sandbox && of_pod.exists()).then_some(of_pod),
            Controller::Devices if *devices == DeviceAccess::Default => {
                Some(self.below(mount, &Path::new(path::KUBEPODS).join(path::DEFAULT_DEVICES)))
            }
            _ => None,
        }
    }

    /// Whether `ensure_tree` makes the classes in this v1 hierarchy.
    pub(super) fn is_used(&self, controller: Controller) -> bool {
        match controller {
            Controller::Cpu | Controller::Memory | Controller::Pids | Controller::Devices => true,
            // The unified hierarchy counts CPU time and can freeze or kill without any controller.
            Controller::Cpuacct | Controller::Freezer => self.unified.is_none(),
            Controller::Cpuset | Controller::Hugetlb => false,
        }
    }

    fn always_unified(&self) -> Vec<Controller> {
        ALWAYS.into_iter().filter(|controller| matches!(self.seat(*controller), Some(Seat::Unified(_)))).collect()
    }

    fn extra_unified(&self, huge_pages: bool, cpuset: bool) -> Vec<Controller> {
        [(Controller::Hugetlb, huge_pages), (Controller::Cpuset, cpuset)]
            .into_iter()
            .filter(|(controller, wanted)| *wanted && matches!(self.seat(*controller), Some(Seat::Unified(_))))
            .map(|(controller, _)| controller)
            .collect()
    }

    /// The cgroup root itself, which usually exists.
    fn ensure_parent(&self, mount: &Path) -> Result<(), CgroupError> {
        let mut directory = mount.to_owned();
        for name in &self.parent {
            directory.push(name);
            make_directory(&directory)?;
        }
        Ok(())
    }

    /// Everything above `relative` below a mount that is not part of the standing tree.
    fn ensure_ancestors(&self, mount: &Path, relative: &Path) -> Result<(), CgroupError> {
        self.ensure_parent(mount)?;
        let mut directory = mount.join(&self.parent);
        for name in relative.parent().into_iter().flatten() {
            directory.push(name);
            make_directory(&directory)?;
        }
        Ok(())
    }

    /// v1 cpuset: `relative` and all above it, made and with CPUs and memory nodes.
    fn inherit_cpusets(&self, mount: &Path, relative: &Path) -> Result<(), CgroupError> {
        let mut directory = mount.to_owned();
        for name in self.parent.iter().chain(relative) {
            directory.push(name);
            make_directory(&directory)?;
            inherit_cpuset(&directory)?;
        }
        Ok(())
    }

    /// v2: hands controllers down from the mount to the children of each of `relatives`.
    fn enable_down_to(
        &self,
        mount: &Path,
        relatives: &[PathBuf],
        controllers: &[Controller],
    ) -> Result<(), CgroupError> {
        if controllers.is_empty() {
            return Ok(());
        }
        let mut done: Vec<PathBuf> = Vec::new();
        for relative in relatives {
            let mut directory = mount.to_owned();
            let names = self.parent.iter().chain(relative);
            for step in std::iter::once(None).chain(names.map(Some)) {
                directory.extend(step);
                if !done.contains(&directory) {
                    enable(&directory, controllers)?;
                    done.push(directory.clone());
                }
            }
        }
        Ok(())
    }

    pub(super) fn enable_cpuset(&self, mount: &Path, pod: &Path) -> Result<(), CgroupError> {
        self.enable_down_to(mount, &[pod.to_owned()], &[Controller::Cpuset])
    }

    fn limit_devices(&self, relative: &Path, access: &DeviceAccess) -> Result<(), CgroupError> {
        let rules = match access {
            DeviceAccess::All => return Ok(()),
            DeviceAccess::Default => devices::default_rules(),
            DeviceAccess::Only(rules) => rules,
        };
        match (self.v1.get(&Controller::Devices), self.in_unified(relative)) {
            (Some(mount), _) => match access {
                DeviceAccess::Only(rules) => devices::restrict_v1(&self.below(mount, relative), rules),
                _ => Ok(()),
            },
            (None, Some(directory)) if *access == DeviceAccess::Default => {
                // Two threads may both load it; one program stays.
                let program = match self.default_devices.get() {
                    Some(program) => program,
                    None => {
                        let loaded = devices::load_v2(&directory, rules)?;
                        self.default_devices.get_or_init(|| loaded)
                    }
                };
                devices::attach_v2(&directory, program)
            }
            (None, Some(directory)) => devices::attach_v2(&directory, &devices::load_v2(&directory, rules)?),
            (None, None) => Err(CgroupError::MissingController { controller: Controller::Devices.name() }),
        }
    }

    /// The file with the line `oom_kill N`: that of the cgroup the leaf's processes are in, since v1 counts a kill
    /// only there.
    fn oom_events(&self, relative: &Path, placement: &CgroupPlacement) -> Option<PathBuf> {
        match self.seat(Controller::Memory)? {
            Seat::V1(mount) => {
                let joined = placement.v1.iter().find(|directory| directory.starts_with(mount))?;
                Some(joined.join("memory.oom_control"))
            }
            Seat::Unified(mount) => Some(self.below(mount, relative).join("memory.events")),
        }
    }
}

fn enable(directory: &Path, controllers: &[Controller]) -> Result<(), CgroupError> {
    if controllers.is_empty() {
        return Ok(());
    }
    let text = controllers.iter().map(|controller| format!("+{}", controller.name())).collect::<Vec<_>>().join(" ");
    write(directory, "cgroup.subtree_control", &text).map_err(|error| match error {
        CgroupError::Write { source, .. } if source.kind() != std::io::ErrorKind::NotFound => {
            CgroupError::Enable { path: directory.to_owned(), controllers: text, source }
        }
        other => other,
    })
}

fn pod_resources(limits: &PodLimits) -> Resources<'_> {
    Resources {
        cpu: &limits.cpu,
        memory: limits.memory,
        pids: limits.pids,
        huge_pages: &limits.huge_pages,
        cpuset: None,
    }
}

fn leaf_resources(limits: &LeafLimits) -> Resources<'_> {
    Resources {
        cpu: &limits.cpu,
        memory: limits.memory,
        pids: limits.pids,
        huge_pages: &limits.huge_pages,
        cpuset: limits.cpuset.as_ref(),
    }
}

fn check_name(name: &str) -> Result<(), CgroupError> {
    if path::is_name(name) { Ok(()) } else { Err(CgroupError::BadName { name: name.to_owned() }) }
}
