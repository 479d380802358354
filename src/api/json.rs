//! JSON as it was written: as a value, and which keys of it were written more than once.

use std::{cell::RefCell, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use super::decode::{Path, Step};

/// A value with the paths of its repeated keys, of which the last one is in the value, as upstream has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// The value.
    pub value: Value,
    /// `spec.containers[0].image`, in the order of the text.
    pub repeated: Vec<String>,
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Written, D::Error> {
        let repeated = RefCell::new(Vec::new());
        let root = Path { parent: None, step: Step::Base("") };
        let value = Node { path: &root, repeated: &repeated }.deserialize(deserializer)?;
        Ok(Written { value, repeated: repeated.into_inner() })
    }
}

/// Where in the value we are, and what was found so far.
#[derive(Clone, Copy)]
struct Node<'a> {
    path: &'a Path<'a>,
    repeated: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let path = Path { parent: Some(self.path), step: Step::Index(list.len()) };
            match items.next_element_seed(Node { path: &path, ..self })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let path = Path { parent: Some(self.path), step: Step::Field(&key) };
            if map.contains_key(&key) {
                self.repeated.borrow_mut().push(path.to_string());
            }
            let value = fields.next_value_seed(Node { path: &path, ..self })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn repeated_keys_are_named_and_the_last_one_counts() {
        let written: Written =
            serde_json::from_str(r#"{"a": 1, "b": [{"c": 1, "c": null, "c": 3}], "a": {"d": 1.5, "d": -1}, "e": 1}"#)
                .unwrap();
        assert_eq!(written.repeated, ["b[0].c", "b[0].c", "a", "a.d"]);
        assert_eq!(written.value, serde_json::json!({"a": {"d": -1}, "b": [{"c": 3}], "e": 1}));
    }

    #[test]
    fn deep_nesting_is_an_error() {
        assert!(serde_json::from_str::<Written>(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn the_value_is_what_the_library_reads(text in r#"[\[\]{}",:0-9a-b. -]{0,40}"#) {
            let plain = serde_json::from_str::<Value>(&text).ok();
            prop_assert_eq!(serde_json::from_str::<Written>(&text).ok().map(|written| written.value), plain);
        }
    }
}
