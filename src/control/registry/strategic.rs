//! Strategic merge patches: merge patches that know which lists are maps, and by which key
//! (`apimachinery/pkg/util/strategicpatch` upstream). Which lists those are is the table here; the OpenAPI documents
//! say the same to clients, which make such patches.

use serde_json::{Map, Value, json};

use crate::control::error::ApiError;

/// What is known of the fields of a structure; one that is not here is merged if it is an object and replaced otherwise.
#[derive(Debug)]
pub struct Shape {
    /// Name of the structure's schema without its package: `PodSpec`.
    pub name: &'static str,
    /// Its fields.
    pub fields: &'static [(&'static str, Field)],
}

/// What is known of a field.
#[derive(Debug)]
pub enum Field {
    /// A structure of this shape.
    Object(&'static Shape),
    /// A list whose elements are told apart by a key.
    Keyed(&'static str, &'static Shape),
    /// The same; what makes a patch says which other fields of an element stay.
    KeyedRetain(&'static str, &'static Shape),
    /// A list of plain values, each of them once.
    Set,
    /// A structure of which what makes a patch says which fields stay.
    Retain(&'static Shape),
}

use Field::{Keyed, KeyedRetain, Object, Retain, Set};

const ANY: Shape = Shape { name: "", fields: &[] };
const META: Shape =
    Shape { name: "ObjectMeta", fields: &[("finalizers", Set), ("ownerReferences", Keyed("uid", &ANY))] };
const CONTAINER_FIELDS: &[(&str, Field)] = &[
    ("ports", Keyed("containerPort", &ANY)),
    ("env", Keyed("name", &ANY)),
    ("volumeMounts", Keyed("mountPath", &ANY)),
    ("volumeDevices", Keyed("devicePath", &ANY)),
];
const CONTAINER: Shape = Shape { name: "Container", fields: CONTAINER_FIELDS };
const EPHEMERAL: Shape = Shape { name: "EphemeralContainer", fields: CONTAINER_FIELDS };
const POD_SPEC: Shape = Shape {
    name: "PodSpec",
    fields: &[
        ("volumes", KeyedRetain("name", &ANY)),
        ("initContainers", Keyed("name", &CONTAINER)),
        ("containers", Keyed("name", &CONTAINER)),
        ("ephemeralContainers", Keyed("name", &EPHEMERAL)),
        ("imagePullSecrets", Keyed("name", &ANY)),
        ("hostAliases", Keyed("ip", &ANY)),
        ("topologySpreadConstraints", Keyed("topologyKey", &ANY)),
        ("schedulingGates", Keyed("name", &ANY)),
        ("resourceClaims", KeyedRetain("name", &ANY)),
    ],
};
const CONTAINER_STATUS: Shape = Shape {
    name: "ContainerStatus",
    fields: &[("volumeMounts", Keyed("mountPath", &ANY)), ("allocatedResourcesStatus", Keyed("name", &ANY))],
};
const POD_STATUS: Shape = Shape {
    name: "PodStatus",
    fields: &[
        ("conditions", Keyed("type", &ANY)),
        ("hostIPs", Keyed("ip", &ANY)),
        ("podIPs", Keyed("ip", &ANY)),
        ("resourceClaimStatuses", KeyedRetain("name", &ANY)),
    ],
};
const POD: Shape = Shape {
    name: "Pod",
    fields: &[("metadata", Object(&META)), ("spec", Object(&POD_SPEC)), ("status", Object(&POD_STATUS))],
};
const TEMPLATE: Shape =
    Shape { name: "PodTemplateSpec", fields: &[("metadata", Object(&META)), ("spec", Object(&POD_SPEC))] };

/// A type with a template of pods in its spec and conditions in its status.
macro_rules! workload {
    ($name:ident, $kind:literal, $spec:literal, $status:literal $(, $more:expr)*) => {
        const $name: Shape = Shape {
            name: $kind,
            fields: &[
                ("metadata", Object(&META)),
                ("spec", Object(&Shape { name: $spec, fields: &[("template", Object(&TEMPLATE)) $(, $more)*] })),
                ("status", Object(&Shape { name: $status, fields: &[("conditions", Keyed("type", &ANY))] })),
            ],
        };
    };
}
workload!(DEPLOYMENT, "Deployment", "DeploymentSpec", "DeploymentStatus", ("strategy", Retain(&ANY)));
workload!(REPLICA_SET, "ReplicaSet", "ReplicaSetSpec", "ReplicaSetStatus");
workload!(DAEMON_SET, "DaemonSet", "DaemonSetSpec", "DaemonSetStatus");
workload!(STATEFUL_SET, "StatefulSet", "StatefulSetSpec", "StatefulSetStatus");
workload!(JOB, "Job", "JobSpec", "JobStatus");

/// A type of which only lists of its spec and status are known.
macro_rules! plain {
    ($name:ident, $kind:literal, $spec:literal: [$($field:expr),*], $status:literal: [$($other:expr),*]) => {
        const $name: Shape = Shape {
            name: $kind,
            fields: &[
                ("metadata", Object(&META)),
                ("spec", Object(&Shape { name: $spec, fields: &[$($field),*] })),
                ("status", Object(&Shape { name: $status, fields: &[$($other),*] })),
            ],
        };
    };
}
plain!(SERVICE, "Service", "ServiceSpec": [("ports", Keyed("port", &ANY))],
    "ServiceStatus": [("conditions", Keyed("type", &ANY))]);
plain!(NODE, "Node", "NodeSpec": [("podCIDRs", Set)],
    "NodeStatus": [("conditions", Keyed("type", &ANY)), ("addresses", Keyed("type", &ANY))]);
plain!(NAMESPACE, "Namespace", "NamespaceSpec": [], "NamespaceStatus": [("conditions", Keyed("type", &ANY))]);
plain!(CLAIM, "PersistentVolumeClaim", "PersistentVolumeClaimSpec": [],
    "PersistentVolumeClaimStatus": [("conditions", Keyed("type", &ANY))]);
plain!(CSI_NODE, "CSINode", "CSINodeSpec": [("drivers", Keyed("name", &ANY))], "": []);
const SERVICE_ACCOUNT: Shape =
    Shape { name: "ServiceAccount", fields: &[("metadata", Object(&META)), ("secrets", Keyed("name", &ANY))] };
const POD_TEMPLATE: Shape =
    Shape { name: "PodTemplate", fields: &[("metadata", Object(&META)), ("template", Object(&TEMPLATE))] };
const OTHER: Shape = Shape { name: "", fields: &[("metadata", Object(&META))] };

/// Every shape of a whole object.
pub static ROOTS: &[&Shape] = &[
    &POD,
    &DEPLOYMENT,
    &REPLICA_SET,
    &DAEMON_SET,
    &STATEFUL_SET,
    &JOB,
    &SERVICE,
    &NODE,
    &NAMESPACE,
    &CLAIM,
    &CSI_NODE,
    &SERVICE_ACCOUNT,
    &POD_TEMPLATE,
    // Not reached from a root, because its list is replaced as a whole; clients are told all the same.
    &CONTAINER_STATUS,
];

/// The shape of a kind.
pub fn shape_of(kind: &str) -> &'static Shape {
    ROOTS.iter().find(|shape| shape.name == kind).copied().unwrap_or(&OTHER)
}

impl Shape {
    fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|(known, _)| *known == name).map(|(_, field)| field)
    }
}

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

