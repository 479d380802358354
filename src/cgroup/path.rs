//! Names in the cgroup tree, the same in every hierarchy. Names only: nothing here touches the file system, so
//! the supervisor may use it too.
//!
//! ```text
//! <cgroup root>/kubepods                         all pods; Guaranteed pods directly below
//! <cgroup root>/kubepods/burstable/pod<uid>      one pod
//! <cgroup root>/kubepods/burstable/pod<uid>/<id> one container, or `sandbox` for the pod's supervisor
//! ```

use std::path::PathBuf;

use crate::api::qos::QosClass;

/// The cgroup above all pods (upstream's name).
pub const KUBEPODS: &str = "kubepods";

/// The leaf of a pod's supervisor and `pause`.
pub const SANDBOX: &str = "sandbox";

/// v1 `devices` only: the cgroup below [`KUBEPODS`] that all containers with the default devices share.
pub const DEFAULT_DEVICES: &str = "default-devices";

/// All classes, in the order in which the tree is searched.
pub const CLASSES: [QosClass; 3] = [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort];

/// The parent of a class's pods: `kubepods`, `kubepods/burstable` or `kubepods/besteffort`.
pub fn class(qos: QosClass) -> PathBuf {
    let kubepods = PathBuf::from(KUBEPODS);
    match qos {
        QosClass::Guaranteed => kubepods,
        QosClass::Burstable => kubepods.join("burstable"),
        QosClass::BestEffort => kubepods.join("besteffort"),
    }
}

/// The cgroup of a pod.
pub fn pod(qos: QosClass, uid: &str) -> PathBuf {
    class(qos).join(format!("pod{uid}"))
}

/// The cgroup of a container (by id) or of the supervisor ([`SANDBOX`]).
pub fn leaf(qos: QosClass, uid: &str, leaf: &str) -> PathBuf {
    pod(qos, uid).join(leaf)
}

/// The UID in the directory name of a pod's cgroup; `None` for any other directory.
pub fn uid_of(directory: &str) -> Option<&str> {
    directory.strip_prefix("pod").filter(|uid| is_name(uid))
}

/// Whether a UID or container id may become a directory name: one component, no dots first, short enough.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_upstreams() {
        assert_eq!(pod(QosClass::Guaranteed, "u1"), PathBuf::from("kubepods/podu1"));
        assert_eq!(leaf(QosClass::Burstable, "u1", "c1"), PathBuf::from("kubepods/burstable/podu1/c1"));
        assert_eq!(leaf(QosClass::BestEffort, "u1", SANDBOX), PathBuf::from("kubepods/besteffort/podu1/sandbox"));
    }

    #[test]
    fn only_a_pods_directory_has_a_uid() {
        assert_eq!(uid_of("pod0a1b-2c"), Some("0a1b-2c"));
        for other in ["pod", "burstable", "cgroup.procs", DEFAULT_DEVICES] {
            assert_eq!(uid_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_cannot_leave_its_parent() {
        for bad in ["", ".", "..", "a/b", "a b", ".hidden", &"x".repeat(201)] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(is_name("6c5bf5a5-3d4b-4a0e-8d53-0a6a4f6d1f5e"));
    }
}
