//! Writing limits into the control files of one cgroup.

use std::{io, path::Path};

use cgroups_rs::fs::{MaxValue, pid::PidController};

use super::{
    Cgroups, Controller, Seat,
    error::CgroupError,
    files::{read, read_number, write, write_if_present},
    limits::{
        CpuLimits, CpuSet, DEFAULT_PERIOD_MICROS, HugePageLimit, LeafLimits, MemoryQuality, NodeLimits, huge_page_name,
        shares, weight,
    },
};

/// The limits that pods and leaves have in common.
#[derive(Clone, Copy)]
pub(super) struct Resources<'a> {
    pub cpu: &'a CpuLimits,
    pub memory: Option<u64>,
    pub pids: Option<u64>,
    pub huge_pages: &'a [HugePageLimit],
    pub cpuset: Option<&'a CpuSet>,
}

/// v1 shows "no limit" as the largest whole number of pages below 2^63, whatever the page size.
pub(super) const UNLIMITED: u64 = 1 << 62;

impl Cgroups {
    /// Writes everything `resources` says. `fresh` cgroups have the kernel's defaults: those are not written again.
    pub(super) fn apply(&self, relative: &Path, resources: Resources<'_>, fresh: bool) -> Result<(), CgroupError> {
        self.apply_cpu(relative, resources.cpu, fresh)?;
        self.apply_memory(relative, resources.memory, fresh)?;
        if resources.pids.is_some() || !fresh {
            self.apply_pids(relative, resources.pids)?;
        }
        for limit in resources.huge_pages {
            self.apply_huge_pages(relative, limit)?;
        }
        match resources.cpuset {
            Some(cpuset) => self.apply_cpuset(relative, cpuset),
            None => Ok(()),
        }
    }

    /// Relative weight of a cgroup among its siblings.
    pub(super) fn apply_shares(&self, relative: &Path, shares: u64) -> Result<(), CgroupError> {
        match self.require(Controller::Cpu)? {
            Seat::V1(mount) => write(&self.below(mount, relative), "cpu.shares", &shares.to_string()),
            Seat::Unified(mount) => write(&self.below(mount, relative), "cpu.weight", &weight(shares).to_string()),
        }
    }

    fn apply_cpu(&self, relative: &Path, cpu: &CpuLimits, fresh: bool) -> Result<(), CgroupError> {
        self.apply_shares(relative, cpu.shares())?;
        let quota = cpu.quota_micros();
        if fresh && quota.is_none() {
            return Ok(());
        }
        let period = cpu.period_micros.to_string();
        match self.require(Controller::Cpu)? {
            Seat::Unified(mount) => {
                let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                write(&self.below(mount, relative), "cpu.max", &format!("{quota} {period}"))
            }
            Seat::V1(mount) => {
                let directory = self.below(mount, relative);
                let quota = quota.map_or("-1".to_owned(), |quota| quota.to_string());
                let write_quota = || write(&directory, "cpu.cfs_quota_us", &quota);
                if fresh && cpu.period_micros == DEFAULT_PERIOD_MICROS {
                    return write_quota();
                }
                // quota/period may not exceed the parent's at any moment: if the new period is refused with the old
                // quota, the new quota goes first.
                match write(&directory, "cpu.cfs_period_us", &period) {
                    Ok(()) => write_quota(),
                    Err(_) => {
                        write_quota()?;
                        write(&directory, "cpu.cfs_period_us", &period)
                    }
                }
            }
        }
    }

    fn apply_memory(&self, relative: &Path, limit: Option<u64>, fresh: bool) -> Result<(), CgroupError> {
        if fresh && limit.is_none() {
            return Ok(());
        }
        match self.require(Controller::Memory)? {
            Seat::V1(mount) => self.apply_memory_v1(&self.below(mount, relative), limit, fresh),
            Seat::Unified(mount) => {
                let directory = self.below(mount, relative);
                // v2 would take it and kill: a limit that is only reached by killing is refused, as on v1.
                if let (Some(limit), false) = (limit, fresh) {
                    let used = read_number(&directory, "memory.current")?.unwrap_or(0);
                    if limit < used {
                        return Err(CgroupError::MemoryLimitTooSmall { path: directory, limit, used });
                    }
                }
                write(&directory, "memory.max", &limit.map_or("max".to_owned(), |limit| limit.to_string()))
            }
        }
    }

    fn apply_memory_v1(&self, directory: &Path, limit: Option<u64>, fresh: bool) -> Result<(), CgroupError> {
        const LIMIT: &str = "memory.limit_in_bytes";
        const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
        let text = limit.map_or("-1".to_owned(), |limit| limit.to_string());
        let write_limit = |file: &str| {
            write(directory, file, &text).map_err(|error| match (&error, limit) {
                // EBUSY: it could not reclaim enough.
                (CgroupError::Write { source, .. }, Some(limit)) if source.raw_os_error() == Some(libc::EBUSY) => {
                    let used = read_number(directory, "memory.usage_in_bytes").ok().flatten().unwrap_or(0);
                    CgroupError::MemoryLimitTooSmall { path: directory.to_owned(), limit, used }
                }
                _ => error,
            })
        };
        // Swap is forbidden by giving memory+swap the same limit. The kernel keeps `limit <= memsw` at all times, so
        // the one that makes room goes first.
        if !*self.memsw.get_or_init(|| directory.join(WITH_SWAP).exists()) {
            return write_limit(LIMIT);
        }
        let raising = !fresh && limit.unwrap_or(u64::MAX) > read_number(directory, WITH_SWAP)?.unwrap_or(u64::MAX);
        let order = if raising { [WITH_SWAP, LIMIT] } else { [LIMIT, WITH_SWAP] };
        order.into_iter().try_for_each(write_limit)
    }

