//! The forms of names. A checker returns the rules a text breaks, in upstream's words.

use std::{collections::BTreeMap, net::IpAddr};

use super::Errors;

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const SUBDOMAIN_WITH_UNDERSCORE_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character or an underscore";

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} characters")
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// DNS label: at most 63 of `[a-z0-9-]`.
pub(super) fn label(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.len() > 63 {
        broken.push(too_long(63));
    }
    if !is_label(text) {
        broken.push(LABEL_RULE.to_owned());
    }
    broken
}

/// DNS label that begins with a letter, as the names of services do (RFC 1035).
pub(super) fn label_1035(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.len() > 63 {
        broken.push(too_long(63));
    }
    if !is_label(text) || !text.starts_with(|first: char| first.is_ascii_lowercase()) {
        broken.push(LABEL_1035_RULE.to_owned());
    }
    broken
}

/// Name of a CSI driver: a DNS name of at most 63 characters.
pub(super) fn driver_name(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.len() > 63 {
        broken.push(too_long(63));
    }
    broken.extend(subdomain(&text.to_lowercase()));
    broken
}

/// DNS name: labels joined by dots, at most 253 characters.
pub(super) fn subdomain(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.len() > 253 {
        broken.push(too_long(253));
    }
    if !text.split('.').all(is_label) {
        broken.push(SUBDOMAIN_RULE.to_owned());
    }
    broken
}

/// DNS name in which labels may also hold underscores, as search paths may.
pub(super) fn subdomain_with_underscore(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.len() > 253 {
        broken.push(too_long(253));
    }
    if !text.split('.').all(|part| is_label(&part.replace('_', "a"))) {
        broken.push(SUBDOMAIN_WITH_UNDERSCORE_RULE.to_owned());
    }
    broken
}

fn is_word(text: &str) -> bool {
    let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    outer(bytes.first())
        && outer(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Key of a label or annotation: `name` or `prefix/name`.
pub(super) fn qualified(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                QUALIFIED_RULE.trim_start_matches("name part ")
            )];
        }
        Some(("", name)) => {
            broken.push("prefix part must be non-empty".to_owned());
            name
        }
        Some((prefix, name)) => {
            broken.extend(subdomain(prefix).into_iter().map(|rule| format!("prefix part {rule}")));
            name
        }
    };
    if name.is_empty() {
        broken.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        broken.push(format!("name part {}", too_long(63)));
    }
    if !is_word(name) {
        broken.push(QUALIFIED_RULE.to_owned());
    }
    broken
}

/// Value of a label.
pub(super) fn label_value(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.len() > 63 {
        broken.push(too_long(63));
    }
    if !text.is_empty() && !is_word(text) {
        broken.push(LABEL_VALUE_RULE.to_owned());
    }
    broken
}

/// Keys and values of a set of labels.
pub(super) fn labels(path: &str, labels: &BTreeMap<String, String>, errors: &mut Errors) {
    for (key, value) in labels {
        errors.check(path, key, qualified(key));
        errors.check(path, value, label_value(value));
    }
}

/// Name of a port (RFC 6335).
pub(super) fn port_name(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.len() > 15 {
        broken.push(too_long(15));
    }
    if !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        broken.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        broken.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        broken.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        broken.push("must not begin or end with a hyphen".to_owned());
    }
    broken
}

/// Name of an environment variable: printable ASCII but `=` (KEP-4369).
pub(super) fn env_name(text: &str) -> Vec<String> {
    let printable = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'=';
    if !text.is_empty() && text.bytes().all(printable) {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// Key in a config map or secret.
pub(super) fn config_key(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.len() > 253 {
        broken.push(too_long(253));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(allowed) {
        broken.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".to_owned());
    }
    if text == "." || text == ".." || text.starts_with("..") {
        broken.push(format!("must not be or begin with '{}'", if text == "." { "." } else { ".." }));
    }
    broken
}

/// Name of a header of HTTP.
pub(super) fn header_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Vec::new();
    }
    vec!["a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')".to_owned()]
}

/// An IPv4 or IPv6 address.
pub(super) fn ip(text: &str) -> Vec<String> {
    if text.parse::<IpAddr>().is_ok() {
        return Vec::new();
    }
    vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
}

/// A path that stays beneath where it starts: not absolute, no `..`.
pub(super) fn descending_path(text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if text.starts_with('/') {
        broken.push("must be a relative path".to_owned());
    }
    broken.extend(no_backsteps(text));
    broken
}

/// A path without `..`.
pub(super) fn no_backsteps(text: &str) -> Option<String> {
    text.split('/').any(|part| part == "..").then(|| "must not contain '..'".to_owned())
}
