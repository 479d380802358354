//! One object beside the pods, of whatever kind: what is the same for all kinds is asked of it here.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{
        certificates::v1beta1::ClusterTrustBundle,
        core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, Service, ServiceAccount},
        node::v1::RuntimeClass,
        storage::v1::CSIDriver,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decode::{TypeError, Typed, decode, to_value};

/// The kinds of objects that pods may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    /// v1 ConfigMap.
    ConfigMap,
    /// v1 Secret.
    Secret,
    /// v1 ServiceAccount.
    ServiceAccount,
    /// v1 Service.
    Service,
    /// v1 PersistentVolumeClaim.
    PersistentVolumeClaim,
    /// v1 PersistentVolume, which has no namespace.
    PersistentVolume,
    /// node.k8s.io/v1 RuntimeClass, which has no namespace.
    RuntimeClass,
    /// storage.k8s.io/v1 CSIDriver, which has no namespace.
    #[serde(rename = "CSIDriver")]
    CsiDriver,
    /// certificates.k8s.io/v1beta1 ClusterTrustBundle, which has no namespace.
    ClusterTrustBundle,
}

impl ObjectKind {
    /// All of them.
    pub const ALL: [ObjectKind; 9] = [
        ObjectKind::ConfigMap,
        ObjectKind::Secret,
        ObjectKind::ServiceAccount,
        ObjectKind::Service,
        ObjectKind::PersistentVolumeClaim,
        ObjectKind::PersistentVolume,
        ObjectKind::RuntimeClass,
        ObjectKind::CsiDriver,
        ObjectKind::ClusterTrustBundle,
    ];

