//! An object as a client sends it, before it is known to be one.

use serde_json::Value;

use super::{
    Target,
    options::FieldValidation,
    resource::{Part, Processed},
    text,
};
use crate::{
    api::{json::Written, validation::FieldError},
    control::error::ApiError,
};

/// See the module.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The object; certainly a JSON object with `metadata` as one.
    pub object: Value,
    /// Paths of keys that were written more than once.
    pub repeated: Vec<String>,
}

impl Incoming {
    /// Of a value that was computed here or read by somebody else.
    ///
    /// # Errors
    /// It is no object.
    pub fn new(object: Value, repeated: Vec<String>) -> Result<Incoming, ApiError> {
        let mut object = object;
        let Some(fields) = object.as_object_mut() else {
            return Err(ApiError::bad_request("the object provided is unrecognized (must be a JSON object)"));
        };
        let metadata = fields.entry("metadata").or_insert_with(|| Value::Object(Default::default()));
        if metadata.is_null() {
            *metadata = Value::Object(Default::default());
        }
        if !metadata.is_object() {
            return Err(ApiError::bad_request("json: metadata: expected an object"));
        }
        Ok(Incoming { object, repeated })
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// It is none, or no object.
    pub fn from_json(bytes: &[u8]) -> Result<Incoming, ApiError> {
        let written: Written = serde_json::from_slice(bytes).map_err(|error| {
            ApiError::bad_request(format!("the object provided is unrecognized (must be valid JSON): {error}"))
        })?;
        Incoming::new(written.value, written.repeated)
    }

    /// Fills in version and kind, and refuses those of another type.
    ///
    /// # Errors
    /// It says that it is something else.
    pub fn require_type(&mut self, api_version: &str, kind: &str) -> Result<(), ApiError> {
        let (found_version, found_kind) = (text(&self.object, "apiVersion"), text(&self.object, "kind"));
        if !found_version.is_empty() && found_version != api_version {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({found_version}) does not match the expected API version ({api_version})"
            )));
        }
        if !found_kind.is_empty() && found_kind != kind {
            return Err(ApiError::bad_request(format!(
                "{found_kind} in version {api_version:?} cannot be handled as a {kind}: the object is of another kind"
            )));
        }
        self.object["apiVersion"] = api_version.into();
        self.object["kind"] = kind.into();
        Ok(())
    }

    /// The name and namespace must be those of the URL, or be left out.
    ///
    /// # Errors
    /// They are others.
    pub fn require_place(&mut self, target: Target<'_>) -> Result<(), ApiError> {
        let namespace = text(&self.object, "metadata.namespace");
        if !namespace.is_empty() && namespace != target.namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let name = text(&self.object, "metadata.name");
        if !target.name.is_empty() && !name.is_empty() && name != target.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            )));
        }
        let metadata = &mut self.object["metadata"];
        if target.resource.namespaced {
            metadata["namespace"] = target.namespace.into();
        }
        if !target.name.is_empty() {
            metadata["name"] = target.name.into();
        }
        Ok(())
    }

    /// Looks at the object as what it is said to be; unknown and repeated fields become warnings or an error.
    ///
    /// # Errors
    /// A field has the wrong type, or there is one too many and the client is strict.
    pub fn process(
        &self,
        target: Target<'_>,
        old: Option<(&Value, Part)>,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
    ) -> Result<(Value, Vec<FieldError>), ApiError> {
        let Processed { object, unknown } = (target.resource.process)(&self.object, old);
        let (kind, version) = (target.resource.kind, target.resource.api_version());
        let cannot = |message: String| {
            ApiError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {message}"))
        };
        let result = object.map_err(|error| cannot(error.to_string()))?;
        let repeated = self.repeated.iter().map(|path| format!("duplicate field {path:?}"));
        let found: Vec<String> = repeated.chain(unknown.iter().map(|path| format!("unknown field {path:?}"))).collect();
        match validation {
            FieldValidation::Strict if !found.is_empty() => {
                return Err(cannot(format!("strict decoding error: {}", found.join(", "))));
            }
            FieldValidation::Warn => warnings.extend(found),
            FieldValidation::Strict | FieldValidation::Ignore => {}
        }
        Ok(result)
    }
}
