//! The table of messages: made by `integration/wire-table.py`, read when the first object comes in protobuf.

use std::{collections::HashMap, sync::LazyLock};

use super::WireError;

/// A line for each message: its name, then `field:number:form` for each field.
const TABLE: &str = include_str!("table.txt");

/// What a field holds, and how that looks in JSON.
#[derive(Debug, PartialEq, Eq)]
pub enum Form {
    /// A string.
    Text,
    /// Bytes; base64 in JSON.
    Bytes,
    /// `true` or `false`.
    Bool,
    /// A number.
    Integer,
    /// A message of the table.
    Message(&'static str),
    /// Seconds and nanoseconds; RFC 3339 in JSON, to the second.
    Time,
    /// The same, to the microsecond.
    MicroTime,
    /// A quantity.
    Quantity,
    /// A number or a string.
    IntOrString,
    /// JSON.
    Fields,
    /// A list of strings in a message of its own.
    Items,
}

/// A field of a message.
#[derive(Debug)]
pub struct MessageField {
    /// Its name in JSON; empty: its fields are those of the object around it.
    pub name: &'static str,
    /// Its number.
    pub number: u32,
    /// Whether there may be several.
    pub repeated: bool,
    /// Whether it is a map, by strings.
    pub is_map: bool,
    /// What it holds.
    pub form: Form,
}

/// A message.
#[derive(Debug)]
pub struct Message {
    /// `core/v1.pod`.
    pub name: &'static str,
    /// Its fields.
    pub fields: Vec<MessageField>,
}

/// All messages, by name.
pub static MESSAGES: LazyLock<HashMap<&'static str, Message>> =
    LazyLock::new(|| TABLE.lines().filter_map(parse).map(|message| (message.name, message)).collect());

fn parse(line: &'static str) -> Option<Message> {
    let mut words = line.split(' ');
    let name = words.next()?;
    Some(Message { name, fields: words.filter_map(field).collect() })
}

fn field(word: &'static str) -> Option<MessageField> {
    let mut parts = word.splitn(3, ':');
    let (name, number, form) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
    let (is_map, form) = form.strip_prefix('e').map_or((false, form), |form| (true, form));
    let (repeated, form) = form.strip_prefix('*').map_or((false, form), |form| (true, form));
    let form = match form.split_at_checked(1)? {
        ("s", _) => Form::Text,
        ("y", _) => Form::Bytes,
        ("b", _) => Form::Bool,
        ("i", _) => Form::Integer,
        ("T", _) => Form::Time,
        ("M", _) => Form::MicroTime,
        ("Q", _) => Form::Quantity,
        ("I", _) => Form::IntOrString,
        ("F", _) => Form::Fields,
        ("L", _) => Form::Items,
        ("m", name) => Form::Message(name),
        _ => return None,
    };
    Some(MessageField { name, number, repeated, is_map, form })
}

/// A message by its name.
///
/// # Errors
/// The table has none, which a test rules out.
pub fn message(name: &str) -> Result<&'static Message, WireError> {
    MESSAGES.get(name).ok_or(WireError::Malformed("the table of messages"))
}

/// The message of a type.
pub fn root(api_version: &str, kind: &str) -> Option<&'static Message> {
    if kind == "DeleteOptions" {
        return MESSAGES.get("meta/v1.deleteoptions");
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let group = group.split('.').next().unwrap_or_default();
    MESSAGES.get(format!("{group}/{version}.{}", kind.to_lowercase()).as_str())
}
