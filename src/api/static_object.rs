//! What makes an object of a manifest one that pods can refer to: a namespace, a UID, defaults, and validity.

use std::sync::Arc;

use md5::{Digest, Md5};

use super::{
    object::{Object, ObjectKey},
    object_defaults::set_object_defaults,
    validation::{FieldError, validate_object},
};

/// The object that `written` describes, complete and valid.
///
/// There is no server that could give it a UID, so it has one made from what it is called: the same object has it again
/// after a restart, and tokens and volumes can name it.
pub fn static_object(written: Object) -> Result<Object, Vec<FieldError>> {
    let mut object = written;
    clear_status(&mut object);
    let namespaced = object.kind().is_namespaced();
    let metadata = object.metadata_mut();
    metadata.deletion_timestamp = None;
    metadata.deletion_grace_period_seconds = None;
    metadata.managed_fields = None;
    metadata.resource_version = None;
    metadata.namespace = metadata.namespace.take().filter(|namespace| !namespace.is_empty());
    if namespaced {
        metadata.namespace.get_or_insert_with(|| "default".to_owned());
    }
    if object.metadata().uid.as_ref().is_none_or(String::is_empty) {
        let uid = static_uid(&object.key());
        object.metadata_mut().uid = Some(uid);
    }
    set_object_defaults(&mut object);
    let errors = validate_object(&object);
    if errors.is_empty() { Ok(object) } else { Err(errors) }
}

/// What a manifest says of a state is not about this node. (A claim is bound by its volume's name or by `claimRef`.)
fn clear_status(object: &mut Object) {
    match object {
        Object::Service(service) => Arc::make_mut(service).status = None,
        Object::PersistentVolumeClaim(claim) => Arc::make_mut(claim).status = None,
        Object::PersistentVolume(volume) => Arc::make_mut(volume).status = None,
        Object::ConfigMap(_)
        | Object::Secret(_)
        | Object::ServiceAccount(_)
        | Object::RuntimeClass(_)
        | Object::CsiDriver(_)
        | Object::ClusterTrustBundle(_) => {}
    }
}

/// The UID of an object whose manifest brings none: a UUID (version 3, from a name), always the same for the same key.
pub fn static_uid(key: &ObjectKey) -> String {
    let mut bytes: [u8; 16] = Md5::digest(format!("berth.static-object:{key}")).into();
    bytes[6] = bytes[6] & 0x0f | 0x30;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::object::ObjectKind, *};

    fn made(kind: ObjectKind, value: Value) -> Value {
        static_object(Object::decode(kind, &value, "").object.unwrap()).unwrap().to_value()
    }

    #[test]
    fn an_object_gets_a_namespace_and_a_uid_that_stays() {
        let one = made(ObjectKind::ConfigMap, json!({"metadata": {"name": "a", "resourceVersion": "7"}}));
        assert_eq!(one["metadata"]["namespace"], "default");
        assert_eq!(one["metadata"].get("resourceVersion"), None);
        let uid = one["metadata"]["uid"].as_str().unwrap();
        assert_eq!((uid.len(), &uid[14..15]), (36, "3"));
        let again =
            made(ObjectKind::ConfigMap, json!({"metadata": {"name": "a", "namespace": ""}, "data": {"k": "v"}}));
        assert_eq!(again["metadata"]["uid"], uid, "the content is not part of it");
        assert_ne!(made(ObjectKind::ServiceAccount, json!({"metadata": {"name": "a"}}))["metadata"]["uid"], uid);
        let own = made(ObjectKind::ConfigMap, json!({"metadata": {"name": "a", "uid": "own"}}));
        assert_eq!(own["metadata"]["uid"], "own");
    }

    #[test]
    fn a_kind_without_a_namespace_gets_none() {
        let class = made(ObjectKind::RuntimeClass, json!({"metadata": {"name": "a"}, "handler": "h"}));
        assert_eq!(class["metadata"].get("namespace"), None);
    }

    #[test]
    fn what_is_invalid_names_its_field() {
        let written = Object::decode(ObjectKind::ConfigMap, &json!({"data": {"a b": ""}}), "").object.unwrap();
        let paths: Vec<_> = static_object(written).unwrap_err().into_iter().map(|error| error.path).collect();
        assert_eq!(paths, ["metadata.name", "data[a b]"]);
    }
}
