//! Creating objects.

use jiff::Timestamp;
use serde_json::Value;

use super::{Registry, Target, incoming::Incoming, metadata, options::WriteOptions, stored, text, with_revision};
use crate::control::{
    error::ApiError,
    storage::{Expected, Write, WriteError},
};

/// How often another name is tried when a generated one is taken.
const TRIES: usize = 8;

impl Registry {
    /// Creates an object; its name is in it, or is generated.
    ///
    /// # Errors
    /// It is not valid, or there is one of that name.
    pub async fn create(
        &self,
        target: Target<'_>,
        incoming: Incoming,
        options: WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<Value, ApiError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let before = warnings.len();
            match self.create_once(target, incoming.clone(), options, warnings).await {
                Err((error, true)) if error.reason == "AlreadyExists" && tries < TRIES => warnings.truncate(before),
                result => return result.map_err(|(error, _)| error),
            }
        }
    }

    /// The error with whether the name was a generated one.
    async fn create_once(
        &self,
        target: Target<'_>,
        mut incoming: Incoming,
        options: WriteOptions,
        warnings: &mut Vec<String>,
    ) -> Result<Value, (ApiError, bool)> {
        let plain = |error: ApiError| (error, false);
        let resource = target.resource;
        incoming.require_type(&resource.api_version(), resource.kind).map_err(plain)?;
        incoming.require_place(target).map_err(plain)?;
        let revision = text(&incoming.object, "metadata.resourceVersion");
        if !matches!(revision, "" | "0") {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(plain(ApiError::bad_request(message)));
        }
        let prefix = text(&incoming.object, "metadata.generateName").to_owned();
        let generated = text(&incoming.object, "metadata.name").is_empty() && !prefix.is_empty();
        if generated {
            incoming.object["metadata"]["name"] = metadata::new_name(&prefix).into();
        }
        if let Some(fields) = incoming.object["metadata"].as_object_mut() {
            metadata::begin(fields, resource.generation, Timestamp::now());
        }
        let processed = incoming.process(target, None, options.validation, warnings);
        let (object, errors) = processed.map_err(plain)?;
        let name = text(&object, "metadata.name").to_owned();
        let target = Target { name: &name, ..target };
        if !errors.is_empty() {
            return Err(plain(ApiError::invalid(target.kind_subject(), &errors)));
        }
        self.require_namespace(target).await.map_err(plain)?;
        if options.dry_run {
            let found = self.storage.get(&target.key()).await.map_err(|error| plain(error.into()))?;
            return match found {
                Some(_) => Err((ApiError::already_exists(target.subject()), generated)),
                None => Ok(object),
            };
        }
        let write = Write::Put(stored(&object));
        match self.storage.write(target.key(), Expected::Absent, write).await {
            Ok(revision) => Ok(with_revision(object, revision)),
            Err(WriteError::Conflict(_)) => Err((ApiError::already_exists(target.subject()), generated)),
            Err(WriteError::Storage(error)) => Err(plain(error.into())),
        }
    }
}
