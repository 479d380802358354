//! Kubernetes' protobuf encoding of objects, as far as clients send it: kubectl since 1.32 and every upstream component do,
//! and all of them read JSON. So bodies are understood and answers are JSON.
//!
//! An object comes in an envelope (`runtime.Unknown` behind the magic `k8s\0`). It is turned into the JSON value it stands
//! for by a table of the messages' fields; nothing of what follows differs.

mod reader;
mod table;
#[cfg(test)]
mod tests;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use self::{
    reader::{Field, Reader},
    table::{Form, Message},
};

/// The media type.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting of messages; the API's types have a fifth of that.
const DEEPEST: usize = 64;

/// A body that is not what its media type says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It is something else.
    #[error("provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}")]
    Magic,
    /// It breaks off or is malformed.
    #[error("the protobuf message is malformed in {0}")]
    Malformed(&'static str),
    /// Nobody knows such objects here.
    #[error("no kind {kind:?} is known for version {api_version:?} in protobuf")]
    Unknown {
        /// `apps/v1`.
        api_version: String,
        /// `Deployment`.
        kind: String,
    },
    /// It is nested deeper than any object is.
    #[error("the protobuf message is nested too deeply")]
    Deep,
    /// Compressed, or not protobuf inside.
    #[error("content in {0:?} is not understood")]
    Content(String),
}