    /// The value of `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectKind::ConfigMap => "ConfigMap",
            ObjectKind::Secret => "Secret",
            ObjectKind::ServiceAccount => "ServiceAccount",
            ObjectKind::Service => "Service",
            ObjectKind::PersistentVolumeClaim => "PersistentVolumeClaim",
            ObjectKind::PersistentVolume => "PersistentVolume",
            ObjectKind::RuntimeClass => "RuntimeClass",
            ObjectKind::CsiDriver => "CSIDriver",
            ObjectKind::ClusterTrustBundle => "ClusterTrustBundle",
        }
    }

    /// The value of `apiVersion`.
    pub fn api_version(self) -> &'static str {
        match self {
            ObjectKind::RuntimeClass => "node.k8s.io/v1",
            ObjectKind::CsiDriver => "storage.k8s.io/v1",
            ObjectKind::ClusterTrustBundle => "certificates.k8s.io/v1beta1",
            _ => "v1",
        }
    }

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(
            self,
            ObjectKind::PersistentVolume
                | ObjectKind::RuntimeClass
                | ObjectKind::CsiDriver
                | ObjectKind::ClusterTrustBundle
        )
    }

    /// The kind of `apiVersion` and `kind` as written.
    pub fn of(api_version: &str, kind: &str) -> Option<ObjectKind> {
        ObjectKind::ALL.into_iter().find(|known| known.as_str() == kind && known.api_version() == api_version)
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What there can be only one of at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Kind.
    pub kind: ObjectKind,
    /// Namespace; empty for a kind that has none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// The key of `namespace/name`; the namespace counts only for a kind that has one.
    pub fn new(kind: ObjectKind, namespace: &str, name: &str) -> ObjectKey {
        let namespace = if kind.is_namespaced() { namespace } else { "" };
        ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// `ConfigMap shop/settings`, `RuntimeClass kata`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// An object of one of the kinds. Cheap to clone. Its Debug output has what a secret holds: it belongs into no log.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// v1 ConfigMap.
    ConfigMap(Arc<ConfigMap>),
    /// v1 Secret.
    Secret(Arc<Secret>),
    /// v1 ServiceAccount.
    ServiceAccount(Arc<ServiceAccount>),
    /// v1 Service.
    Service(Arc<Service>),
    /// v1 PersistentVolumeClaim.
    PersistentVolumeClaim(Arc<PersistentVolumeClaim>),
    /// v1 PersistentVolume.
    PersistentVolume(Arc<PersistentVolume>),
    /// node.k8s.io/v1 RuntimeClass.
    RuntimeClass(Arc<RuntimeClass>),
    /// storage.k8s.io/v1 CSIDriver.
    CsiDriver(Arc<CSIDriver>),
    /// certificates.k8s.io/v1beta1 ClusterTrustBundle.
    ClusterTrustBundle(Arc<ClusterTrustBundle>),
}

/// The same expression for the object of every kind.
macro_rules! with_any {
    ($object:expr, $inner:ident => $result:expr) => {
        match $object {
            Object::ConfigMap($inner) => $result,
            Object::Secret($inner) => $result,
            Object::ServiceAccount($inner) => $result,
            Object::Service($inner) => $result,
            Object::PersistentVolumeClaim($inner) => $result,
            Object::PersistentVolume($inner) => $result,
            Object::RuntimeClass($inner) => $result,
            Object::CsiDriver($inner) => $result,
            Object::ClusterTrustBundle($inner) => $result,
        }
    };
}

impl Object {
    /// Decodes an object of `kind` whose own path is `base`. What a secret holds is in no error.
    pub fn decode(kind: ObjectKind, value: &Value, base: &str) -> Typed<Object> {
        fn typed<T>(typed: Typed<T>, make: impl FnOnce(Arc<T>) -> Object) -> Typed<Object> {
            Typed { object: typed.object.map(|object| make(Arc::new(object))), unknown: typed.unknown }
        }
        match kind {
            ObjectKind::ConfigMap => typed(decode(value, base), Object::ConfigMap),
            ObjectKind::Secret => {
                let mut typed = typed(decode(value, base), Object::Secret);
                typed.object = typed.object.map_err(|error| without_value(error, base));
                typed
            }
            ObjectKind::ServiceAccount => typed(decode(value, base), Object::ServiceAccount),
            ObjectKind::Service => typed(decode(value, base), Object::Service),
            ObjectKind::PersistentVolumeClaim => typed(decode(value, base), Object::PersistentVolumeClaim),
            ObjectKind::PersistentVolume => typed(decode(value, base), Object::PersistentVolume),
            ObjectKind::RuntimeClass => typed(decode(value, base), Object::RuntimeClass),
            ObjectKind::CsiDriver => typed(decode(value, base), Object::CsiDriver),
            ObjectKind::ClusterTrustBundle => typed(decode(value, base), Object::ClusterTrustBundle),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Object::ConfigMap(_) => ObjectKind::ConfigMap,
            Object::Secret(_) => ObjectKind::Secret,
            Object::ServiceAccount(_) => ObjectKind::ServiceAccount,
            Object::Service(_) => ObjectKind::Service,
            Object::PersistentVolumeClaim(_) => ObjectKind::PersistentVolumeClaim,
            Object::PersistentVolume(_) => ObjectKind::PersistentVolume,
            Object::RuntimeClass(_) => ObjectKind::RuntimeClass,
            Object::CsiDriver(_) => ObjectKind::CsiDriver,
            Object::ClusterTrustBundle(_) => ObjectKind::ClusterTrustBundle,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        with_any!(self, object => &object.metadata)
    }

    /// Its metadata, to be changed in this copy alone.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        with_any!(self, object => &mut Arc::make_mut(object).metadata)
    }

    /// What there can be only one of.
    pub fn key(&self) -> ObjectKey {
        let metadata = self.metadata();
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        ObjectKey::new(self.kind(), &text(&metadata.namespace), &text(&metadata.name))
    }

    /// Whether both are the same allocation, which says that nothing has changed without looking inside.
    pub fn is(&self, other: &Object) -> bool {
        match (self, other) {
            (Object::ConfigMap(one), Object::ConfigMap(other)) => Arc::ptr_eq(one, other),
            (Object::Secret(one), Object::Secret(other)) => Arc::ptr_eq(one, other),
            (Object::ServiceAccount(one), Object::ServiceAccount(other)) => Arc::ptr_eq(one, other),
            (Object::Service(one), Object::Service(other)) => Arc::ptr_eq(one, other),
            (Object::PersistentVolumeClaim(one), Object::PersistentVolumeClaim(other)) => Arc::ptr_eq(one, other),
            (Object::PersistentVolume(one), Object::PersistentVolume(other)) => Arc::ptr_eq(one, other),
            (Object::RuntimeClass(one), Object::RuntimeClass(other)) => Arc::ptr_eq(one, other),
            (Object::CsiDriver(one), Object::CsiDriver(other)) => Arc::ptr_eq(one, other),
            (Object::ClusterTrustBundle(one), Object::ClusterTrustBundle(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// The object as JSON.
    pub fn to_value(&self) -> Value {
        // An object of the API always has a JSON form.
        with_any!(self, object => to_value(&**object).unwrap_or_default())
    }
}

/// The error without the value that did not fit, if it is one of those that are secret.
fn without_value(mut error: TypeError, base: &str) -> TypeError {
    let path = error.path.strip_prefix(base).unwrap_or(&error.path).trim_start_matches('.');
    if path.starts_with("data") {
        error.message = "expected base64-encoded text".to_owned();
    } else if path.starts_with("stringData") {
        error.message = "expected a string".to_owned();
    }
    error
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_kind_is_found_by_its_version_and_name() {
        for kind in ObjectKind::ALL {
            assert_eq!(ObjectKind::of(kind.api_version(), kind.as_str()), Some(kind));
            let value = json!({"metadata": {"name": "a", "namespace": "n"}});
            let object = Object::decode(kind, &value, "").object;
            if let Ok(object) = object {
                assert_eq!(object.key(), ObjectKey::new(kind, "n", "a"));
                assert_eq!(object.to_value()["kind"], kind.as_str());
                assert_eq!(object.to_value()["apiVersion"], kind.api_version());
            }
        }
        assert_eq!(ObjectKind::of("v1", "RuntimeClass"), None);
        assert_eq!(ObjectKey::new(ObjectKind::RuntimeClass, "n", "a").to_string(), "RuntimeClass a");
        assert_eq!(ObjectKey::new(ObjectKind::Secret, "n", "a").to_string(), "Secret n/a");
    }

    #[test]
    fn what_a_secret_holds_is_in_no_error() {
        for value in [json!({"data": {"pin": 4711}}), json!({"data": {"pin": "4711!"}}), json!({"stringData": 4711})] {
            let error = Object::decode(ObjectKind::Secret, &value, "items[0]").object.unwrap_err().to_string();
            assert!(!error.contains("4711") && error.contains("ata"), "{error}");
        }
        let error = Object::decode(ObjectKind::Secret, &json!({"type": 7}), "").object.unwrap_err().to_string();
        assert_eq!(error, "type: invalid type: integer `7`, expected a string");
    }
}
