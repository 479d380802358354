//! The options of a request: what stands in its query, and in the body of a deletion.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{
    continuation::Continuation,
    resource::Resource,
    selector::{FieldSelector, LabelSelector},
};
use crate::control::error::ApiError;

/// The parameters of a query; the first counts where one is repeated.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=b&c=d`.
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unquote(name), unquote(value))
        });
        Query(pairs.collect())
    }

    /// A parameter; `None` where it is absent or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        found.filter(|value| !value.is_empty())
    }

    /// Every value of a parameter.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    /// A switch: there, and neither `0` nor `false`.
    pub fn is_set(&self, name: &str) -> bool {
        let value = self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        value.is_some_and(|value| !matches!(value, "0" | "false" | "False" | "FALSE"))
    }

    fn number(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let wrong = |_| ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
        text.parse().map(Some).map_err(wrong)
    }
}

/// `%41+b` as `A b`. What is no escape stays as it is.
pub fn unquote(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let escape = escape.and_then(|digits| std::str::from_utf8(digits).ok());
        match escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// As it is.
    Latest,
    /// As it is or was; `resourceVersion=0`.
    Any,
    /// That revision or later.
    NotBefore(u64),
    /// That revision.
    Exactly(u64),
}

/// What is to be listed or watched.
#[derive(Debug, Clone)]
pub struct ListOptions {
    /// By labels.
    pub labels: LabelSelector,
    /// By fields.
    pub fields: FieldSelector,
    /// From when on.
    pub since: Since,
    /// Most objects; 0: all.
    pub limit: usize,
    /// Where to go on.
    pub continuation: Option<Continuation>,
    /// How long to watch.
    pub timeout: Option<Duration>,
    /// Whether the client understands bookmarks.
    pub bookmarks: bool,
    /// Whether a watch begins with what there is.
    pub initial_events: Option<bool>,
}

impl ListOptions {
    /// Everything, as it is.
    pub fn all() -> ListOptions {
        ListOptions {
            labels: LabelSelector::default(),
            fields: FieldSelector::default(),
            since: Since::Latest,
            limit: 0,
            continuation: None,
            timeout: None,
            bookmarks: false,
            initial_events: None,
        }
    }

    /// Reads a query.
    ///
    /// # Errors
    /// A parameter is not what it should be, or does not go with another.
    pub fn parse(query: &Query, resource: &Resource, watch: bool) -> Result<ListOptions, ApiError> {
        let labels = query.get("labelSelector").unwrap_or_default();
        let labels = LabelSelector::parse(labels)
            .map_err(|problem| ApiError::bad_request(format!("unable to parse requirement: {problem}")))?;
        let fields = query.get("fieldSelector").unwrap_or_default();
        let fields =
            FieldSelector::parse(fields, resource.namespaced, resource.fields).map_err(ApiError::bad_request)?;
        let limit = query.number("limit")?.unwrap_or(0);
        let continuation = query.get("continue").filter(|_| !watch).map(Continuation::decode).transpose()?;
        let initial_events = query.get("sendInitialEvents").map(|_| query.is_set("sendInitialEvents"));
        let since = since(query, continuation.is_some(), watch, initial_events)?;
        let timeout = query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
        Ok(ListOptions {
            labels,
            fields,
            since,
            limit: if watch { 0 } else { usize::try_from(limit).unwrap_or(0) },
            continuation,
            timeout: timeout.map(|seconds| Duration::from_secs(seconds.unsigned_abs())),
            bookmarks: query.is_set("allowWatchBookmarks"),
            initial_events,
        })
    }
}

/// A revision as a client writes it.
///
/// # Errors
/// It is no number.
pub fn revision(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| {
        let error = crate::api::validation::FieldError::invalid(
            "resourceVersion",
            text,
            format!("strconv.ParseUint: parsing {text:?}: invalid syntax"),
        );
        ApiError::bad_request(error.to_string())
    })
}

