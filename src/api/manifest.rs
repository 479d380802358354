//! From the bytes of a manifest to pods.
//!
//! Accepted are YAML and JSON, several documents in one file, and of kinds only those that upstream's node agent
//! takes from files and URLs: Pod, PodList and List of `v1`. Whatever one document holds, the others are used.
//! Decoding is lenient where upstream is (unknown and repeated fields) and says so in warnings.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

use super::decode::{TypeError, decode};

/// Largest manifest read, in bytes. Upstream limits a configuration read over HTTP to 10 MiB; files get the same.
pub const MAX_BYTES: usize = 10 << 20;

/// Most documents in one manifest; keeps a file of separators from occupying anybody.
const MAX_DOCUMENTS: usize = 1024;

/// One pod of a manifest, or why there is none.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// Document within the manifest, from 0; `None` when the manifest as a whole could not be read.
    pub document: Option<usize>,
    /// `namespace/name` or `name` as written, as far as it could be made out.
    pub name: Option<String>,
    /// The pod as written (nothing defaulted), or the error.
    pub pod: Result<Pod, ManifestError>,
    /// What was overlooked: unknown and repeated fields.
    pub warnings: Vec<String>,
}

/// Why a manifest, or one pod of it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Over [`MAX_BYTES`].
    #[error("the manifest has {size} bytes, more than the {MAX_BYTES} allowed")]
    TooLarge {
        /// Its size in bytes (at least).
        size: usize,
    },
    /// More than `MAX_DOCUMENTS`.
    #[error("the manifest has more than {MAX_DOCUMENTS} documents")]
    TooManyDocuments,
    /// Nothing but white space and comments.
    #[error("the manifest is empty")]
    Empty,
    /// Not text.
    #[error("the manifest is not valid UTF-8 from byte {0}")]
    NotText(usize),
    /// It is no YAML or JSON.
    #[error("{0}")]
    Syntax(String),
    /// A scalar or a sequence instead of an object.
    #[error("expected a Kubernetes object, found {0}")]
    NotAnObject(&'static str),
    /// A field that says what it is, is missing.
    #[error("{0}: Required value")]
    Untyped(String),
    /// An object that is no pod.
    #[error(
        "{path}kind {kind:?} of apiVersion {api_version:?} cannot be run by a node: only v1 Pod, PodList and List can"
    )]
    WrongKind {
        /// Empty, or where in a list it is: `items[2]: `.
        path: String,
        /// As written.
        api_version: String,
        /// As written.
        kind: String,
    },
    /// A field has the wrong type.
    #[error(transparent)]
    Type(#[from] TypeError),
}

/// Decodes a manifest. The result has one element per pod or error, in the order of the text.
pub fn decode_manifest(bytes: &[u8]) -> Vec<Decoded> {
    let whole = |error| vec![Decoded { document: None, name: None, pod: Err(error), warnings: Vec::new() }];
    if bytes.len() > MAX_BYTES {
        return whole(ManifestError::TooLarge { size: bytes.len() });
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => return whole(ManifestError::NotText(error.valid_up_to())),
    };
    let documents = match parse(text) {
        Ok(documents) => documents,
        Err(error) => return whole(error),
    };
    if documents.is_empty() {
        return whole(ManifestError::Empty);
    }
    let mut decoded = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        match document {
            Ok(Document { value, warnings }) => {
                let first = decoded.len();
                decode_object(&value, "", index, &mut decoded);
                if let Some(first) = decoded.get_mut(first) {
                    first.warnings.splice(0..0, warnings);
                }
            }
            Err(error) => {
                decoded.push(Decoded { document: Some(index), name: None, pod: Err(error), warnings: Vec::new() })
            }
        }
    }
    decoded
}

/// A parsed document.
struct Document {
    value: Value,
    warnings: Vec<String>,
}

fn parse(text: &str) -> Result<Vec<Result<Document, ManifestError>>, ManifestError> {
    if !text.trim_start().starts_with('{') {
        return parse_yaml(text);
    }
    // What looks like JSON is read as JSON, for its speed and its messages. Flow-style YAML looks the same, so YAML has
    // the last word when JSON fails; if that fails too the author most likely meant JSON.
    let json = serde_json::Deserializer::from_str(text).into_iter::<Value>().collect::<Result<Vec<_>, _>>();
    match json {
        Ok(values) if values.len() > MAX_DOCUMENTS => Err(ManifestError::TooManyDocuments),
        Ok(values) => Ok(values.into_iter().map(|value| Ok(Document { value, warnings: Vec::new() })).collect()),
        Err(error) => match parse_yaml(text) {
            Ok(documents) if documents.iter().all(Result::is_ok) => Ok(documents),
            _ => Ok(vec![Err(ManifestError::Syntax(format!("invalid JSON: {error}")))]),
        },
    }
}

fn parse_yaml(text: &str) -> Result<Vec<Result<Document, ManifestError>>, ManifestError> {
    let parts = split_documents(text);
    if parts.len() > MAX_DOCUMENTS {
        return Err(ManifestError::TooManyDocuments);
    }
    Ok(parts.into_iter().filter_map(|part| parse_yaml_document(part).transpose()).collect())
}

