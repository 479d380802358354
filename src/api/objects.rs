//! The objects beside pods that a pod may refer to, as they are at one moment.
//!
//! A snapshot is a value: whoever reads it sees one state of everything. In standalone mode it comes from the manifests
//! beside the pods; an API server fills the same structure.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    certificates::v1beta1::ClusterTrustBundle,
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, Service, ServiceAccount},
    node::v1::RuntimeClass,
    storage::v1::CSIDriver,
};

use super::object::{Object, ObjectKey, ObjectKind};

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
    /// certificates.k8s.io/v1beta1 ClusterTrustBundle, without a namespace.
    pub trust_bundles: ByName<ClusterTrustBundle>,
}

impl Objects {
    /// Adds an object, or replaces the one of its key.
    pub fn insert(&mut self, object: Object) {
        let ObjectKey { namespace, name, .. } = object.key();
        let key = (namespace, name);
        match object {
            Object::ConfigMap(object) => drop(self.config_maps.insert(key, object)),
            Object::Secret(object) => drop(self.secrets.insert(key, object)),
            Object::ServiceAccount(object) => drop(self.service_accounts.insert(key, object)),
            Object::Service(object) => drop(self.services.insert(key, object)),
            Object::PersistentVolumeClaim(object) => drop(self.persistent_volume_claims.insert(key, object)),
            Object::PersistentVolume(object) => drop(self.persistent_volumes.insert(key, object)),
            Object::RuntimeClass(object) => drop(self.runtime_classes.insert(key, object)),
            Object::CsiDriver(object) => drop(self.csi_drivers.insert(key, object)),
            Object::ClusterTrustBundle(object) => drop(self.trust_bundles.insert(key, object)),
        }
    }

    /// The object of a key.
    pub fn get(&self, key: &ObjectKey) -> Option<Object> {
        let ObjectKey { kind, namespace, name } = key;
        fn cloned<T>(objects: &ByName<T>, namespace: &str, name: &str) -> Option<Arc<T>> {
            find(objects, namespace, name).cloned()
        }
        match kind {
            ObjectKind::ConfigMap => cloned(&self.config_maps, namespace, name).map(Object::ConfigMap),
            ObjectKind::Secret => cloned(&self.secrets, namespace, name).map(Object::Secret),
            ObjectKind::ServiceAccount => cloned(&self.service_accounts, namespace, name).map(Object::ServiceAccount),
            ObjectKind::Service => cloned(&self.services, namespace, name).map(Object::Service),
            ObjectKind::PersistentVolumeClaim => {
                cloned(&self.persistent_volume_claims, namespace, name).map(Object::PersistentVolumeClaim)
            }
            ObjectKind::PersistentVolume => {
                cloned(&self.persistent_volumes, namespace, name).map(Object::PersistentVolume)
            }
            ObjectKind::RuntimeClass => cloned(&self.runtime_classes, namespace, name).map(Object::RuntimeClass),
            ObjectKind::CsiDriver => cloned(&self.csi_drivers, namespace, name).map(Object::CsiDriver),
            ObjectKind::ClusterTrustBundle => {
                cloned(&self.trust_bundles, namespace, name).map(Object::ClusterTrustBundle)
            }
        }
    }

    /// Whether the object of one of `keys` is another one in `later`: appeared, gone or changed. Only allocations are
    /// compared, as one that has not changed is the same in both.
    pub fn differ<'k>(&self, later: &Objects, keys: impl IntoIterator<Item = &'k ObjectKey>) -> bool {
        keys.into_iter().any(|key| match (self.get(key), later.get(key)) {
            (Some(one), Some(other)) => !one.is(&other),
            (None, None) => false,
            _ => true,
        })
    }

    /// Whether both hold the same allocations under the same keys.
    pub fn is_same(&self, other: &Objects) -> bool {
        fn same<T>(one: &ByName<T>, other: &ByName<T>) -> bool {
            one.len() == other.len()
                && one.iter().zip(other).all(|(one, other)| one.0 == other.0 && Arc::ptr_eq(one.1, other.1))
        }
        let Objects {
            config_maps,
            secrets,
            service_accounts,
            services,
            persistent_volume_claims,
            persistent_volumes,
            runtime_classes,
            csi_drivers,
            trust_bundles,
        } = self;
        same(config_maps, &other.config_maps)
            && same(secrets, &other.secrets)
            && same(service_accounts, &other.service_accounts)
            && same(services, &other.services)
            && same(persistent_volume_claims, &other.persistent_volume_claims)
            && same(persistent_volumes, &other.persistent_volumes)
            && same(runtime_classes, &other.runtime_classes)
            && same(csi_drivers, &other.csi_drivers)
            && same(trust_bundles, &other.trust_bundles)
    }
}

impl FromIterator<Object> for Objects {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Objects {
        let mut all = Objects::default();
        objects.into_iter().for_each(|object| all.insert(object));
        all
    }
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

    #[test]
    fn only_another_allocation_is_a_change() {
        let object = |name: &str| {
            let mut map = ConfigMap::default();
            (map.metadata.namespace, map.metadata.name) = (Some("a".to_owned()), Some(name.to_owned()));
            Object::ConfigMap(Arc::new(map))
        };
        let (one, two) = (object("one"), object("two"));
        let before: Objects = [one.clone()].into_iter().collect();
        let later: Objects = [one.clone(), two.clone()].into_iter().collect();
        let (one, two) = (one.key(), two.key());
        assert!(before.is_same(&before.clone()) && !before.is_same(&later));
        assert!(!before.differ(&later, [&one]), "one is the same");
        assert!(before.differ(&later, [&one, &two]), "two appeared");
        let changed: Objects = [object("one")].into_iter().collect();
        assert!(before.differ(&changed, [&one]) && !before.is_same(&changed));
    }
}
