//! Objects beside pods: what an API server demands of them (`ValidateConfigMap`, `ValidateSecret`, … in
//! `pkg/apis/{core,node,storage}/validation` upstream), as far as it matters on a node.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret, Service, ServicePort, ServiceSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{Errors, FieldError, annotations_and_labels, names};
use crate::api::{object::Object, object_defaults::OPAQUE};

pub(super) mod storage;
mod trust;

/// Most bytes of all values of a ConfigMap or Secret together.
const MAX_DATA: usize = 1 << 20;

/// What upstream says of a change to an immutable ConfigMap or Secret.
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

/// Types of secrets whose content has a form.
pub mod secret_type {
    /// Key `.dockercfg`.
    pub const DOCKERCFG: &str = "kubernetes.io/dockercfg";
    /// Key `.dockerconfigjson`.
    pub const DOCKERCONFIGJSON: &str = "kubernetes.io/dockerconfigjson";
}

/// All errors of an object, in the order of its fields. It must have its defaults.
pub fn validate_object(object: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let name: fn(&str) -> Vec<String> = match object {
        Object::Service(_) => names::label_1035,
        Object::CsiDriver(_) => names::driver_name,
        // Judged with the name of its signer.
        Object::ClusterTrustBundle(_) => |_| Vec::new(),
        _ => names::subdomain,
    };
    metadata(object.metadata(), object.kind().is_namespaced(), name, &mut errors);
    match object {
        Object::ConfigMap(object) => config_map(object, &mut errors),
        Object::Secret(object) => secret(object, &mut errors),
        Object::ServiceAccount(_) => {}
        Object::Service(object) => service(object, &mut errors),
        Object::PersistentVolumeClaim(object) => storage::claim(object, &mut errors),
        Object::PersistentVolume(object) => storage::volume(object, &mut errors),
        Object::RuntimeClass(object) => match object.handler.as_str() {
            "" => errors.push(FieldError::required("handler")),
            handler => errors.check("handler", handler, names::label(handler)),
        },
        Object::CsiDriver(object) => storage::driver(&object.spec, &mut errors),
        Object::ClusterTrustBundle(object) => trust::bundle(object, &mut errors),
    }
    errors.0
}

/// What is wrong with putting `new` into the place of `old`, which has the same key; both are valid by themselves.
pub fn validate_object_update(new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    match (new, old) {
        (Object::ConfigMap(new), Object::ConfigMap(old)) if old.immutable == Some(true) => {
            let mut forbid = |path: &str| errors.push(FieldError::forbidden(path, IMMUTABLE));
            if new.immutable != Some(true) {
                forbid("immutable");
            }
            if entries(&new.data) != entries(&old.data) {
                forbid("data");
            }
            if entries(&new.binary_data) != entries(&old.binary_data) {
                forbid("binaryData");
            }
        }
        (Object::Secret(new), Object::Secret(old)) => {
            if new.type_ != old.type_ {
                let value = new.type_.as_deref().unwrap_or_default();
                errors.push(FieldError::invalid("type", value, "field is immutable"));
            }
            if old.immutable == Some(true) {
                if new.immutable != Some(true) {
                    errors.push(FieldError::forbidden("immutable", IMMUTABLE));
                }
                if entries(&new.data) != entries(&old.data) {
                    errors.push(FieldError::forbidden("data", IMMUTABLE));
                }
            }
        }
        _ => {}
    }
    errors.0
}

/// The entries of a map that may not be set, which is as if it were empty.
fn entries<T>(map: &Option<BTreeMap<String, T>>) -> Vec<(&String, &T)> {
    map.iter().flatten().collect()
}

fn metadata(metadata: &ObjectMeta, namespaced: bool, rule: fn(&str) -> Vec<String>, errors: &mut Errors) {
    match metadata.name.as_deref().unwrap_or_default() {
        "" => errors.push(FieldError::required_because("metadata.name", "name or generateName is required")),
        name => errors.check("metadata.name", name, rule(name)),
    }
    match (metadata.namespace.as_deref().unwrap_or_default(), namespaced) {
        ("", true) => errors.push(FieldError::required("metadata.namespace")),
        (namespace, true) => errors.check("metadata.namespace", namespace, names::label(namespace)),
        ("", false) => {}
        (_, false) => errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type")),
    }
    annotations_and_labels("metadata", metadata, errors);
}

fn config_map(map: &ConfigMap, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in map.data.iter().flatten() {
        let path = format!("data[{key}]");
        errors.check(&path, key, names::config_key(key));
        if map.binary_data.as_ref().is_some_and(|data| data.contains_key(key)) {
            errors.push(FieldError::invalid(path, key, "duplicate of key present in binaryData"));
        }
        size += value.len();
    }
    for (key, ByteString(value)) in map.binary_data.iter().flatten() {
        errors.check(&format!("binaryData[{key}]"), key, names::config_key(key));
        size += value.len();
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("data", MAX_DATA));
    }
}

