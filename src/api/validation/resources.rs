//! Requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};

use super::{Errors, FieldError, names};
use crate::api::{
    quantity::Quantity,
    resources::{self, CPU, EPHEMERAL_STORAGE, HUGEPAGES_PREFIX, MEMORY},
};

/// Resources a container may name without a domain.
fn is_standard(name: &str) -> bool {
    [CPU, MEMORY, EPHEMERAL_STORAGE].contains(&name) || name.starts_with(HUGEPAGES_PREFIX)
}

/// Resources of which more may be promised than there is: requests may be below limits.
fn may_overcommit(name: &str) -> bool {
    resources::is_native(name) && !name.starts_with(HUGEPAGES_PREFIX)
}

/// A resource list: its names and that its amounts are quantities of nothing or more.
pub(super) fn list(path: &str, list: &BTreeMap<String, ApiQuantity>, errors: &mut Errors) {
    for (name, quantity) in list {
        amount(&format!("{path}[{name}]"), name, quantity, errors);
    }
}

fn amount(path: &str, name: &str, quantity: &ApiQuantity, errors: &mut Errors) -> Option<Quantity> {
    errors.check(path, name, names::qualified(name));
    if !name.contains('/') && !is_standard(name) {
        errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
    } else if !resources::is_native(name) && !resources::is_extended(name) {
        errors.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
    let amount = match Quantity::try_from(quantity) {
        Ok(amount) => amount,
        Err(error) => {
            errors.push(FieldError::invalid(path, &quantity.0, error));
            return None;
        }
    };
    if amount.is_negative() {
        errors.push(FieldError::invalid(path, &quantity.0, "must be greater than or equal to 0"));
    }
    if !may_overcommit(name) && !amount.is_whole() {
        errors.push(FieldError::invalid(path, &quantity.0, "must be an integer"));
    }
    if let Some(size) = name.strip_prefix(HUGEPAGES_PREFIX) {
        match Quantity::parse(size) {
            Ok(size) if size > Quantity::ZERO => {
                if amount.nanos() % size.nanos() != 0 {
                    errors.push(FieldError::invalid(
                        path,
                        &quantity.0,
                        "must be an integer multiple of the huge page size",
                    ));
                }
            }
            _ => errors.push(FieldError::invalid(path, name, "must name a page size")),
        }
    }
    Some(amount)
}

/// Requests and limits of a container or a pod.
pub(super) fn requirements(path: &str, requirements: &ResourceRequirements, errors: &mut Errors) {
    let empty = BTreeMap::new();
    let limits = requirements.limits.as_ref().unwrap_or(&empty);
    let requests = requirements.requests.as_ref().unwrap_or(&empty);
    list(&format!("{path}.limits"), limits, errors);
    for (name, quantity) in requests {
        // Most often it comes from the limit, which has been judged.
        if limits.get(name) == Some(quantity) {
            continue;
        }
        // An unbalanced request is an error of the request's own path, without the resource's name in brackets, upstream.
        let request = amount(&format!("{path}.requests[{name}]"), name, quantity, errors);
        let limit = limits.get(name).and_then(|limit| Quantity::try_from(limit).ok());
        let overcommit = may_overcommit(name);
        match (request, limit) {
            (Some(request), Some(limit)) if overcommit && request > limit => {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(format!("{path}.requests"), &quantity.0, detail));
            }
            (Some(request), Some(limit)) if !overcommit && request != limit => {
                let detail = format!("must be equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(format!("{path}.requests"), &quantity.0, detail));
            }
            (Some(_), None) if !overcommit => {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required_because(format!("{path}.limits"), detail));
            }
            _ => {}
        }
    }
    let names = || limits.keys().chain(requests.keys());
    if names().any(|name| name.starts_with(HUGEPAGES_PREFIX)) && !names().any(|name| name == CPU || name == MEMORY) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

/// Resources of the pod as a whole (KEP-2837): containers fit into them.
pub(super) fn pod_level(spec: &PodSpec, pod_level: &ResourceRequirements, errors: &mut Errors) {
    let path = "spec.resources";
    if pod_level.claims.is_some() {
        let detail = "claims cannot be set for Resources at pod-level";
        errors.push(FieldError::forbidden(format!("{path}.claims"), detail));
    }
    for (field, list) in [("limits", &pod_level.limits), ("requests", &pod_level.requests)] {
        for name in list.iter().flatten().map(|(name, _)| name).filter(|name| !resources::is_pod_level(name)) {
            let supported = [CPU, "hugepages-", MEMORY];
            errors.push(FieldError::unsupported(format!("{path}.{field}[{name}]"), name, &supported));
        }
    }
    requirements(path, pod_level, errors);
    let requested = resources::requests(Some(pod_level));
    for (name, sum) in resources::container_requests(spec) {
        let Some(request) = requested.get(&name) else { continue };
        if sum > *request {
            let detail = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.push(FieldError::invalid(format!("{path}.requests[{name}]"), request.to_string(), detail));
        }
    }
    let allowed = resources::limits(Some(pod_level));
    for (index, container) in spec.containers.iter().enumerate() {
        for (name, limit) in resources::limits(container.resources.as_ref()) {
            if let Some(most) = allowed.get(&name).filter(|most| limit > **most) {
                let path = format!("spec.containers[{index}].resources.limits[{name}]");
                let detail = format!("must be less than or equal to pod limits of {most}");
                errors.push(FieldError::invalid(path, limit.to_string(), detail));
            }
        }
    }
}
