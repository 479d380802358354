//! Changes of pods that run: what a source says anew of a UID, and what is asked for here. Both are judged by the rules of
//! an API server, and go to the pod's actor as a whole new record.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tracing::info;

use super::{
    handle::NodeError,
    manager::{Manager, Update},
    record::{self, PodRecord},
};
use crate::{
    api::{
        problem::ManifestProblem,
        unsupported::{Consequence, unsupported},
        update::{Change, Scope, next_generation, validate_update},
        validation::FieldError,
    },
    pod::desired::{DesiredPod, SourceId, SourcedPod},
};

impl Manager {
    /// Changes a pod as somebody asks, and answers when that is decided.
    pub fn update(&mut self, update: Update) {
        let Update { uid, change, answer } = update;
        // Whoever asked may have gone: the change is made all the same.
        let _ = answer.send(self.change(&uid, &change));
    }

    fn change(&mut self, uid: &str, change: &Change) -> Result<Arc<Pod>, NodeError> {
        let running = self.running.get(uid).ok_or_else(|| NodeError::NotFound(format!("pod {uid}")))?;
        if running.wanted.borrow().terminate.is_some() {
            return Err(NodeError::Conflict(format!("pod {} is being removed", running.full_name)));
        }
        if running.rejected {
            return Err(NodeError::Conflict(format!("pod {} was not admitted to this node", running.full_name)));
        }
        if running.record.source == SourceId::Api {
            let message = format!("pod {} belongs to an API server: change it there", running.full_name);
            return Err(NodeError::Conflict(message));
        }
        let old = running.record.pod.clone();
        let refused = |errors: &[FieldError]| {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            NodeError::Invalid(errors.join("; "))
        };
        let new = change.apply(&old).map_err(|error| refused(&[error]))?;
        validate_update(&old, &new, change.scope()).map_err(|errors| refused(&errors))?;
        let unsupported = newly_refused(&old, &new);
        if !unsupported.is_empty() {
            return Err(NodeError::Invalid(unsupported.join("; ")));
        }
        let sourced = running.record.sourced.clone();
        let pod = self.accept(uid, new, sourced).unwrap_or(old);
        self.tell_hosts();
        Ok(pod)
    }

    /// Takes up what a source says of a pod that runs, if that has changed.
    pub(super) fn follow(&mut self, uid: &str, desired: &DesiredPod) -> Option<ManifestProblem> {
        let running = self.running.get_mut(uid)?;
        if running.rejected || running.wanted.borrow().terminate.is_some() {
            return None;
        }
        if running.sourced.as_ref().is_some_and(|known| Arc::ptr_eq(known, &desired.pod) || known == &desired.pod) {
            return None;
        }
        let digest = record::digest(&desired.pod.pod);
        let known = running.record.sourced.clone();
        if known.as_ref().is_none_or(|known| *known == digest) {
            if known.is_none() {
                // The record of an older agent: what the source says now is what the pod was made from.
                running.record = Arc::new(PodRecord { sourced: Some(digest), ..PodRecord::clone(&running.record) });
            }
            running.sourced = Some(desired.pod.clone());
            return None;
        }
        let old = running.record.pod.clone();
        let mut new = desired.pod.pod.clone();
        if let (Some(old), Some(new)) = (&old.spec, &mut new.spec)
            && desired.source != SourceId::Api
        {
            // No manifest can name them: they were added here.
            new.ephemeral_containers.clone_from(&old.ephemeral_containers);
        }
        // When it was first seen does not change with it.
        new.metadata.creation_timestamp.clone_from(&old.metadata.creation_timestamp);
        let errors = validate_update(&old, &new, Scope::Any).err().unwrap_or_default();
        let mut errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        errors.extend(newly_refused(&old, &new));
        if !errors.is_empty() {
            return Some(not_followed(&desired.pod, &errors));
        }
        running.sourced = Some(desired.pod.clone());
        self.accept(uid, new, Some(digest));
        None
    }

    /// Makes `new` the pod that is wanted, with the generation that follows. `None` when nothing changes.
    fn accept(&mut self, uid: &str, mut new: Pod, sourced: Option<String>) -> Option<Arc<Pod>> {
        let running = self.running.get_mut(uid)?;
        let old = &running.record.pod;
        if running.record.source != SourceId::Api {
            new.metadata.generation = Some(next_generation(old, &new));
        }
        if new == **old && sourced == running.record.sourced {
            return None;
        }
        let pod = Arc::new(new);
        let record = Arc::new(PodRecord { pod: pod.clone(), sourced, ..PodRecord::clone(&running.record) });
        info!(pod = running.full_name, uid, generation = pod.metadata.generation, "the pod is to change");
        running.record = record.clone();
        running.wanted.send_modify(|wanted| wanted.record = Some(record));
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.pod = pod.clone();
        }
        Some(pod)
    }
}

/// Fields of `new` that berth does not honour and that `old` did not have.
fn newly_refused(old: &Pod, new: &Pod) -> Vec<String> {
    let refused = |pod: &Pod| {
        let issues = unsupported(pod).into_iter().filter(|issue| issue.consequence == Consequence::Refused);
        issues.map(|issue| issue.to_string()).collect::<Vec<_>>()
    };
    let known = refused(old);
    refused(new).into_iter().filter(|issue| !known.contains(issue)).collect()
}

fn not_followed(pod: &SourcedPod, errors: &[String]) -> ManifestProblem {
    ManifestProblem {
        source: pod.origin.clone(),
        document: Some(pod.document),
        pod: Some(pod.full_name()),
        warning: true,
        message: format!("the pod goes on as it was, its UID being the same: {}", errors.join("; ")),
    }
}
