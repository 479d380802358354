//! What types with a template of pods have in common: its defaults, its rules, and that the selector fits it.

use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use serde_json::json;

use crate::{
    api::{
        decode::to_value,
        defaults::set_pod_defaults,
        validation::{FieldError, label_value_problems, qualified_name_problems, validate_pod},
    },
    control::registry::selector::LabelSelector as Terms,
};

/// Fills in the defaults of a template.
pub fn set_template_defaults(template: &mut PodTemplateSpec) {
    let mut pod = Pod { spec: Some(template.spec.take().unwrap_or_default()), ..Pod::default() };
    // In a template, ports of the host are not filled in.
    let host_network = pod.spec.as_mut().and_then(|spec| spec.host_network.take());
    set_pod_defaults(&mut pod);
    if let Some(spec) = &mut pod.spec {
        spec.host_network = host_network;
    }
    template.spec = pod.spec;
}

/// What is wrong with a template whose pods are restarted by one of `policies`.
pub fn validate_template(template: &PodTemplateSpec, policies: &[&str]) -> Vec<FieldError> {
    let mut pod =
        Pod { metadata: template.metadata.clone().unwrap_or_default(), spec: template.spec.clone(), ..Pod::default() };
    // A template has no name; its pods will.
    pod.metadata.name = Some("template".to_owned());
    pod.metadata.namespace = Some("default".to_owned());
    if let Some(spec) = &mut pod.spec
        && spec.host_network == Some(true)
    {
        for port in spec.containers.iter_mut().flat_map(|container| container.ports.iter_mut().flatten()) {
            port.host_port.get_or_insert(port.container_port);
        }
    }
    let mut errors = validate_pod(&pod);
    for error in &mut errors {
        error.path.insert_str(0, "spec.template.");
    }
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or_default();
    let known = ["Always", "OnFailure", "Never"].contains(&policy);
    if known && !policies.contains(&policy) {
        errors.push(FieldError::unsupported("spec.template.spec.restartPolicy", policy, policies));
    }
    errors
}

/// What is wrong with a selector, and whether it selects the pods of the template.
pub fn validate_selector(selector: &LabelSelector, template: &PodTemplateSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let labels = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    if selector.match_labels.as_ref().is_none_or(|labels| labels.is_empty()) && expressions.is_empty() {
        errors.push(FieldError::invalid(
            "spec.selector",
            to_text(selector),
            "empty selector is invalid for deployment",
        ));
        return errors;
    }
    let mut terms = Vec::new();
    for (key, value) in labels {
        let problems = qualified_name_problems(key).into_iter().chain(label_value_problems(value));
        errors.extend(problems.map(|problem| FieldError::invalid("spec.selector.matchLabels", key, problem)));
        terms.push(format!("{key}={value}"));
    }
    for (index, expression) in expressions.iter().enumerate() {
        let path = format!("spec.selector.matchExpressions[{index}]");
        let (key, values) = (&expression.key, expression.values.as_deref().unwrap_or_default());
        let problems = qualified_name_problems(key);
        errors.extend(problems.into_iter().map(|problem| FieldError::invalid(format!("{path}.key"), key, problem)));
        match (expression.operator.as_str(), values) {
            ("In" | "NotIn", []) => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required_because(format!("{path}.values"), detail));
            }
            ("In", values) => terms.push(format!("{key} in ({})", values.join(","))),
            ("NotIn", values) => terms.push(format!("{key} notin ({})", values.join(","))),
            ("Exists" | "DoesNotExist", [_, ..]) => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(format!("{path}.values"), detail));
            }
            ("Exists", _) => terms.push(key.clone()),
            ("DoesNotExist", _) => terms.push(format!("!{key}")),
            (other, _) => {
                errors.push(FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator"))
            }
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    let metadata = template.metadata.clone().unwrap_or_default();
    let labels = metadata.labels.unwrap_or_default();
    let object = json!({"metadata": {"labels": labels}});
    let selects = Terms::parse(&terms.join(",")).is_ok_and(|terms| terms.matches(&object));
    if !selects {
        let shown = serde_json::to_string(&labels).unwrap_or_default();
        let cause = format!("Invalid value: {shown}: `selector` does not match template `labels`");
        errors.push(FieldError { path: "spec.template.metadata.labels".to_owned(), cause });
    }
    errors
}

/// What upstream says of a selector that changes.
pub fn immutable_selector(new: &LabelSelector, old: &LabelSelector) -> Option<FieldError> {
    (new != old).then(|| FieldError {
        path: "spec.selector".to_owned(),
        cause: format!("Invalid value: {}: field is immutable", to_text(new)),
    })
}

fn to_text(selector: &LabelSelector) -> String {
    to_value(selector).unwrap_or_default().to_string()
}

/// What is wrong with a number that counts something.
pub fn not_negative(path: &str, number: Option<i32>) -> Option<FieldError> {
    let number = number.filter(|number| *number < 0)?;
    Some(FieldError::invalid(path, number, "must be greater than or equal to 0"))
}
