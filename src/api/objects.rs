//! The objects beside pods that a pod may refer to, as they are at one moment.
//!
//! A snapshot is a value: whoever reads it sees one state of everything. In standalone mode it comes from the manifests
//! beside the pods; an API server fills the same structure.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, Service, ServiceAccount},
    node::v1::RuntimeClass,
    storage::v1::CSIDriver,
};

/// Objects of one kind by (namespace, name); the namespace is empty for a kind that has none.
pub type ByName<T> = BTreeMap<(String, String), Arc<T>>;

/// All objects there are. Unchanged ones are the same allocation from one snapshot to the next.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects {
    /// v1 ConfigMap.
    pub config_maps: ByName<ConfigMap>,
    /// v1 Secret; `stringData` has been merged into `data`.
    pub secrets: ByName<Secret>,
    /// v1 ServiceAccount.
    pub service_accounts: ByName<ServiceAccount>,
    /// v1 Service.
    pub services: ByName<Service>,
    /// v1 PersistentVolumeClaim.
    pub persistent_volume_claims: ByName<PersistentVolumeClaim>,
    /// v1 PersistentVolume, without a namespace.
    pub persistent_volumes: ByName<PersistentVolume>,
    /// node.k8s.io/v1 RuntimeClass, without a namespace.
    pub runtime_classes: ByName<RuntimeClass>,
    /// storage.k8s.io/v1 CSIDriver, without a namespace.
    pub csi_drivers: ByName<CSIDriver>,
}

/// The object `namespace/name` of one kind.
pub fn find<'o, T>(objects: &'o ByName<T>, namespace: &str, name: &str) -> Option<&'o Arc<T>> {
    objects.get(&(namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_in_its_own_namespace_only() {
        let key = |namespace: &str| (namespace.to_owned(), "settings".to_owned());
        let config_maps = BTreeMap::from([(key("a"), Arc::new(ConfigMap::default()))]);
        assert!(find(&config_maps, "a", "settings").is_some());
        assert!(find(&config_maps, "b", "settings").is_none());
        assert!(find(&config_maps, "a", "other").is_none());
    }
}
