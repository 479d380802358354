//! Environment variables.

use k8s_openapi::api::core::v1::{
    EnvFromSource, EnvVar, EnvVarSource, FileKeySelector, ObjectFieldSelector, ResourceFieldSelector, Volume,
};

use super::{Errors, FieldError, names};
use crate::api::{quantity::Quantity, unsupported::volume_kind};

const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub(super) fn validate(path: &str, variables: &[EnvVar], volumes: &[Volume], errors: &mut Errors) {
    for (index, variable) in variables.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if variable.name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name")));
        } else {
            errors.check(&format!("{path}.name"), &variable.name, names::env_name(&variable.name));
        }
        if let Some(source) = &variable.value_from {
            let has_value = variable.value.as_deref().is_some_and(|value| !value.is_empty());
            value_from(&format!("{path}.valueFrom"), source, has_value, volumes, errors);
        }
    }
}

fn value_from(path: &str, source: &EnvVarSource, has_value: bool, volumes: &[Volume], errors: &mut Errors) {
    let mut sources = 0;
    if let Some(field) = &source.field_ref {
        sources += 1;
        field_ref(&format!("{path}.fieldRef"), field, &FIELDS, errors);
    }
    if let Some(resource) = &source.resource_field_ref {
        sources += 1;
        resource_field_ref(&format!("{path}.resourceFieldRef"), resource, errors);
    }
    let mut key_ref = |field: &str, name: &str, key: &str| {
        sources += 1;
        let path = format!("{path}.{field}");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name")));
        }
        if key.is_empty() {
            errors.push(FieldError::required(format!("{path}.key")));
        } else {
            errors.check(&format!("{path}.key"), key, names::config_key(key));
        }
    };
    if let Some(reference) = &source.config_map_key_ref {
        key_ref("configMapKeyRef", &reference.name, &reference.key);
    }
    if let Some(reference) = &source.secret_key_ref {
        key_ref("secretKeyRef", &reference.name, &reference.key);
    }
    if let Some(reference) = &source.file_key_ref {
        sources += 1;
        file_key_ref(&format!("{path}.fileKeyRef"), reference, volumes, errors);
    }
    let mut invalid = |detail: &str| errors.push(FieldError::invalid(path, "", detail));
    match sources {
        0 => invalid(
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ),
        _ if has_value => invalid("may not be specified when `value` is not empty"),
        1 => {}
        _ => invalid("may not have more than one field specified at a time"),
    }
}

/// KEP-3721: a file in a volume that is the pod's own.
fn file_key_ref(path: &str, reference: &FileKeySelector, volumes: &[Volume], errors: &mut Errors) {
    let FileKeySelector { key, path: file, volume_name, optional: _ } = reference;
    for (field, value) in [("key", key), ("path", file), ("volumeName", volume_name)] {
        if value.is_empty() {
            errors.push(FieldError::required(format!("{path}.{field}")));
        }
    }
    if !key.is_empty() {
        errors.check(&format!("{path}.key"), key, names::env_name(key));
    }
    errors.check(&format!("{path}.path"), file, names::descending_path(file));
    if volume_name.is_empty() {
        return;
    }
    match volumes.iter().find(|volume| volume.name == *volume_name) {
        None => errors.push(FieldError::not_found(format!("{path}.volumeName"), volume_name)),
        Some(volume) if volume_kind(volume).0 != "emptyDir" => {
            let detail = "referenced volume must be of type emptyDir";
            errors.push(FieldError::invalid(format!("{path}.volumeName"), volume_name, detail));
        }
        Some(_) => {}
    }
}

/// A field of the pod that is one of `allowed`, or one label or annotation.
pub(super) fn field_ref(path: &str, field: &ObjectFieldSelector, allowed: &[&str], errors: &mut Errors) {
    let path = format!("{path}.fieldPath");
    let text = field.field_path.as_str();
    if text.is_empty() {
        return errors.push(FieldError::required(path));
    }
    let subscript = text.strip_suffix("']").and_then(|text| text.split_once("['"));
    match subscript {
        Some(("metadata.annotations", key)) => errors.check(&path, key, names::qualified(&key.to_lowercase())),
        Some(("metadata.labels", key)) => errors.check(&path, key, names::qualified(key)),
        Some((field, _)) => errors.push(FieldError::invalid(path, field, "does not support subscript")),
        None if allowed.contains(&text) => {}
        None => errors.push(FieldError::unsupported(path, text, allowed)),
    }
}

pub(super) fn resource_field_ref(path: &str, field: &ResourceFieldSelector, errors: &mut Errors) {
    let resource = field.resource.as_str();
    let resource_path = format!("{path}.resource");
    if resource.is_empty() {
        errors.push(FieldError::required(resource_path));
    } else if !RESOURCES.contains(&resource)
        && !["limits.hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.starts_with(prefix))
    {
        errors.push(FieldError::unsupported(resource_path, resource, &RESOURCES));
    }
    let Some(divisor) = &field.divisor else { return };
    let path = format!("{path}.divisor");
    let cpu = ["1m", "1"];
    let bytes = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let (allowed, rule): (&[&str], _) = if resource.ends_with(".cpu") {
        (&cpu, "only divisor's values 1m and 1 are supported with the cpu resource")
    } else {
        (
            &bytes,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with this resource",
        )
    };
    // Zero, as an unset divisor is sometimes written, means one.
    match Quantity::try_from(divisor) {
        Ok(amount) if amount.is_zero() || allowed.contains(&amount.to_string().as_str()) => {}
        Ok(_) => errors.push(FieldError::invalid(path, &divisor.0, rule)),
        Err(error) => errors.push(FieldError::invalid(path, &divisor.0, error)),
    }
}

pub(super) fn validate_from(path: &str, sources: &[EnvFromSource], errors: &mut Errors) {
    for (index, source) in sources.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if let Some(prefix) = source.prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            errors.check(&format!("{path}.prefix"), prefix, names::env_name(prefix));
        }
        let mut found = 0;
        let references = [
            ("configMapRef", source.config_map_ref.as_ref().map(|reference| &reference.name)),
            ("secretRef", source.secret_ref.as_ref().map(|reference| &reference.name)),
        ];
        for (field, name) in references {
            let Some(name) = name else { continue };
            found += 1;
            if name.is_empty() {
                errors.push(FieldError::required(format!("{path}.{field}.name")));
            } else {
                errors.check(&format!("{path}.{field}.name"), name, names::subdomain(name));
            }
        }
        match found {
            0 => errors.push(FieldError::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => {
                let detail = "may not have more than one field specified at a time";
                errors.push(FieldError::invalid(path, "", detail));
            }
        }
    }
}
