//! Volumes.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{PodSpec, Volume},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, json};

use super::{Errors, FieldError, annotations_and_labels, content, names, objects::storage::claim_spec};
use crate::api::{decode::to_value, quantity::Quantity};

const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Checks the volumes and returns the names of all of them.
pub(super) fn validate<'v>(volumes: &'v [Volume], errors: &mut Errors) -> BTreeSet<&'v str> {
    let mut seen = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("spec.volumes[{index}]");
        if volume.name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name")));
        } else {
            errors.check(&format!("{path}.name"), &volume.name, names::label(&volume.name));
        }
        if !seen.insert(volume.name.as_str()) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &volume.name));
        }
        source(&path, volume, errors);
        far_source(&path, volume, errors);
    }
    seen
}

fn source(path: &str, volume: &Volume, errors: &mut Errors) {
    match kinds(volume).as_slice() {
        [] => errors.push(FieldError::required_because(path, "must specify a volume type")),
        [_] => {}
        [_, others @ ..] => {
            for kind in others {
                let detail = "may not specify more than 1 volume type";
                errors.push(FieldError::forbidden(format!("{path}.{kind}"), detail));
            }
        }
    }
    content::validate(path, volume, errors);
    if let Some(empty_dir) = &volume.empty_dir
        && let Some(limit) = &empty_dir.size_limit
    {
        let path = format!("{path}.emptyDir.sizeLimit");
        match Quantity::try_from(limit) {
            Ok(amount) if amount.is_negative() => {
                errors.push(FieldError::forbidden(path, "SizeLimit field must be a valid resource quantity"));
            }
            Ok(_) => {}
            Err(error) => errors.push(FieldError::invalid(path, &limit.0, error)),
        }
    }
    if let Some(host_path) = &volume.host_path {
        let base = format!("{path}.hostPath");
        if host_path.path.is_empty() {
            errors.push(FieldError::required(format!("{base}.path")));
        } else if let Some(rule) = names::no_backsteps(&host_path.path) {
            errors.push(FieldError::invalid(format!("{base}.path"), &host_path.path, rule));
        }
        let kind = host_path.type_.as_deref().unwrap_or_default();
        if !HOST_PATH_TYPES.contains(&kind) {
            errors.push(FieldError::unsupported(format!("{base}.type"), kind, &HOST_PATH_TYPES));
        }
    }
}

/// What belongs to somebody else (`validateImageVolumeSource`, `validateNFSVolumeSource`, … upstream).
fn far_source(path: &str, volume: &Volume, errors: &mut Errors) {
    if let Some(image) = &volume.image {
        if image.reference.as_deref().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{path}.image.reference")));
        }
        let policies = ["Always", "IfNotPresent", "Never"];
        errors.one_of_if_set(&format!("{path}.image.pullPolicy"), image.pull_policy.as_deref(), &policies);
    }
    if let Some(nfs) = &volume.nfs {
        if nfs.server.is_empty() {
            errors.push(FieldError::required(format!("{path}.nfs.server")));
        }
        if nfs.path.is_empty() {
            errors.push(FieldError::required(format!("{path}.nfs.path")));
        } else if !nfs.path.starts_with('/') {
            errors.push(FieldError::invalid(format!("{path}.nfs.path"), &nfs.path, "must be an absolute path"));
        }
    }
    if let Some(csi) = &volume.csi {
        errors.check(&format!("{path}.csi.driver"), &csi.driver, names::driver_name(&csi.driver));
        if csi.node_publish_secret_ref.as_ref().is_some_and(|secret| secret.name.is_empty()) {
            errors.push(FieldError::required(format!("{path}.csi.nodePublishSecretRef.name")));
        }
    }
    if let Some(claim) = &volume.persistent_volume_claim
        && claim.claim_name.is_empty()
    {
        errors.push(FieldError::required(format!("{path}.persistentVolumeClaim.claimName")));
    }
    if let Some(own) = &volume.ephemeral {
        let path = format!("{path}.ephemeral");
        match &own.volume_claim_template {
            Some(template) => {
                let path = format!("{path}.volumeClaimTemplate");
                if let Some(metadata) = &template.metadata {
                    template_metadata(&format!("{path}.metadata"), metadata, errors);
                }
                claim_spec(&format!("{path}.spec"), &template.spec, errors);
            }
            None => errors.push(FieldError::required(format!("{path}.volumeClaimTemplate"))),
        }
    }
}

/// A claim made from a template has the template's labels and annotations; the rest of its metadata is not the
/// template's to say (`ValidateTemplateObjectMeta` upstream).
fn template_metadata(path: &str, metadata: &ObjectMeta, errors: &mut Errors) {
    annotations_and_labels(path, metadata, errors);
    let written = to_value(metadata).unwrap_or_default();
    for (field, value) in written.as_object().into_iter().flatten() {
        // What is empty is not set, as in Go.
        let is_set = ![json!(""), json!(0), json!([])].contains(value);
        if is_set && field != "annotations" && field != "labels" {
            errors.push(FieldError::forbidden(format!("{path}.{field}"), "cannot be set"));
        }
    }
}

/// What depends on more than the volumes: names of claims of the pod's own, and devices, which only claims can be.
pub(super) fn in_pod(spec: &PodSpec, pod: &str, errors: &mut Errors) {
    for (index, volume) in spec.volumes.iter().flatten().enumerate().filter(|(_, volume)| volume.ephemeral.is_some()) {
        let name = format!("{pod}-{}", volume.name);
        for broken in names::subdomain(&name).into_iter().filter(|_| !pod.is_empty()) {
            let detail = format!("PVC name {name:?}: {broken}");
            errors.push(FieldError::invalid(format!("spec.volumes[{index}].name"), &volume.name, detail));
        }
    }
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let lists = [("initContainers", spec.init_containers.as_deref()), ("containers", Some(&*spec.containers))];
    for (list, containers) in lists {
        for (at, container) in containers.unwrap_or_default().iter().enumerate() {
            for (index, device) in container.volume_devices.iter().flatten().enumerate() {
                let of_claim = |volume: &Volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
                if volumes.iter().any(|volume| volume.name == device.name && !of_claim(volume)) {
                    let path = format!("spec.{list}[{at}].volumeDevices[{index}].name");
                    let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                    errors.push(FieldError::invalid(path, &device.name, detail));
                }
            }
        }
    }
}

/// The sources a volume names, as they are written. Asked of its JSON form, so that no kind can be forgotten.
fn kinds(volume: &Volume) -> Vec<String> {
    match to_value(volume) {
        Ok(Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).filter(|name| name != "name").collect(),
        _ => Vec::new(),
    }
}
