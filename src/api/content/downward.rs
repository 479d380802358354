//! The files of the downward API.

use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Pod, ResourceFieldSelector};

use super::{ContentError, ContentFile, ContentInput, MODE, Payload, bits, put};
use crate::api::{
    container_ref::ContainerRef,
    downward::{self, Surroundings},
};

/// Adds a file for each item; what is wrong with each is said together.
pub(super) fn files(
    items: Option<&[DownwardAPIVolumeFile]>,
    default_mode: Option<i32>,
    input: &ContentInput<'_>,
    payload: &mut Payload,
) -> Result<(), ContentError> {
    let mut errors = Vec::new();
    for item in items.unwrap_or_default() {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), _) => field(input, &selector.field_path),
            (None, Some(selector)) => resource(input, selector),
            (None, None) => Ok(String::new()),
        };
        let mode = bits(item.mode.or(default_mode).unwrap_or(MODE));
        let file = |text: String| ContentFile { bytes: text.into_bytes(), mode, owner: None };
        let result = value.map_err(ContentError::Downward).and_then(|text| put(payload, &item.path, file(text)));
        errors.extend(result.err());
    }
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(ContentError::Several(errors)),
    }
}

/// Beside what a variable can be given, all labels or annotations.
fn field(input: &ContentInput<'_>, path: &str) -> Result<String, String> {
    let metadata = &input.pod.metadata;
    match path {
        "metadata.labels" => Ok(listing(metadata.labels.as_ref())),
        "metadata.annotations" => Ok(listing(metadata.annotations.as_ref())),
        _ => downward::field(input.pod, &surroundings(input), path),
    }
}

fn resource(input: &ContentInput<'_>, selector: &ResourceFieldSelector) -> Result<String, String> {
    let name = selector.container_name.as_deref().unwrap_or_default();
    let container = container(input.pod, name).ok_or_else(|| format!("container {name} not found"))?;
    downward::resource(input.pod, container, &surroundings(input), selector)
}

fn container<'a>(pod: &'a Pod, name: &str) -> Option<ContainerRef<'a>> {
    ContainerRef::find(pod, name).filter(|container| !matches!(container, ContainerRef::Ephemeral(..)))
}

/// A volume shows nothing of the pod's addresses and its node's: it is written before they are known.
fn surroundings<'a>(input: &ContentInput<'a>) -> Surroundings<'a> {
    Surroundings { node_name: "", pod_ips: &[], host_ips: &[], allocatable: input.allocatable }
}

/// One line `key="value"` each, sorted, without a line feed at the end.
fn listing(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

/// A text in double quotes with the escapes of Go's `%q`, which programs that read these files expect.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        let escape = match character {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\u{7}' => "\\a",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{b}' => "\\v",
            _ => "",
        };
        let code = u32::from(character);
        let written = match code {
            _ if !escape.is_empty() => write!(quoted, "{escape}"),
            _ if is_printable(character) => write!(quoted, "{character}"),
            0..0x80 => write!(quoted, "\\x{code:02x}"),
            0x80..0x1_0000 => write!(quoted, "\\u{code:04x}"),
            _ => write!(quoted, "\\U{code:08x}"),
        };
        debug_assert!(written.is_ok(), "a String takes everything");
    }
    quoted.push('"');
    quoted
}

/// Letters, marks, numbers, punctuation, symbols and the ASCII space. Behind a letter, so that a combining mark counts as
/// what it is.
fn is_printable(character: char) -> bool {
    let text: String = ['a', character].into_iter().collect();
    character == '\'' || text.escape_debug().count() == 2
}
