//! What a configuration file may say, as data: each field's name, shape, default and whether berth acts on it.
//!
//! The check walks a document along this table and reports everything that is wrong with it at once.

use super::{
    document::{Node, Origin, Value},
    values::{parse_bytes, parse_duration},
};

/// The shape of a value.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// true or false.
    Bool,
    /// A whole number within bounds, both included.
    Integer(i64, i64),
    /// Any number.
    Number,
    /// Text.
    Text,
    /// Text, one of these.
    OneOf(&'static [&'static str]),
    /// `20s`.
    Duration,
    /// `20s`, or a number of nanoseconds (the logging API's `flushFrequency`).
    DurationOrNanoseconds,
    /// `10Mi`, or a plain number.
    Quantity,
    /// A list.
    List(&'static Shape),
    /// A mapping with free keys.
    Map(&'static Shape),
    /// A mapping with these keys.
    Object(&'static [Field]),
    /// Whatever it is, it is accepted (a field whose shape is still alpha upstream).
    Any,
}

/// Whether a field does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// berth acts on it.
    Used,
    /// Accepted but not implemented: named in the warning at start unless its value is what happens anyway.
    Later,
    /// Accepted and without effect, because it configures something that does not exist here at all.
    Idle,
}

/// A constant of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Literal {
    /// No default.
    Unset,
    /// A boolean.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Text.
    Text(&'static str),
}

impl Literal {
    /// The literal as a value.
    pub fn to_value(self) -> Option<Value> {
        match self {
            Literal::Unset => None,
            Literal::Bool(value) => Some(Value::Bool(value)),
            Literal::Integer(value) => Some(Value::Integer(value)),
            Literal::Text(value) => Some(Value::Text(value.to_owned())),
        }
    }
}

/// One field.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name in the file.
    pub name: &'static str,
    /// What it holds.
    pub shape: Shape,
    /// Its default; for a field that is not implemented, the value that is no reason to warn.
    pub default: Literal,
    /// Does it do something?
    pub support: Support,
    /// A zero, empty or `0s` value counts as not written. Upstream's fields that are no pointers behave so, and
    /// generated files are full of `0s`.
    pub zero_is_unset: bool,
}

/// A field that is acted on.
pub const fn used(name: &'static str, shape: Shape, default: Literal) -> Field {
    Field { name, shape, default, support: Support::Used, zero_is_unset: false }
}

/// A field that is acted on, whose zero value means its default.
pub const fn used_unless_zero(name: &'static str, shape: Shape, default: Literal) -> Field {
    Field { name, shape, default, support: Support::Used, zero_is_unset: true }
}

/// A field that is accepted and not implemented; `harmless` is what berth does anyway.
pub const fn later(name: &'static str, shape: Shape, harmless: Literal) -> Field {
    Field { name, shape, default: harmless, support: Support::Later, zero_is_unset: true }
}

/// A field without effect.
pub const fn idle(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, default: Literal::Unset, support: Support::Idle, zero_is_unset: true }
}

/// An object whose fields say for themselves what they do.
pub const fn object(name: &'static str, fields: &'static [Field]) -> Field {
    Field { name, shape: Shape::Object(fields), default: Literal::Unset, support: Support::Used, zero_is_unset: false }
}

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it was written.
    pub origin: Origin,
    /// Dotted path of the field; empty when the whole file is meant.
    pub path: String,
    /// One line.
    pub message: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.origin, self.path.as_str()) {
            (origin, "") => write!(f, "{origin}: {}", self.message),
            // A flag names its field well enough.
            (origin @ Origin::Flag(_), _) => write!(f, "{origin}: {}", self.message),
            (origin, path) => write!(f, "{origin}: {path}: {}", self.message),
        }
    }
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Reasons to refuse the configuration.
    pub mistakes: Vec<Mistake>,
}

impl Findings {
    /// Notes a mistake.
    pub fn mistake(&mut self, node: &Node, path: &str, message: impl Into<String>) {
        let mistake = Mistake { origin: node.origin.clone(), path: path.to_owned(), message: message.into() };
        // The same value may be looked at twice (as part of its file and as part of the whole).
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }
}

/// Checks the fields of `node`, the object at `path` (empty at the top).
pub fn check_object(node: &Node, fields: &[Field], path: &str, findings: &mut Findings) {
    let Value::Map(entries) = &node.value else {
        findings.mistake(node, path, format!("expected a mapping, found {}", node.value.describe()));
        return;
    };
    for (name, value) in entries {
        let inner = join(path, name);
        match fields.iter().find(|field| field.name == name) {
            Some(field) => check(value, &field.shape, &inner, findings),
            None => findings.mistake(value, &inner, unknown(name, fields)),
        }
    }
}

fn unknown(name: &str, fields: &[Field]) -> String {
    match fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)) {
        Some(field) => format!("unknown field, did you mean {}?", field.name),
        None => "unknown field".to_owned(),
    }
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        _ => format!("{path}.{name}"),
    }
}

