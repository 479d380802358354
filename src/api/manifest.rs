//! From the bytes of a manifest to pods and the objects they refer to.
//!
//! Accepted are YAML and JSON, several documents in one file, Pod (as upstream's node agent), the kinds of
//! [`ObjectKind`], and lists of both: `List` and the kind's own (`ConfigMapList`). Whatever one document holds, the
//! others are used. Decoding is lenient where upstream is (unknown and repeated fields) and says so in warnings.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

use super::{
    decode::{TypeError, decode},
    json::Written,
    object::{Object, ObjectKind},
};

/// Largest manifest read, in bytes. Upstream limits a configuration read over HTTP to 10 MiB; files get the same.
pub const MAX_BYTES: usize = 10 << 20;

/// Most documents in one manifest; keeps a file of separators from occupying anybody.
const MAX_DOCUMENTS: usize = 1024;

/// What a manifest can hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A pod.
    Pod(Box<Pod>),
    /// Something a pod may refer to.
    Object(Object),
}

/// One item of a manifest, or why there is none.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// Document within the manifest, from 0; `None` when the manifest as a whole could not be read.
    pub document: Option<usize>,
    /// `namespace/name` or `name` as written, as far as it could be made out; with its kind before it if that is known
    /// and not Pod.
    pub name: Option<String>,
    /// The item as written (nothing defaulted), or the error.
    pub item: Result<Item, ManifestError>,
    /// What was overlooked: unknown and repeated fields.
    pub warnings: Vec<String>,
}

/// Why a manifest, or one item of it, cannot be used.
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
    /// An object that is nothing for a node.
    #[error("{path}kind {kind:?} of apiVersion {api_version:?} cannot be used by a node: only {expected} can")]
    WrongKind {
        /// Empty, or where in a list it is: `items[2]: `.
        path: String,
        /// As written.
        api_version: String,
        /// As written.
        kind: String,
        /// What could be used in its place.
        expected: String,
    },
    /// A field has the wrong type.
    #[error(transparent)]
    Type(#[from] TypeError),
}

/// The kinds that can be used, for messages.
fn usable_kinds() -> String {
    let of = |version: &str| -> Vec<&str> {
        let kinds = ObjectKind::ALL.into_iter().filter(|kind| kind.api_version() == version);
        kinds.map(ObjectKind::as_str).collect()
    };
    format!(
        "v1 Pod, {}, node.k8s.io/v1 {}, storage.k8s.io/v1 {} and lists of them",
        of("v1").join(", "),
        of("node.k8s.io/v1").join(", "),
        of("storage.k8s.io/v1").join(", ")
    )
}

/// Decodes a manifest. The result has one element per item or error, in the order of the text.
pub fn decode_manifest(bytes: &[u8]) -> Vec<Decoded> {
    let whole = |error| vec![Decoded { document: None, name: None, item: Err(error), warnings: Vec::new() }];
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
                decode_object(&value, Place::TOP, index, &mut decoded);
                if let Some(first) = decoded.get_mut(first) {
                    first.warnings.splice(0..0, warnings);
                }
            }
            Err(error) => {
                decoded.push(Decoded { document: Some(index), name: None, item: Err(error), warnings: Vec::new() })
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

impl Document {
    fn of(written: Written) -> Document {
        let warning = |field: &String| format!("duplicate field {field:?}; the last one is used");
        Document { value: written.value, warnings: written.repeated.iter().map(warning).collect() }
    }
}

fn parse(text: &str) -> Result<Vec<Result<Document, ManifestError>>, ManifestError> {
    if !text.trim_start().starts_with('{') {
        return parse_yaml(text);
    }
    // What looks like JSON is read as JSON, for its speed and its messages. Flow-style YAML looks the same, so YAML has
    // the last word when JSON fails; if that fails too the author most likely meant JSON.
    let json = serde_json::Deserializer::from_str(text).into_iter::<Written>().collect::<Result<Vec<_>, _>>();
    match json {
        Ok(values) if values.len() > MAX_DOCUMENTS => Err(ManifestError::TooManyDocuments),
        Ok(values) => Ok(values.into_iter().map(|written| Ok(Document::of(written))).collect()),
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

/// Reads one document of YAML. A key that is written twice is an error.
///
/// # Errors
/// Where and why it is none, on one line.
pub fn read_yaml(text: &str) -> Result<Value, String> {
    yaml_value(text, DuplicateKeyPolicy::Error).map_err(|error| yaml_message(&error, 0))
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

/// Where in a document an object stands.
#[derive(Clone, Copy)]
struct Place<'p> {
    /// Empty at the top, `items[2]` in a list.
    path: &'p str,
    /// `apiVersion` and `kind` of an item that does not say them, and whether it must be of these.
    implied: Option<(&'p str, &'p str, bool)>,
}

impl Place<'_> {
    const TOP: Place<'static> = Place { path: "", implied: None };
}

/// The kind of the items of a list: `Ok(None)` for one of anything, `Err` if it is no list.
fn list_of<'k>(api_version: &str, kind: &'k str) -> Result<Option<&'k str>, ()> {
    match (api_version, kind.strip_suffix("List").ok_or(())?) {
        ("v1", "") => Ok(None),
        ("v1", "Pod") => Ok(Some("Pod")),
        (_, item) => ObjectKind::of(api_version, item).map(|_| Some(item)).ok_or(()),
    }
}

