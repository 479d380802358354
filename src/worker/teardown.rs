//! The other half of a pod's hands: taking down, step by step, each of which can be repeated.

use std::{fs, io, path::Path, sync::Arc};

use k8s_openapi::api::core::v1::Pod;

use super::{
    execute::{Host, blocking},
    handle::Usage,
    host::{ActionError, Done},
    inputs, records,
};
use crate::{cgroup, pod::Outcome, runtime::handler, volume::remove};

fn because<E: std::error::Error>(reason: &'static str) -> impl FnOnce(E) -> ActionError {
    move |error| ActionError::new(reason, &error)
}

fn absent_is_fine(result: io::Result<()>, path: &Path) -> Result<(), ActionError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ActionError {
            reason: "FailedRemovePod".to_owned(),
            message: format!("remove {}: {error}", path.display()),
        }),
        _ => Ok(()),
    }
}

impl Host {
    /// Ends the supervisor: asked first, killed with everything in the pod's cgroups otherwise.
    pub(super) async fn stop_sandbox(self: &Arc<Self>) -> Result<Done, ActionError> {
        let orderly = match self.supervisor() {
            Some(supervisor) => match supervisor.shutdown().await {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(pod = self.uid(), %error, "the supervisor does not end by itself; it is killed");
                    supervisor.kill_supervisor();
                    false
                }
            },
            None => false,
        };
        let host = self.clone();
        blocking(move || {
            if !orderly {
                let cgroups = &host.shared.cgroups;
                cgroups.kill_pod(host.qos, host.uid(), inputs::KILL).map_err(because("FailedKillPod"))?;
                // Linux (seen with 6.18) also kills what is later born by CLONE_INTO_CGROUP into a cgroup that was
                // once killed through cgroup.kill: the next sandbox gets new ones.
                cgroups.remove_pod(host.qos, host.uid()).map_err(because("FailedKillPod"))?;
                host.forget_containers();
            }
            let run = &host.dirs.run;
            absent_is_fine(fs::remove_dir_all(run), run)
        })
        .await?;
        self.forget_supervisor();
        Ok(Done::new(Outcome::Done))
    }

    /// Has the runtime of the pod's containers, if they have one of their own, forget those that are dead: the supervisor
    /// has not lived to. What it keeps in the pod's run directory goes with that in any case.
    fn forget_containers(&self) {
        if self.handler.is_none() {
            return;
        }
        let recorded = records::read_all(&self.dirs).into_iter().filter_map(|(_, recorded)| recorded.ok().flatten());
        for launch in recorded.map(|recorded| recorded.launch) {
            let Some(handler) = launch.handler.as_deref().filter(|handler| handler.state.join(&launch.id).exists())
            else {
                continue;
            };
            if let Err(error) = handler::forget(handler, &launch.id) {
                let error = ActionError::new("", &error).message;
                tracing::warn!(
                    pod = self.uid(),
                    container = launch.container,
                    error,
                    "the runtime keeps a dead container, ignoring"
                );
            }
        }
    }

    pub(super) fn detach_network(&self, pod: &Pod) -> Result<Done, ActionError> {
        let ports = inputs::port_mappings(pod);
        self.shared.network.detach(self.uid(), &ports).map_err(because("FailedKillPod"))?;
        Ok(Done::new(Outcome::Done))
    }

    pub(super) fn remove_cgroups(&self) -> Result<Done, ActionError> {
        let cgroups = &self.shared.cgroups;
        cgroups.kill_pod(self.qos, self.uid(), inputs::KILL).map_err(because("FailedKillPod"))?;
        cgroups.remove_pod(self.qos, self.uid()).map_err(because("FailedKillPod"))?;
        Ok(Done::new(Outcome::Done))
    }

    pub(super) fn release_addresses(&self) -> Result<Done, ActionError> {
        let path = self.dirs.network_file();
        absent_is_fine(fs::remove_file(&path), &path)?;
        self.shared.network.release(self.uid());
        self.hold_lease(None);
        Ok(Done::new(Outcome::Done))
    }

    pub(super) fn remove_attempt(&self, container: &str, attempt: u32) -> Result<Done, ActionError> {
        let directory = self.dirs.attempt(container, attempt);
        remove::remove_tree(&directory.dir).map_err(because("FailedRemoveContainer"))?;
        let log = self.dirs.log_file(container, attempt);
        let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rotated = format!("{name}.");
        for entry in log.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten() {
            let found = entry.file_name().to_string_lossy().into_owned();
            if found == name || found.starts_with(&rotated) {
                absent_is_fine(fs::remove_file(entry.path()), &entry.path())?;
            }
        }
        Ok(Done::new(Outcome::Done))
    }

    /// Logs, then everything of the pod's directory but the record, then the record, then the directory.
    pub(super) fn forget(&self) -> Result<Done, ActionError> {
        const REASON: &str = "FailedRemovePod";
        for path in [&self.dirs.run, &self.dirs.log] {
            remove::remove_tree(path).map_err(because(REASON))?;
        }
        let record = self.dirs.pod_file();
        for entry in fs::read_dir(&self.dirs.dir).into_iter().flatten().flatten() {
            if entry.path() != record {
                remove::remove_tree(&entry.path()).map_err(because(REASON))?;
            }
        }
        absent_is_fine(fs::remove_file(&record), &record)?;
        absent_is_fine(fs::remove_dir(&self.dirs.dir), &self.dirs.dir)?;
        Ok(Done::new(Outcome::Done))
    }

    /// Figures of the pod as a whole, then of its running containers.
    pub(super) fn figures(&self, running: &[(String, String)]) -> Vec<Usage> {
        let pod = self.pod();
        let metadata = &pod.metadata;
        let pod = format!(
            "{}/{}",
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default()
        );
        let figures = |container: &str, usage: cgroup::Usage| Usage {
            pod: pod.clone(),
            container: container.to_owned(),
            cpu_nanos: usage.cpu_nanos,
            memory_bytes: usage.memory_bytes,
            working_set_bytes: usage.working_set_bytes,
            memory_limit: usage.memory_limit,
            pids: usage.pids,
        };
        let cgroups = &self.shared.cgroups;
        // What ends while it is looked at has no figures.
        let whole = cgroups.pod_usage(self.qos, self.uid()).ok().flatten().map(|usage| figures("", usage));
        let each = running.iter().filter_map(|(name, id)| {
            cgroups.usage(self.qos, self.uid(), id).ok().flatten().map(|usage| figures(name, usage))
        });
        whole.into_iter().chain(each).collect()
    }
}
