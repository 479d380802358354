//! Whether a pod is well-formed, by the rules an API server applies when one is created
//! (`ValidatePodCreate` in `pkg/apis/core/validation` upstream) as far as they matter on a node. Errors name the field
//! and use upstream's words, which people know and search for.
//!
//! A pod must have its defaults before it is validated.

use std::fmt;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use crate::api::app_armor;

mod container;
mod content;
mod env;
mod ephemeral;
mod handler;
mod mounts;
mod names;
mod objects;
mod resources;
mod scheduling;
mod security;
mod spec;
mod volumes;

#[cfg(test)]
mod tests;

pub use self::objects::{secret_type, validate_object, validate_object_update};

/// Most bytes of all annotations together.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// A field and what is wrong with it: `spec.containers[0].name: Required value`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {cause}")]
pub struct FieldError {
    /// Path of the field.
    pub path: String,
    /// What is wrong: `Invalid value: "x": …`.
    pub cause: String,
}

impl FieldError {
    /// It must be set.
    pub fn required(path: impl Into<String>) -> FieldError {
        FieldError { path: path.into(), cause: "Required value".to_owned() }
    }

    /// It must be set, because of something that `detail` says.
    pub fn required_because(path: impl Into<String>, detail: impl fmt::Display) -> FieldError {
        FieldError { path: path.into(), cause: format!("Required value: {detail}") }
    }

    /// Its value breaks the rule in `detail`. Strings are shown quoted.
    pub fn invalid(path: impl Into<String>, value: impl fmt::Debug, detail: impl fmt::Display) -> FieldError {
        FieldError { path: path.into(), cause: format!("Invalid value: {value:?}: {detail}") }
    }

    /// Its value is none of `supported`.
    pub fn unsupported(path: impl Into<String>, value: &str, supported: &[&str]) -> FieldError {
        let supported = supported.iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(", ");
        FieldError { path: path.into(), cause: format!("Unsupported value: {value:?}: supported values: {supported}") }
    }

    /// Its value appears before.
    pub fn duplicate(path: impl Into<String>, value: impl fmt::Debug) -> FieldError {
        FieldError { path: path.into(), cause: format!("Duplicate value: {value:?}") }
    }

    /// It names something that does not exist.
    pub fn not_found(path: impl Into<String>, value: &str) -> FieldError {
        FieldError { path: path.into(), cause: format!("Not found: {value:?}") }
    }

    /// It must not be set here.
    pub fn forbidden(path: impl Into<String>, detail: impl fmt::Display) -> FieldError {
        FieldError { path: path.into(), cause: format!("Forbidden: {detail}") }
    }

    /// It is longer than `limit` bytes.
    pub fn too_long(path: impl Into<String>, limit: usize) -> FieldError {
        FieldError { path: path.into(), cause: format!("Too long: may not be more than {limit} bytes") }
    }
}

/// The form of an object's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// Labels joined by dots, as most have it.
    Subdomain,
    /// One label.
    Label,
}

/// What is wrong with the metadata of an object of any type, whose name has the form of `rule`.
pub fn validate_metadata(metadata: &ObjectMeta, rule: NameRule) -> Vec<FieldError> {
    let mut errors = Errors::default();
    match metadata.name.as_deref().unwrap_or_default() {
        "" => errors.push(FieldError::required_because("metadata.name", "name or generateName is required")),
        name => {
            let broken = match rule {
                NameRule::Subdomain => names::subdomain(name),
                NameRule::Label => names::label(name),
            };
            errors.check("metadata.name", name, broken);
        }
    }
    annotations_and_labels("metadata", metadata, &mut errors);
    errors.0
}

/// What is wrong with a label's key (or a taint's), one line each; nothing if it is one.
pub fn qualified_name_problems(text: &str) -> Vec<String> {
    names::qualified(text)
}

/// What is wrong with a label's value, one line each; nothing if it is one.
pub fn label_value_problems(text: &str) -> Vec<String> {
    names::label_value(text)
}