/// Applies a patch to an object.
///
/// # Errors
/// The patch is none.
pub fn apply(object: &Value, patch: &Value, shape: &'static Shape) -> Result<Value, ApiError> {
    let (Some(object), Some(patch)) = (object.as_object(), patch.as_object()) else {
        return Err(ApiError::bad_request("a strategic merge patch must be a JSON object"));
    };
    merge(object.clone(), patch, shape).map(Value::Object)
}

fn wrong(message: impl Into<String>) -> ApiError {
    ApiError::bad_request(message)
}

fn merge(
    mut object: Map<String, Value>,
    patch: &Map<String, Value>,
    shape: &'static Shape,
) -> Result<Map<String, Value>, ApiError> {
    match patch.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or_default()) {
        None | Some("merge") => {}
        Some("replace") => object.clear(),
        Some("delete") => return Ok(Map::new()),
        Some(other) => return Err(wrong(format!("unknown patch type found: {other:?}"))),
    }
    if let Some(retained) = patch.get(RETAIN) {
        let retained = retained.as_array().ok_or_else(|| wrong("invalid $retainKeys: not a list"))?;
        object.retain(|name, _| retained.iter().any(|kept| kept == name));
    }
    for (name, change) in patch {
        if name == DIRECTIVE || name == RETAIN || name.starts_with(ORDER) {
            continue;
        }
        if let Some(name) = name.strip_prefix(DELETE) {
            let gone = change.as_array().ok_or_else(|| wrong(format!("invalid {DELETE}{name}: not a list")))?;
            if let Some(list) = object.get_mut(name).and_then(Value::as_array_mut) {
                list.retain(|value| !gone.contains(value));
            }
            continue;
        }
        let field = shape.field(name);
        let before = object.remove(name);
        let after = match (change, field) {
            (Value::Null, _) => None,
            (Value::Object(change), field) => {
                let inner = match field {
                    Some(Object(shape) | Retain(shape)) => shape,
                    _ => &ANY,
                };
                let before = match before {
                    Some(Value::Object(before)) => before,
                    _ => Map::new(),
                };
                let deleted = change.get(DIRECTIVE).is_some_and(|directive| directive == "delete");
                let merged = merge(before, change, inner)?;
                (!deleted).then_some(Value::Object(merged))
            }
            (Value::Array(change), Some(Keyed(key, inner) | KeyedRetain(key, inner))) => {
                let before = before.and_then(into_list).unwrap_or_default();
                let order = patch.get(&format!("{ORDER}{name}"));
                Some(Value::Array(merge_keyed(before, change, key, inner, order)?))
            }
            (Value::Array(change), Some(Set)) => {
                let mut list = before.and_then(into_list).unwrap_or_default();
                for value in change {
                    if !list.contains(value) {
                        list.push(value.clone());
                    }
                }
                Some(Value::Array(list))
            }
            (other, _) => Some(other.clone()),
        };
        if let Some(after) = after {
            object.insert(name.clone(), after);
        }
    }
    // An order may also come for a list that is not changed otherwise.
    for (name, order) in patch {
        let Some(name) = name.strip_prefix(ORDER) else { continue };
        if patch.contains_key(name) {
            continue;
        }
        if let (Some(Keyed(key, _) | KeyedRetain(key, _)), Some(Value::Array(list))) =
            (shape.field(name), object.get_mut(name))
        {
            let server = list.clone();
            *list = ordered(std::mem::take(list), &server, key, order);
        }
    }
    Ok(object)
}

