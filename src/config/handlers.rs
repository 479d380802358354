//! `runtime.handlers`: the OCI runtimes that RuntimeClasses may name.

use std::{path::PathBuf, time::Duration};

use super::{
    document::{Node, Value},
    resolve::texts,
    schema::Findings,
    values::parse_duration,
};
use crate::{pod::runtime_class::OWN, runtime::handler::HandlerConfig};

/// How long one call of a runtime may take where nothing is said: long enough for one that starts a virtual machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The handlers; what is wrong with one goes to `findings`.
pub(super) fn handlers(node: &Node, findings: &mut Findings) -> Vec<HandlerConfig> {
    let Some(Value::List(items)) = node.at("runtime.handlers").map(|node| &node.value) else { return Vec::new() };
    let mut handlers: Vec<HandlerConfig> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let text = |name: &str| match item.get(name).map(|node| &node.value) {
            Some(Value::Text(text)) => text.as_str(),
            _ => "",
        };
        // What cannot be read was reported with its shape.
        let timeout = Some(text("timeout")).filter(|text| !text.is_empty()).and_then(|text| parse_duration(text).ok());
        let handler = HandlerConfig {
            name: text("name").to_owned(),
            path: PathBuf::from(text("path")),
            arguments: texts(item.get("arguments")).into_iter().map(|(_, text)| text.to_owned()).collect(),
            timeout: timeout.unwrap_or(TIMEOUT),
        };
        let path = format!("runtime.handlers[{index}]");
        let mut wrong = |message: String| findings.mistake(item, &path, message);
        match handler.name.as_str() {
            "" => wrong("name is missing".to_owned()),
            name if OWN.contains(&name) => wrong(format!("name: {name:?} is berth itself")),
            name if !is_label(name) => {
                wrong(format!("name: {name:?} is not a DNS label (lower-case letters, digits and '-', at most 63)"));
            }
            name if handlers.iter().any(|other| other.name == name) => wrong(format!("a second handler {name:?}")),
            _ => {}
        }
        if !handler.path.is_absolute() {
            wrong(format!("path: {:?} is not an absolute path", text("path")));
        }
        if handler.timeout.is_zero() {
            wrong("timeout: must be more than 0".to_owned());
        }
        handlers.push(handler);
    }
    handlers
}

/// What upstream takes as the handler of a RuntimeClass (RFC 1123).
fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= 63 && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_named_by_a_label() {
        for good in ["runc", "kata-qemu", "7z"] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["Runc", "a.b", "-a", "a-", "a_b", &"x".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }
}