/// A part of a YAML stream.
struct Part<'t> {
    text: &'t str,
    /// Lines before it.
    line: u64,
}

/// Splits a stream at lines that begin with `---`, which YAML allows nowhere else (not even in a block scalar), so
/// that a syntax error in one document leaves the others alone.
fn split_documents(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let (mut start, mut start_line) = (0, 0);
    let (mut offset, mut line) = (0, 0);
    for row in text.split_inclusive('\n') {
        if row.strip_prefix("---").is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with([' ', '\t'])) {
            parts.push(Part { text: &text[start..offset], line: start_line });
            (start, start_line) = (offset, line);
        }
        offset += row.len();
        line += 1;
    }
    parts.push(Part { text: &text[start..], line: start_line });
    parts
}

/// `None` for a document without content.
fn parse_yaml_document(part: Part<'_>) -> Result<Option<Document>, ManifestError> {
    let blank = |row: &str| row.is_empty() || row.starts_with('#') || row == "---" || row == "...";
    if part.text.lines().all(|row| blank(row.trim())) {
        return Ok(None);
    }
    let mut warnings = Vec::new();
    let value = match yaml_value(part.text, DuplicateKeyPolicy::Error) {
        // Upstream lets the last of several equal keys win. So do we, but not in silence.
        Err(error) => match yaml_value(part.text, DuplicateKeyPolicy::LastWins) {
            Ok(value) => {
                warnings.push(format!("{}; the last one is used", yaml_message(&error, part.line)));
                value
            }
            Err(error) => {
                return Err(ManifestError::Syntax(format!("invalid YAML: {}", yaml_message(&error, part.line))));
            }
        },
        Ok(value) => value,
    };
    Ok(if value.is_null() { None } else { Some(Document { value, warnings }) })
}

fn yaml_value(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Value, serde_saphyr::Error> {
    // YAML 1.1 as upstream's parser has it: `yes` is a boolean and `0644` an octal number. The budget against alias
    // bombs, deep nesting and the like is the library's own.
    let options = serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        legacy_octal_numbers: true,
        strict_booleans: false,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// One line, with the line number of the whole file.
fn yaml_message(error: &serde_saphyr::Error, lines_before: u64) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    match error.location() {
        Some(location) => {
            let here = format!("line {}, column {}", location.line(), location.column());
            let there = format!("line {}, column {}", location.line() + lines_before, location.column());
            if text.contains(&here) { text.replace(&here, &there) } else { format!("{text} at {there}") }
        }
        None => text.to_owned(),
    }
}

fn decode_object(value: &Value, path: &str, document: usize, decoded: &mut Vec<Decoded>) {
    let failed = |name, error| Decoded { document: Some(document), name, pod: Err(error), warnings: Vec::new() };
    let kind_of = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a sequence",
        Value::Object(_) => "an object",
    };
    let Value::Object(fields) = value else {
        decoded.push(failed(None, ManifestError::NotAnObject(kind_of(value))));
        return;
    };
    let below = |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
    let text = |field: &str| fields.get(field).and_then(Value::as_str).unwrap_or_default();
    // Items of a PodList may leave out what the list has said; so may the items of a List, whose only use here it is.
    let in_list = !path.is_empty();
    for field in ["apiVersion", "kind"] {
        if text(field).is_empty() && !(in_list && fields.get(field).is_none_or(Value::is_null)) {
            decoded.push(failed(name_of(value), ManifestError::Untyped(below(field))));
            return;
        }
    }
    match (text("apiVersion"), text("kind")) {
        ("v1", "PodList" | "List") if !in_list => {
            let Some(items) = fields.get("items").filter(|items| !items.is_null()) else { return };
            let Value::Array(items) = items else {
                let message = format!("expected a sequence, found {}", kind_of(items));
                let error = TypeError { path: "items".to_owned(), message };
                decoded.push(failed(None, error.into()));
                return;
            };
            for (index, item) in items.iter().enumerate() {
                decode_object(item, &format!("items[{index}]"), document, decoded);
            }
        }
        ("v1" | "", "Pod" | "") => {
            let typed = decode::<Pod>(value, path);
            decoded.push(Decoded {
                document: Some(document),
                name: name_of(value),
                pod: typed.object.map_err(ManifestError::from),
                warnings: typed.unknown.iter().map(|field| format!("unknown field {field:?}")).collect(),
            });
        }
        (api_version, kind) => {
            let path = if in_list { format!("{path}: ") } else { String::new() };
            let error = ManifestError::WrongKind { path, api_version: api_version.into(), kind: kind.into() };
            decoded.push(failed(name_of(value), error));
        }
    }
}

/// `namespace/name` as written, for messages.
fn name_of(value: &Value) -> Option<String> {
    let text = |field| value.pointer(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = text("/metadata/name")?;
    Some(match text("/metadata/namespace") {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    })
}

#[cfg(test)]
mod tests;
