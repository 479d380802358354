//! Configuration as a tree in which every value knows where it was written.
//!
//! Files, drop-ins and flags all become such trees; merging them keeps the origins, so that a mistake can name its
//! line and `berth check-config` can say where a value came from.

use std::{fmt, path::Path, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// On the command line: `--max-pods`.
    Flag(&'static str),
    /// In a file.
    File {
        /// The file.
        path: Arc<Path>,
        /// Line from 1; 0 when it is not known.
        line: u64,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Flag(flag) => f.write_str(flag),
            Origin::File { path, line: 0 } => write!(f, "{}", path.display()),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// A value and its origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it was written.
    pub origin: Origin,
}

/// What YAML and JSON can say.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing: as if the field were not there; in a drop-in it takes back what came before.
    Null,
    /// true, false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order in which it was written.
    Map(Vec<(String, Node)>),
}

impl Value {
    /// How the value is called in messages.
    pub fn describe(&self) -> String {
        match self {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Integer(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(value) => format!("{value:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }

    /// The same as JSON, for output.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Integer(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text(value) => value.clone().into(),
            Value::List(list) => list.iter().map(|node| node.value.to_json()).collect(),
            Value::Map(map) => {
                serde_json::Value::Object(map.iter().map(|(key, node)| (key.clone(), node.value.to_json())).collect())
            }
        }
    }
}

impl Node {
    /// An empty mapping without an origin: what everything is merged into.
    pub fn empty() -> Node {
        Node { value: Value::Map(Vec::new()), origin: Origin::Default }
    }

    /// The field `name` of a mapping; `None` also when it is null.
    pub fn get(&self, name: &str) -> Option<&Node> {
        let Value::Map(fields) = &self.value else { return None };
        let (_, node) = fields.iter().find(|(key, _)| key == name)?;
        (node.value != Value::Null).then_some(node)
    }

    /// The node at a dotted path.
    pub fn at(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, name| node.get(name))
    }

    /// Puts `node` at a dotted path, making mappings on the way.
    pub fn set(&mut self, path: &str, node: Node) {
        let (name, rest) = match path.split_once('.') {
            Some((name, rest)) => (name, Some(rest)),
            None => (path, None),
        };
        if !matches!(self.value, Value::Map(_)) {
            self.value = Value::Map(Vec::new());
        }
        let Value::Map(fields) = &mut self.value else { return };
        let index = fields.iter().position(|(key, _)| key == name).unwrap_or_else(|| {
            fields.push((name.to_owned(), Node { value: Value::Null, origin: node.origin.clone() }));
            fields.len() - 1
        });
        match rest {
            Some(rest) => fields[index].1.set(rest, node),
            None => fields[index].1 = node,
        }
    }

    /// Lays `over` on top, as a JSON merge patch (RFC 7386, which is also how the kubelet applies drop-ins): mappings
    /// merge field by field, null takes a field away, anything else replaces.
    pub fn merge(&mut self, over: Node) {
        match (&mut self.value, over.value) {
            (Value::Map(fields), Value::Map(over_fields)) => {
                for (name, node) in over_fields {
                    let index = fields.iter().position(|(key, _)| *key == name);
                    match (index, &node.value) {
                        (Some(index), Value::Null) => {
                            fields.remove(index);
                        }
                        (None, Value::Null) => {}
                        (Some(index), _) => fields[index].1.merge(node),
                        (None, _) => fields.push((name, node)),
                    }
                }
            }
            (value, over_value) => {
                *value = over_value;
                self.origin = over.origin;
            }
        }
    }
}

/// A file that is not YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// Line from 1; 0 when it is not known.
    pub line: u64,
    /// One line.
    pub message: String,
}

/// Reads every document of a YAML or JSON text (the one is a subset of the other). Empty documents are left out.
pub fn parse(text: &str, path: &Arc<Path>) -> Result<Vec<Node>, SyntaxError> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Raw>> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let message = error.without_snippet().to_string().lines().next().unwrap_or_default().to_owned();
        SyntaxError { line, message }
    })?;
    Ok(documents.into_iter().map(|raw| locate(raw, path)).filter(|node| node.value != Value::Null).collect())
}

fn locate(raw: Spanned<Raw>, path: &Arc<Path>) -> Node {
    let line = raw.referenced.line();
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Bool(value),
        Raw::Integer(value) => Value::Integer(value),
        Raw::Float(value) => Value::Float(value),
        Raw::Text(value) => Value::Text(value),
        Raw::List(list) => Value::List(list.into_iter().map(|raw| locate(raw, path)).collect()),
        Raw::Map(map) => Value::Map(
            map.into_iter()
                .map(|(key, raw)| {
                    // A mapping below a key begins one line further down; the key's line is the one to look at.
                    let line = key.referenced.line();
                    let mut node = locate(raw, path);
                    node.origin = Origin::File { path: path.clone(), line };
                    (key.value, node)
                })
                .collect(),
        ),
    };
    Node { value, origin: Origin::File { path: path.clone(), line } }
}

/// A value as the parser hands it over.
enum Raw {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        // No field holds a number beyond i64; as a float it is refused with its value in the message.
        Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = access.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = access.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Node> {
        parse(text, &Arc::from(Path::new("f.yaml"))).unwrap()
    }

    #[test]
    fn values_keep_their_lines() {
        let documents = read("a: 1\nb:\n  c: [x, 2.5]\n---\n---\nd: 0644\ne: \"12\"\n");
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].at("b.c").unwrap().origin.to_string(), "f.yaml:3");
        assert_eq!(documents[0].at("a").unwrap().value, Value::Integer(1));
        assert_eq!(documents[1].at("d").unwrap().value, Value::Integer(0o644));
        assert_eq!(documents[1].at("e").unwrap().value, Value::Text("12".to_owned()));
        assert_eq!(documents[1].at("e").unwrap().origin.to_string(), "f.yaml:7");
    }

    #[test]
    fn json_is_read_too() {
        let documents = read("{\"a\": {\"b\": [true, null]},\n \"c\": \"x\"}");
        assert_eq!(documents[0].value.to_json().to_string(), r#"{"a":{"b":[true,null]},"c":"x"}"#);
        assert_eq!(documents[0].at("c").unwrap().origin.to_string(), "f.yaml:2");
    }

    #[test]
    fn a_repeated_key_and_broken_text_are_refused_with_their_line() {
        let path = Arc::from(Path::new("f.yaml"));
        assert_eq!(parse("a: 1\nb: 2\na: 3\n", &path).unwrap_err().line, 3);
        assert_eq!(parse("{\"a\":1,\n\"a\":2}", &path).unwrap_err().line, 2);
        assert!(parse("a: [1\nb: 2\n", &path).is_err());
    }

    #[test]
    fn merging_is_by_field_replaces_lists_and_null_takes_away() {
        let mut base = read("a: {b: 1, c: 2}\nl: [1, 2]\nn: x\n").remove(0);
        base.merge(read("a: {c: 3}\nl: [9]\nn: null\n").remove(0));
        assert_eq!(base.value.to_json().to_string(), r#"{"a":{"b":1,"c":3},"l":[9]}"#);
    }

    #[test]
    fn setting_a_path_makes_the_mappings_on_the_way() {
        let mut node = Node::empty();
        node.set("a.b", Node { value: Value::Integer(1), origin: Origin::Flag("--b") });
        node.set("a.c", Node { value: Value::Integer(2), origin: Origin::Flag("--c") });
        assert_eq!(node.at("a.b").unwrap().origin, Origin::Flag("--b"));
        assert_eq!(node.at("a.c").unwrap().value, Value::Integer(2));
    }
}
