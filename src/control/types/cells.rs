//! Cells of tables, as kubectl shows them (`pkg/printers/internalversion/printers.go` upstream).

use jiff::Timestamp;
use serde_json::Value;

use crate::control::registry::text;

pub use crate::control::registry::age::age;

/// The name of an object.
pub fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

/// The age of an object.
pub fn own_age(object: &Value, now: Timestamp) -> Value {
    age(&object["metadata"]["creationTimestamp"], now)
}

/// Text of a field.
pub fn field(object: &Value, path: &str) -> Value {
    text(object, path).into()
}

/// Text of a field; `<none>` where it is empty.
pub fn or_none(object: &Value, path: &str) -> Value {
    none_if_empty(text(object, path).to_owned())
}

/// The text, or `<none>`.
pub fn none_if_empty(text: String) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// A number; 0 where there is none.
pub fn number(object: &Value, path: &str) -> Value {
    integer(object, path).into()
}

/// The same, to compute with.
pub fn integer(object: &Value, path: &str) -> i64 {
    path.split('.').try_fold(object, |value, name| value.get(name)).and_then(Value::as_i64).unwrap_or(0)
}

/// Whether a switch is on.
pub fn truth(object: &Value, path: &str) -> Value {
    let found = path.split('.').try_fold(object, |value, name| value.get(name));
    found.and_then(Value::as_bool).unwrap_or(false).into()
}

/// How many entries a map or list has.
pub fn count(value: &Value) -> i64 {
    let found = value.as_object().map(serde_json::Map::len).or_else(|| value.as_array().map(Vec::len));
    found.unwrap_or(0) as i64
}

/// The elements of a list.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// `a=b,c=d`, or `<none>`.
pub fn labels(map: &Value) -> Value {
    let pairs = map.as_object().into_iter().flatten();
    let pairs: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    none_if_empty(pairs.join(","))
}

/// A selector of labels.
pub fn selector(selector: &Value) -> Value {
    let mut terms = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in items(&selector["matchExpressions"]) {
        let key = text(expression, "key");
        let values: Vec<&str> = items(&expression["values"]).iter().filter_map(Value::as_str).collect();
        let values = values.join(",");
        terms.push(match text(expression, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    none_if_empty(terms.join(","))
}

/// Names and images of containers.
pub fn containers(spec: &Value) -> [Value; 2] {
    ["name", "image"].map(|what| {
        let all: Vec<&str> = items(&spec["containers"]).iter().map(|container| text(container, what)).collect();
        all.join(",").into()
    })
}

/// Texts of a list, joined by commas.
pub fn joined(list: &Value) -> String {
    items(list).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}