fn into_list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(list) => Some(list),
        _ => None,
    }
}

fn merge_keyed(
    before: Vec<Value>,
    change: &[Value],
    key: &str,
    shape: &'static Shape,
    order: Option<&Value>,
) -> Result<Vec<Value>, ApiError> {
    let replaces = change.iter().any(|item| item[DIRECTIVE] == "replace");
    let server = before.clone();
    let mut list = if replaces { Vec::new() } else { before };
    for item in change {
        let Some(item) = item.as_object() else {
            return Err(wrong(format!("an element of a list with the merge key {key} must be an object")));
        };
        let directive = item.get(DIRECTIVE).and_then(Value::as_str).unwrap_or_default();
        if directive == "replace" {
            continue;
        }
        let Some(id) = item.get(key).filter(|id| !id.is_null()) else {
            let shown = Value::Object(item.clone());
            return Err(wrong(format!("map: {shown} does not contain declared merge key: {key}")));
        };
        match directive {
            "delete" => list.retain(|known| known.get(key) != Some(id)),
            "" | "merge" => match list.iter_mut().find(|known| known.get(key) == Some(id)) {
                Some(Value::Object(known)) => *known = merge(std::mem::take(known), item, shape)?,
                _ => list.push(Value::Object(merge(Map::new(), item, shape)?)),
            },
            other => return Err(wrong(format!("unknown patch type found: {other:?}"))),
        }
    }
    Ok(match order {
        Some(order) => ordered(list, &server, key, order),
        None => list,
    })
}

