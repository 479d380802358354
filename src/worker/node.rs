//! The running node as its servers see it: views made from the actors' newest reports.

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    actor::Report,
    handle::{
        BoxFuture, ContainerView, ExecSession, ManifestProblem, Node, NodeError, PodGrants, PodView, TerminalSize,
        Usage,
    },
    manager::{Entries, Entry, Update},
    room::WaitingPod,
};
use crate::{
    api::{container_ref::ContainerRef, resources::is_sidecar, update::Change},
    device::Devices,
    pod::{
        Grants,
        devices::Offers,
        observed::{Attempt, AttemptState, Sandbox},
    },
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
    /// Changes that the manager decides.
    pub updates: mpsc::Sender<Update>,
    /// Pods that wait for room on the node.
    pub waiting: watch::Receiver<Vec<WaitingPod>>,
    /// Device plugins.
    pub devices: Arc<Devices>,
}

/// How long a change may take to be durable before whoever asked is told that it is not yet.
const RECORDED: Duration = Duration::from_secs(30);

/// How long the end of a container takes to be known after its supervisor knows it, with time to spare.
const END: Duration = Duration::from_secs(2);

impl RunningNode {
    fn snapshot(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn entry(&self, uid: &str) -> Result<Entry, NodeError> {
        let entry = self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned();
        entry.ok_or_else(|| NodeError::NotFound(format!("pod {uid}")))
    }

    fn view(&self, entry: &Entry) -> PodView {
        let report = entry.reports.borrow().clone();
        match report {
            Some(report) => view(&report, &entry.source, &self.layout, &entry.grants),
            None => bare_view(Pod::clone(&entry.pod), entry.source.clone()),
        }
    }
}

/// Of a pod for which nothing has been done.
fn bare_view(pod: Pod, source: String) -> PodView {
    PodView { pod, source, stages: Vec::new(), containers: Vec::new(), supervisor: None }
}

/// Number of a container's newest attempt and, once that has ended, its exit code.
fn latest(report: &Option<Arc<Report>>, container: &str) -> Option<(u32, Option<i32>)> {
    let attempt = report.as_ref()?.observed.latest(container)?;
    Some((attempt.number, ended(attempt)))
}

/// What a container that is not started yet waits for, beyond being started: `ErrImagePull: …`.
fn waiting(pod: &Pod, container: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|status| status.name == container)?;
    let waiting = found.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    match waiting.message.as_deref().unwrap_or_default() {
        "" if ["", "ContainerCreating", "PodInitializing"].contains(&reason) => None,
        "" => Some(reason.to_owned()),
        message => Some(format!("{reason}: {message}")),
    }
}

fn ended(attempt: &Attempt) -> Option<i32> {
    match &attempt.state {
        AttemptState::Ended(ended) => Some(ended.exit_code),
        AttemptState::Running { .. } => None,
    }
}

fn view(report: &Report, source: &str, layout: &Layout, grants: &Grants) -> PodView {
    let metadata = &report.pod.metadata;
    let dirs = layout.pod(
        metadata.uid.as_deref().unwrap_or_default(),
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    );
    let container = |container: ContainerRef<'_>| {
        let kind = match container {
            ContainerRef::Init(_, init) if is_sidecar(init) => "sidecar",
            ContainerRef::Init(..) => "init",
            ContainerRef::App(..) => "app",
            ContainerRef::Ephemeral(..) => "ephemeral",
        };
        let latest = report.observed.latest(container.name());
        let (state, pid, started_at, exit_code) = match latest.map(|attempt| &attempt.state) {
            None => ("waiting", None, None, None),
            Some(AttemptState::Running { pid, started_at }) => ("running", Some(*pid), Some(*started_at), None),
            Some(AttemptState::Ended(ended)) => ("exited", None, ended.started_at, Some(ended.exit_code)),
        };
        ContainerView {
            name: container.name().to_owned(),
            kind: kind.to_owned(),
            id: latest.map(|attempt| attempt.id.clone()).unwrap_or_default(),
            attempt: latest.map_or(0, |attempt| attempt.number),
            image: container.image().to_owned(),
            state: state.to_owned(),
            pid,
            tty: container.tty(),
            started_at: started_at.and_then(|at| i64::try_from(at.as_nanosecond()).ok()).unwrap_or_default(),
            exit_code,
            log_dir: dirs.log.join(container.name()).to_string_lossy().into_owned(),
            granted: grants.of(container.name()).cloned(),
        }
    };
    PodView {
        pod: report.pod.clone(),
        source: source.to_owned(),
        stages: report.stages.clone(),
        containers: ContainerRef::all(&report.pod).map(container).collect(),
        supervisor: match report.observed.sandbox {
            Sandbox::Running { pid } => Some(pid),
            Sandbox::Absent | Sandbox::Lost => None,
        },
    }
}