fn secret(secret: &Secret, errors: &mut Errors) {
    let mut size = 0;
    for (key, ByteString(value)) in secret.data.iter().flatten() {
        errors.check(&format!("data[{key}]"), key, names::config_key(key));
        size += value.len();
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("data", MAX_DATA));
    }
    let value = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
    let mut need = |key: &str| {
        if value(key).is_none() {
            errors.push(FieldError::required(format!("data[{key}]")));
        }
    };
    match secret.type_.as_deref().unwrap_or(OPAQUE) {
        "kubernetes.io/service-account-token" => {
            const KEY: &str = "kubernetes.io/service-account.name";
            let annotation = secret.metadata.annotations.as_ref().and_then(|annotations| annotations.get(KEY));
            if annotation.is_none_or(String::is_empty) {
                errors.push(FieldError::required(format!("metadata.annotations[{KEY}]")));
            }
        }
        secret_type::DOCKERCFG => json_value(secret, ".dockercfg", errors),
        secret_type::DOCKERCONFIGJSON => json_value(secret, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth" if value("username").is_none() && value("password").is_none() => {
            need("username");
            need("password");
        }
        "kubernetes.io/ssh-auth" => match value("ssh-privatekey") {
            Some(ByteString(key)) if key.is_empty() => errors.push(FieldError::required("data[ssh-privatekey]")),
            Some(_) => {}
            None => need("ssh-privatekey"),
        },
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        _ => {}
    }
}

/// The value of `key` must be there and must be JSON. What it is stays secret.
fn json_value(secret: &Secret, key: &str, errors: &mut Errors) {
    let path = format!("data[{key}]");
    match secret.data.as_ref().and_then(|data| data.get(key)) {
        None => errors.push(FieldError::required(path)),
        Some(ByteString(value)) => {
            if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(value) {
                errors.push(FieldError::invalid(path, "<secret contents redacted>", error));
            }
        }
    }
}

fn service(service: &Service, errors: &mut Errors) {
    let empty = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    errors.one_of("spec.type", Some(kind), &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    let address = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    if kind == "ExternalName" {
        match spec.external_name.as_deref().unwrap_or_default() {
            "" => errors.push(FieldError::required("spec.externalName")),
            name => errors.check("spec.externalName", name, names::subdomain(name.trim_end_matches('.'))),
        }
        if !address.is_empty() {
            errors.push(FieldError::forbidden("spec.clusterIPs", "may not be set for ExternalName services"));
        }
    } else {
        if ports.is_empty() && address != "None" {
            errors.push(FieldError::required("spec.ports"));
        }
        for address in [address].into_iter().chain(spec.cluster_ips.iter().flatten().map(String::as_str)) {
            if !matches!(address, "" | "None") {
                errors.check("spec.clusterIPs", address, names::ip(address));
            }
        }
    }
    for (index, port) in ports.iter().enumerate() {
        service_port(&format!("spec.ports[{index}]"), port, ports.len() > 1, errors);
        let earlier = &ports[..index];
        if let Some(name) = port.name.as_ref().filter(|name| !name.is_empty())
            && earlier.iter().any(|earlier| earlier.name.as_ref() == Some(name))
        {
            errors.push(FieldError::duplicate(format!("spec.ports[{index}].name"), name));
        }
        if earlier.iter().any(|earlier| (earlier.port, &earlier.protocol) == (port.port, &port.protocol)) {
            let protocol = port.protocol.as_deref().unwrap_or_default();
            errors.push(FieldError::duplicate(format!("spec.ports[{index}]"), format!("{protocol}/{}", port.port)));
        }
    }
}

fn service_port(path: &str, port: &ServicePort, named: bool, errors: &mut Errors) {
    match port.name.as_deref().unwrap_or_default() {
        "" if named => errors.push(FieldError::required(format!("{path}.name"))),
        "" => {}
        name => errors.check(&format!("{path}.name"), name, names::label(name)),
    }
    errors.between(&format!("{path}.port"), i64::from(port.port), 1, 65535);
    errors.one_of(&format!("{path}.protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
    match &port.target_port {
        Some(IntOrString::Int(number)) => {
            errors.between(&format!("{path}.targetPort"), i64::from(*number), 1, 65535);
        }
        Some(IntOrString::String(name)) => {
            errors.check(&format!("{path}.targetPort"), name, names::port_name(name));
        }
        None => {}
    }
}

#[cfg(test)]
mod tests;
