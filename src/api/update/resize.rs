//! The `resize` door: which resources may change, and how.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};

use crate::api::{
    qos::qos_class,
    resources::{CPU, MEMORY, is_sidecar},
    validation::FieldError,
};

/// Judges the resources of `new`, and puts those that may change back in `rest`.
pub(super) fn fields(old: &PodSpec, new: &PodSpec, rest: &mut PodSpec, errors: &mut Vec<FieldError>) {
    let class = qos_class(new);
    if qos_class(old) != class {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(FieldError::invalid("spec", class.to_string(), detail));
    }
    if let Some(found) = renamed(&old.containers, &new.containers) {
        errors.push(FieldError::forbidden("spec.containers", found));
        return;
    }
    let (old_init, new_init) = (old.init_containers.iter().flatten(), new.init_containers.iter().flatten());
    let (old_init, new_init): (Vec<_>, Vec<_>) = (old_init.cloned().collect(), new_init.cloned().collect());
    if let Some(found) = renamed(&old_init, &new_init) {
        errors.push(FieldError::forbidden("spec.initContainers", found));
        return;
    }
    for (index, (old, rest)) in old.containers.iter().zip(&mut rest.containers).enumerate() {
        removed(
            old.resources.as_ref(),
            rest.resources.as_ref(),
            &format!("spec.containers[{index}].resources"),
            errors,
        );
        put_back(&old.resources, &mut rest.resources);
        rest.resize_policy.clone_from(&old.resize_policy);
    }
    for (index, (old, rest)) in old_init.iter().zip(rest.init_containers.iter_mut().flatten()).enumerate() {
        if is_sidecar(old) {
            let path = format!("spec.initContainers[{index}].resources");
            removed(old.resources.as_ref(), rest.resources.as_ref(), &path, errors);
            put_back(&old.resources, &mut rest.resources);
            rest.resize_policy.clone_from(&old.resize_policy);
        } else if old.resources != rest.resources {
            let detail = "resources for non-sidecar init containers are immutable";
            errors.push(FieldError::forbidden("spec", detail));
            rest.resources.clone_from(&old.resources);
        }
    }
    removed(old.resources.as_ref(), rest.resources.as_ref(), "spec.resources", errors);
    put_back(&old.resources, &mut rest.resources);
}

fn renamed(old: &[Container], new: &[Container]) -> Option<&'static str> {
    if old.len() != new.len() {
        return Some("containers may not be added or removed on resize");
    }
    let same = old.iter().zip(new).all(|(old, new)| old.name == new.name);
    (!same).then_some("containers may not be renamed or reordered on resize")
}

type List = Option<BTreeMap<String, ApiQuantity>>;

fn lists(resources: Option<&ResourceRequirements>) -> [List; 2] {
    resources.map(|resources| [resources.requests.clone(), resources.limits.clone()]).unwrap_or_default()
}

/// What is set may change, not go: there is no telling what would be in force then.
fn removed(
    old: Option<&ResourceRequirements>,
    new: Option<&ResourceRequirements>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    for ((old, new), list) in lists(old).into_iter().zip(lists(new)).zip(["requests", "limits"]) {
        let has = |list: &List, name: &str| list.as_ref().is_some_and(|list| list.contains_key(name));
        if [CPU, MEMORY].iter().any(|name| has(&old, name) && !has(&new, name)) {
            let detail = format!("resource {list} cannot be removed");
            errors.push(FieldError::forbidden(format!("{path}.{list}"), detail));
        }
    }
}

/// Gives `new` the CPU and memory of `old`; everything else stays as it is, to be compared.
fn put_back(old: &Option<ResourceRequirements>, new: &mut Option<ResourceRequirements>) {
    let mut back = new.clone().unwrap_or_default();
    let before = old.clone().unwrap_or_default();
    for (list, before) in [(&mut back.requests, before.requests), (&mut back.limits, before.limits)] {
        let before = before.unwrap_or_default();
        let mut amounts = list.take().unwrap_or_default();
        for name in [CPU, MEMORY] {
            match before.get(name) {
                Some(amount) => amounts.insert(name.to_owned(), amount.clone()),
                None => amounts.remove(name),
            };
        }
        *list = Some(amounts).filter(|amounts| !amounts.is_empty());
    }
    // Whether an empty list is written or left out says nothing.
    let mut plain = old.clone().unwrap_or_default();
    plain.requests = plain.requests.filter(|list| !list.is_empty());
    plain.limits = plain.limits.filter(|list| !list.is_empty());
    *new = if plain == back { old.clone() } else { Some(back) };
}
