//! What is refused, in upstream's words: every refusal is a `v1` Status (`apimachinery/pkg/api/errors` upstream).

use serde_json::{Map, Value, json};

use crate::{api::validation::FieldError, control::storage::StorageError, obs::chain::Chain};

/// A request that is answered with a Status of failure.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub code: u16,
    /// `NotFound`, `Conflict`, …
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// `details`: which object, which fields, when to try again.
    pub details: Map<String, Value>,
    /// `metadata.continue`: how a list that cannot go on as it began goes on.
    pub continuation: Option<String>,
}

/// The object that is spoken of: `pods "web"`, `deployments.apps "web"`.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// API group; empty: the core group.
    pub group: &'a str,
    /// Plural of the type, or its kind where upstream says that.
    pub kind: &'a str,
    /// Name; may be empty.
    pub name: &'a str,
}

impl Subject<'_> {
    fn qualified(&self) -> String {
        match self.group {
            "" => self.kind.to_owned(),
            group => format!("{}.{group}", self.kind),
        }
    }

    fn details(&self) -> Map<String, Value> {
        let mut details = Map::new();
        for (name, value) in [("name", self.name), ("group", self.group), ("kind", self.kind)] {
            if !value.is_empty() {
                details.insert(name.to_owned(), value.into());
            }
        }
        details
    }
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code, reason, message: message.into(), details: Map::new(), continuation: None }
    }

    fn of(code: u16, reason: &'static str, subject: Subject<'_>, message: String) -> ApiError {
        ApiError { code, reason, message, details: subject.details(), continuation: None }
    }

    /// There is no such object.
    pub fn not_found(subject: Subject<'_>) -> ApiError {
        let message = format!("{} {:?} not found", subject.qualified(), subject.name);
        ApiError::of(404, "NotFound", subject, message)
    }

    /// There is no such path.
    pub fn no_such_path() -> ApiError {
        ApiError::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// The object exists.
    pub fn already_exists(subject: Subject<'_>) -> ApiError {
        let message = format!("{} {:?} already exists", subject.qualified(), subject.name);
        ApiError::of(409, "AlreadyExists", subject, message)
    }

    /// The object is not what the request takes it to be.
    pub fn conflict(subject: Subject<'_>, because: &str) -> ApiError {
        let message = format!("Operation cannot be fulfilled on {} {:?}: {because}", subject.qualified(), subject.name);
        ApiError::of(409, "Conflict", subject, message)
    }

    /// The object has been changed since it was read.
    pub fn modified(subject: Subject<'_>) -> ApiError {
        let because = "the object has been modified; please apply your changes to the latest version and try again";
        ApiError::conflict(subject, because)
    }

    /// It may not be done.
    pub fn forbidden(subject: Subject<'_>, because: &str) -> ApiError {
        let message = match (subject.kind, subject.name) {
            ("", _) => format!("forbidden: {because}"),
            (_, "") => format!("{} is forbidden: {because}", subject.qualified()),
            (_, name) => format!("{} {name:?} is forbidden: {because}", subject.qualified()),
        };
        ApiError::of(403, "Forbidden", subject, message)
    }

    /// Who asks is not known.
    pub fn unauthorized() -> ApiError {
        ApiError::new(401, "Unauthorized", "Unauthorized")
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "BadRequest", message)
    }

    /// The object is not valid; `kind` is that of the object, as in `Pod`.
    pub fn invalid(subject: Subject<'_>, errors: &[FieldError]) -> ApiError {
        let list = match errors {
            [one] => one.to_string(),
            errors => format!("[{}]", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let message = format!("{} {:?} is invalid: {list}", subject.qualified(), subject.name);
        let mut error = ApiError::of(422, "Invalid", subject, message);
        let causes: Vec<Value> = errors.iter().map(cause).collect();
        error.details.insert("causes".to_owned(), causes.into());
        error
    }

    /// The type does not know the verb.
    pub fn method_not_allowed() -> ApiError {
        ApiError::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// No form of the answer is acceptable.
    pub fn not_acceptable(supported: &[&str]) -> ApiError {
        let message = format!("only the following media types are accepted: {}", supported.join(", "));
        ApiError::new(406, "NotAcceptable", message)
    }

    /// The body is in no form that is understood here.
    pub fn unsupported_media_type(supported: &[&str]) -> ApiError {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            supported.join(", ")
        );
        ApiError::new(415, "UnsupportedMediaType", message)
    }

    /// The body is longer than `limit` bytes.
    pub fn too_large(limit: usize) -> ApiError {
        ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// What was to be continued or followed is no longer there.
    pub fn expired(message: impl Into<String>) -> ApiError {
        ApiError::new(410, "Expired", message)
    }

    /// The server could not do in time what was asked for.
    pub fn timeout(message: impl Into<String>, retry_after: u32) -> ApiError {
        ApiError::new(504, "Timeout", format!("Timeout: {}", message.into())).retry_after(retry_after)
    }

    /// A revision that has not been reached.
    pub fn too_large_resource_version(asked: u64, current: u64) -> ApiError {
        let mut error = ApiError::timeout(format!("Too large resource version: {asked}, current: {current}"), 1);
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        error.details.insert("causes".to_owned(), json!([cause]));
        error
    }

    /// Something here is broken.
    pub fn internal(message: impl Into<String>) -> ApiError {
        let message = message.into();
        let mut error = ApiError::new(500, "InternalError", format!("Internal error occurred: {message}"));
        error.details.insert("causes".to_owned(), json!([{ "message": message }]));
        error
    }

    /// With a time to wait before the next try, in seconds.
    pub fn retry_after(mut self, seconds: u32) -> ApiError {
        self.details.insert("retryAfterSeconds".to_owned(), seconds.into());
        self
    }

    /// With one more cause.
    pub fn cause(mut self, reason: &str, message: &str, field: &str) -> ApiError {
        let mut cause = json!({"reason": reason, "message": message});
        if !field.is_empty() {
            cause["field"] = field.into();
        }
        match self.details.entry("causes").or_insert_with(|| json!([])) {
            Value::Array(causes) => causes.push(cause),
            other => *other = json!([cause]),
        }
        self
    }

    /// The Status.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_empty() {
            status["details"] = Value::Object(self.details.clone());
        }
        if let Some(continuation) = &self.continuation {
            status["metadata"]["continue"] = continuation.as_str().into();
        }
        status
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> ApiError {
        match error {
            StorageError::Compacted { asked, oldest } => {
                ApiError::expired(format!("too old resource version: {asked} ({oldest})"))
            }
            StorageError::Future { asked, latest } => ApiError::too_large_resource_version(asked, latest),
            StorageError::Closed => {
                ApiError::new(503, "ServiceUnavailable", "the server is shutting down").retry_after(1)
            }
            error @ StorageError::Backend { .. } => ApiError::internal(Chain(&error).to_string()),
        }
    }
}

/// A field and what is wrong with it, as a cause.
fn cause(error: &FieldError) -> Value {
    let reasons = [
        ("Required value", "FieldValueRequired"),
        ("Invalid value", "FieldValueInvalid"),
        ("Unsupported value", "FieldValueNotSupported"),
        ("Duplicate value", "FieldValueDuplicate"),
        ("Not found", "FieldValueNotFound"),
        ("Forbidden", "FieldValueForbidden"),
        ("Too long", "FieldValueTooLong"),
        ("Too many", "FieldValueTooMany"),
    ];
    let known = reasons.iter().find(|(words, _)| error.cause.starts_with(words));
    let reason = known.map_or("FieldValueInvalid", |(_, reason)| reason);
    json!({"reason": reason, "message": error.cause, "field": error.path})
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: Subject<'_> = Subject { group: "apps", kind: "deployments", name: "web" };

    #[test]
    fn words_and_details_are_those_of_upstream() {
        for (error, code, message) in [
            (ApiError::not_found(WEB), 404, r#"deployments.apps "web" not found"#),
            (ApiError::already_exists(WEB), 409, r#"deployments.apps "web" already exists"#),
            (ApiError::forbidden(WEB, "no"), 403, r#"deployments.apps "web" is forbidden: no"#),
            (
                ApiError::modified(WEB),
                409,
                "Operation cannot be fulfilled on deployments.apps \"web\": the object has been modified; please \
                 apply your changes to the latest version and try again",
            ),
        ] {
            let status = error.to_value();
            assert_eq!((status["code"].as_u64(), status["message"].as_str()), (Some(code), Some(message)));
            assert_eq!(status["details"], json!({"group": "apps", "kind": "deployments", "name": "web"}));
        }
    }

    #[test]
    fn every_invalid_field_is_a_cause() {
        let subject = Subject { group: "", kind: "Pod", name: "a" };
        let errors = [FieldError::required("spec.containers"), FieldError::invalid("x", 1, "must be 2")];
        let status = ApiError::invalid(subject, &errors).to_value();
        assert_eq!(
            status["message"],
            r#"Pod "a" is invalid: [spec.containers: Required value, x: Invalid value: 1: must be 2]"#
        );
        assert_eq!(
            status["details"]["causes"][1],
            json!({"reason": "FieldValueInvalid", "message": "Invalid value: 1: must be 2", "field": "x"})
        );
        let one = ApiError::invalid(subject, &errors[..1]);
        assert_eq!(one.message, r#"Pod "a" is invalid: spec.containers: Required value"#);
    }
}