fn check(node: &Node, shape: &Shape, path: &str, findings: &mut Findings) {
    let expected = |what: &str| Some(format!("expected {what}, found {}", node.value.describe()));
    let message = match (shape, &node.value) {
        // Null is "not written" everywhere, as upstream.
        (_, Value::Null) | (Shape::Any, _) => None,
        (Shape::Bool, Value::Bool(_)) => None,
        (Shape::Bool, _) => expected("true or false"),
        (Shape::Integer(low, high), Value::Integer(value)) if value < low || value > high => match *high {
            i64::MAX => Some(format!("must be at least {low}, found {value}")),
            high => Some(format!("must be between {low} and {high}, found {value}")),
        },
        (Shape::Integer(..), Value::Integer(_)) => None,
        (Shape::Integer(..), _) => expected("a whole number"),
        (Shape::Number, Value::Integer(_) | Value::Float(_)) => None,
        (Shape::Number, _) => expected("a number"),
        (Shape::Text, Value::Text(_)) => None,
        (Shape::Text, _) => expected("text"),
        (Shape::OneOf(values), Value::Text(text)) if text.is_empty() || values.contains(&text.as_str()) => None,
        (Shape::OneOf(values), Value::Text(_)) => expected(&format!("one of {}", values.join(", "))),
        (Shape::OneOf(_), _) => expected("text"),
        (Shape::DurationOrNanoseconds, Value::Integer(_)) => None,
        (Shape::Duration | Shape::DurationOrNanoseconds, Value::Text(text)) => parse_duration(text).err(),
        (Shape::Duration | Shape::DurationOrNanoseconds, _) => expected("a duration like 20s or 1m30s"),
        (Shape::Quantity, Value::Integer(value)) if *value >= 0 => None,
        (Shape::Quantity, Value::Text(text)) if text.is_empty() => None,
        (Shape::Quantity, Value::Text(text)) => parse_bytes(text).err(),
        (Shape::Quantity, _) => expected("a quantity like 10Mi"),
        (Shape::List(inner), Value::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                check(item, inner, &format!("{path}[{index}]"), findings);
            }
            None
        }
        (Shape::List(_), _) => expected("a list"),
        (Shape::Map(inner), Value::Map(entries)) => {
            for (key, item) in entries {
                check(item, inner, &format!("{path}[{key}]"), findings);
            }
            None
        }
        (Shape::Object(fields), Value::Map(_)) => {
            check_object(node, fields, path, findings);
            None
        }
        (Shape::Map(_) | Shape::Object(_), _) => expected("a mapping"),
    };
    if let Some(message) = message {
        findings.mistake(node, path, message);
    }
}

/// Takes out what counts as not written, so that defaults apply.
pub fn drop_zeroes(node: &mut Node, fields: &[Field]) {
    let Value::Map(entries) = &mut node.value else { return };
    entries.retain_mut(|(name, value)| {
        let Some(field) = fields.iter().find(|field| field.name == name) else { return true };
        if let Shape::Object(inner) = field.shape {
            drop_zeroes(value, inner);
        }
        !(value.value == Value::Null || (field.zero_is_unset && is_zero(&value.value)))
    });
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Integer(value) => *value == 0,
        Value::Float(value) => *value == 0.0,
        Value::Text(text) => {
            text.is_empty() || text == "0" || parse_duration(text).is_ok_and(|duration| duration.is_zero())
        }
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.iter().all(|(_, node)| is_zero(&node.value)),
    }
}

/// Paths of the fields that were written, are not implemented, and ask for something else than what happens anyway.
pub fn not_implemented(node: &Node, fields: &[Field], path: &str, names: &mut Vec<String>) {
    let Value::Map(entries) = &node.value else { return };
    for (name, value) in entries {
        let Some(field) = fields.iter().find(|field| field.name == name) else { continue };
        let inner = join(path, name);
        match (field.support, field.shape) {
            (Support::Used, Shape::Object(fields)) => not_implemented(value, fields, &inner, names),
            (Support::Later, _) if is_zero(&value.value) => {}
            (Support::Later, shape) if !same(&value.value, field.default, shape) => names.push(inner),
            _ => {}
        }
    }
}

fn same(value: &Value, literal: Literal, shape: Shape) -> bool {
    match (value, literal, shape) {
        (Value::Text(text), Literal::Text(default), Shape::Duration) => parse_duration(text) == parse_duration(default),
        (value, literal, _) => literal.to_value().as_ref() == Some(value),
    }
}

/// A leaf of the effective configuration.
#[derive(Debug, Clone)]
pub struct Effective {
    /// Dotted path.
    pub path: String,
    /// The value in force.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
    /// berth acts on it.
    pub used: bool,
}

/// Everything that is in force: each implemented field (with its default where nothing was written) and each other
/// field that was written.
pub fn effective(node: &Node, fields: &[Field], path: &str, out: &mut Vec<Effective>) {
    for field in fields {
        let inner = join(path, field.name);
        let written = node.get(field.name);
        match (field.shape, field.support, written) {
            (Shape::Object(fields), Support::Used, _) => {
                effective(written.unwrap_or(&Node::empty()), fields, &inner, out);
            }
            (_, support, Some(node)) => out.push(Effective {
                path: inner,
                value: node.value.clone(),
                origin: node.origin.clone(),
                used: support == Support::Used,
            }),
            (_, Support::Used, None) => {
                if let Some(value) = field.default.to_value() {
                    out.push(Effective { path: inner, value, origin: Origin::Default, used: true });
                }
            }
            _ => {}
        }
    }
}
