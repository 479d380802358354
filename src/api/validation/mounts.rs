//! What a container mounts.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Container;

use super::{Errors, FieldError, names};

pub(super) fn validate(path: &str, container: &Container, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    let privileged = container.security_context.as_ref().and_then(|context| context.privileged) == Some(true);
    let mut targets = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if mount.name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name")));
        } else if !volumes.contains(mount.name.as_str()) {
            errors.push(FieldError::not_found(format!("{path}.name"), &mount.name));
        }
        if mount.mount_path.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath")));
        } else if !targets.insert(mount.mount_path.as_str()) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), &mount.mount_path, "must be unique"));
        }
        let sub_path = mount.sub_path.as_deref().filter(|text| !text.is_empty());
        let sub_path_expr = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty());
        for (field, text) in [("subPath", sub_path), ("subPathExpr", sub_path_expr)] {
            if let Some(text) = text {
                errors.check(&format!("{path}.{field}"), text, names::descending_path(text));
            }
        }
        if let (Some(_), Some(expression)) = (sub_path, sub_path_expr) {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(format!("{path}.subPathExpr"), expression, detail));
        }
        propagation(&path, mount.mount_propagation.as_deref(), privileged, errors);
        recursive_read_only(&path, mount, errors);
    }
    let mut devices = BTreeSet::new();
    let mounted = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    for (index, device) in container.volume_devices.iter().flatten().enumerate() {
        let path = format!("{path}.volumeDevices[{index}]");
        if device.name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name")));
        } else if !volumes.contains(device.name.as_str()) {
            errors.push(FieldError::not_found(format!("{path}.name"), &device.name));
        } else if mounted(&device.name) {
            let detail = "must not already exist in volumeMounts";
            errors.push(FieldError::invalid(format!("{path}.name"), &device.name, detail));
        }
        let (field, at) = (format!("{path}.devicePath"), &device.device_path);
        if at.is_empty() {
            errors.push(FieldError::required(field));
        } else if targets.contains(at.as_str()) {
            errors.push(FieldError::invalid(field, at, "must not already exist as a path in volumeMounts"));
        } else if !devices.insert(at.as_str()) {
            errors.push(FieldError::invalid(field, at, "must be unique"));
        } else if names::no_backsteps(at).is_some() {
            errors.push(FieldError::invalid(field, at, "can not contain backsteps ('..')"));
        }
    }
}

fn propagation(path: &str, propagation: Option<&str>, privileged: bool, errors: &mut Errors) {
    let path = format!("{path}.mountPropagation");
    errors.one_of_if_set(&path, propagation, &["Bidirectional", "HostToContainer", "None"]);
    if propagation == Some("Bidirectional") && !privileged {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(FieldError::forbidden(path, detail));
    }
}

fn recursive_read_only(path: &str, mount: &k8s_openapi::api::core::v1::VolumeMount, errors: &mut Errors) {
    let path = format!("{path}.recursiveReadOnly");
    let Some(policy) = mount.recursive_read_only.as_deref() else { return };
    errors.one_of(&path, Some(policy), &["Disabled", "Enabled", "IfPossible"]);
    if policy == "Disabled" {
        return;
    }
    if mount.read_only != Some(true) {
        errors.push(FieldError::forbidden(&path, "may only be specified when readOnly is true"));
    }
    if mount.mount_propagation.as_deref().is_some_and(|propagation| propagation != "None") {
        let detail = "may only be specified when mountPropagation is None or not specified";
        errors.push(FieldError::forbidden(&path, detail));
    }
}
