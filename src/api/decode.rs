//! From a JSON value to a typed object, with what serde alone does not tell: the path of the field that does not
//! fit, and the paths of those that nobody knows.
//!
//! `null` stands for "not set" wherever it appears in an object, as it does for upstream's decoder.

use std::{cell::RefCell, fmt};

use serde::{
    Deserializer,
    de::{DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Error, Value, map, value};

/// A value of the wrong type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct TypeError {
    /// `spec.containers[0].ports[0].containerPort`; empty for the object itself.
    pub path: String,
    /// `invalid type: string "http", expected i32`.
    pub message: String,
}

/// What [`decode`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Typed<T> {
    /// The object, or the first field whose type is wrong.
    pub object: Result<T, TypeError>,
    /// Paths of the fields that the type does not have, in the order of their names; complete only when `object` is Ok.
    pub unknown: Vec<String>,
}

/// Decodes `value`, whose own path is `base` (empty at the top).
pub fn decode<T: DeserializeOwned>(value: &Value, base: &str) -> Typed<T> {
    let findings = RefCell::new(Findings::default());
    let root = Path { parent: None, step: Step::Base(base) };
    let object = T::deserialize(Node { value, path: &root, findings: &findings });
    let findings = findings.into_inner();
    Typed {
        object: object.map_err(|error| TypeError {
            path: findings.failed.unwrap_or_else(|| base.to_owned()),
            message: error.to_string(),
        }),
        unknown: findings.unknown,
    }
}

/// What is noted on the way.
#[derive(Default)]
struct Findings {
    /// Innermost path at which decoding failed: the first to be noted, since errors travel outwards.
    failed: Option<String>,
    unknown: Vec<String>,
}

/// The way from the root, as a list on the stack: it costs nothing until it is written out.
pub(super) struct Path<'p> {
    /// `None` at the root.
    pub parent: Option<&'p Path<'p>>,
    /// From there to here.
    pub step: Step<'p>,
}

/// One step of a [`Path`].
pub(super) enum Step<'p> {
    /// The root's own path.
    Base(&'p str),
    /// A field of an object.
    Field(&'p str),
    /// An element of a sequence.
    Index(usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        let top = self.parent.is_some_and(|parent| matches!(parent.step, Step::Base("")));
        match self.step {
            Step::Base(base) => f.write_str(base),
            Step::Field(name) if top => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// A value and its path.
struct Node<'a> {
    value: &'a Value,
    path: &'a Path<'a>,
    findings: &'a RefCell<Findings>,
}

impl Node<'_> {
    fn note<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if result.is_err() {
            self.findings.borrow_mut().failed.get_or_insert_with(|| self.path.to_string());
        }
        result
    }
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let result = match self.value {
            Value::Object(fields) => visitor.visit_map(Fields {
                remaining: fields.iter(),
                current: None,
                path: self.path,
                findings: self.findings,
            }),
            Value::Array(items) => {
                visitor.visit_seq(Items { items, next: 0, path: self.path, findings: self.findings })
            }
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => number.deserialize_any(visitor),
            Value::String(text) => visitor.visit_str(text),
        };
        self.note(result)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let result = self.value.clone().deserialize_enum(name, variants, visitor);
        self.note(result)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.findings.borrow_mut().unknown.push(self.path.to_string());
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier
    }
}

struct Fields<'a> {
    remaining: map::Iter<'a>,
    current: Option<(&'a str, &'a Value)>,
    path: &'a Path<'a>,
    findings: &'a RefCell<Findings>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        match self.remaining.find(|(_, value)| !value.is_null()) {
            Some((name, value)) => {
                self.current = Some((name, value));
                seed.deserialize(IntoDeserializer::<Error>::into_deserializer(name.as_str())).map(Some)
            }
            None => Ok(None),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let (name, value) = self.current.take().ok_or_else(|| Error::custom("value asked for before its key"))?;
        let path = Path { parent: Some(self.path), step: Step::Field(name) };
        seed.deserialize(Node { value, path: &path, findings: self.findings })
    }
}

struct Items<'a> {
    items: &'a [Value],
    next: usize,
    path: &'a Path<'a>,
    findings: &'a RefCell<Findings>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(value) = self.items.get(self.next) else { return Ok(None) };
        let path = Path { parent: Some(self.path), step: Step::Index(self.next) };
        self.next += 1;
        seed.deserialize(Node { value, path: &path, findings: self.findings }).map(Some)
    }
}

/// An object of the API as a JSON value, whose keys are sorted.
pub fn to_value<T: serde::Serialize>(object: &T) -> Result<Value, Error> {
    value::to_value(object)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wrong_type_is_named_with_its_path() {
        for (value, message) in [
            (
                json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": "http"}]}]}}),
                r#"spec.containers[0].ports[0].containerPort: invalid type: string "http", expected i32"#,
            ),
            (
                json!({"spec": {"containers": [{"name": "a"}, {"name": 7}]}}),
                "spec.containers[1].name: invalid type: integer `7`, expected a string",
            ),
            (json!({"spec": {"containers": {}}}), "spec.containers: invalid type: map, expected a sequence"),
            (json!({"spec": []}), "spec: invalid type: sequence, expected PodSpec"),
            (
                json!({"metadata": {"labels": {"a/b": true}}}),
                "metadata.labels.a/b: invalid type: boolean `true`, expected a string",
            ),
            (json!([]), "invalid type: sequence, expected Pod"),
        ] {
            assert_eq!(decode::<Pod>(&value, "").object.unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_base_path_comes_first() {
        let value = json!({"spec": {"hostNetwork": "yes"}, "extra": 1});
        let typed = decode::<Pod>(&value, "items[3]");
        assert_eq!(typed.object.unwrap_err().path, "items[3].spec.hostNetwork");
        assert_eq!(typed.unknown, ["items[3].extra"]);
    }

    #[test]
    fn unknown_fields_are_listed_and_null_means_not_set() {
        let value = json!({
            "metadata": {"name": "a", "creationTimestamp": null},
            "spec": {"containers": [{"name": null, "imge": "x", "env": [{"name": "A", "valu": {"b": 1}}]}], "gone": null},
            "status": {},
        });
        let typed = decode::<Pod>(&value, "");
        assert_eq!(typed.unknown, ["spec.containers[0].env[0].valu", "spec.containers[0].imge"]);
        assert_eq!(typed.object.unwrap().spec.unwrap().containers[0].name, "");
    }

    #[test]
    fn quantities_may_be_numbers() {
        let value = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": 0.5, "memory": 1048576}}}]}});
        let pod = decode::<Pod>(&value, "").object.unwrap();
        let container = pod.spec.unwrap().containers.remove(0);
        let limits = container.resources.unwrap().limits.unwrap();
        assert_eq!((limits["cpu"].0.as_str(), limits["memory"].0.as_str()), ("0.5", "1048576"));
    }
}
