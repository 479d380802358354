//! Where two specs differ, by the paths of their fields.

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::Value;

use crate::api::decode::to_value;

/// Most paths that are named: the rest is as forbidden as these.
const MOST: usize = 8;

/// Paths of the fields in which the two differ, in the order of their names.
pub(super) fn differences(old: &PodSpec, new: &PodSpec, path: &str) -> Vec<String> {
    if old == new {
        return Vec::new();
    }
    let mut found = Vec::new();
    // An object of the API always has a JSON form.
    walk(&to_value(old).unwrap_or_default(), &to_value(new).unwrap_or_default(), path, &mut found);
    found.truncate(MOST);
    found
}

fn walk(old: &Value, new: &Value, path: &str, found: &mut Vec<String>) {
    match (old, new) {
        (old, new) if old == new => {}
        (Value::Object(old), Value::Object(new)) => {
            let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let field = |fields: &serde_json::Map<String, Value>| fields.get(name).cloned().unwrap_or_default();
                walk(&field(old), &field(new), &format!("{path}.{name}"), found);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                walk(old, new, &format!("{path}[{index}]"), found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}