    fn apply_pids(&self, relative: &Path, limit: Option<u64>) -> Result<(), CgroupError> {
        let Some(directory) = self.in_hierarchy_of(Controller::Pids, relative) else {
            return match limit {
                Some(_) => Err(CgroupError::MissingController { controller: Controller::Pids.name() }),
                None => Ok(()),
            };
        };
        // On v1 a cgroup without a limit may not exist at all.
        if limit.is_none() && !directory.exists() {
            return Ok(());
        }
        let value = limit.map_or(MaxValue::Max, |limit| MaxValue::Value(i64::try_from(limit).unwrap_or(i64::MAX)));
        PidController::new(directory.clone(), directory.clone(), true).set_pid_max(value).map_err(|error| {
            CgroupError::Write {
                path: directory.join("pids.max"),
                value: limit.map_or("max".to_owned(), |limit| limit.to_string()),
                source: io::Error::other(error),
            }
        })
    }

    fn apply_huge_pages(&self, relative: &Path, pages: &HugePageLimit) -> Result<(), CgroupError> {
        let (directory, suffix) = match self.require(Controller::Hugetlb)? {
            Seat::V1(mount) => (self.below(mount, relative), "limit_in_bytes"),
            Seat::Unified(mount) => (self.below(mount, relative), "max"),
        };
        let (name, limit) = (huge_page_name(pages.page_size), pages.limit.to_string());
        if !write_if_present(&directory, &format!("hugetlb.{name}.{suffix}"), &limit)? {
            return Err(CgroupError::HugePageSize { page_size: pages.page_size });
        }
        // Reservations (Linux 5.7): a container that may not fault pages in may not set them aside either.
        write_if_present(&directory, &format!("hugetlb.{name}.rsvd.{suffix}"), &limit).map(drop)
    }

    fn apply_cpuset(&self, relative: &Path, cpuset: &CpuSet) -> Result<(), CgroupError> {
        let (directory, v1) = match self.require(Controller::Cpuset)? {
            Seat::V1(mount) => (self.below(mount, relative), true),
            Seat::Unified(mount) => (self.below(mount, relative), false),
        };
        for (file, value) in [("cpuset.cpus", &cpuset.cpus), ("cpuset.mems", &cpuset.mems)] {
            // v1 takes no task while either is empty; ensure has copied the parent's, so that empty means "leave".
            if !(v1 && value.is_empty()) {
                write(&directory, file, if value.is_empty() { "\n" } else { value })?;
            }
        }
        Ok(())
    }

    /// v2 only: swap and whole-container OOM kill for a leaf.
    pub(super) fn apply_memory_v2_leaf(
        &self,
        relative: &Path,
        limits: &LeafLimits,
        fresh: bool,
    ) -> Result<(), CgroupError> {
        let Some(Seat::Unified(mount)) = self.seat(Controller::Memory) else { return Ok(()) };
        let directory = self.below(mount, relative);
        // Absent in a kernel without swap.
        write_if_present(&directory, "memory.swap.max", &limits.swap.to_string())?;
        if limits.oom_group || !fresh {
            write(&directory, "memory.oom.group", if limits.oom_group { "1" } else { "0" })?;
        }
        self.apply_quality(relative, &limits.quality, fresh)
    }

    /// v2 only: memory that is kept for a cgroup, and where it is slowed down.
    pub(super) fn apply_quality(
        &self,
        relative: &Path,
        quality: &MemoryQuality,
        fresh: bool,
    ) -> Result<(), CgroupError> {
        let Some(Seat::Unified(mount)) = self.seat(Controller::Memory) else { return Ok(()) };
        if fresh && *quality == MemoryQuality::default() {
            return Ok(());
        }
        let directory = self.below(mount, relative);
        let high = quality.high.map_or("max".to_owned(), |bytes| bytes.to_string());
        for (file, value) in
            [("memory.min", quality.min.to_string()), ("memory.low", quality.low.to_string()), ("memory.high", high)]
        {
            // A kernel without one of them can be asked for nothing there.
            write_if_present(&directory, file, &value)?;
        }
        Ok(())
    }

    /// What all pods may have together: weight, memory and processes of the cgroup above them.
    pub(super) fn apply_node_limits(&self, kubepods: &Path, limits: &NodeLimits) -> Result<(), CgroupError> {
        self.apply_shares(kubepods, shares(limits.cpu_milli))?;
        match self.require(Controller::Memory)? {
            // Swap is each container's own matter.
            Seat::V1(mount) => {
                write(&self.below(mount, kubepods), "memory.limit_in_bytes", &limits.memory.to_string())?;
            }
            Seat::Unified(mount) => write(&self.below(mount, kubepods), "memory.max", &limits.memory.to_string())?,
        }
        match limits.pids {
            Some(pids) => self.apply_pids(kubepods, Some(pids)),
            None => Ok(()),
        }
    }
}

/// v1: a new cpuset has neither CPUs nor memory nodes and takes no task; give it its parent's.
pub(super) fn inherit_cpuset(directory: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(directory, file)?.is_empty() {
            let Some(parent) = directory.parent() else { continue };
            match read(parent, file) {
                Ok(value) => write(directory, file, &value)?,
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
