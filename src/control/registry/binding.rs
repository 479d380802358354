//! The subresource `binding`: puts a pod on a node (`BindingREST` in `pkg/registry/core/pod/storage` upstream).

use serde_json::{Value, json};

use super::{
    Registry, Target,
    incoming::Incoming,
    metadata,
    options::{FieldValidation, WriteOptions},
    text, with_revision,
};
use crate::{
    api::validation::FieldError,
    control::{
        error::{ApiError, Subject},
        storage::{Expected, Write, WriteError},
    },
};

impl Registry {
    /// Binds a pod to a node, once and for all.
    ///
    /// # Errors
    /// The pod is bound, going, or not there; or the binding names no node.
    pub async fn bind(&self, target: Target<'_>, mut binding: Incoming, dry_run: bool) -> Result<Value, ApiError> {
        binding.require_type("v1", "Binding")?;
        binding.require_place(target)?;
        let node = text(&binding.object, "target.name").to_owned();
        let kind = text(&binding.object, "target.kind");
        let mut errors = Vec::new();
        if !matches!(kind, "" | "Node") {
            errors.push(FieldError::unsupported("target.kind", kind, &["Node", "<empty>"]));
        }
        if node.is_empty() {
            errors.push(FieldError::required("target.name"));
        }
        if !errors.is_empty() {
            let subject = Subject { group: "", kind: "Binding", name: target.name };
            return Err(ApiError::invalid(subject, &errors));
        }
        let options = WriteOptions { dry_run, validation: FieldValidation::Ignore };
        self.change_pod(target, options, |pod| {
            if !text(pod, "metadata.deletionTimestamp").is_empty() {
                let because = format!("pod {} is being deleted, cannot be assigned to a host", target.name);
                return Err(ApiError::conflict(target.subject(), &because));
            }
            let bound = text(pod, "spec.nodeName");
            if !bound.is_empty() {
                let because = format!("pod {} is already assigned to node {bound:?}", target.name);
                return Err(ApiError::conflict(target.subject(), &because));
            }
            if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
                let because = format!("pod {} has non-empty .spec.schedulingGates", target.name);
                return Err(ApiError::conflict(target.subject(), &because));
            }
            pod["spec"]["nodeName"] = node.as_str().into();
            for (name, value) in binding.object["metadata"]["annotations"].as_object().into_iter().flatten() {
                pod["metadata"]["annotations"][name] = value.clone();
            }
            let condition = json!({
                "type": "PodScheduled", "status": "True", "lastTransitionTime": metadata::time(jiff::Timestamp::now()),
                "lastProbeTime": null,
            });
            let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.retain(|known| known["type"] != "PodScheduled");
            conditions.push(condition);
            pod["status"]["conditions"] = conditions.into();
            Ok(())
        })
        .await?;
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
    }

    /// Changes an object in a way that no client can: nothing is validated or kept as it was.
    async fn change_pod(
        &self,
        target: Target<'_>,
        options: WriteOptions,
        change: impl Fn(&mut Value) -> Result<(), ApiError>,
    ) -> Result<Value, ApiError> {
        loop {
            let Some(entry) = self.storage.get(&target.key()).await? else {
                return Err(ApiError::not_found(target.subject()));
            };
            let mut object = entry.document.to_value();
            change(&mut object)?;
            if options.dry_run {
                return Ok(with_revision(object, entry.revision));
            }
            let write = Write::Put(super::stored(&object));
            match self.storage.write(target.key(), Expected::Revision(entry.revision), write).await {
                Ok(revision) => return Ok(with_revision(object, revision)),
                // Each turn of this loop means that somebody else's change has happened.
                Err(WriteError::Conflict(_)) => {}
                Err(WriteError::Storage(error)) => return Err(error.into()),
            }
        }
    }
}
