//! Whether a pod uses more local storage than its limits allow, as upstream's eviction manager decides it
//! (`pkg/kubelet/eviction/eviction_manager.go`, `localStorageEviction`): its emptyDirs first, then the pod as a whole,
//! then each container. Upstream spares every static pod, because an evicted one would not come back; here a limit holds
//! wherever it is written, except for critical pods.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{EmptyDirVolumeSource, Pod, PodSpec, Volume},
    jiff::Timestamp,
};

use super::preemption::{Eviction, is_critical};
use crate::api::{
    quantity::Quantity,
    resources::{EPHEMERAL_STORAGE, container_limits, limits},
};

/// Seconds a pod that is evicted has to stop (upstream `immediateEvictionGracePeriodSeconds`).
pub const GRACE: i64 = 1;

/// `status.reason` of an evicted pod, and the reason of its event.
pub const REASON: &str = "Evicted";

/// Bytes on disk that a pod uses now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageUsage {
    /// Each emptyDir on disk.
    pub volumes: BTreeMap<String, u64>,
    /// Each container: its writable layer and its logs.
    pub containers: BTreeMap<String, u64>,
}

impl StorageUsage {
    /// Of the pod as a whole.
    pub fn total(&self) -> u64 {
        self.volumes.values().chain(self.containers.values()).fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Whether the pod has a limit that is enforced by measuring. The others are not measured at all.
pub fn is_limited(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    !is_critical(spec)
        && (container_limits(spec).contains_key(EPHEMERAL_STORAGE)
            || disk_volumes(spec).any(|(_, source)| size_limit(source).is_some()))
}

/// Whether `used` is more than the pod may have.
pub fn storage_eviction(pod: &Pod, used: &StorageUsage, at: Timestamp) -> Option<Eviction> {
    let spec = pod.spec.as_ref().filter(|spec| !is_critical(spec))?;
    // As upstream, without the condition DisruptionTarget.
    let evicted = |message: String| {
        Some(Eviction { reason: REASON.to_owned(), message, condition: None, at, grace: Some(GRACE) })
    };
    for (volume, source) in disk_volumes(spec) {
        if let (Some(limit), Some(bytes)) = (size_limit(source), used.volumes.get(&volume.name))
            && quantity(*bytes) > limit
        {
            return evicted(format!("Usage of EmptyDir volume {:?} exceeds the limit \"{limit}\". ", volume.name));
        }
    }
    if let Some(limit) = container_limits(spec).get(EPHEMERAL_STORAGE)
        && quantity(used.total()) > *limit
    {
        return evicted(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "));
    }
    for container in &spec.containers {
        let limits = limits(container.resources.as_ref());
        if let (Some(limit), Some(bytes)) = (limits.get(EPHEMERAL_STORAGE), used.containers.get(&container.name))
            && !limit.is_zero()
            && quantity(*bytes) > *limit
        {
            let name = &container.name;
            return evicted(format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". "));
        }
    }
    None
}

/// The emptyDirs that are on disk; one in memory bounds itself.
pub fn disk_volumes(spec: &PodSpec) -> impl Iterator<Item = (&Volume, &EmptyDirVolumeSource)> {
    let on_disk = |source: &&EmptyDirVolumeSource| source.medium.as_deref().unwrap_or_default().is_empty();
    let volumes = spec.volumes.iter().flatten();
    volumes.filter_map(move |volume| Some((volume, volume.empty_dir.as_ref().filter(on_disk)?)))
}

/// One of 0 is none.
fn size_limit(source: &EmptyDirVolumeSource) -> Option<Quantity> {
    let limit = Quantity::try_from(source.size_limit.as_ref()?).ok()?;
    (!limit.is_zero() && !limit.is_negative()).then_some(limit)
}

fn quantity(bytes: u64) -> Quantity {
    Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn limit(amount: &str) -> Value {
        json!({"limits": {"ephemeral-storage": amount}})
    }

    fn used(volume: u64, app: u64, other: u64) -> StorageUsage {
        StorageUsage {
            volumes: BTreeMap::from([("v".to_owned(), volume)]),
            containers: BTreeMap::from([("app".to_owned(), app), ("other".to_owned(), other)]),
        }
    }

    #[test]
    fn the_first_limit_that_is_exceeded_is_the_reason() {
        let spec = json!({
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "10Mi"}}],
            "containers": [{"name": "app", "resources": limit("4Mi")}, {"name": "other", "resources": limit("8Mi")}],
        });
        let pod = pod(spec);
        let case = |usage: StorageUsage| {
            storage_eviction(&pod, &usage, Timestamp::UNIX_EPOCH).map(|eviction| eviction.message)
        };
        assert!(is_limited(&pod));
        assert_eq!(case(used(10 * MIB, 0, 0)), None, "up to the last byte");
        let volume = "Usage of EmptyDir volume \"v\" exceeds the limit \"10Mi\". ";
        assert_eq!(case(used(10 * MIB + 1, 20 * MIB, 0)).as_deref(), Some(volume));
        let whole = "Pod ephemeral local storage usage exceeds the total limit of containers 12Mi. ";
        assert_eq!(case(used(9 * MIB, 3 * MIB, 1)).as_deref(), Some(whole));
        let container = "Container app exceeded its local ephemeral storage limit \"4Mi\". ";
        assert_eq!(case(used(0, 5 * MIB, 0)).as_deref(), Some(container));
        assert_eq!(case(used(0, 4 * MIB, 8 * MIB)), None);
    }

    #[test]
    fn only_what_has_a_limit_is_measured_and_what_is_critical_is_left_alone() {
        let container = |resources: Value| json!([{"name": "app", "resources": resources}]);
        let volume = |source: Value| json!([{"name": "v", "emptyDir": source}]);
        let cases = [
            (json!({"containers": container(json!({}))}), false),
            (json!({"containers": container(limit("1Gi"))}), true),
            (json!({"containers": container(json!({"requests": {"ephemeral-storage": "1Gi"}}))}), false),
            (json!({"containers": [], "volumes": volume(json!({"sizeLimit": "1Gi"}))}), true),
            (json!({"containers": [], "volumes": volume(json!({"sizeLimit": "0"}))}), false),
            (json!({"containers": [], "volumes": volume(json!({"sizeLimit": "1Gi", "medium": "Memory"}))}), false),
            (json!({"containers": container(limit("1Gi")), "priority": 2_000_000_000}), false),
            (json!({"containers": container(limit("1Gi")), "priorityClassName": "system-node-critical"}), false),
        ];
        for (spec, limited) in cases {
            let pod = pod(spec.clone());
            assert_eq!(is_limited(&pod), limited, "{spec}");
            assert_eq!(
                storage_eviction(&pod, &used(1 << 40, 1 << 40, 0), Timestamp::UNIX_EPOCH).is_some(),
                limited,
                "{spec}"
            );
        }
    }
}
