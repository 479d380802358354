//! What may change in a pod that exists, by the rules of an API server (`ValidatePodUpdate`,
//! `ValidatePodEphemeralContainersUpdate` and `ValidatePodResize` in `pkg/apis/core/validation` upstream), and the
//! changes that people ask a node for directly.

mod differences;
mod resize;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use serde::{Deserialize, Serialize};

use self::differences::differences;
use super::{
    defaults::set_pod_defaults,
    validation::{FieldError, validate_pod_update},
};

/// Annotations that are a part of how the pod runs, and so stay.
const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Through which door a change comes: each lets through different fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The pod itself: images, deadline, tolerations, grace period; labels and annotations.
    Pod,
    /// Its `ephemeralcontainers`: further ones at the end.
    EphemeralContainers,
    /// Its `resize`: CPU and memory, and what a change of them does to the container.
    Resize,
    /// The pod as its source has it now, which may have gone through all of the doors since it was last seen.
    Any,
}

/// Whether `new`, which has its defaults, may take the place of `old`.
///
/// # Errors
/// Every field that may not change, or not in this way.
pub fn validate_update(old: &Pod, new: &Pod, scope: Scope) -> Result<(), Vec<FieldError>> {
    let mut errors = validate_pod_update(new);
    let metadata = [
        ("metadata.name", &old.metadata.name, &new.metadata.name),
        ("metadata.namespace", &old.metadata.namespace, &new.metadata.namespace),
        ("metadata.uid", &old.metadata.uid, &new.metadata.uid),
    ];
    for (path, old, new) in metadata {
        if old != new {
            errors.push(FieldError::invalid(path, new.as_deref().unwrap_or_default(), "field is immutable"));
        }
    }
    if app_armor(old) != app_armor(new) {
        let detail = "may not add, update or remove AppArmor annotations";
        errors.push(FieldError::forbidden("metadata.annotations", detail));
    }
    let (Some(old_spec), Some(new_spec)) = (&old.spec, &new.spec) else {
        return if errors.is_empty() { Ok(()) } else { Err(errors) };
    };
    // What is allowed to change is put back, and nothing may differ then.
    let mut rest = new_spec.clone();
    if scope == Scope::Any {
        default_pull_policies(old_spec, &mut rest);
    }
    if matches!(scope, Scope::Pod | Scope::Any) {
        fields_of_the_pod(old_spec, &mut rest, &mut errors);
    }
    if matches!(scope, Scope::EphemeralContainers | Scope::Any) {
        ephemeral_containers(old_spec, &mut rest, &mut errors);
    }
    if matches!(scope, Scope::Resize | Scope::Any) {
        resize::fields(old_spec, new_spec, &mut rest, &mut errors);
    }
    let changed = differences(old_spec, &rest, "spec");
    // A resize has said already what is wrong with it.
    if !changed.is_empty() && (scope != Scope::Resize || errors.is_empty()) {
        errors.push(FieldError::forbidden("spec", format!("{} (changed: {})", only(scope), changed.join(", "))));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Upstream's sentence about the fields that a door lets through.
fn only(scope: Scope) -> &'static str {
    match scope {
        Scope::Resize => "only cpu and memory resources are mutable",
        Scope::EphemeralContainers => "pod updates may not change fields other than `spec.ephemeralContainers`",
        Scope::Pod => {
            "pod updates may not change fields other than `spec.containers[*].image`, \
             `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, \
             `spec.tolerations` (only additions to existing tolerations), \
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
        }
        Scope::Any => {
            "a pod with the same UID may differ only in images, activeDeadlineSeconds, tolerations, \
             terminationGracePeriodSeconds, cpu and memory resources and further ephemeral containers"
        }
    }
}

fn app_armor(pod: &Pod) -> BTreeMap<&String, &String> {
    let annotations = pod.metadata.annotations.iter().flatten();
    annotations.filter(|(key, _)| key.starts_with(APP_ARMOR_ANNOTATION)).collect()
}

fn fields_of_the_pod(old: &PodSpec, rest: &mut PodSpec, errors: &mut Vec<FieldError>) {
    deadline(old.active_deadline_seconds, rest.active_deadline_seconds, errors);
    rest.active_deadline_seconds = old.active_deadline_seconds;
    tolerations(old, rest, errors);
    if old.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0)
        && rest.termination_grace_period_seconds == Some(1)
    {
        rest.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    let images = |old: &[Container], rest: &mut [Container]| {
        for (old, rest) in old.iter().zip(rest.iter_mut()) {
            rest.image.clone_from(&old.image);
        }
    };
    images(&old.containers, &mut rest.containers);
    images(old.init_containers.as_deref().unwrap_or_default(), rest.init_containers.as_deref_mut().unwrap_or_default());
    // Gates are for a scheduler: by the time a pod is here they may all have gone.
    let gates = old.scheduling_gates.as_deref().unwrap_or_default();
    if rest.scheduling_gates.iter().flatten().all(|gate| gates.contains(gate)) {
        rest.scheduling_gates.clone_from(&old.scheduling_gates);
    }
}

/// A manifest that names another image and no pull policy has that of the new image's tag.
fn default_pull_policies(old: &PodSpec, rest: &mut PodSpec) {
    for (old, rest) in old.containers.iter().zip(&mut rest.containers) {
        if old.image != rest.image {
            rest.image_pull_policy.clone_from(&old.image_pull_policy);
        }
    }
    for (old, rest) in old.init_containers.iter().flatten().zip(rest.init_containers.iter_mut().flatten()) {
        if old.image != rest.image {
            rest.image_pull_policy.clone_from(&old.image_pull_policy);
        }
    }
}

/// A deadline may be set, or come nearer.
fn deadline(old: Option<i64>, new: Option<i64>, errors: &mut Vec<FieldError>) {
    let path = "spec.activeDeadlineSeconds";
    match (old, new) {
        (Some(old), Some(new)) if new > old => {
            errors.push(FieldError::invalid(path, new, "must be less than or equal to previous value"));
        }
        (Some(old), None) => {
            errors.push(FieldError::invalid(path, old, "must not update from a positive integer to nil value"));
        }
        _ => {}
    }
}

/// Tolerations may be added, and how long one lasts may change.
fn tolerations(old: &PodSpec, rest: &mut PodSpec, errors: &mut Vec<FieldError>) {
    let new = rest.tolerations.as_deref().unwrap_or_default();
    let kept = |old: &k8s_openapi::api::core::v1::Toleration| {
        new.iter().any(|new| {
            let mut new = new.clone();
            if old.effect.as_deref() == Some("NoExecute") {
                new.toleration_seconds = old.toleration_seconds;
            }
            new == *old
        })
    };
    if old.tolerations.iter().flatten().all(kept) {
        rest.tolerations.clone_from(&old.tolerations);
    } else {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
        rest.tolerations.clone_from(&old.tolerations);
    }
}

/// Ephemeral containers may be added, not changed or taken away.
fn ephemeral_containers(old: &PodSpec, rest: &mut PodSpec, errors: &mut Vec<FieldError>) {
    let path = "spec.ephemeralContainers";
    let new = rest.ephemeral_containers.as_deref().unwrap_or_default();
    for old in old.ephemeral_containers.iter().flatten() {
        let detail = match new.iter().find(|new| new.name == old.name) {
            None => format!("existing ephemeral containers {:?} may not be removed", old.name),
            Some(new) if new != old => format!("existing ephemeral containers {:?} may not be changed", old.name),
            Some(_) => continue,
        };
        errors.push(FieldError::forbidden(path, detail));
    }
    rest.ephemeral_containers.clone_from(&old.ephemeral_containers);
}

/// `metadata.generation` of the pod that follows `old`: it grows with each change of the spec (KEP-5067).
pub fn next_generation(old: &Pod, new: &Pod) -> i64 {
    let generation = old.metadata.generation.unwrap_or(1);
    if old.spec == new.spec { generation } else { generation + 1 }
}

/// A change of one pod that somebody asks the node for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// Other CPU or memory.
    Resize(Resize),
    /// One more ephemeral container.
    Debug(Box<EphemeralContainer>),
}

