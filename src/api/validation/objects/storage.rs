//! Claims, volumes and drivers.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeSpec},
        storage::v1::CSIDriverSpec,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};

use super::super::{Errors, FieldError, names};
use crate::api::quantity::Quantity;

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];

fn access_modes(path: &str, modes: Option<&[String]>, errors: &mut Errors) {
    let path = format!("{path}.accessModes");
    let modes = modes.unwrap_or_default();
    if modes.is_empty() {
        errors.push(FieldError::required_because(&path, "at least 1 access mode is required"));
    }
    for mode in modes {
        errors.one_of(&path, Some(mode), &ACCESS_MODES);
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.push(FieldError::forbidden(path, "may not use ReadWriteOncePod with other access modes"));
    }
}

/// The amount called `storage`, which has to be there and more than nothing.
fn storage(path: &str, amounts: Option<&BTreeMap<String, ApiQuantity>>, errors: &mut Errors) {
    let path = format!("{path}[storage]");
    let Some(amount) = amounts.and_then(|amounts| amounts.get("storage")) else {
        return errors.push(FieldError::required(path));
    };
    match Quantity::try_from(amount) {
        Ok(parsed) if parsed.is_zero() || parsed.is_negative() => {
            errors.push(FieldError::invalid(path, &amount.0, "must be greater than zero"));
        }
        Ok(_) => {}
        Err(error) => errors.push(FieldError::invalid(path, &amount.0, error)),
    }
}

pub(super) fn claim(claim: &PersistentVolumeClaim, errors: &mut Errors) {
    match &claim.spec {
        Some(spec) => claim_spec("spec", spec, errors),
        None => errors.push(FieldError::required("spec")),
    }
}

/// What is claimed, by an object or by the template of a pod's own volume.
pub(in super::super) fn claim_spec(path: &str, spec: &PersistentVolumeClaimSpec, errors: &mut Errors) {
    access_modes(path, spec.access_modes.as_deref(), errors);
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    storage(&format!("{path}.resources"), requests, errors);
    if let Some(class) = spec.storage_class_name.as_deref().filter(|class| !class.is_empty()) {
        errors.check(&format!("{path}.storageClassName"), class, names::subdomain(class));
    }
    errors.one_of_if_set(&format!("{path}.volumeMode"), spec.volume_mode.as_deref(), &VOLUME_MODES);
}

