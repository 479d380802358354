//! Changes of pods that run: what a source says anew of a UID, and what is asked for here. Both are judged by the rules of
//! an API server, and go to the pod's actor as a whole new record.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tracing::info;

use super::{
    handle::NodeError,
    manager::{Manager, Running, Update},
    record::{self, PodRecord},
};
use crate::{
    api::{
        problem::ManifestProblem,
        resources::Resources,
        unsupported::{Consequence, unsupported},
        update::{Change, Scope, next_generation, validate_update},
        validation::FieldError,
    },
    obs::events::Severity,
    pod::{
        desired::{DesiredPod, SourceId, SourcedPod},
        resize::{Allocation, Decision, Pending, decide, precedence, summary},
    },
};

impl Manager {
    /// Changes a pod as somebody asks, and answers when that is decided.
    pub fn update(&mut self, update: Update) {
        let Update { uid, change, answer } = update;
        // Whoever asked may have gone: the change is made all the same.
        let _ = answer.send(self.change(&uid, &change));
    }

    /// The pod as it is to be, and whether a change of its resources has to wait.
    fn change(&mut self, uid: &str, change: &Change) -> Result<(Arc<Pod>, bool), NodeError> {
        let running = self.running.get(uid).ok_or_else(|| NodeError::NotFound(format!("pod {uid}")))?;
        if running.wanted.borrow().terminate.is_some() {
            return Err(NodeError::Conflict(format!("pod {} is being removed", running.full_name)));
        }
        if running.wanted.borrow().evict.is_some() {
            return Err(NodeError::Conflict(format!("pod {} has been evicted", running.full_name)));
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
        let waits = self.running.get(uid).is_some_and(|running| running.wanted.borrow().resize.is_some());
        Ok((pod, waits))
    }

    /// Takes up what a source says of a pod that runs, if that has changed.
    pub(super) fn follow(&mut self, uid: &str, desired: &DesiredPod) -> Option<ManifestProblem> {
        let hosts = self.hosts.clone();
        let running = self.running.get_mut(uid)?;
        if running.rejected || running.is_going() {
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
        let incomplete = hosts.complete(&mut new).err().map(|rejection| rejection.message);
        let errors = validate_update(&old, &new, Scope::Any).err().unwrap_or_default();
        let mut errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        errors.extend(incomplete);
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
        // It keeps what it has until there is room for what it wants.
        let (held, pod) = (Allocation::of(&running.effective), Arc::new(new));
        let allocated = (held != Allocation::of(&pod)).then_some(held);
        let record = PodRecord { pod: pod.clone(), allocated, sourced, ..PodRecord::clone(&running.record) };
        info!(pod = running.full_name, uid, generation = pod.metadata.generation, "the pod is to change");
        running.wanted.send_modify(|wanted| wanted.resize = None);
        running.write(record);
        if let Some(entry) = self.lock().get_mut(uid) {
            entry.pod = pod.clone();
        }
        self.resize_waiting();
        Some(pod)
    }

    /// Gives room to those that wait for it, as long as there is any.
    pub(super) fn resize_waiting(&mut self) {
        let waits = |running: &&Running| running.record.allocated.is_some() && !running.rejected && !running.is_going();
        let mut waiting: Vec<(String, _)> = self
            .running
            .values()
            .filter(waits)
            .map(|running| {
                let since = running.wanted.borrow().resize.as_ref().map(|pending| pending.since);
                (running.record.uid().to_owned(), precedence(&running.record.pod, &running.effective, since))
            })
            .collect();
        waiting.sort_by(|(_, one), (_, other)| one.cmp(other));
        let allocatable = self.hosts.allocatable();
        for (uid, _) in waiting {
            self.resize(&uid, &allocatable);
        }
    }

    fn resize(&mut self, uid: &str, allocatable: &Resources) {
        let Some(running) = self.running.get(uid) else { return };
        let others = self.running.iter().filter(|(other, running)| *other != uid && running.takes_room());
        let others: Vec<&Pod> = others.map(|(_, running)| &*running.effective).collect();
        let pod = running.record.pod.clone();
        let infeasible = |pod: &Pod| self.hosts.infeasible(pod, &running.effective);
        let fits = |pod: &Pod| self.hosts.fits(pod, &others);
        let decision = decide(&pod, &running.effective, allocatable, infeasible, fits);
        let (hosts, now) = (self.hosts.clone(), self.hosts.now());
        let Some(running) = self.running.get_mut(uid) else { return };
        match decision {
            Decision::Settled | Decision::Allocate => {
                running.wanted.send_modify(|wanted| wanted.resize = None);
                running.write(PodRecord { allocated: None, ..PodRecord::clone(&running.record) });
            }
            Decision::Wait(reason, message) => {
                let known = running.wanted.borrow().resize.clone();
                if known.as_ref().is_some_and(|known| known.reason == reason && known.message == message) {
                    return;
                }
                let since = known.filter(|known| known.reason == reason).map_or(now, |known| known.since);
                let event = format!("Pod resize {}: {}", reason.as_str(), summary(&pod, &message));
                hosts.event(&pod, Severity::Warning, &format!("Resize{}", reason.as_str()), event);
                running.wanted.send_modify(|wanted| wanted.resize = Some(Pending { reason, message, since }));
            }
        }
    }
}

impl Running {
    /// Makes `record` what is wanted; the actor makes it durable.
    fn write(&mut self, record: PodRecord) {
        let record = Arc::new(record);
        self.effective = record.effective();
        self.record = record.clone();
        self.wanted.send_modify(|wanted| wanted.record = Some(record));
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