/// Other CPU or memory for a container, or for the pod as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resize {
    /// Name of the container; `None`: the pod.
    pub container: Option<String>,
    /// Requests to be set; those that are not named stay.
    pub requests: BTreeMap<String, ApiQuantity>,
    /// Limits to be set; those that are not named stay.
    pub limits: BTreeMap<String, ApiQuantity>,
}

impl Change {
    /// The door it goes through.
    pub fn scope(&self) -> Scope {
        match self {
            Change::Resize(_) => Scope::Resize,
            Change::Debug(_) => Scope::EphemeralContainers,
        }
    }

    /// `pod` with the change made and its defaults set, not yet validated.
    ///
    /// # Errors
    /// There is no such container.
    pub fn apply(&self, pod: &Pod) -> Result<Pod, FieldError> {
        let mut pod = pod.clone();
        let spec = pod.spec.get_or_insert_default();
        match self {
            Change::Resize(resize) => {
                let resources = match &resize.container {
                    None => &mut spec.resources,
                    Some(name) => {
                        let init = spec.init_containers.iter_mut().flatten();
                        let mut all = spec.containers.iter_mut().chain(init);
                        let found = all.find(|container| container.name == *name);
                        &mut found.ok_or_else(|| FieldError::not_found("spec.containers", name))?.resources
                    }
                };
                lay_over(resources.get_or_insert_default(), resize);
            }
            Change::Debug(container) => {
                spec.ephemeral_containers.get_or_insert_default().push((**container).clone());
            }
        }
        set_pod_defaults(&mut pod);
        Ok(pod)
    }
}

/// Sets what is named. A list that would stay empty stays absent.
fn lay_over(resources: &mut ResourceRequirements, resize: &Resize) {
    for (list, over) in [(&mut resources.requests, &resize.requests), (&mut resources.limits, &resize.limits)] {
        if !over.is_empty() {
            list.get_or_insert_default().extend(over.clone());
        }
    }
}