fn since(query: &Query, continued: bool, watch: bool, initial: Option<bool>) -> Result<Since, ApiError> {
    let number = query.get("resourceVersion").map(revision).transpose()?;
    let matching = query.get("resourceVersionMatch");
    let forbidden = |field: &str, detail: &str| Err(ApiError::bad_request(format!("{field}: Forbidden: {detail}")));
    if initial.is_some() && !watch {
        return forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    if watch {
        return match (matching, initial) {
            (None, Some(true)) => forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            (Some(_), None) => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ),
            (Some(other), Some(_)) if other != "NotOlderThan" => forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            _ => Ok(match number {
                None => Since::Latest,
                Some(0) => Since::Any,
                Some(number) => Since::NotBefore(number),
            }),
        };
    }
    match (matching, number) {
        (Some(_), _) if continued => {
            forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden for a continue request")
        }
        (_, Some(1..)) if continued => {
            Err(ApiError::bad_request("specifying resource version is not allowed when using continue"))
        }
        (Some(_), None) => {
            forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided")
        }
        (Some("Exact"), Some(0)) => {
            forbidden("resourceVersionMatch", "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"")
        }
        (Some("Exact"), Some(number)) => Ok(Since::Exactly(number)),
        (Some("NotOlderThan") | None, Some(0)) => Ok(Since::Any),
        (Some("NotOlderThan"), Some(number)) => Ok(Since::NotBefore(number)),
        (Some(other), Some(_)) => Err(ApiError::bad_request(format!(
            "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
        ))),
        // With a limit, a revision without more is taken as exactly that one.
        (None, Some(number)) if query.number("limit")?.unwrap_or(0) > 0 => Ok(Since::Exactly(number)),
        (None, Some(number)) => Ok(Since::NotBefore(number)),
        (None, None) => Ok(Since::Latest),
    }
}

/// What becomes of fields that the type does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    /// Nothing is said.
    Ignore,
    /// The client is warned.
    Warn,
    /// The request is refused.
    Strict,
}

/// What goes with a change.
#[derive(Debug, Clone, Copy)]
pub struct WriteOptions {
    /// Everything but the writing.
    pub dry_run: bool,
    /// Unknown fields.
    pub validation: FieldValidation,
}

impl WriteOptions {
    /// Reads a query.
    ///
    /// # Errors
    /// A parameter has a value that is unknown.
    pub fn parse(query: &Query) -> Result<WriteOptions, ApiError> {
        let validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        Ok(WriteOptions { dry_run: dry_run(&query.all("dryRun"))?, validation })
    }
}

fn dry_run(values: &[&str]) -> Result<bool, ApiError> {
    match values.iter().find(|value| !matches!(**value, "All" | "")) {
        Some(other) => {
            Err(ApiError::bad_request(format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"")))
        }
        None => Ok(values.contains(&"All")),
    }
}

/// `DeleteOptions`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    /// How long the object may take to end, in seconds.
    pub grace_period_seconds: Option<i64>,
    /// What the object must be.
    pub preconditions: Option<Preconditions>,
    /// `Orphan`, `Background`, `Foreground`.
    pub propagation_policy: Option<String>,
    /// The same as it was written before.
    pub orphan_dependents: Option<bool>,
    dry_run: Vec<String>,
}

/// What an object must be to be deleted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    /// Its UID.
    pub uid: Option<String>,
    /// Its revision.
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Reads a body (`Null`: there is none) and a query, which is only for clients that send no body.
    ///
    /// # Errors
    /// One of them is not what it should be.
    pub fn parse(body: &Value, query: &Query) -> Result<(DeleteOptions, bool), ApiError> {
        let mut options = match body {
            Value::Null => DeleteOptions {
                grace_period_seconds: query.number("gracePeriodSeconds")?,
                propagation_policy: query.get("propagationPolicy").map(str::to_owned),
                orphan_dependents: query.get("orphanDependents").map(|_| query.is_set("orphanDependents")),
                ..DeleteOptions::default()
            },
            body => crate::api::decode::decode::<DeleteOptions>(body, "")
                .object
                .map_err(|error| ApiError::bad_request(error.to_string()))?,
        };
        let mut dry: Vec<&str> = options.dry_run.iter().map(String::as_str).collect();
        dry.extend(query.all("dryRun"));
        let dry_run = dry_run(&dry)?;
        if options.grace_period_seconds.is_some_and(|seconds| seconds < 0) {
            // As upstream: a negative time is taken for the shortest that is none.
            options.grace_period_seconds = Some(1);
        }
        let refuse = |message: String| Err(ApiError::bad_request(message));
        match (&options.propagation_policy, options.orphan_dependents) {
            (Some(_), Some(_)) => {
                return refuse("orphanDependents and deletionPropagation cannot be both set".to_owned());
            }
            (Some(policy), None) if !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground") => {
                return refuse(format!(
                    "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {policy:?}: \
                     supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                ));
            }
            _ => {}
        }
        Ok((options, dry_run))
    }
}