fn decode_object(value: &Value, place: Place<'_>, document: usize, decoded: &mut Vec<Decoded>) {
    let path = place.path;
    let failed = |name, error| Decoded { document: Some(document), name, item: Err(error), warnings: Vec::new() };
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
    for field in ["apiVersion", "kind"] {
        // An item of a list may leave out what the list says of it.
        let implied = place.implied.is_some() && fields.get(field).is_none_or(Value::is_null);
        if text(field).is_empty() && !implied {
            decoded.push(failed(name_of(value, None), ManifestError::Untyped(below(field))));
            return;
        }
    }
    let (implied_version, implied_kind, bound) = place.implied.unwrap_or_default();
    let or = |written, implied| if str::is_empty(written) { implied } else { written };
    let (api_version, kind) = (or(text("apiVersion"), implied_version), or(text("kind"), implied_kind));
    if let (Ok(item_kind), true) = (list_of(api_version, kind), path.is_empty()) {
        let Some(items) = fields.get("items").filter(|items| !items.is_null()) else { return };
        let Value::Array(items) = items else {
            let message = format!("expected a sequence, found {}", kind_of(items));
            let error = TypeError { path: "items".to_owned(), message };
            decoded.push(failed(None, error.into()));
            return;
        };
        // Items of a List should say what they are. Those that do not are pods, the only ones there used to be.
        let implied = Some((api_version, item_kind.unwrap_or("Pod"), item_kind.is_some()));
        for (index, item) in items.iter().enumerate() {
            let path = format!("items[{index}]");
            decode_object(item, Place { path: &path, implied }, document, decoded);
        }
        return;
    }
    let fits = !bound || (api_version, kind) == (implied_version, implied_kind);
    let (name, item, unknown) = match (fits, api_version, kind, ObjectKind::of(api_version, kind)) {
        (true, "v1", "Pod", _) => {
            let typed = decode::<Pod>(value, path);
            (name_of(value, None), typed.object.map(|pod| Item::Pod(Box::new(pod))), typed.unknown)
        }
        (true, _, _, Some(kind)) => {
            let typed = Object::decode(kind, value, path);
            (name_of(value, Some(kind.as_str())), typed.object.map(Item::Object), typed.unknown)
        }
        _ => {
            let path = if path.is_empty() { String::new() } else { format!("{path}: ") };
            let expected = if bound { format!("{implied_version} {implied_kind}") } else { usable_kinds() };
            let (api_version, kind) = (api_version.to_owned(), kind.to_owned());
            let name = name_of(value, Some(kind.as_str()));
            decoded.push(failed(name, ManifestError::WrongKind { path, api_version, kind, expected }));
            return;
        }
    };
    decoded.push(Decoded {
        document: Some(document),
        name,
        item: item.map_err(ManifestError::from),
        warnings: unknown.iter().map(|field| format!("unknown field {field:?}")).collect(),
    });
}

/// `namespace/name` as written, for messages, after the kind.
fn name_of(value: &Value, kind: Option<&str>) -> Option<String> {
    let text = |field| value.pointer(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = text("/metadata/name")?;
    let full_name = match text("/metadata/namespace") {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    };
    Some(match kind {
        Some(kind) => format!("{kind} {full_name}"),
        None => full_name,
    })
}

#[cfg(test)]
mod tests;