/// Reads an object in its envelope.
///
/// # Errors
/// See [`WireError`].
pub fn decode(bytes: &[u8]) -> Result<Value, WireError> {
    let bytes = bytes.strip_prefix(MAGIC).ok_or(WireError::Magic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &bytes[..0]);
    let mut envelope = Reader::new(bytes, "the envelope");
    while let Some((number, field)) = envelope.next()? {
        match (number, field) {
            (1, Field::Bytes(meta)) => {
                let mut meta = Reader::new(meta, "the type");
                while let Some((number, field)) = meta.next()? {
                    match (number, field) {
                        (1, Field::Bytes(text)) => api_version = string(text, "the type")?,
                        (2, Field::Bytes(text)) => kind = string(text, "the type")?,
                        _ => {}
                    }
                }
            }
            (2, Field::Bytes(content)) => raw = content,
            (3 | 4, Field::Bytes(text)) if !text.is_empty() => {
                let content = string(text, "the envelope")?;
                if content != PROTOBUF {
                    return Err(WireError::Content(content));
                }
            }
            _ => {}
        }
    }
    let unknown = || WireError::Unknown { api_version: api_version.clone(), kind: kind.clone() };
    let message = table::root(&api_version, &kind).ok_or_else(unknown)?;
    let mut object = Map::new();
    read(message, raw, &mut object, DEEPEST)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

fn string(bytes: &[u8], of: &'static str) -> Result<String, WireError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| WireError::Malformed(of))
}

/// Adds the fields of a message to an object.
fn read(
    message: &'static Message,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), WireError> {
    let depth = depth.checked_sub(1).ok_or(WireError::Deep)?;
    let mut reader = Reader::new(bytes, message.name);
    while let Some((number, found)) = reader.next()? {
        // A field of a later version: what the type does not have could not be kept anyway.
        let Some(field) = message.fields.iter().find(|field| field.number == number) else { continue };
        if field.name.is_empty() {
            // A structure whose fields are those of the object around it.
            if let (Form::Message(inner), Field::Bytes(bytes)) = (&field.form, &found) {
                read(table::message(inner)?, bytes, object, depth)?;
            }
            continue;
        }
        if field.is_map {
            let (key, value) = entry(&field.form, found, message.name, depth)?;
            let map = object.entry(field.name).or_insert_with(|| json!({}));
            map[key] = value;
            continue;
        }
        let Some(value) = value(&field.form, found, message.name, depth)? else { continue };
        if field.repeated {
            match object.entry(field.name).or_insert_with(|| json!([])) {
                Value::Array(list) => list.push(value),
                // The first of a field decides its form, which is always the same.
                _ => return Err(WireError::Malformed(message.name)),
            }
        } else if is_unset(message, field.name, &value) {
            object.remove(field.name);
        } else {
            object.insert(field.name.to_owned(), value);
        }
    }
    Ok(())
}

fn entry(form: &Form, found: Field<'_>, of: &'static str, depth: usize) -> Result<(String, Value), WireError> {
    let Field::Bytes(bytes) = found else { return Err(WireError::Malformed(of)) };
    let (mut key, mut content) = (String::new(), None);
    let mut reader = Reader::new(bytes, of);
    while let Some((number, field)) = reader.next()? {
        match (number, field) {
            (1, Field::Bytes(text)) => key = string(text, of)?,
            (2, field) => content = value(form, field, of, depth)?,
            _ => {}
        }
    }
    // What is empty is not written.
    let empty = match form {
        Form::Integer => 0.into(),
        Form::Bool => false.into(),
        Form::Items => json!([]),
        _ => "".into(),
    };
    Ok((key, content.unwrap_or(empty)))
}

/// `None`: a time that is not set.
fn value(form: &Form, found: Field<'_>, of: &'static str, depth: usize) -> Result<Option<Value>, WireError> {
    Ok(Some(match (form, found) {
        (Form::Text, Field::Bytes(bytes)) => string(bytes, of)?.into(),
        (Form::Bytes, Field::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Form::Bool, Field::Varint(number)) => (number != 0).into(),
        // Two's complement in 64 bits, whatever the size of the field.
        (Form::Integer, Field::Varint(number)) => number.cast_signed().into(),
        (Form::Message(name), Field::Bytes(bytes)) => {
            let mut object = Map::new();
            read(table::message(name)?, bytes, &mut object, depth)?;
            Value::Object(object)
        }
        (Form::Time | Form::MicroTime, Field::Bytes(bytes)) => {
            let [seconds, nanos] = numbers(bytes, of)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let nanos = if matches!(form, Form::Time) { 0 } else { nanos - nanos % 1000 };
            let nanos = i32::try_from(nanos).map_err(|_| WireError::Malformed(of))?;
            let time = Timestamp::new(seconds, nanos).map_err(|_| WireError::Malformed(of))?;
            let digits = if matches!(form, Form::Time) { 0 } else { 6 };
            format!("{time:.digits$}").into()
        }
        (Form::Quantity, Field::Bytes(bytes)) => first_text(bytes, 1, of)?.into(),
        (Form::IntOrString, Field::Bytes(bytes)) => {
            let [kind, number] = numbers(bytes, of)?;
            if kind == 0 { number.into() } else { first_text(bytes, 3, of)?.into() }
        }
        (Form::Fields, Field::Bytes(bytes)) => {
            let raw = first_text(bytes, 1, of)?;
            serde_json::from_str(&raw).map_err(|_| WireError::Malformed(of))?
        }
        (Form::Items, Field::Bytes(bytes)) => {
            let mut items = Vec::new();
            let mut reader = Reader::new(bytes, of);
            while let Some((number, field)) = reader.next()? {
                if let (1, Field::Bytes(text)) = (number, field) {
                    items.push(Value::String(string(text, of)?));
                }
            }
            items.into()
        }
        _ => return Err(WireError::Malformed(of)),
    }))
}

/// The first two fields of a message of numbers.
fn numbers(bytes: &[u8], of: &'static str) -> Result<[i64; 2], WireError> {
    let mut numbers = [0; 2];
    let mut reader = Reader::new(bytes, of);
    while let Some((number, field)) = reader.next()? {
        if let (1 | 2, Field::Varint(value)) = (number, field) {
            numbers[number as usize - 1] = value.cast_signed();
        }
    }
    Ok(numbers)
}

fn first_text(bytes: &[u8], wanted: u32, of: &'static str) -> Result<String, WireError> {
    let mut found = String::new();
    let mut reader = Reader::new(bytes, of);
    while let Some((number, field)) = reader.next()? {
        if let (true, Field::Bytes(text)) = (number == wanted, field) {
            found = string(text, of)?;
        }
    }
    Ok(found)
}

/// Whether a value stands for "not set". The encoding writes fields that are no pointers whatever is in them, and leaves
/// out pointers to nothing; which field is which it does not say. Empty text means "not set" but where it is a choice of its
/// own; a zero is kept but where the API has no pointer and takes zero for "not set".
fn is_unset(message: &Message, field: &str, value: &Value) -> bool {
    match value {
        Value::String(text) if text.is_empty() => !matches!(
            (message.name, field),
            (_, "storageClassName" | "volumeAttributesClassName")
                | ("discovery/v1.endpointport", "name")
                | ("core/v1.envvar", _)
        ),
        Value::Number(number) if number.as_i64() == Some(0) => {
            matches!(
                field,
                "hostPort"
                    | "nodePort"
                    | "healthCheckNodePort"
                    | "generation"
                    | "observedGeneration"
                    | "minReadySeconds"
                    | "initialDelaySeconds"
                    | "timeoutSeconds"
                    | "periodSeconds"
                    | "successThreshold"
                    | "failureThreshold"
            ) && message.name != "core/v1.clientipconfig"
        }
        Value::Bool(false) => matches!(
            field,
            "hostNetwork"
                | "hostPID"
                | "hostIPC"
                | "stdin"
                | "stdinOnce"
                | "tty"
                | "readOnly"
                | "publishNotReadyAddresses"
                | "paused"
                | "unschedulable"
                | "globalDefault"
        ),
        Value::Object(fields) => fields.is_empty() && matches!(field, "status" | "resources" | "metadata"),
        _ => false,
    }
}
