//! Limits as a pod states them, and the numbers the kernel wants for them. Pure.

/// Default CFS period: 100 ms (`cpuCFSQuotaPeriod`).
pub const DEFAULT_PERIOD_MICROS: u64 = 100_000;

/// Smallest CFS quota the kernel takes: 1 ms (`min_cfs_quota_period`, kernel/sched/core.c).
pub const MIN_QUOTA_MICROS: u64 = 1_000;

/// Smallest cpu shares the kernel takes; what a container without a request gets.
pub const MIN_SHARES: u64 = 2;

/// Largest cpu shares the kernel takes.
pub const MAX_SHARES: u64 = 262_144;

/// CPU request and limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLimits {
    /// Request in thousandths of a CPU; 0 for none (gets [`MIN_SHARES`]).
    pub request_milli: u64,
    /// Limit in thousandths of a CPU; `None` for none.
    pub limit_milli: Option<u64>,
    /// CFS period in microseconds (1,000 to 1,000,000).
    pub period_micros: u64,
}

impl Default for CpuLimits {
    fn default() -> Self {
        CpuLimits { request_milli: 0, limit_milli: None, period_micros: DEFAULT_PERIOD_MICROS }
    }
}

impl CpuLimits {
    /// v1 `cpu.shares`.
    pub fn shares(&self) -> u64 {
        shares(self.request_milli)
    }

    /// CFS quota in microseconds per period; `None` for no limit.
    pub fn quota_micros(&self) -> Option<u64> {
        self.limit_milli.map(|milli| quota_micros(milli, self.period_micros))
    }
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePageLimit {
    /// Page size in bytes (2 MiB, 1 GiB, …).
    pub page_size: u64,
    /// Limit in bytes; 0 forbids them.
    pub limit: u64,
}

/// CPUs and memory nodes, in the kernel's list format (`0-3,8`); empty inherits the parent's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet {
    /// `cpuset.cpus`.
    pub cpus: String,
    /// `cpuset.mems`.
    pub mems: String,
}

/// Limits of a whole pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// CPU: the sums over the pod's containers.
    pub cpu: CpuLimits,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Processes and threads (`podPidsLimit`); `None` for no limit.
    pub pids: Option<u64>,
    /// Huge pages. Empty leaves the hugetlb controller alone.
    pub huge_pages: Vec<HugePageLimit>,
    /// Memory that is kept for it, and where it is slowed down (v2).
    pub quality: MemoryQuality,
}

/// Memory that is kept for a cgroup under pressure, and the amount from which it is slowed down. v2 only: v1 has nothing
/// of the kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryQuality {
    /// Bytes that are never taken from it (`memory.min`); 0 for none.
    pub min: u64,
    /// Bytes that are taken from it last (`memory.low`); 0 for none.
    pub low: u64,
    /// Bytes above which it has to give back before it gets more (`memory.high`); `None` for no such bound.
    pub high: Option<u64>,
}

/// What all pods may have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeLimits {
    /// Thousandths of a CPU: their weight beside the rest of the machine.
    pub cpu_milli: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Processes and threads; `None` for no limit.
    pub pids: Option<u64>,
}

/// What the pods of each class ask for together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassTotals {
    /// CPU of Burstable pods, thousandths.
    pub burstable_milli: u64,
    /// Memory of Guaranteed pods, bytes; 0 where none is kept.
    pub guaranteed_memory: u64,
    /// Memory of Burstable pods, bytes; 0 where none is kept.
    pub burstable_memory: u64,
}

/// Limits of one container, or of the sandbox ([`LeafLimits::default`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeafLimits {
    /// CPU.
    pub cpu: CpuLimits,
    /// Memory in bytes. On v1 swap is forbidden.
    pub memory: Option<u64>,
    /// Swap in bytes; 0 forbids it (v2).
    pub swap: u64,
    /// Memory that is kept for it, and where it is slowed down (v2).
    pub quality: MemoryQuality,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Huge pages. Empty leaves the hugetlb controller alone.
    pub huge_pages: Vec<HugePageLimit>,
    /// CPUs and memory nodes; `None` leaves the cpuset controller alone.
    pub cpuset: Option<CpuSet>,
    /// An OOM kill takes the whole container (v2 only; off with `singleProcessOOMKill`).
    pub oom_group: bool,
    /// Which devices may be opened or made.
    pub devices: DeviceAccess,
}

/// Which devices a leaf may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceAccess {
    /// All: the sandbox and privileged containers.
    #[default]
    All,
    /// [`super::devices::default_rules`]: every other container.
    Default,
    /// These rules and nothing else (the default ones are not added).
    Only(Vec<super::devices::DeviceRule>),
}

/// `milli × 1024 / 1000`, within what the kernel takes (kubelet `MilliCPUToShares`).
pub fn shares(milli: u64) -> u64 {
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// `milli × period / 1000`, at least 1 ms (kubelet `MilliCPUToQuota`).
pub fn quota_micros(milli: u64, period_micros: u64) -> u64 {
    (milli.saturating_mul(period_micros) / 1000).max(MIN_QUOTA_MICROS)
}

/// v2 `cpu.weight` of v1 shares: `⌈10^((l² + 125·l)/612 − 7/34)⌉` with `l = log2(shares)`, so that 2 → 1,
/// 1024 → 100 and 262144 → 10000 (runc since 1.3.2, crun since 1.23; the older linear formula gave 1024 shares
/// only 39).
pub fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
    // The two ends are exact in the formula but not in floating point.
    match shares {
        MIN_SHARES => 1,
        MAX_SHARES => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

/// The kernel's name of a huge page size in file names: `2MB`, `1GB`, `64KB`.
pub fn huge_page_name(page_size: u64) -> String {
    match page_size {
        size if size >= 1 << 30 => format!("{}GB", size >> 30),
        size if size >= 1 << 20 => format!("{}MB", size >> 20),
        size => format!("{}KB", size >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_upstreams() {
        for (milli, expected) in [(0, 2), (1, 2), (2, 2), (100, 102), (500, 512), (1000, 1024), (1_000_000, 262_144)] {
            assert_eq!(shares(milli), expected, "{milli}m");
        }
    }

    #[test]
    fn quota_is_never_below_a_millisecond() {
        for (milli, period, expected) in [(1, 100_000, 1000), (500, 100_000, 50_000), (1500, 10_000, 15_000)] {
            assert_eq!(quota_micros(milli, period), expected, "{milli}m per {period} us");
        }
    }

    #[test]
    fn weight_follows_the_new_formula() {
        // The values upstream's own tests hold runc to.
        for (shares, expected) in
            [(2, 1), (1024, 100), (262_144, 10_000), (0, 1), (1 << 40, 10_000), (102, 17), (512, 59)]
        {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
        assert!((2..=262_144).step_by(97).map(weight).is_sorted());
    }

    #[test]
    fn huge_pages_are_named_as_the_kernel_does() {
        for (size, name) in [(64 << 10, "64KB"), (2 << 20, "2MB"), (1 << 30, "1GB"), (16 << 30, "16GB")] {
            assert_eq!(huge_page_name(size), name);
        }
    }
}
