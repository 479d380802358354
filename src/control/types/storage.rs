//! Persistent volumes, claims, and storage.k8s.io/v1.

use std::{mem, sync::Arc};

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, PersistentVolumeStatus},
    storage::v1::{CSIDriver, CSINode, StorageClass},
};
use serde_json::Value;

use super::{
    cells::{field, items, joined, name, none_if_empty, own_age, truth},
    config::node_object,
};
use crate::{
    api::{
        object::Object,
        object_defaults::set_object_defaults,
        validation::{FieldError, validate_metadata, validate_object, validate_object_update},
    },
    control::registry::{
        resource::{Kind, NAME, Part, Resource, STATUS, column, wide},
        text,
    },
};

node_object!(
    PersistentVolume,
    PersistentVolume,
    |volume| {
        let phase = Some("Pending".to_owned());
        volume.status = Some(PersistentVolumeStatus { phase, ..PersistentVolumeStatus::default() });
    },
    |_volume| {}
);
node_object!(
    PersistentVolumeClaim,
    PersistentVolumeClaim,
    |claim| {
        let phase = Some("Pending".to_owned());
        claim.status = Some(PersistentVolumeClaimStatus { phase, ..PersistentVolumeClaimStatus::default() });
    },
    |_claim| {}
);
node_object!(CSIDriver, CsiDriver);

impl Kind for CSINode {}

impl Kind for StorageClass {
    fn set_defaults(&mut self) {
        self.reclaim_policy.get_or_insert_with(|| "Delete".to_owned());
        self.volume_binding_mode.get_or_insert_with(|| "Immediate".to_owned());
    }

    fn validate(&self) -> Vec<FieldError> {
        let mut errors = validate_metadata(&self.metadata, Self::NAME_RULE);
        if self.provisioner.is_empty() {
            errors.push(FieldError::required("provisioner"));
        }
        let policy = self.reclaim_policy.as_deref().unwrap_or_default();
        if !matches!(policy, "Delete" | "Retain") {
            errors.push(FieldError::unsupported("reclaimPolicy", policy, &["Delete", "Retain"]));
        }
        let mode = self.volume_binding_mode.as_deref().unwrap_or_default();
        if !matches!(mode, "Immediate" | "WaitForFirstConsumer") {
            errors.push(FieldError::unsupported("volumeBindingMode", mode, &["Immediate", "WaitForFirstConsumer"]));
        }
        errors
    }

    fn validate_update(&self, old: &Self, _: Part) -> Vec<FieldError> {
        let mut errors = self.validate();
        let mut immutable = |path: &str, same: bool| {
            if !same {
                errors.push(FieldError::forbidden(path, "updates to the field are forbidden."));
            }
        };
        immutable("parameters", self.parameters == old.parameters);
        immutable("provisioner", self.provisioner == old.provisioner);
        immutable("reclaimPolicy", self.reclaim_policy == old.reclaim_policy);
        immutable("volumeBindingMode", self.volume_binding_mode == old.volume_binding_mode);
        errors
    }
}

/// `RWO,ROX`.
fn modes(list: &Value) -> Value {
    let known =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| items(list).iter().any(|found| found == mode);
    known.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",").into()
}

/// v1 PersistentVolume.
pub static VOLUMES: Resource = Resource {
    short: &["pv"],
    subresources: &[STATUS],
    returns_deleted: true,
    columns: &[
        NAME,
        column("Capacity"),
        column("Access Modes"),
        column("Reclaim Policy"),
        column("Status"),
        column("Claim"),
        column("StorageClass"),
        column("VolumeAttributesClass"),
        column("Reason"),
        column("Age"),
        wide("VolumeMode"),
    ],
    cells: |volume, now| {
        let spec = &volume["spec"];
        let claim = match text(spec, "claimRef.name") {
            "" => String::new(),
            name => format!("{}/{name}", text(spec, "claimRef.namespace")),
        };
        let status = match text(volume, "metadata.deletionTimestamp") {
            "" => field(volume, "status.phase"),
            _ => "Terminating".into(),
        };
        let unset = |path: &str| match text(spec, path) {
            "" => "<unset>".into(),
            found => Value::from(found),
        };
        vec![
            name(volume),
            field(&spec["capacity"], "storage"),
            modes(&spec["accessModes"]),
            field(spec, "persistentVolumeReclaimPolicy"),
            status,
            claim.into(),
            field(spec, "storageClassName"),
            unset("volumeAttributesClassName"),
            field(volume, "status.reason"),
            own_age(volume, now),
            unset("volumeMode"),
        ]
    },
    ..Resource::of::<PersistentVolume>("persistentvolumes", "persistentvolume", false)
};

