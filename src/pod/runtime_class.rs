//! `runtimeClassName`: what the class adds to a pod, as upstream's admission does it, and which programs run pods here.

use k8s_openapi::{
    api::{core::v1::PodSpec, node::v1::RuntimeClass},
    apimachinery::pkg::api::resource::Quantity,
};
use std::collections::BTreeMap;

use super::admission::Rejection;
use crate::api::{
    objects::{ByName, find},
    resources::read,
};

/// Names of the handler that is this program.
pub const OWN: [&str; 2] = ["", "berth"];

/// Name of the handler that a class has for the pod, unless that is this program itself.
pub fn handler<'a>(spec: &PodSpec, classes: &'a ByName<RuntimeClass>) -> Option<&'a str> {
    let class = find(classes, "", spec.runtime_class_name.as_deref().filter(|name| !name.is_empty())?)?;
    Some(class.handler.as_str()).filter(|handler| !OWN.contains(handler))
}

/// Puts into `spec` what its class says: overhead, node selector, tolerations. A pod without a class stays as it is.
/// `has_handler` says whether the node has a handler of this name beside this program.
///
/// # Errors
/// There is no such class, its handler does not run pods here, or the pod contradicts it.
pub fn apply(
    spec: &mut PodSpec,
    classes: &ByName<RuntimeClass>,
    has_handler: &dyn Fn(&str) -> bool,
) -> Result<(), Rejection> {
    let Some(name) = spec.runtime_class_name.clone().filter(|name| !name.is_empty()) else { return Ok(()) };
    let refuse = |message: String| Err(Rejection { reason: "FailedCreatePodSandBox".to_owned(), message });
    let Some(class) = find(classes, "", &name) else {
        return refuse(format!("failed to get RuntimeClass: runtimeclass.node.k8s.io {name:?} not found"));
    };
    let handler = class.handler.as_str();
    if !OWN.contains(&handler) {
        if !has_handler(handler) {
            return refuse(format!(
                "failed to get sandbox runtime: RuntimeHandler {handler:?} not supported: no runtime for {handler:?} is configured"
            ));
        }
        if spec.host_users == Some(false) {
            return refuse(format!(
                "can't set `spec.hostUsers: false`, RuntimeClass handler {handler:?} does not support user namespaces"
            ));
        }
    }
    if let Some(fixed) = class.overhead.as_ref().and_then(|overhead| overhead.pod_fixed.as_ref()) {
        match &spec.overhead {
            Some(own) if !own.is_empty() && !same(own, fixed) => {
                return refuse("Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned());
            }
            _ => spec.overhead = Some(fixed.clone()),
        }
    } else if spec.overhead.as_ref().is_some_and(|overhead| !overhead.is_empty()) {
        return refuse("Pod Overhead set without corresponding RuntimeClass defined Overhead".to_owned());
    }
    let Some(scheduling) = &class.scheduling else { return Ok(()) };
    for (key, value) in scheduling.node_selector.iter().flatten() {
        let selector = spec.node_selector.get_or_insert_default();
        match selector.get(key) {
            Some(own) if own != value => {
                return refuse(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
                ));
            }
            _ => selector.insert(key.clone(), value.clone()),
        };
    }
    for toleration in scheduling.tolerations.iter().flatten() {
        let tolerations = spec.tolerations.get_or_insert_default();
        if !tolerations.contains(toleration) {
            tolerations.push(toleration.clone());
        }
    }
    Ok(())
}

/// By amount: `1000m` and `1` are the same.
fn same(one: &BTreeMap<String, Quantity>, other: &BTreeMap<String, Quantity>) -> bool {
    read(Some(one)) == read(Some(other))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn classes() -> ByName<RuntimeClass> {
        let class = |name: &str, rest: Value| {
            let mut class: Value = rest;
            class["metadata"] = json!({"name": name});
            ((String::new(), name.to_owned()), Arc::new(serde_json::from_value(class).unwrap()))
        };
        BTreeMap::from([
            class("plain", json!({"handler": "berth"})),
            class("kata", json!({"handler": "kata"})),
            class("runc", json!({"handler": "runc"})),
            class(
                "heavy",
                json!({
                    "handler": "berth",
                    "overhead": {"podFixed": {"cpu": "250m", "memory": "64Mi"}},
                    "scheduling": {
                        "nodeSelector": {"disk": "ssd"},
                        "tolerations": [{"key": "heavy", "operator": "Exists"}],
                    },
                }),
            ),
        ])
    }

    fn applied(spec: Value) -> Result<PodSpec, String> {
        let mut spec: PodSpec = serde_json::from_value(spec).unwrap();
        apply(&mut spec, &classes(), &|name| name == "runc").map_err(|rejection| rejection.message)?;
        let once = spec.clone();
        apply(&mut spec, &classes(), &|name| name == "runc").unwrap();
        assert_eq!(spec, once, "doing it again changes nothing");
        Ok(spec)
    }

    #[test]
    fn a_class_adds_overhead_selector_and_tolerations() {
        let spec = applied(json!({
            "containers": [], "runtimeClassName": "heavy", "overhead": {"cpu": "0.25", "memory": "64Mi"},
            "nodeSelector": {"zone": "a"}, "tolerations": [{"key": "mine", "operator": "Exists"}],
        }))
        .unwrap();
        assert_eq!(read(spec.overhead.as_ref())["cpu"].milli(), 250);
        assert_eq!(spec.node_selector.unwrap().len(), 2);
        assert_eq!(spec.tolerations.unwrap().len(), 2);
        assert_eq!(applied(json!({"containers": [], "runtimeClassName": "plain"})).unwrap().overhead, None);
        assert!(applied(json!({"containers": [], "overhead": {"cpu": "1"}})).is_ok(), "no class, nothing to compare");
    }

    #[test]
    fn a_class_names_the_handler_that_is_not_this_program() {
        let of = |class: &str| {
            let spec: PodSpec = serde_json::from_value(json!({"containers": [], "runtimeClassName": class})).unwrap();
            handler(&spec, &classes()).map(str::to_owned)
        };
        assert_eq!(of("runc").as_deref(), Some("runc"));
        assert!(applied(json!({"containers": [], "runtimeClassName": "runc"})).is_ok());
        for own in ["", "plain", "heavy", "gone"] {
            assert_eq!(of(own), None, "{own}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        for (spec, message) in [
            (
                json!({"runtimeClassName": "gone"}),
                "failed to get RuntimeClass: runtimeclass.node.k8s.io \"gone\" not found",
            ),
            (
                json!({"runtimeClassName": "kata"}),
                "failed to get sandbox runtime: RuntimeHandler \"kata\" not supported: no runtime for \"kata\" is configured",
            ),
            (
                json!({"runtimeClassName": "runc", "hostUsers": false}),
                "can't set `spec.hostUsers: false`, RuntimeClass handler \"runc\" does not support user namespaces",
            ),
            (
                json!({"runtimeClassName": "heavy", "overhead": {"cpu": "1"}}),
                "Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ),
            (
                json!({"runtimeClassName": "plain", "overhead": {"cpu": "1"}}),
                "Pod Overhead set without corresponding RuntimeClass defined Overhead",
            ),
            (
                json!({"runtimeClassName": "heavy", "nodeSelector": {"disk": "hdd"}}),
                "conflict: runtimeClass.scheduling.nodeSelector[disk] = ssd; pod.spec.nodeSelector[disk] = hdd",
            ),
        ] {
            let mut full = spec.clone();
            full["containers"] = json!([]);
            assert_eq!(applied(full).unwrap_err(), message, "{spec}");
        }
    }
}
