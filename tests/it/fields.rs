//! The fields of an API type, as the crate that defines it lists them. Its `Deserialize` names the fields of each
//! structure before it is given any: a deserializer that writes these names down, and has a value for everything,
//! sees the whole type. No schema has to be built, and none can be out of date.

use std::fmt;

use serde::{
    Deserialize,
    de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value, json};

/// What a type consists of.
#[derive(Debug, Clone, Default)]
pub enum Shape {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// A value without parts, and an example of it.
    Leaf(Value),
    /// Fields by their names.
    Struct(Vec<(&'static str, Shape)>),
    /// A list of these.
    List(Box<Shape>),
    /// These by keys of the user's choice. (An example has the key `cpu`: most of those with a meaning are resources.)
    Map(Box<Shape>),
}

impl Shape {
    /// The shape of a type.
    pub fn of<T: DeserializeOwned>() -> Shape {
        let mut shape = Shape::default();
        T::deserialize(Recorder { shape: &mut shape, name: "" }).expect("a value for every field");
        shape
    }

    /// Paths of all fields, those within fields after them: `volumes`, `volumes.name`. Lists and maps add nothing to a
    /// path. With each whether it has fields of its own.
    pub fn paths(&self) -> Vec<(String, bool)> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, path: &str, paths: &mut Vec<(String, bool)>) {
        match self {
            Shape::Unknown | Shape::Leaf(_) => {}
            Shape::List(inner) | Shape::Map(inner) => inner.collect(path, paths),
            Shape::Struct(fields) => {
                for (name, shape) in fields {
                    let path = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
                    paths.push((path.clone(), shape.has_fields()));
                    shape.collect(&path, paths);
                }
            }
        }
    }

    fn has_fields(&self) -> bool {
        match self {
            Shape::Unknown | Shape::Leaf(_) => false,
            Shape::List(inner) | Shape::Map(inner) => inner.has_fields(),
            Shape::Struct(fields) => !fields.is_empty(),
        }
    }

    /// A value in which nothing is set but the field at this path, with everything within it, and what leads to it.
    pub fn only(&self, path: &str) -> Value {
        match self {
            Shape::Unknown => Value::Null,
            Shape::Leaf(example) => example.clone(),
            Shape::List(inner) => json!([inner.only(path)]),
            Shape::Map(inner) => json!({ "cpu": inner.only(path) }),
            Shape::Struct(fields) if path.is_empty() => {
                Value::Object(fields.iter().map(|(name, shape)| ((*name).to_owned(), shape.only(""))).collect())
            }
            Shape::Struct(fields) => {
                let (first, rest) = path.split_once('.').unwrap_or((path, ""));
                let (name, shape) = fields.iter().find(|(name, _)| *name == first).expect("a path of this type");
                Value::Object(Map::from_iter([((*name).to_owned(), shape.only(rest))]))
            }
        }
    }
}

/// Writes down what it is asked for.
struct Recorder<'a> {
    shape: &'a mut Shape,
    /// Of the type around it, which says what its text means.
    name: &'static str,
}

/// A deserializer that never fails but for what a type says itself.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

impl serde::de::Error for Refusal {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Refusal(message.to_string())
    }
}

impl<'de> Deserializer<'de> for Recorder<'_> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        *self.shape = Shape::Leaf(json!("1"));
        visitor.visit_str("1")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        *self.shape = Shape::Leaf(json!(true));
        visitor.visit_bool(true)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        *self.shape = Shape::Leaf(json!(1));
        visitor.visit_i32(1)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        *self.shape = Shape::Leaf(json!(1));
        visitor.visit_i64(1)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let text = if self.name == "Time" { "2006-01-02T15:04:05Z" } else { "text" };
        *self.shape = Shape::Leaf(json!(text));
        visitor.visit_str(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(Recorder { shape: self.shape, name })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let mut inner = Shape::default();
        let value = visitor.visit_seq(One { shape: Some(&mut inner) })?;
        *self.shape = Shape::List(Box::new(inner));
        Ok(value)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let mut inner = Shape::default();
        let value = visitor.visit_map(One { shape: Some(&mut inner) })?;
        *self.shape = Shape::Map(Box::new(inner));
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let mut found = Vec::new();
        let value = visitor.visit_map(Fields { left: fields.iter(), found: &mut found })?;
        *self.shape = Shape::Struct(found);
        Ok(value)
    }

    forward_to_deserialize_any! {
        i8 i16 u8 u16 u32 u64 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
        ignored_any
    }
}

/// A list or a map with one entry.
struct One<'a> {
    shape: Option<&'a mut Shape>,
}

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        self.shape.take().map(|shape| seed.deserialize(Recorder { shape, name: "" })).transpose()
    }
}

impl<'de> MapAccess<'de> for One<'_> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refusal> {
        if self.shape.is_none() {
            return Ok(None);
        }
        seed.deserialize(Recorder { shape: &mut Shape::default(), name: "" }).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refusal> {
        let shape = self.shape.take().ok_or_else(|| Refusal::custom("a value without a key"))?;
        seed.deserialize(Recorder { shape, name: "" })
    }
}

/// Every field of a structure, once.
struct Fields<'a> {
    left: std::slice::Iter<'static, &'static str>,
    found: &'a mut Vec<(&'static str, Shape)>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refusal> {
        let Some(name) = self.left.next() else { return Ok(None) };
        self.found.push((name, Shape::default()));
        seed.deserialize(serde::de::value::StrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refusal> {
        let (_, shape) = self.found.last_mut().ok_or_else(|| Refusal::custom("a value without a key"))?;
        seed.deserialize(Recorder { shape, name: "" })
    }
}

#[test]
fn a_shape_has_every_field_and_can_be_filled_in() {
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its names are of interest")]
    struct Outer {
        list: Option<Vec<Inner>>,
        map: std::collections::BTreeMap<String, i64>,
    }
    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its names are of interest")]
    struct Inner {
        yes: bool,
        word: String,
    }
    let shape = Shape::of::<Outer>();
    let paths: Vec<String> = shape.paths().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["list", "list.yes", "list.word", "map"]);
    assert_eq!(shape.only("list.word"), json!({ "list": [{ "word": "text" }] }));
    assert_eq!(shape.only("list"), json!({ "list": [{ "yes": true, "word": "text" }] }));
    assert_eq!(shape.only("map"), json!({ "map": { "cpu": 1 } }));
}