/// v1 PersistentVolumeClaim.
pub static CLAIMS: Resource = Resource {
    short: &["pvc"],
    subresources: &[STATUS],
    returns_deleted: true,
    columns: &[
        NAME,
        column("Status"),
        column("Volume"),
        column("Capacity"),
        column("Access Modes"),
        column("StorageClass"),
        column("VolumeAttributesClass"),
        column("Age"),
        wide("VolumeMode"),
    ],
    cells: |claim, now| {
        let spec = &claim["spec"];
        let status = match text(claim, "metadata.deletionTimestamp") {
            "" => field(claim, "status.phase"),
            _ => "Terminating".into(),
        };
        let bound = !text(spec, "volumeName").is_empty();
        let unset = |path: &str| match text(spec, path) {
            "" => "<unset>".into(),
            found => Value::from(found),
        };
        vec![
            name(claim),
            status,
            field(spec, "volumeName"),
            if bound { field(&claim["status"]["capacity"], "storage") } else { "".into() },
            if bound { modes(&claim["status"]["accessModes"]) } else { "".into() },
            field(spec, "storageClassName"),
            unset("volumeAttributesClassName"),
            own_age(claim, now),
            unset("volumeMode"),
        ]
    },
    ..Resource::of::<PersistentVolumeClaim>("persistentvolumeclaims", "persistentvolumeclaim", true)
};

/// storage.k8s.io/v1 StorageClass.
pub static CLASSES: Resource = Resource {
    short: &["sc"],
    columns: &[
        NAME,
        column("Provisioner"),
        column("ReclaimPolicy"),
        column("VolumeBindingMode"),
        column("AllowVolumeExpansion"),
        column("Age"),
    ],
    cells: |class, now| {
        let is_default = class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true";
        let shown = text(class, "metadata.name");
        let shown = if is_default { format!("{shown} (default)") } else { shown.to_owned() };
        vec![
            shown.into(),
            field(class, "provisioner"),
            field(class, "reclaimPolicy"),
            field(class, "volumeBindingMode"),
            truth(class, "allowVolumeExpansion"),
            own_age(class, now),
        ]
    },
    ..Resource::of::<StorageClass>("storageclasses", "storageclass", false)
};

/// storage.k8s.io/v1 CSINode.
pub static CSI_NODES: Resource = Resource {
    columns: &[NAME, column("Drivers"), column("Age")],
    cells: |node, now| vec![name(node), items(&node["spec"]["drivers"]).len().into(), own_age(node, now)],
    ..Resource::of::<CSINode>("csinodes", "csinode", false)
};

/// storage.k8s.io/v1 CSIDriver.
pub static DRIVERS: Resource = Resource {
    columns: &[
        NAME,
        column("AttachRequired"),
        column("PodInfoOnMount"),
        column("StorageCapacity"),
        column("TokenRequests"),
        column("RequiresRepublish"),
        column("Modes"),
        column("Age"),
    ],
    cells: |driver, now| {
        let spec = &driver["spec"];
        let audiences: Vec<&str> =
            items(&spec["tokenRequests"]).iter().map(|request| text(request, "audience")).collect();
        let audiences = if audiences.is_empty() { "<unset>".into() } else { Value::from(audiences.join(",")) };
        vec![
            name(driver),
            truth(spec, "attachRequired"),
            truth(spec, "podInfoOnMount"),
            truth(spec, "storageCapacity"),
            audiences,
            truth(spec, "requiresRepublish"),
            none_if_empty(joined(&spec["volumeLifecycleModes"])),
            own_age(driver, now),
        ]
    },
    ..Resource::of::<CSIDriver>("csidrivers", "csidriver", false)
};
