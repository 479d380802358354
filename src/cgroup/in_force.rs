//! What a cgroup is limited to now, read back from the kernel.

use std::path::Path;

use super::{
    Cgroups, Controller, Seat,
    apply::UNLIMITED,
    error::CgroupError,
    files::{read, read_number},
    limits::{CpuLimits, weight},
    path,
};
use crate::api::qos::QosClass;

/// CPU and memory limits of one cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InForce {
    /// v1 `cpu.shares`, or v2 `cpu.weight`.
    pub share: Share,
    /// CFS quota and period, microseconds; `None` for no limit.
    pub quota: Option<(u64, u64)>,
    /// Memory limit, bytes; `None` for none.
    pub memory: Option<u64>,
}

/// The weight of a cgroup among its siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// 2 to 262144; 1024 for one CPU.
    Shares(u64),
    /// 1 to 10000.
    Weight(u64),
}

impl InForce {
    /// Whether these are the limits asked for. The kernel counts memory in pages, so part of one (bytes) does not count.
    pub fn is(&self, cpu: &CpuLimits, memory: Option<u64>, page: u64) -> bool {
        let share = match self.share {
            Share::Shares(shares) => shares == cpu.shares(),
            Share::Weight(found) => found == weight(cpu.shares()),
        };
        let whole = |bytes: u64| bytes / page * page;
        share
            && self.quota == cpu.quota_micros().map(|quota| (quota, cpu.period_micros))
            && self.memory == memory.map(whole)
    }

    /// CPU limit in thousandths of a CPU, rounded up.
    pub fn limit_milli(&self) -> Option<u64> {
        self.quota.map(|(quota, period)| quota.saturating_mul(1000).div_ceil(period.max(1)))
    }
}

impl Cgroups {
    /// Limits of a whole pod; `None` when it has no cgroup.
    pub fn pod_in_force(&self, qos: QosClass, uid: &str) -> Result<Option<InForce>, CgroupError> {
        self.in_force(&path::pod(qos, uid))
    }

    /// Limits of a container; `None` when it has no cgroup.
    pub fn leaf_in_force(&self, qos: QosClass, uid: &str, leaf: &str) -> Result<Option<InForce>, CgroupError> {
        self.in_force(&path::leaf(qos, uid, leaf))
    }

    fn in_force(&self, relative: &Path) -> Result<Option<InForce>, CgroupError> {
        match self.read_in_force(relative) {
            Err(error) if error.is_absent() => Ok(None),
            read => read.map(Some),
        }
    }

    fn read_in_force(&self, relative: &Path) -> Result<InForce, CgroupError> {
        let (share, quota) = match self.require(Controller::Cpu)? {
            Seat::V1(mount) => {
                let directory = self.below(mount, relative);
                let shares = read_number(&directory, "cpu.shares")?.unwrap_or_default();
                let period = read_number(&directory, "cpu.cfs_period_us")?.unwrap_or_default();
                // -1 for none.
                let quota = read(&directory, "cpu.cfs_quota_us")?.parse::<u64>().ok();
                (Share::Shares(shares), quota.map(|quota| (quota, period)))
            }
            Seat::Unified(mount) => {
                let directory = self.below(mount, relative);
                let weight = read_number(&directory, "cpu.weight")?.unwrap_or_default();
                let text = read(&directory, "cpu.max")?;
                let quota = text
                    .split_once(' ')
                    .and_then(|(quota, period)| Some((quota.parse::<u64>().ok()?, period.trim().parse::<u64>().ok()?)));
                (Share::Weight(weight), quota)
            }
        };
        let memory = match self.require(Controller::Memory)? {
            Seat::V1(mount) => read_number(&self.below(mount, relative), "memory.limit_in_bytes")?,
            Seat::Unified(mount) => read_number(&self.below(mount, relative), "memory.max")?,
        };
        Ok(InForce { share, quota, memory: memory.filter(|limit| *limit < UNLIMITED) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_recognised_in_either_form() {
        let cpu = CpuLimits { request_milli: 500, limit_milli: Some(1000), period_micros: 100_000 };
        let found = InForce { share: Share::Shares(512), quota: Some((100_000, 100_000)), memory: Some(8192) };
        assert!(found.is(&cpu, Some(8193), 4096));
        assert!(InForce { share: Share::Weight(59), ..found }.is(&cpu, Some(8192), 4096));
        assert!(!InForce { share: Share::Shares(513), ..found }.is(&cpu, Some(8192), 4096));
        assert!(!InForce { quota: None, ..found }.is(&cpu, Some(8192), 4096));
        assert!(!found.is(&cpu, None, 4096));
        assert_eq!(found.limit_milli(), Some(1000));
    }
}
