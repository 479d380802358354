//! Removing objects: at once, after their time, or when what they wait for has happened
//! (`apiserver/pkg/registry/generic/registry/store.go` and `rest/delete.go` upstream).

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Registry, Target,
    metadata::{finalizers, mark_deleted},
    options::{DeleteOptions, ListOptions},
    present, stored, success, text, with_revision,
};
use crate::control::{
    error::ApiError,
    storage::{Expected, Write, WriteError},
};

/// How often a removal is tried anew when a change came first.
const TRIES: usize = 10;
/// What dependents wait for.
const FOREGROUND: &str = "foregroundDeletion";
/// Dependents are to stay.
const ORPHAN: &str = "orphan";

/// What became of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Deleted {
    /// It is gone; as it was last.
    Gone(Value),
    /// It is going; as it is.
    Going(Value),
}

impl Deleted {
    /// The answer to the client.
    pub fn answer(self, target: Target<'_>) -> Value {
        match self {
            Deleted::Gone(object) if !target.resource.returns_deleted => success(target, text(&object, "metadata.uid")),
            Deleted::Gone(object) | Deleted::Going(object) => object,
        }
    }
}

impl Registry {
    /// Removes an object, or has it end.
    ///
    /// # Errors
    /// It is not there, or not what the options say.
    pub async fn delete(
        &self,
        target: Target<'_>,
        options: &DeleteOptions,
        dry_run: bool,
    ) -> Result<Deleted, ApiError> {
        protect(target)?;
        for _ in 0..TRIES {
            let Some(entry) = self.storage.get(&target.key()).await? else {
                return Err(ApiError::not_found(target.subject()));
            };
            let old = present(&entry);
            require(target, &old, options)?;
            let mut object = old.clone();
            let now = Timestamp::now();
            let grace = begin_to_end(target, &mut object, options, now);
            let kept = set_finalizers(target, &mut object, options);
            let wait = grace > 0 || kept || is_namespace_with_content(target, &object);
            if wait && text(&object, "metadata.deletionTimestamp").is_empty() {
                mark_deleted(&mut object, 0, now);
            }
            if target.resource.kind == "Namespace" && wait {
                object["status"]["phase"] = "Terminating".into();
            }
            if wait && object == old {
                return Ok(Deleted::Going(old));
            }
            if dry_run {
                return Ok(if wait { Deleted::Going(object) } else { Deleted::Gone(old) });
            }
            let write = if wait { Write::Put(stored(&object)) } else { Write::Delete };
            match self.storage.write(target.key(), Expected::Revision(entry.revision), write).await {
                Ok(revision) if wait => return Ok(Deleted::Going(with_revision(object, revision))),
                Ok(revision) => return Ok(Deleted::Gone(with_revision(object, revision))),
                Err(WriteError::Conflict(_)) => {}
                Err(WriteError::Storage(error)) => return Err(error.into()),
            }
        }
        Err(ApiError::modified(target.subject()))
    }

    /// Removes every object that is selected, each by itself; those that could not be are an error in the end.
    ///
    /// # Errors
    /// The first one.
    pub async fn delete_collection(
        &self,
        target: Target<'_>,
        list: &ListOptions,
        options: &DeleteOptions,
        dry_run: bool,
    ) -> Result<super::Listed, ApiError> {
        let mut listed = self.list(target, list).await?;
        let mut failed = None;
        for object in &mut listed.items {
            let (namespace, name) = (text(object, "metadata.namespace"), text(object, "metadata.name"));
            let one = Target { namespace, name, ..target };
            match self.delete(one, options, dry_run).await {
                Ok(Deleted::Gone(now) | Deleted::Going(now)) => *object = now,
                Err(error) if error.reason == "NotFound" => {}
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(listed),
        }
    }
}

/// Namespaces without which nothing works.
fn protect(target: Target<'_>) -> Result<(), ApiError> {
    if target.resource.kind == "Namespace" && matches!(target.name, "default" | "kube-system" | "kube-public") {
        return Err(ApiError::forbidden(target.subject(), "this namespace may not be deleted"));
    }
    Ok(())
}

fn require(target: Target<'_>, object: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    let Some(preconditions) = &options.preconditions else { return Ok(()) };
    for (name, word, wanted) in
        [("uid", "UID", &preconditions.uid), ("resourceVersion", "ResourceVersion", &preconditions.resource_version)]
    {
        let found = object["metadata"][name].as_str().unwrap_or_default();
        if let Some(wanted) = wanted
            && wanted != found
        {
            let because =
                format!("Precondition failed: {word} in precondition: {wanted}, {word} in object meta: {found}");
            return Err(ApiError::conflict(target.subject(), &because));
        }
    }
    Ok(())
}

/// Starts the time that an object has to end, or shortens it, and says how long it is now.
fn begin_to_end(target: Target<'_>, object: &mut Value, options: &DeleteOptions, now: Timestamp) -> i64 {
    let Some(grace) = target.resource.grace else { return 0 };
    let deleted_at = text(object, "metadata.deletionTimestamp").parse::<Timestamp>().ok();
    let before = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    match (deleted_at, before) {
        (Some(deleted_at), Some(before)) => match options.grace_period_seconds {
            Some(asked) if asked < before => {
                let shorter = jiff::SignedDuration::from_secs(before - asked);
                let at = deleted_at.checked_sub(shorter).unwrap_or(deleted_at);
                object["metadata"]["deletionTimestamp"] = super::metadata::time(at);
                object["metadata"]["deletionGracePeriodSeconds"] = asked.into();
                asked
            }
            _ => before,
        },
        (Some(_), None) => 0,
        (None, _) => {
            let seconds = grace(object, options.grace_period_seconds);
            if seconds > 0 {
                mark_deleted(object, seconds, now);
            }
            seconds
        }
    }
}

/// Records what is to become of dependents, and says whether something has still to happen.
fn set_finalizers(target: Target<'_>, object: &mut Value, options: &DeleteOptions) -> bool {
    let policy = match (options.propagation_policy.as_deref(), options.orphan_dependents) {
        (Some(policy), _) => Some(policy),
        (None, Some(true)) => Some("Orphan"),
        (None, Some(false)) => Some("Background"),
        (None, None) => None,
    };
    if let Some(policy) = policy
        && target.resource.has_dependents
    {
        let mut list: Vec<Value> = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        list.retain(|name| name != FOREGROUND && name != ORPHAN);
        match policy {
            "Foreground" => list.push(FOREGROUND.into()),
            "Orphan" => list.push(ORPHAN.into()),
            _ => {}
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            match list.is_empty() {
                true => metadata.remove("finalizers"),
                false => metadata.insert("finalizers".to_owned(), list.into()),
            };
        }
    }
    !finalizers(object).is_empty()
}

/// A namespace goes when what is in it has gone: until then it has a finalizer in its spec.
fn is_namespace_with_content(target: Target<'_>, object: &Value) -> bool {
    target.resource.kind == "Namespace" && object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}
