//! What an API server fills in when an object beside the pods is created (`pkg/apis/{core,storage}/v1/defaults.go`
//! upstream), as far as a node acts on it.

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{PersistentVolumeClaimSpec, PersistentVolumeSpec, ServiceSpec},
    storage::v1::CSIDriverSpec,
};

use super::object::Object;

/// Type of a secret that does not say what it is.
pub const OPAQUE: &str = "Opaque";

/// Fills in every default, and puts the text of a secret into its data. Doing it twice changes nothing.
pub fn set_object_defaults(object: &mut Object) {
    match object {
        Object::Secret(secret) => {
            let secret = Arc::make_mut(secret);
            default_text(&mut secret.type_, OPAQUE);
            for (key, text) in secret.string_data.take().unwrap_or_default() {
                let value = k8s_openapi::ByteString(text.into_bytes());
                secret.data.get_or_insert_default().insert(key, value);
            }
        }
        Object::Service(service) => {
            if let Some(spec) = &mut Arc::make_mut(service).spec {
                set_service_defaults(spec);
            }
        }
        Object::PersistentVolumeClaim(claim) => {
            if let Some(spec) = &mut Arc::make_mut(claim).spec {
                set_claim_defaults(spec);
            }
        }
        Object::PersistentVolume(volume) => {
            if let Some(spec) = &mut Arc::make_mut(volume).spec {
                set_volume_defaults(spec);
            }
        }
        Object::CsiDriver(driver) => set_driver_defaults(&mut Arc::make_mut(driver).spec),
        Object::ConfigMap(_) | Object::ServiceAccount(_) | Object::RuntimeClass(_) | Object::ClusterTrustBundle(_) => {}
    }
}

fn default_text(field: &mut Option<String>, default: &str) {
    if field.as_ref().is_none_or(String::is_empty) {
        *field = Some(default.to_owned());
    }
}

fn set_service_defaults(spec: &mut ServiceSpec) {
    default_text(&mut spec.session_affinity, "None");
    default_text(&mut spec.type_, "ClusterIP");
    for port in spec.ports.iter_mut().flatten() {
        default_text(&mut port.protocol, "TCP");
    }
    // The first of the addresses is the one that older clients know.
    if spec.cluster_ip.as_ref().is_none_or(String::is_empty) {
        spec.cluster_ip = spec.cluster_ips.as_ref().and_then(|addresses| addresses.first().cloned());
    }
}

fn set_claim_defaults(spec: &mut PersistentVolumeClaimSpec) {
    default_text(&mut spec.volume_mode, "Filesystem");
}

fn set_volume_defaults(spec: &mut PersistentVolumeSpec) {
    default_text(&mut spec.persistent_volume_reclaim_policy, "Retain");
    default_text(&mut spec.volume_mode, "Filesystem");
    if let Some(source) = &mut spec.host_path {
        source.type_.get_or_insert_default();
    }
    if let Some(source) = &mut spec.iscsi {
        default_text(&mut source.iscsi_interface, "default");
    }
}

fn set_driver_defaults(spec: &mut CSIDriverSpec) {
    spec.attach_required.get_or_insert(true);
    spec.pod_info_on_mount.get_or_insert(false);
    spec.requires_republish.get_or_insert(false);
    spec.se_linux_mount.get_or_insert(false);
    spec.storage_capacity.get_or_insert(false);
    default_text(&mut spec.fs_group_policy, "ReadWriteOnceWithFSType");
    if spec.volume_lifecycle_modes.as_ref().is_none_or(Vec::is_empty) {
        spec.volume_lifecycle_modes = Some(vec!["Persistent".to_owned()]);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::object::ObjectKind, *};

    fn defaulted(kind: ObjectKind, value: Value) -> Value {
        let mut object = Object::decode(kind, &value, "").object.unwrap();
        set_object_defaults(&mut object);
        let once = object.clone();
        set_object_defaults(&mut object);
        assert_eq!(once, object, "twice is as once");
        object.to_value()
    }

    #[test]
    fn the_text_of_a_secret_becomes_data_and_wins() {
        let secret =
            defaulted(ObjectKind::Secret, json!({"data": {"a": "YQ==", "b": "Yg=="}, "stringData": {"b": "new"}}));
        assert_eq!(secret["data"], json!({"a": "YQ==", "b": "bmV3"}));
        assert_eq!((secret["type"].as_str(), secret.get("stringData")), (Some("Opaque"), None));
    }

    #[test]
    fn what_is_not_said_is_as_upstream_has_it() {
        let service =
            defaulted(ObjectKind::Service, json!({"spec": {"clusterIPs": ["10.0.0.9"], "ports": [{"port": 1}]}}));
        assert_eq!(service["spec"]["clusterIP"], "10.0.0.9");
        assert_eq!(
            (&service["spec"]["type"], &service["spec"]["ports"][0]["protocol"]),
            (&json!("ClusterIP"), &json!("TCP"))
        );
        let volume = defaulted(ObjectKind::PersistentVolume, json!({"spec": {"hostPath": {"path": "/srv"}}}));
        assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain");
        assert_eq!(volume["spec"]["hostPath"]["type"], "");
        let driver = defaulted(ObjectKind::CsiDriver, json!({"spec": {}}));
        assert_eq!(driver["spec"]["fsGroupPolicy"], "ReadWriteOnceWithFSType");
        assert_eq!(driver["spec"]["attachRequired"], true);
    }
}
