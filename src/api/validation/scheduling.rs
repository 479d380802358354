//! Node affinity and tolerations.

use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, Toleration};

use super::{Errors, FieldError, names};

pub(super) fn node_affinity(affinity: &NodeAffinity, errors: &mut Errors) {
    let base = "spec.affinity.nodeAffinity";
    if let Some(required) = &affinity.required_during_scheduling_ignored_during_execution {
        let path = format!("{base}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
        if required.node_selector_terms.is_empty() {
            errors.push(FieldError::required_because(&path, "must have at least one node selector term"));
        }
        for (index, term) in required.node_selector_terms.iter().enumerate() {
            node_selector_term(&format!("{path}[{index}]"), term, errors);
        }
    }
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
    for (index, term) in preferred.enumerate() {
        let path = format!("{base}.preferredDuringSchedulingIgnoredDuringExecution[{index}]");
        if !(1..=100).contains(&term.weight) {
            let weight = format!("{path}.weight");
            errors.push(FieldError::invalid(weight, term.weight, "must be in the range 1-100"));
        }
        node_selector_term(&format!("{path}.preference"), &term.preference, errors);
    }
}

fn node_selector_term(path: &str, term: &NodeSelectorTerm, errors: &mut Errors) {
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        operator(&path, requirement, errors);
        errors.check(&format!("{path}.key"), &requirement.key, names::qualified(&requirement.key));
    }
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let path = format!("{path}.matchFields[{index}]");
        match requirement.operator.as_str() {
            "In" | "NotIn" if requirement.values.as_ref().is_none_or(|values| values.len() != 1) => {
                let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(FieldError::required_because(format!("{path}.values"), detail));
            }
            "In" | "NotIn" => {}
            other => {
                errors.push(FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator"))
            }
        }
        if requirement.key != "metadata.name" {
            let detail = "not a valid field selector key";
            errors.push(FieldError::invalid(format!("{path}.key"), &requirement.key, detail));
        }
    }
}

fn operator(path: &str, requirement: &NodeSelectorRequirement, errors: &mut Errors) {
    let count = requirement.values.as_ref().map_or(0, Vec::len);
    let values = format!("{path}.values");
    match requirement.operator.as_str() {
        "In" | "NotIn" if count == 0 => {
            let detail = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.push(FieldError::required_because(values, detail));
        }
        "Exists" | "DoesNotExist" if count > 0 => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(FieldError::forbidden(values, detail));
        }
        "Gt" | "Lt" if count != 1 => {
            let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            errors.push(FieldError::required_because(values, detail));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator")),
    }
}

pub(super) fn tolerations(tolerations: &[Toleration], errors: &mut Errors) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = format!("spec.tolerations[{index}]");
        let operator_path = format!("{path}.operator");
        let key = toleration.key.as_deref().unwrap_or_default();
        let operator = toleration.operator.as_deref().unwrap_or_default();
        let value = toleration.value.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        if !key.is_empty() {
            errors.check(&format!("{path}.key"), key, names::qualified(key));
        } else if operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&operator_path, operator, detail));
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{path}.effect"), effect, detail));
        }
        match operator {
            "" | "Equal" => errors.check(&operator_path, value, names::label_value(value)),
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(&operator_path, value, detail));
            }
            "Exists" => {}
            other => errors.push(FieldError::unsupported(&operator_path, other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            errors.one_of(&format!("{path}.effect"), Some(effect), &effects);
        }
    }
}
