//! The running node as its servers see it: views made from the actors' newest reports.

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
};

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;

use super::{
    actor::Report,
    handle::{BoxFuture, ContainerView, ExecSession, ManifestProblem, Node, NodeError, PodView, Usage},
    manager::{Entries, Entry},
};
use crate::{
    pod::observed::{AttemptState, Sandbox},
    store::layout::Layout,
    supervisor::spec::ExecSpec,
};

/// What the servers hold of the agent.
pub struct RunningNode {
    /// All pods.
    pub entries: Entries,
    /// What the sources could not use.
    pub problems: watch::Receiver<Vec<ManifestProblem>>,
    /// Directories.
    pub layout: Layout,
}

impl RunningNode {
    fn snapshot(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn view(&self, entry: &Entry) -> PodView {
        let report = entry.reports.borrow().clone();
        match report {
            Some(report) => view(&report, &entry.source, &self.layout),
            None => PodView {
                pod: Pod::clone(&entry.pod),
                source: entry.source.clone(),
                stages: Vec::new(),
                containers: Vec::new(),
                supervisor: None,
            },
        }
    }
}

fn view(report: &Report, source: &str, layout: &Layout) -> PodView {
    let metadata = &report.pod.metadata;
    let dirs = layout.pod(
        metadata.uid.as_deref().unwrap_or_default(),
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    );
    let spec = report.pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let main = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let container = |kind: &str, container: &Container| {
        let latest = report.observed.latest(&container.name);
        let (state, pid, started_at, exit_code) = match latest.map(|attempt| &attempt.state) {
            None => ("waiting", None, None, None),
            Some(AttemptState::Running { pid, started_at }) => ("running", Some(*pid), Some(*started_at), None),
            Some(AttemptState::Ended(ended)) => ("exited", None, ended.started_at, Some(ended.exit_code)),
        };
        ContainerView {
            name: container.name.clone(),
            kind: kind.to_owned(),
            id: latest.map(|attempt| attempt.id.clone()).unwrap_or_default(),
            attempt: latest.map_or(0, |attempt| attempt.number),
            image: container.image.clone().unwrap_or_default(),
            state: state.to_owned(),
            pid,
            tty: container.tty.unwrap_or(false),
            started_at: started_at.and_then(|at| i64::try_from(at.as_nanosecond()).ok()).unwrap_or_default(),
            exit_code,
            log_dir: dirs.log.join(&container.name).to_string_lossy().into_owned(),
        }
    };
    PodView {
        pod: report.pod.clone(),
        source: source.to_owned(),
        stages: report.stages.clone(),
        containers: init
            .iter()
            .map(|init| container("init", init))
            .chain(main.iter().map(|main| container("app", main)))
            .collect(),
        supervisor: match report.observed.sandbox {
            Sandbox::Running { pid } => Some(pid),
            Sandbox::Absent | Sandbox::Lost => None,
        },
    }
}

impl Node for RunningNode {
    fn pods(&self) -> Vec<PodView> {
        let mut views: Vec<PodView> = self.snapshot().iter().map(|entry| self.view(entry)).collect();
        views.sort_by(|a, b| {
            let key = |view: &PodView| (view.pod.metadata.namespace.clone(), view.pod.metadata.name.clone());
            key(a).cmp(&key(b))
        });
        views
    }

    fn problems(&self) -> Vec<ManifestProblem> {
        self.problems.borrow().clone()
    }

    fn usage(&self) -> BoxFuture<'_, Vec<Usage>> {
        Box::pin(async move {
            let mut figures = Vec::new();
            for entry in self.snapshot() {
                let report = entry.reports.borrow().clone();
                let Some(report) = report else { continue };
                let running: Vec<(String, String)> =
                    report.observed.running().map(|(name, attempt)| (name.to_owned(), attempt.id.clone())).collect();
                figures.extend(entry.host.clone().usage(running).await);
            }
            figures
        })
    }

    fn exec(&self, uid: String, spec: ExecSpec, stdio: Vec<OwnedFd>) -> BoxFuture<'_, Result<ExecSession, NodeError>> {
        Box::pin(async move {
            let entry = self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned();
            let Some(entry) = entry else { return Err(NodeError::NotFound(format!("pod {uid}"))) };
            let report = entry.reports.borrow().clone();
            let runs = report.is_some_and(|report| report.observed.running().any(|(name, _)| name == spec.container));
            if !runs {
                return Err(NodeError::Conflict(format!("container {} is not running", spec.container)));
            }
            entry.host.clone().exec(spec, stdio).await
        })
    }

    fn images_in_use(&self) -> Vec<String> {
        let mut used = BTreeSet::new();
        for entry in self.snapshot() {
            let report: Option<Arc<Report>> = entry.reports.borrow().clone();
            let Some(report) = report else { continue };
            used.extend(report.observed.containers.values().flatten().map(|attempt| attempt.image_id.clone()));
            used.extend(report.observed.images.values().map(|image| image.id.clone()));
        }
        used.into_iter().collect()
    }
}
