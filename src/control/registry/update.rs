//! Changing objects: by a new one, or by a patch.

use serde_json::Value;

use super::{
    Registry, Target,
    incoming::Incoming,
    metadata,
    options::{WriteOptions, revision},
    present,
    resource::Part,
    stored, text, with_revision,
};
use crate::control::{
    error::ApiError,
    storage::{Entry, Expected, Write, WriteError},
};

/// How often a change that names no revision is tried anew when another one came first.
const TRIES: usize = 10;

/// Makes the new object from the old one.
pub type Make<'m> = dyn Fn(&Value) -> Result<Incoming, ApiError> + Send + Sync + 'm;

/// What is to be changed, and how.
#[derive(Clone, Copy)]
pub struct Change<'m> {
    /// What of the object.
    pub part: Part,
    /// How.
    pub make: &'m Make<'m>,
    /// Whether the client sends the whole object: its revision is then what it expects, and it may be a new one.
    pub replaces: bool,
}

impl Registry {
    /// Changes an object. Says whether it was created.
    ///
    /// # Errors
    /// It is not there, the new one is not valid, or the old one is not what the change expects.
    pub async fn update(
        &self,
        target: Target<'_>,
        change: Change<'_>,
        options: WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<(Value, bool), ApiError> {
        for _ in 0..TRIES {
            let before = warnings.len();
            let Some(entry) = self.storage.get(&target.key()).await? else {
                if !(change.replaces && target.resource.create_on_update && change.part == Part::Whole) {
                    return Err(ApiError::not_found(target.subject()));
                }
                let incoming = (change.make)(&Value::Null)?;
                let created = self.create(target, incoming, options, warnings).await;
                match created {
                    // Somebody else was first: then it is a change after all.
                    Err(error) if error.reason == "AlreadyExists" => {
                        warnings.truncate(before);
                        continue;
                    }
                    result => return result.map(|object| (object, true)),
                }
            };
            match self.update_once(target, &entry, change, options, warnings).await? {
                Some(object) => return Ok((object, false)),
                None => warnings.truncate(before),
            }
        }
        Err(ApiError::modified(target.subject()))
    }

    /// `None`: another change came in between, and this one does not say that it may not.
    async fn update_once(
        &self,
        target: Target<'_>,
        entry: &Entry,
        change: Change<'_>,
        options: WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Value>, ApiError> {
        let resource = target.resource;
        let old = present(entry);
        let mut incoming = (change.make)(&old)?;
        incoming.require_type(&resource.api_version(), resource.kind)?;
        incoming.require_place(target)?;
        let named = text(&incoming.object, "metadata.resourceVersion");
        if !matches!(named, "" | "0") && revision(named)? != entry.revision {
            return Err(ApiError::modified(target.subject()));
        }
        // A patch is made from the old object and has its revision, which is no promise of the client's.
        let conditional = change.replaces && !matches!(named, "" | "0");
        let uid = text(&incoming.object, "metadata.uid");
        if !uid.is_empty() && uid != text(&old, "metadata.uid") {
            let because = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                text(&old, "metadata.uid")
            );
            return Err(ApiError::conflict(target.subject(), &because));
        }
        metadata::carry_over(&mut incoming.object, &old);
        separate(&mut incoming.object, &old, change.part, resource.has_status());
        let old_and_part = Some((&old, change.part));
        let (mut object, mut errors) = incoming.process(target, old_and_part, options.validation, warnings)?;
        errors.extend(metadata::validate_update(&object, &old));
        if !errors.is_empty() {
            return Err(ApiError::invalid(target.kind_subject(), &errors));
        }
        if resource.generation && !same_but_status(&object, &old) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
            object["metadata"]["generation"] = (generation + 1).into();
        }
        if object == old || options.dry_run {
            return Ok(Some(object));
        }
        let write = if may_go(&object) { Write::Delete } else { Write::Put(stored(&object)) };
        match self.storage.write(target.key(), Expected::Revision(entry.revision), write).await {
            Ok(revision) => Ok(Some(with_revision(object, revision))),
            Err(WriteError::Conflict(_)) if conditional => Err(ApiError::modified(target.subject())),
            Err(WriteError::Conflict(_)) => Ok(None),
            Err(WriteError::Storage(error)) => Err(error.into()),
        }
    }
}

/// Whether all that was waited for has happened: the object is going, and no finalizer or grace period is left.
fn may_go(object: &Value) -> bool {
    let metadata = &object["metadata"];
    !text(object, "metadata.deletionTimestamp").is_empty()
        && metadata::finalizers(object).is_empty()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && object["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
}

/// Keeps the part of the object that the request is not about as it was.
fn separate(new: &mut Value, old: &Value, part: Part, has_status: bool) {
    let keep = |new: &mut Value, name: &str| {
        let Some(fields) = new.as_object_mut() else { return };
        match old.get(name) {
            Some(value) => fields.insert(name.to_owned(), value.clone()),
            None => fields.remove(name),
        };
    };
    match part {
        Part::Whole if has_status => keep(new, "status"),
        Part::Whole => {}
        Part::Status => {
            let others: Vec<String> = [&*new, old]
                .into_iter()
                .filter_map(Value::as_object)
                .flat_map(|fields| fields.keys().cloned())
                .filter(|name| !matches!(name.as_str(), "status" | "metadata" | "apiVersion" | "kind"))
                .collect();
            others.iter().for_each(|name| keep(new, name));
            // Who owns an object is not a matter of its status.
            match old["metadata"].get("ownerReferences") {
                Some(owners) => new["metadata"]["ownerReferences"] = owners.clone(),
                None => drop(new["metadata"].as_object_mut().and_then(|fields| fields.remove("ownerReferences"))),
            }
        }
        Part::Finalize | Part::EphemeralContainers | Part::Resize => {
            let spec = new.get("spec").cloned().unwrap_or_default();
            let mut whole = old.clone();
            if part == Part::Finalize {
                whole["spec"]["finalizers"] = spec["finalizers"].clone();
            } else {
                whole["spec"] = spec;
            }
            *new = whole;
        }
    }
}

/// Whether two objects differ in metadata and status at most.
fn same_but_status(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return false };
    let rest = |name: &&String| !matches!(name.as_str(), "status" | "metadata");
    new.keys().chain(old.keys()).filter(rest).all(|name| new.get(name) == old.get(name))
}