impl Node for RunningNode {
    fn pods(&self) -> Vec<PodView> {
        let mut views: Vec<PodView> = self.snapshot().iter().map(|entry| self.view(entry)).collect();
        // One that has just been started may still be among those that wait.
        let is_here = |uid: &Option<String>, views: &[PodView]| views.iter().any(|view| view.pod.metadata.uid == *uid);
        for WaitingPod { pod, source } in self.waiting.borrow().iter() {
            if !is_here(&pod.metadata.uid, &views) {
                views.push(bare_view(pod.clone(), source.clone()));
            }
        }
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
            let entry = self.entry(&uid)?;
            let report = entry.reports.borrow().clone();
            let runs = report.is_some_and(|report| report.observed.running().any(|(name, _)| name == spec.container));
            if !runs {
                return Err(NodeError::Conflict(format!("container {} is not running", spec.container)));
            }
            entry.host.clone().exec(spec, stdio).await
        })
    }

    fn attach(
        &self,
        uid: String,
        container: String,
        stdio: Vec<OwnedFd>,
        waits: mpsc::Sender<String>,
    ) -> BoxFuture<'_, Result<ExecSession, NodeError>> {
        Box::pin(async move {
            let entry = self.entry(&uid)?;
            let mut reports = entry.reports.clone();
            let gone = || NodeError::Conflict(format!("the pod of container {container} is gone"));
            let mut told = None;
            let attempt = loop {
                let report = reports.borrow_and_update().clone();
                match latest(&report, &container) {
                    Some((attempt, None)) => break attempt,
                    // It was over before anybody could look: its log has all of it.
                    Some((_, Some(code))) => return Ok(ExecSession::ended(code)),
                    None => {}
                }
                let why = report.and_then(|report| waiting(&report.pod, &container));
                if why.is_some() && why != told {
                    // Nobody may be interested any more.
                    let _ = waits.send(why.clone().unwrap_or_default()).await;
                    told = why;
                }
                reports.changed().await.map_err(|_| gone())?;
            };
            let attached = entry.host.clone().attach(container.clone(), stdio).await;
            let exit = async move {
                let code = |report: &Option<Arc<Report>>| {
                    let attempts = report.as_ref()?.observed.containers.get(&container)?;
                    ended(attempts.iter().find(|found| found.number == attempt)?)
                };
                let seen = reports.wait_for(|report| code(report).is_some()).await;
                seen.ok()
                    .and_then(|report| code(&report))
                    .ok_or_else(|| NodeError::Conflict(format!("the pod of container {container} is gone")))
            };
            if let Err(error) = attached {
                // Refused because it has just ended, most likely: then that is told next.
                return match tokio::time::timeout(END, exit).await {
                    Ok(Ok(code)) => Ok(ExecSession::ended(code)),
                    _ => Err(error),
                };
            }
            Ok(ExecSession { terminal: None, over: false, exit: Box::pin(exit) })
        })
    }

    fn resize_terminal(
        &self,
        uid: String,
        container: String,
        size: TerminalSize,
    ) -> BoxFuture<'_, Result<(), NodeError>> {
        Box::pin(async move { self.entry(&uid)?.host.resize_terminal(container, size).await })
    }

    fn update(&self, uid: String, change: Change) -> BoxFuture<'_, Result<Pod, NodeError>> {
        Box::pin(async move {
            let mut reports = self.entry(&uid)?.reports;
            let (answer, decided) = oneshot::channel();
            let stopping = || NodeError::Conflict("the agent is stopping".to_owned());
            self.updates.send(Update { uid, change, answer }).await.map_err(|_| stopping())?;
            let (pod, waits) = decided.await.map_err(|_| stopping())??;
            // The actor goes by the pod, and reports it, when it is durable.
            let durable = reports.wait_for(|report| {
                let generation = report.as_ref().and_then(|report| report.pod.metadata.generation);
                let status = report.as_ref().and_then(|report| report.pod.status.as_ref());
                let mut conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
                generation >= pod.metadata.generation
                    && (!waits || conditions.any(|condition| condition.type_ == "PodResizePending"))
            });
            match tokio::time::timeout(RECORDED, durable).await {
                Ok(Ok(report)) => Ok(report.as_ref().map_or_else(|| Pod::clone(&pod), |report| report.pod.clone())),
                Ok(Err(_)) => Err(NodeError::Conflict("the pod is gone".to_owned())),
                Err(_) => {
                    let message = "the change is accepted, but the ledger could not be written yet; it is tried again";
                    Err(NodeError::Internal(message.to_owned()))
                }
            }
        })
    }

    fn grants(&self) -> Vec<PodGrants> {
        let of = |entry: &Entry| {
            let report = entry.reports.borrow().clone();
            let phase = report.as_ref().and_then(|report| report.pod.status.as_ref()?.phase.as_deref());
            if matches!(phase, Some("Succeeded" | "Failed")) {
                return None;
            }
            let grants = entry.host.grants();
            let stays = |container: &ContainerRef<'_>| match container {
                ContainerRef::Init(_, init) => is_sidecar(init),
                ContainerRef::App(..) => true,
                ContainerRef::Ephemeral(..) => false,
            };
            let given = |container: ContainerRef<'_>| {
                (container.name().to_owned(), grants.of(container.name()).cloned().unwrap_or_default())
            };
            let metadata = &entry.pod.metadata;
            Some(PodGrants {
                namespace: metadata.namespace.clone().unwrap_or_default(),
                name: metadata.name.clone().unwrap_or_default(),
                containers: ContainerRef::all(&entry.pod).filter(stays).map(given).collect(),
            })
        };
        self.snapshot().iter().filter_map(of).collect()
    }

    fn offers(&self) -> Arc<Offers> {
        self.devices.offers()
    }

    fn images_in_use(&self) -> Vec<String> {
        let mut used = BTreeSet::new();
        for entry in self.snapshot() {
            let report: Option<Arc<Report>> = entry.reports.borrow().clone();
            let Some(report) = report else { continue };
            used.extend(report.observed.containers.values().flatten().map(|attempt| attempt.image_id.clone()));
            used.extend(report.observed.images.values().map(|image| image.id.clone()));
            used.extend(report.observed.volume_images.values().cloned());
        }
        used.into_iter().collect()
    }
}
