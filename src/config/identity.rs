//! What the node says of itself to those who choose nodes: labels and taints.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;

use super::{
    document::{Node, Value},
    schema::Findings,
};
use crate::api::validation::{label_value_problems, qualified_name_problems};

/// Labels of the node. Those that the machine decides are not to be set.
pub(super) fn labels(node: &Node, findings: &mut Findings) -> BTreeMap<String, String> {
    const MACHINE: [&str; 3] = ["kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch"];
    let mut labels = BTreeMap::new();
    let Some(Node { value: Value::Map(entries), .. }) = node.get("nodeLabels") else { return labels };
    for (key, written) in entries {
        let Value::Text(value) = &written.value else { continue };
        let path = format!("nodeLabels[{key}]");
        for problem in qualified_name_problems(key) {
            findings.mistake(written, &path, format!("the key is not valid: {problem}"));
        }
        for problem in label_value_problems(value) {
            findings.mistake(written, &path, format!("{value:?} is not valid: {problem}"));
        }
        if MACHINE.contains(&key.as_str()) {
            findings.mistake(written, &path, "is what the machine is, and cannot be chosen");
        }
        labels.insert(key.clone(), value.clone());
    }
    labels
}

/// `registerWithTaints`.
pub(super) fn taints(node: &Node, findings: &mut Findings) -> Vec<Taint> {
    let Some(Node { value: Value::List(items), .. }) = node.get("registerWithTaints") else { return Vec::new() };
    let mut taints: Vec<Taint> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let text = |name: &str| match item.get(name).map(|node| &node.value) {
            Some(Value::Text(text)) => text.clone(),
            _ => String::new(),
        };
        let (key, value, effect) = (text("key"), text("value"), text("effect"));
        let path = format!("registerWithTaints[{index}]");
        for problem in qualified_name_problems(&key) {
            findings.mistake(item, &path, format!("the key is not valid: {problem}"));
        }
        for problem in label_value_problems(&value) {
            findings.mistake(item, &path, format!("the value {value:?} is not valid: {problem}"));
        }
        if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect.as_str()) {
            let message = format!("the effect is NoSchedule, PreferNoSchedule or NoExecute, found {effect:?}");
            findings.mistake(item, &path, message);
        }
        if taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            findings.mistake(item, &path, format!("a second taint {key} with the effect {effect}"));
        }
        let value = (!value.is_empty()).then_some(value);
        taints.push(Taint { key, value, effect, time_added: None });
    }
    taints
}

/// `key=value:effect`, `key:effect`, as upstream's flag has it; `None` when it is neither.
pub fn parse_taint(text: &str) -> Option<(&str, &str, &str)> {
    let (name, effect) = text.rsplit_once(':')?;
    let (key, value) = name.split_once('=').unwrap_or((name, ""));
    (!key.is_empty() && !effect.is_empty()).then_some((key, value, effect))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taint_has_a_key_perhaps_a_value_and_an_effect() {
        assert_eq!(parse_taint("a/b=c:NoExecute"), Some(("a/b", "c", "NoExecute")));
        assert_eq!(parse_taint("a:NoSchedule"), Some(("a", "", "NoSchedule")));
        for text in ["a", "a=b", ":NoSchedule", "a:", "=b:NoSchedule"] {
            assert_eq!(parse_taint(text), None, "{text}");
        }
    }
}
