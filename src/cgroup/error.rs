//! What can go wrong with a cgroup: one variant per step, each with the path it concerns.

use std::{fmt, io, path::PathBuf, time::Duration};

/// A step on the cgroup tree failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// /proc could not be read.
    #[error("read {path} to find the cgroup mounts")]
    ReadMounts {
        /// `/proc/self/mountinfo` or `/proc/self/cgroup`.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A controller berth cannot do without.
    #[error(
        "the cgroup controller {controller} is in no mounted hierarchy (is it switched off on the kernel's command line?)"
    )]
    MissingController {
        /// `memory`, `cpu`, …
        controller: &'static str,
    },
    /// A UID or id that cannot be a directory name.
    #[error("{name:?} cannot be the name of a cgroup")]
    BadName {
        /// As given.
        name: String,
    },
    /// mkdir(2).
    #[error("create cgroup {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Cause. ENOSPC means too many cgroups.
        #[source]
        source: io::Error,
    },
    /// A value was not accepted.
    #[error("write {value:?} to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file could not be read, or did not say what it should.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// v2 controllers could not be handed to the children. EBUSY: the cgroup holds processes of its own, as the root
    /// of a container's cgroup namespace does (cgroups(7), "no internal processes").
    #[error("enable {controllers} for the children of cgroup {path}")]
    Enable {
        /// The directory.
        path: PathBuf,
        /// `+cpu +memory`.
        controllers: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The limit is below what is in use and cannot be reclaimed.
    #[error("memory limit {limit} is too small: {used} in use by {path}", limit = Bytes(*limit), used = Bytes(*used))]
    MemoryLimitTooSmall {
        /// The cgroup.
        path: PathBuf,
        /// Bytes asked for.
        limit: u64,
        /// Bytes in use.
        used: u64,
    },
    /// The machine has no huge pages of this size.
    #[error("no huge pages of {} on this machine", Bytes(*page_size))]
    HugePageSize {
        /// Bytes.
        page_size: u64,
    },
    /// The device program was refused by the kernel (cgroup v2: CONFIG_CGROUP_BPF, CAP_BPF or CAP_SYS_ADMIN).
    #[error("load the eBPF program that limits the devices of {path}")]
    LoadDevices {
        /// The cgroup it was for.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The device program could not be attached.
    #[error("attach the eBPF program that limits the devices of {path}")]
    AttachDevices {
        /// The cgroup.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Processes are left after the time allowed.
    #[error("cgroup {path} still holds processes {pids:?} after {} ms", waited.as_millis())]
    StillPopulated {
        /// The cgroup.
        path: PathBuf,
        /// Process ids, at most [`CgroupError::PIDS_SHOWN`] of them.
        pids: Vec<i32>,
        /// How long was waited.
        waited: Duration,
    },
    /// rmdir(2).
    #[error("remove cgroup {path}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    /// How many process ids an error lists: enough to look at, few enough for one line.
    pub const PIDS_SHOWN: usize = 16;

    /// Whether it is "no such file or directory", from whichever step.
    pub fn is_absent(&self) -> bool {
        match self {
            CgroupError::Read { source, .. }
            | CgroupError::Write { source, .. }
            | CgroupError::Create { source, .. }
            | CgroupError::Remove { source, .. } => {
                // A control file opened before its cgroup was removed answers ENODEV.
                source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV)
            }
            _ => false,
        }
    }
}

/// Bytes as in a manifest: `1Mi` where it is whole, otherwise the plain number.
pub(super) struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_below_the_usage_says_both() {
        let error = CgroupError::MemoryLimitTooSmall {
            path: PathBuf::from("/sys/fs/cgroup/kubepods/podu/c"),
            limit: 1 << 20,
            used: 3 << 10,
        };
        assert_eq!(error.to_string(), "memory limit 1Mi is too small: 3Ki in use by /sys/fs/cgroup/kubepods/podu/c");
    }
}
