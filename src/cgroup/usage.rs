//! What a pod or a leaf has used.

use std::path::Path;

use super::{
    Cgroups, Controller, Seat,
    apply::UNLIMITED,
    error::CgroupError,
    files::{keyed, read, read_keyed, read_number},
    kill::visit,
    path,
};
use crate::api::qos::QosClass;

/// Figures of one cgroup and all below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time used so far, nanoseconds.
    pub cpu_nanos: u64,
    /// Memory in use, bytes, page cache included.
    pub memory_bytes: u64,
    /// Memory in use less inactive file pages, bytes.
    pub working_set_bytes: u64,
    /// Memory limit, bytes; `None` for none.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
}

impl Cgroups {
    /// Figures of a whole pod; `None` when it has no cgroup.
    pub fn pod_usage(&self, qos: QosClass, uid: &str) -> Result<Option<Usage>, CgroupError> {
        self.usage_of(&path::pod(qos, uid))
    }

    /// Figures of a container; `None` when it has no cgroup. The sandbox has no memory figures of its own on v1, where
    /// its processes are in the pod's memory cgroup.
    pub fn usage(&self, qos: QosClass, uid: &str, leaf: &str) -> Result<Option<Usage>, CgroupError> {
        self.usage_of(&path::leaf(qos, uid, leaf))
    }

    fn usage_of(&self, relative: &Path) -> Result<Option<Usage>, CgroupError> {
        let tracking = self.tracking(relative);
        if !tracking.exists() {
            return Ok(None);
        }
        let mut usage = Usage { cpu_nanos: self.cpu_nanos(relative)?, ..Usage::default() };
        self.memory(relative, &mut usage)?;
        usage.pids = self.pids(relative, &tracking)?;
        Ok(Some(usage))
    }

    fn cpu_nanos(&self, relative: &Path) -> Result<u64, CgroupError> {
        // The unified hierarchy counts CPU time without any controller.
        match (self.in_unified(relative), self.v1.get(&Controller::Cpuacct)) {
            (Some(directory), _) => {
                zero_if_absent(read_keyed(&directory, "cpu.stat", "usage_usec")).map(|micros| micros * 1000)
            }
            (None, Some(mount)) => zero_if_absent(
                read_number(&self.below(mount, relative), "cpuacct.usage").map(Option::unwrap_or_default),
            ),
            (None, None) => Ok(0),
        }
    }

    fn memory(&self, relative: &Path, usage: &mut Usage) -> Result<(), CgroupError> {
        let (directory, current, limit, inactive) = match self.require(Controller::Memory)? {
            Seat::V1(mount) => {
                (self.below(mount, relative), "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
            }
            Seat::Unified(mount) => (self.below(mount, relative), "memory.current", "memory.max", "inactive_file"),
        };
        let figures = || {
            let used = read_number(&directory, current)?.unwrap_or(0);
            let inactive = keyed(&read(&directory, "memory.stat")?, inactive).unwrap_or(0);
            Ok((used, inactive, read_number(&directory, limit)?.filter(|limit| *limit < UNLIMITED)))
        };
        match figures() {
            Ok((used, inactive, limit)) => {
                usage.memory_bytes = used;
                usage.working_set_bytes = used.saturating_sub(inactive);
                usage.memory_limit = limit;
                Ok(())
            }
            Err(error) if CgroupError::is_absent(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn pids(&self, relative: &Path, tracking: &Path) -> Result<u64, CgroupError> {
        if let Some(directory) = self.in_hierarchy_of(Controller::Pids, relative)
            && let Ok(Some(current)) = read_number(&directory, "pids.current")
        {
            return Ok(current);
        }
        // Without a pids cgroup of its own the threads are counted one by one.
        let file = if self.unified.is_some() { "cgroup.threads" } else { "tasks" };
        let mut count = 0;
        visit(tracking, &mut |directory| {
            match read(directory, file) {
                Ok(text) => count += text.lines().count() as u64,
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        Ok(count)
    }
}

fn zero_if_absent(read: Result<u64, CgroupError>) -> Result<u64, CgroupError> {
    match read {
        Err(error) if error.is_absent() => Ok(0),
        other => other,
    }
}