/// Everything wrong with one object.
#[derive(Debug, Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    /// Adds one error per broken rule of a checker.
    fn check(&mut self, path: &str, value: &str, broken: Vec<String>) {
        self.0.extend(broken.into_iter().map(|rule| FieldError::invalid(path, value, rule)));
    }

    /// Refuses a value that is set and none of `supported`; an empty one is required.
    fn one_of(&mut self, path: &str, value: Option<&str>, supported: &[&str]) {
        match value.unwrap_or_default() {
            "" => self.push(FieldError::required(path)),
            value if supported.contains(&value) => {}
            value => self.push(FieldError::unsupported(path, value, supported)),
        }
    }

    /// Like [`Errors::one_of`] for a value that need not be set.
    fn one_of_if_set(&mut self, path: &str, value: Option<&str>, supported: &[&str]) {
        if let Some(value) = value {
            self.one_of(path, Some(value), supported);
        }
    }

    fn not_negative(&mut self, path: &str, value: Option<i64>) {
        if let Some(value) = value.filter(|value| *value < 0) {
            self.push(FieldError::invalid(path, value, "must be greater than or equal to 0"));
        }
    }

    fn at_most(&mut self, path: &str, count: usize, most: usize) {
        if count > most {
            let cause = format!("Too many: {count}: must have at most {most} items");
            self.push(FieldError { path: path.to_owned(), cause });
        }
    }

    fn between(&mut self, path: &str, value: i64, least: i64, most: i64) {
        if !(least..=most).contains(&value) {
            self.push(FieldError::invalid(path, value, format!("must be between {least} and {most}, inclusive")));
        }
    }
}

/// All errors of a new pod, in the order of its fields; none means that it may run.
pub fn validate_pod(pod: &Pod) -> Vec<FieldError> {
    let mut errors = validate_pod_update(pod);
    let ephemeral = pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_ref());
    if ephemeral.is_some_and(|containers| !containers.is_empty()) {
        errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    errors
}

/// All errors of a pod that takes the place of another, whatever it was before; see
/// [`crate::api::update::validate_update`].
pub fn validate_pod_update(pod: &Pod) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata(pod, &mut errors);
    match &pod.spec {
        Some(spec) => {
            spec::validate(spec, &mut errors);
            volumes::in_pod(spec, pod.metadata.name.as_deref().unwrap_or_default(), &mut errors);
        }
        None => errors.push(FieldError::required("spec")),
    }
    errors.0
}

/// The annotations that were there before `appArmorProfile`; upstream's node agent still reads them.
fn app_armor_annotations(pod: &Pod, errors: &mut Errors) {
    let spec = pod.spec.as_ref();
    let names = || spec.into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    for (key, value) in pod.metadata.annotations.iter().flatten() {
        let Some(container) = key.strip_prefix(app_armor::ANNOTATION) else { continue };
        let path = format!("metadata.annotations[{key}]");
        if !names().any(|known| known.name == container) {
            errors.push(FieldError::invalid(&path, container, "container not found"));
        }
        if !value.is_empty() && app_armor::Profile::of_annotation(value).is_none() {
            errors.push(FieldError::invalid(&path, value, format!("invalid AppArmor profile name: {value:?}")));
        }
    }
}

fn metadata(pod: &Pod, errors: &mut Errors) {
    let metadata = &pod.metadata;
    match metadata.name.as_deref().unwrap_or_default() {
        "" => errors.push(FieldError::required_because("metadata.name", "name or generateName is required")),
        name => errors.check("metadata.name", name, names::subdomain(name)),
    }
    match metadata.namespace.as_deref().unwrap_or_default() {
        "" => errors.push(FieldError::required("metadata.namespace")),
        namespace => errors.check("metadata.namespace", namespace, names::label(namespace)),
    }
    annotations_and_labels("metadata", metadata, errors);
    app_armor_annotations(pod, errors);
}

/// `path` is that of `metadata`.
fn annotations_and_labels(path: &str, metadata: &ObjectMeta, errors: &mut Errors) {
    if let Some(labels) = &metadata.labels {
        names::labels(&format!("{path}.labels"), labels, errors);
    }
    let path = format!("{path}.annotations");
    let mut size = 0;
    for (key, value) in metadata.annotations.iter().flatten() {
        errors.check(&path, key, names::qualified(&key.to_lowercase()));
        size += key.len() + value.len();
    }
    if size > MAX_ANNOTATIONS {
        errors.push(FieldError::too_long(path, MAX_ANNOTATIONS));
    }
}
