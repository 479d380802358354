//! Patches of the three kinds there are: JSON (RFC 6902), merge (RFC 7396), and strategic merge.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use super::{
    incoming::Incoming,
    strategic::{self, Shape},
};
use crate::{api::json::Written, control::error::ApiError};

/// Which kind, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// `application/json-patch+json`.
    Json,
    /// `application/merge-patch+json`.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
}

impl PatchKind {
    /// Media types of the patches that are understood.
    pub const MEDIA_TYPES: [&'static str; 3] =
        ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

    /// The kind of a media type.
    pub fn of(media_type: &str) -> Option<PatchKind> {
        let kinds = [PatchKind::Json, PatchKind::Merge, PatchKind::Strategic];
        let known = PatchKind::MEDIA_TYPES.iter().zip(kinds);
        known.into_iter().find(|(name, _)| **name == media_type).map(|(_, kind)| kind)
    }
}

/// Most operations of a JSON patch, as upstream.
const MOST_OPERATIONS: usize = 10_000;
/// Most bytes that the copies of a JSON patch may make, as upstream.
const MOST_COPIED: usize = 3 << 20;
/// Deepest nesting; a parser allows no more either.
const DEEPEST: usize = 128;

/// A patch that has been read.
pub struct Read {
    kind: Parsed,
    repeated: Vec<String>,
}

enum Parsed {
    Json(Patch),
    Merge(Value),
    Strategic(Value, &'static Shape),
}

/// Reads a patch for an object of a kind.
///
/// # Errors
/// It is none.
pub fn read(kind: PatchKind, bytes: &[u8], shape: &'static Shape) -> Result<Read, ApiError> {
    let wrong = |error: serde_json::Error| ApiError::bad_request(format!("error decoding patch: {error}"));
    if kind == PatchKind::Json {
        let patch: Patch = serde_json::from_slice(bytes).map_err(wrong)?;
        if patch.0.len() > MOST_OPERATIONS {
            return Err(ApiError::too_large(MOST_OPERATIONS));
        }
        return Ok(Read { kind: Parsed::Json(patch), repeated: Vec::new() });
    }
    let written: Written = serde_json::from_slice(bytes).map_err(wrong)?;
    if !written.value.is_object() {
        return Err(ApiError::bad_request("error decoding patch: expected a JSON object"));
    }
    let parsed = match kind {
        PatchKind::Merge => Parsed::Merge(written.value),
        _ => Parsed::Strategic(written.value, shape),
    };
    Ok(Read { kind: parsed, repeated: written.repeated })
}

impl Read {
    /// The object with the patch applied.
    ///
    /// # Errors
    /// It cannot be applied to this object.
    pub fn apply(&self, object: &Value) -> Result<Incoming, ApiError> {
        let patched = match &self.kind {
            Parsed::Json(patch) => json(object, patch)?,
            Parsed::Merge(patch) => {
                let mut object = object.clone();
                json_patch::merge(&mut object, patch);
                object
            }
            Parsed::Strategic(patch, shape) => strategic::apply(object, patch, shape)?,
        };
        Incoming::new(patched, self.repeated.clone())
    }
}

fn json(object: &Value, patch: &Patch) -> Result<Value, ApiError> {
    let mut object = object.clone();
    let mut copied = 0;
    // As upstream: a patch that does not fit is something the object makes impossible.
    let cannot = |message: String| {
        let mut error = ApiError::bad_request(message);
        (error.code, error.reason) = (422, "Invalid");
        error
    };
    for (index, operation) in patch.0.iter().enumerate() {
        let path = match operation {
            PatchOperation::Add(add) => &add.path,
            PatchOperation::Remove(remove) => &remove.path,
            PatchOperation::Replace(replace) => &replace.path,
            PatchOperation::Move(moving) => &moving.path,
            PatchOperation::Copy(copy) => &copy.path,
            PatchOperation::Test(test) => &test.path,
        };
        if path.count() > DEEPEST {
            return Err(cannot(format!("operation {index}: the path is too deep")));
        }
        if let PatchOperation::Copy(copy) = operation {
            let source = object.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            copied += source;
            if copied > MOST_COPIED {
                return Err(ApiError::too_large(MOST_COPIED));
            }
        }
        json_patch::patch(&mut object, std::slice::from_ref(operation)).map_err(|error| {
            cannot(format!("the server rejected our request due to an error in our request: {error}"))
        })?;
        // Only these can put something deep below something deep again and again.
        if matches!(operation, PatchOperation::Copy(_) | PatchOperation::Move(_)) && deeper(&object, 2 * DEEPEST) {
            return Err(cannot(format!("operation {index}: the object becomes too deep")));
        }
    }
    Ok(object)
}

/// Whether the value is nested more than `limit` times.
fn deeper(value: &Value, limit: usize) -> bool {
    if limit == 0 {
        return true;
    }
    match value {
        Value::Array(items) => items.iter().any(|item| deeper(item, limit - 1)),
        Value::Object(fields) => fields.values().any(|value| deeper(value, limit - 1)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(kind: PatchKind, patch: Value) -> Result<Value, ApiError> {
        let object = json!({"metadata": {"name": "a"}, "data": {"x": "1", "y": "2"}});
        let read = read(kind, patch.to_string().as_bytes(), strategic::shape_of("ConfigMap"))?;
        read.apply(&object).map(|incoming| incoming.object)
    }

    #[test]
    fn each_kind_of_patch_does_what_its_standard_says() {
        let data = |kind, patch| patched(kind, patch).unwrap()["data"].clone();
        let add = json!([{"op": "test", "path": "/data/x", "value": "1"}, {"op": "add", "path": "/data/z", "value": "3"},
            {"op": "remove", "path": "/data/y"}]);
        assert_eq!(data(PatchKind::Json, add), json!({"x": "1", "z": "3"}));
        assert_eq!(data(PatchKind::Merge, json!({"data": {"x": null, "z": "3"}})), json!({"y": "2", "z": "3"}));
        assert_eq!(data(PatchKind::Strategic, json!({"data": {"x": null}})), json!({"y": "2"}));
    }

    #[test]
    fn patches_that_do_not_fit_are_refused() {
        for (kind, patch, code) in [
            (PatchKind::Json, json!([{"op": "test", "path": "/data/x", "value": "2"}]), 422),
            (PatchKind::Json, json!([{"op": "remove", "path": "/data/q"}]), 422),
            (PatchKind::Json, json!([{"op": "explode", "path": "/data"}]), 400),
            (PatchKind::Json, json!([{"op": "replace", "path": "", "value": 7}]), 400),
            (PatchKind::Merge, json!([]), 400),
            (PatchKind::Merge, json!({"metadata": 1}), 400),
            (PatchKind::Strategic, json!("x"), 400),
        ] {
            assert_eq!(patched(kind, patch.clone()).unwrap_err().code, code, "{patch}");
        }
    }

    #[test]
    fn copies_cannot_grow_without_bound() {
        let big = json!([{"op": "add", "path": "/data/a", "value": "x".repeat(1 << 20)}]);
        let mut operations = big.as_array().unwrap().clone();
        operations.extend((0..20).map(|n| json!({"op": "copy", "from": "/data", "path": format!("/data/{n}")})));
        assert_eq!(patched(PatchKind::Json, operations.into()).unwrap_err().code, 413);
        // Each copy of the whole into its own depth doubles how deep it is.
        let mut path = String::new();
        let mut operations = Vec::new();
        for _ in 0..60 {
            path.push_str("/c");
            operations.push(json!({"op": "copy", "from": "", "path": path}));
        }
        assert!(patched(PatchKind::Json, operations.into()).is_err());
    }
}