pub(super) fn volume(volume: &PersistentVolume, errors: &mut Errors) {
    let Some(spec) = &volume.spec else { return errors.push(FieldError::required("spec")) };
    access_modes("spec", spec.access_modes.as_deref(), errors);
    match &spec.capacity {
        Some(capacity) if !capacity.is_empty() => {
            if capacity.len() > 1 {
                let others: Vec<&str> =
                    capacity.keys().map(String::as_str).filter(|resource| *resource != "storage").collect();
                errors.push(FieldError::unsupported("spec.capacity", &others.join(", "), &["storage"]));
            }
            storage("spec.capacity", Some(capacity), errors);
        }
        _ => errors.push(FieldError::required("spec.capacity")),
    }
    match sources(spec) {
        0 => errors.push(FieldError::required_because("spec", "must specify a volume type")),
        1 => {}
        _ => errors.push(FieldError::forbidden("spec", "may not specify more than 1 volume type")),
    }
    if let Some(source) = &spec.host_path {
        if source.path.is_empty() {
            errors.push(FieldError::required("spec.hostPath.path"));
        }
        if let Some(broken) = names::no_backsteps(&source.path) {
            errors.push(FieldError::invalid("spec.hostPath.path", &source.path, broken));
        }
    }
    if let Some(source) = &spec.local {
        if source.path.is_empty() {
            errors.push(FieldError::required("spec.local.path"));
        }
        if let Some(broken) = names::no_backsteps(&source.path) {
            errors.push(FieldError::invalid("spec.local.path", &source.path, broken));
        }
        if spec.node_affinity.is_none() {
            errors.push(FieldError::required_because("spec.nodeAffinity", "Local volume requires node affinity"));
        }
    }
    if let Some(source) = &spec.csi {
        errors.check("spec.csi.driver", &source.driver, names::driver_name(&source.driver));
        if source.volume_handle.is_empty() {
            errors.push(FieldError::required("spec.csi.volumeHandle"));
        }
        let secrets = [
            ("controllerPublishSecretRef", &source.controller_publish_secret_ref),
            ("nodeStageSecretRef", &source.node_stage_secret_ref),
            ("nodePublishSecretRef", &source.node_publish_secret_ref),
            ("controllerExpandSecretRef", &source.controller_expand_secret_ref),
            ("nodeExpandSecretRef", &source.node_expand_secret_ref),
        ];
        for (field, secret) in secrets.into_iter().filter_map(|(field, secret)| Some((field, secret.as_ref()?))) {
            for (part, text) in [("name", &secret.name), ("namespace", &secret.namespace)] {
                if text.as_deref().unwrap_or_default().is_empty() {
                    errors.push(FieldError::required(format!("spec.csi.{field}.{part}")));
                }
            }
        }
    }
    let policy = spec.persistent_volume_reclaim_policy.as_deref();
    errors.one_of_if_set("spec.persistentVolumeReclaimPolicy", policy, &["Delete", "Recycle", "Retain"]);
    if let Some(class) = spec.storage_class_name.as_deref().filter(|class| !class.is_empty()) {
        errors.check("spec.storageClassName", class, names::subdomain(class));
    }
    errors.one_of_if_set("spec.volumeMode", spec.volume_mode.as_deref(), &VOLUME_MODES);
}

/// How many kinds of volume a PersistentVolume says it is.
fn sources(spec: &PersistentVolumeSpec) -> usize {
    [
        spec.aws_elastic_block_store.is_some(),
        spec.azure_disk.is_some(),
        spec.azure_file.is_some(),
        spec.cephfs.is_some(),
        spec.cinder.is_some(),
        spec.csi.is_some(),
        spec.fc.is_some(),
        spec.flex_volume.is_some(),
        spec.flocker.is_some(),
        spec.gce_persistent_disk.is_some(),
        spec.glusterfs.is_some(),
        spec.host_path.is_some(),
        spec.iscsi.is_some(),
        spec.local.is_some(),
        spec.nfs.is_some(),
        spec.photon_persistent_disk.is_some(),
        spec.portworx_volume.is_some(),
        spec.quobyte.is_some(),
        spec.rbd.is_some(),
        spec.scale_io.is_some(),
        spec.storageos.is_some(),
        spec.vsphere_volume.is_some(),
    ]
    .into_iter()
    .filter(|set| *set)
    .count()
}

pub(super) fn driver(spec: &CSIDriverSpec, errors: &mut Errors) {
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    errors.one_of_if_set("spec.fsGroupPolicy", spec.fs_group_policy.as_deref(), &policies);
    for mode in spec.volume_lifecycle_modes.iter().flatten() {
        errors.one_of("spec.volumeLifecycleModes", Some(mode), &["Ephemeral", "Persistent"]);
    }
    for (index, request) in spec.token_requests.iter().flatten().enumerate() {
        let path = format!("spec.tokenRequests[{index}]");
        let earlier = spec.token_requests.iter().flatten().take(index);
        if earlier.into_iter().any(|earlier| earlier.audience == request.audience) {
            errors.push(FieldError::duplicate(format!("{path}.audience"), &request.audience));
        }
        if let Some(seconds) = request.expiration_seconds {
            let path = format!("{path}.expirationSeconds");
            if seconds < 600 {
                errors.push(FieldError::invalid(path, seconds, "may not specify a duration less than 10 minutes"));
            } else if seconds > 1 << 32 {
                errors.push(FieldError::invalid(path, seconds, "may not specify a duration larger than 2^32 seconds"));
            }
        }
    }
}
