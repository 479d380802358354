//! Changing the processors of what runs.

use super::{
    Cgroups, Controller, Seat,
    error::CgroupError,
    files::{read, write},
    path,
};
use crate::api::qos::QosClass;

impl Cgroups {
    /// Has a container run on `cpus` (a list as the kernel's) from now on; an empty list is all that its pod may run on. False:
    /// it has no cgroup, or on v1 none for this.
    pub fn update_cpus(&self, qos: QosClass, uid: &str, leaf: &str, cpus: &str) -> Result<bool, CgroupError> {
        let (pod, relative) = (path::pod(qos, uid), path::leaf(qos, uid, leaf));
        let written = match self.require(Controller::Cpuset)? {
            Seat::V1(mount) => {
                let directory = self.below(mount, &relative);
                match directory.parent().filter(|_| cpus.is_empty()) {
                    // v1 has no way to say "all": an empty list would take no process.
                    Some(parent) => read(parent, "cpuset.cpus").and_then(|all| write(&directory, "cpuset.cpus", &all)),
                    None => write(&directory, "cpuset.cpus", cpus),
                }
            }
            Seat::Unified(mount) => {
                let directory = self.below(mount, &relative);
                if !directory.exists() {
                    return Ok(false);
                }
                // It may have been started when nobody was confined.
                self.enable_cpuset(mount, &pod)
                    .and_then(|()| write(&directory, "cpuset.cpus", if cpus.is_empty() { "\n" } else { cpus }))
            }
        };
        match written {
            Err(error) if error.is_absent() => Ok(false),
            written => written.map(|()| true),
        }
    }

    /// Whether a container that runs can be confined to some processors: on v1 only one that was when it was started.
    pub fn can_confine(&self, qos: QosClass, uid: &str, leaf: &str) -> bool {
        match self.require(Controller::Cpuset) {
            Ok(Seat::V1(mount)) => self.below(mount, &path::leaf(qos, uid, leaf)).exists(),
            Ok(Seat::Unified(_)) => true,
            Err(_) => false,
        }
    }
}
