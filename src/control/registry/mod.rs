//! One registry for all types: reading, changing and removing objects by their declaration. It stands behind
//! authentication and authorization, and in front of the storage.

pub mod age;
mod binding;
pub mod continuation;
mod create;
mod delete;
mod eviction;
pub mod incoming;
pub mod metadata;
pub mod options;
pub mod patch;
mod read;
pub mod resource;
mod scale;
pub mod selector;
pub mod strategic;
#[cfg(test)]
mod tests;
mod update;
pub mod watch;

use std::sync::Arc;

use serde_json::{Value, json};

use self::resource::Resource;
use super::{
    error::{ApiError, Subject},
    storage::{Entry, Storage},
};

pub use self::{delete::Deleted, read::Listed, update::Change};

/// See the module.
#[derive(Clone)]
pub struct Registry {
    /// Where objects are.
    pub storage: Arc<dyn Storage>,
    /// Every type that is served.
    pub resources: &'static [&'static Resource],
}

/// An object that is spoken of, or all of a namespace where the name is empty.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Its type.
    pub resource: &'static Resource,
    /// Its namespace; empty where there is none, or for all of them.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.api_version(), self.plural)
    }
}

impl<'a> Target<'a> {
    /// How it is spoken of in errors: `pods "a"`.
    pub fn subject(&self) -> Subject<'a> {
        Subject { group: self.resource.group, kind: self.resource.plural, name: self.name }
    }

    /// How it is spoken of where it is not valid: `Pod "a"`.
    pub fn kind_subject(&self) -> Subject<'a> {
        Subject { group: self.resource.group, kind: self.resource.kind, name: self.name }
    }

    /// Its key.
    pub fn key(&self) -> String {
        self.resource.key(self.namespace, self.name)
    }
}

/// An object as clients see it: with its revision.
pub fn present(entry: &Entry) -> Value {
    with_revision(entry.document.to_value(), entry.revision)
}

/// The object with a revision.
pub fn with_revision(mut object: Value, revision: u64) -> Value {
    object["metadata"]["resourceVersion"] = revision.to_string().into();
    object
}

/// The object as it is stored: its revision is that of its key.
fn stored(object: &Value) -> super::storage::Document {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    super::storage::Document::from_value(&object)
}

/// Text of a field below the root; empty where there is none.
pub fn text<'v>(object: &'v Value, path: &str) -> &'v str {
    path.split('.').try_fold(object, |value, name| value.get(name)).and_then(Value::as_str).unwrap_or_default()
}

impl Registry {
    /// The type of a group, version and plural.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        let found = self.resources.iter().find(|one| (one.group, one.version, one.plural) == (group, version, plural));
        found.copied()
    }

    /// The namespace must be there and must not be going for anything to be made in it.
    async fn require_namespace(&self, target: Target<'_>) -> Result<(), ApiError> {
        if !target.resource.namespaced {
            return Ok(());
        }
        let name = target.namespace;
        let Some(namespace) = self.resource("", "v1", "namespaces") else { return Ok(()) };
        let found = self.storage.get(&namespace.key("", name)).await?;
        let Some(found) = found else {
            return Err(ApiError::not_found(Subject { group: "", kind: "namespaces", name }));
        };
        let found = found.document.value();
        if !text(found, "metadata.deletionTimestamp").is_empty() || text(found, "status.phase") == "Terminating" {
            let because = format!("unable to create new content in namespace {name} because it is being terminated");
            let message = format!("namespace {name} is being terminated");
            return Err(ApiError::forbidden(target.subject(), &because).cause(
                "NamespaceTerminating",
                &message,
                "metadata.namespace",
            ));
        }
        Ok(())
    }
}

/// A Status of success, as a deletion is answered.
pub fn success(target: Target<'_>, uid: &str) -> Value {
    let mut details = json!({"name": target.name, "kind": target.resource.plural, "uid": uid});
    if !target.resource.group.is_empty() {
        details["group"] = target.resource.group.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