/// Puts what the patch names into its order, and what only the server has in between, where it was before.
fn ordered(list: Vec<Value>, server: &[Value], key: &str, order: &Value) -> Vec<Value> {
    let order: Vec<&Value> = order.as_array().into_iter().flatten().filter_map(|item| item.get(key)).collect();
    let place = |item: &Value| item.get(key).and_then(|id| order.iter().position(|known| *known == id));
    let at_server = |item: &Value| server.iter().position(|known| known.get(key) == item.get(key));
    let (mut named, others): (Vec<Value>, Vec<Value>) = list.into_iter().partition(|item| place(item).is_some());
    named.sort_by_key(|item| place(item));
    let mut result = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let first = match (named.peek(), others.peek()) {
            (Some(left), Some(right)) => {
                matches!((at_server(left), at_server(right)), (Some(left), Some(right)) if left < right)
            }
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return result,
        };
        result.extend(if first { named.next() } else { others.next() });
    }
}

/// What clients are told of a field: `x-kubernetes-patch-strategy` and `-merge-key`.
pub fn extensions(field: &Field) -> Value {
    match field {
        Keyed(key, _) => json!({"x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": key}),
        KeyedRetain(key, _) => {
            json!({"x-kubernetes-patch-strategy": "merge,retainKeys", "x-kubernetes-patch-merge-key": key})
        }
        Set => json!({"x-kubernetes-patch-strategy": "merge"}),
        Retain(_) => json!({"x-kubernetes-patch-strategy": "retainKeys"}),
        Object(_) => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(object: Value, patch: Value, kind: &str) -> Value {
        apply(&object, &patch, shape_of(kind)).unwrap()
    }

    fn pod(containers: Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn lists_with_a_key_are_merged_and_others_replaced() {
        let before = pod(
            json!([{"name": "a", "image": "1", "args": ["x"], "env": [{"name": "A", "value": "1"}]}, {"name": "b"}]),
        );
        let patch = pod(
            json!([{"name": "a", "image": "2", "args": ["y"], "env": [{"name": "B", "value": "2"}]}, {"name": "c"}]),
        );
        assert_eq!(
            patched(before, patch, "Pod"),
            pod(json!([
                {"name": "a", "image": "2", "args": ["y"],
                    "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                {"name": "b"}, {"name": "c"},
            ]))
        );
        let patch = json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}});
        let before = json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 81}], "externalIPs": ["1", "2"]}});
        assert_eq!(
            patched(before, patch, "Service")["spec"]["ports"],
            json!([{"port": 80, "name": "a", "targetPort": 8080}, {"port": 81}])
        );
    }

    #[test]
    fn directives_delete_replace_retain_and_order() {
        let two = || pod(json!([{"name": "a"}, {"name": "b"}]));
        for (patch, after) in [
            (pod(json!([{"name": "a", "$patch": "delete"}])), json!([{"name": "b"}])),
            (pod(json!([{"$patch": "replace"}, {"name": "c"}])), json!([{"name": "c"}])),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
                json!([{"name": "b"}, {"name": "a"}]),
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}], "containers": [{"name": "c"}]}}),
                json!([{"name": "a"}, {"name": "c"}, {"name": "b"}]),
            ),
        ] {
            assert_eq!(patched(two(), patch.clone(), "Pod")["spec"]["containers"], after, "{patch}");
        }
        let deployment = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(patched(deployment, patch, "Deployment"), json!({"spec": {"strategy": {"type": "Recreate"}}}));
        let finalizers = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c", "b"]}});
        let after = patched(finalizers, patch, "ConfigMap");
        let mut after: Vec<_> = after["metadata"]["finalizers"].as_array().unwrap().clone();
        after.sort_by_key(ToString::to_string);
        assert_eq!(after, [json!("b"), json!("c")]);
        let labels = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
        let patch = json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}});
        assert_eq!(patched(labels.clone(), patch, "Node")["metadata"]["labels"], json!({"c": "3"}));
        let patch = json!({"metadata": {"labels": {"a": null, "x": {"y": null}}}});
        assert_eq!(patched(labels, patch, "Node")["metadata"]["labels"], json!({"b": "2", "x": {}}));
    }

    #[test]
    fn what_is_no_patch_is_refused() {
        for patch in [
            json!([]),
            json!({"$patch": "explode"}),
            pod(json!([{"image": "x"}])),
            pod(json!([{"name": "a", "$patch": "explode"}])),
            pod(json!(["a"])),
            json!({"metadata": {"$retainKeys": 1}}),
        ] {
            assert_eq!(apply(&json!({}), &patch, shape_of("Pod")).unwrap_err().code, 400, "{patch}");
        }
    }
}
