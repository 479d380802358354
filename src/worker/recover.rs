//! After a restart: what is there, from the ledger, the records and the supervisors that answer.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_cni::Lease;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    execute::{Host, running_state},
    far_volumes, hooks,
    host::PodHost,
    inputs::KILL,
    manager::{EVENTS, Recovered},
    probes,
    record::{self, PodRecord},
    records,
    shared::Shared,
};
use crate::{
    pod::{
        Grants, Hook, Memory, ObservedPod,
        backoff::BackoffPolicy,
        observed::{AttemptState, Launched, Leftovers, Network, Sandbox},
    },
    runtime::{
        client::{ClientError, Supervisor},
        spawn::Identity,
    },
    store::{
        durable::{self, StoreError},
        layout::{Layout, PodDirs},
    },
    supervisor::{
        protocol::{RunningContainer, Snapshot},
        spec::{IdRange, LaunchSpec, SandboxSpec},
    },
    volume::remove,
};

/// Why an entry of the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A newer agent wrote it.
    #[error("{path} has version {found}; this program knows {}", record::VERSION)]
    Newer {
        /// The record.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It is of another pod than its directory.
    #[error("{path} is the record of pod {found:?}")]
    Misplaced {
        /// The record.
        path: PathBuf,
        /// UID in it.
        found: String,
    },
}

/// A pod that is neither taken up nor swept: what its record says may be all there is, for a person or a newer agent.
#[derive(Debug)]
pub struct LeftAlone {
    /// UID, from the directory's name.
    pub uid: String,
    /// The pod's directory.
    pub directory: PathBuf,
    /// Why.
    pub error: EntryError,
}

/// The ledger.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Pods to take up.
    pub records: Vec<PodRecord>,
    /// Directories without a record: nothing was done for the pod yet, or everything has been undone.
    pub half_made: Vec<PathBuf>,
    /// Pods to keep off.
    pub left_alone: Vec<LeftAlone>,
}

/// Reads the entries of the ledger.
///
/// # Errors
/// The directory cannot be listed. Nothing may be swept then, as nobody knows what is there.
///
/// A record that ends before it is complete was not durable when the power failed; no container had been started then.
pub fn ledger(layout: &Layout) -> io::Result<Ledger> {
    let mut ledger = Ledger::default();
    for entry in fs::read_dir(layout.pods())? {
        let entry = entry?;
        let (directory, uid) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let path = directory.join("pod.json");
        let error = match durable::read_json::<PodRecord>(&path) {
            Ok(Some(record)) if record.version > record::VERSION => EntryError::Newer { path, found: record.version },
            Ok(Some(record)) if record.uid() != uid => EntryError::Misplaced { path, found: record.uid().to_owned() },
            Ok(Some(record)) => {
                ledger.records.push(record);
                continue;
            }
            Ok(None) => {
                ledger.half_made.push(directory);
                continue;
            }
            Err(error) if error.is_incomplete() && !has_started(layout, &uid) => {
                ledger.half_made.push(directory);
                continue;
            }
            Err(error) => error.into(),
        };
        ledger.left_alone.push(LeftAlone { uid, directory, error });
    }
    Ok(ledger)
}

/// Whether a container of the pod `uid` was ever started: one has ended, or the supervisor lives.
fn has_started(layout: &Layout, uid: &str) -> bool {
    let dirs = layout.pod(uid, "", "");
    let supervisor = durable::read_json::<Identity>(&dirs.supervisor_file());
    let lives = || supervisor.ok().flatten().is_some_and(|identity| identity.is_alive());
    records::attempts(&dirs).iter().any(|attempt| attempt.exit_file().exists()) || lives()
}

/// Keeps the addresses of a pod that is left alone: it may be running.
pub fn keep_addresses(shared: &Shared, pod: &LeftAlone) {
    let kept = durable::read_json::<Lease>(&pod.directory.join("network.json"));
    match kept.map(|lease| lease.map(|lease| shared.network.adopt(&pod.uid, &lease))) {
        Ok(None | Some(Ok(()))) => {}
        Ok(Some(Err(error))) => warn!(uid = pod.uid, %error, "the addresses of a pod left alone cannot be kept"),
        Err(error) => warn!(uid = pod.uid, %error, "the addresses of a pod left alone are not known"),
    }
}

/// The ids of the user namespace of a pod that is left alone, as far as any of its records tells: it may be running.
pub fn kept_users(pod: &LeftAlone) -> Option<IdRange> {
    let record = durable::read_json::<serde_json::Value>(&pod.directory.join("pod.json")).ok().flatten();
    let of_record = record.and_then(|record| serde_json::from_value(record.get("users")?.clone()).ok());
    let sandbox = || durable::read_json::<SandboxSpec>(&pod.directory.join("sandbox.json")).ok().flatten()?.users;
    of_record.or_else(sandbox)
}

/// What a pod that is left alone was given for itself, as far as its record tells.
pub fn kept_grants(pod: &LeftAlone) -> Grants {
    let record = durable::read_json::<serde_json::Value>(&pod.directory.join("pod.json")).ok().flatten();
    let grants = record.and_then(|record| serde_json::from_value(record.get("grants")?.clone()).ok());
    grants.unwrap_or_default()
}

/// Finds out what there is of one pod, and takes it up.
pub async fn recover(shared: Arc<Shared>, record: PodRecord, crash_loop: &BackoffPolicy) -> Recovered {
    let (sender, events) = mpsc::channel(EVENTS);
    let host = Arc::new(Host::new(shared.clone(), record.clone(), sender));
    // What does not survive a reboot is made again.
    let dirs =
        [host.dirs.etc(), host.dirs.run.clone(), host.dirs.log.clone()].iter().all(|directory| directory.is_dir());
    let volume_images = far_volumes::chosen_images(&host.dirs);
    let mut observed = ObservedPod { dirs, volume_images, ..ObservedPod::default() };
    let mut memory = Memory { start_time: Some(record.start_time), ..Memory::default() };
    if let Some(verdict) = record.verdict.clone() {
        memory.resume_verdict(verdict);
        observed.verdict = true;
    }
    let name = record.pod.metadata.name.clone().unwrap_or_default();

    let sandbox = match durable::read_json::<SandboxSpec>(&host.dirs.sandbox_file()) {
        // The machine went down before it was durable, and so before anything was begun in the sandbox.
        Err(error) if error.is_incomplete() => Ok(None),
        read => read,
    };
    // Without the record, the newest that any attempt knows: a later sandbox must not be taken for an earlier one.
    let known = || records::read_all(&host.dirs).into_iter().filter_map(|(_, recorded)| recorded.ok().flatten());
    observed.generation = match &sandbox {
        Ok(Some(spec)) => spec.generation,
        _ => known().map(|recorded| recorded.launch.generation).max().unwrap_or(0),
    };
    host.take_over(observed.generation);
    let lease: Option<Lease> = durable::read_json(&host.dirs.network_file()).unwrap_or_else(|error| {
        // It is not synced, so an incomplete one is what a power failure leaves.
        if !error.is_incomplete() {
            warn!(pod = name, %error, "the address record is unreadable; a new address will be leased");
        }
        None
    });
    if let Some(lease) = lease {
        match shared.network.adopt(record.uid(), &lease) {
            Ok(()) => {
                observed.network = Network::Leased(lease.addresses.iter().map(|address| address.addr()).collect());
                host.hold_lease(Some(lease));
            }
            Err(error) => warn!(pod = name, %error, "the leased address cannot be kept; a new one will be leased"),
        }
    }
    let snapshot = match &sandbox {
        Ok(spec) => connect(&host, &mut observed, spec.is_some(), &name).await,
        Err(error) => {
            warn!(pod = name, %error, "the record of the sandbox is unreadable; what it holds is killed");
            observed.sandbox = Sandbox::Lost;
            None
        }
    };
    let made = !matches!(sandbox, Ok(None));
    let falls_back = |container: &str| host.falls_back_to_logs(container);
    attempts(&host.dirs, &mut observed, snapshot.as_ref(), made, &name, &falls_back);
    if matches!(observed.sandbox, Sandbox::Running { .. }) {
        host.observe_sizes(&record.effective(), &mut observed);
    }
    for (container, attempts) in &observed.containers {
        if let Some(latest) = attempts.last() {
            let started = match &latest.state {
                AttemptState::Running { started_at, .. } => Some(*started_at),
                AttemptState::Ended(ended) => ended.started_at,
            };
            memory.resume_crash_loop(container, latest.number, started.unwrap_or(record.start_time), crash_loop);
        }
    }
    match probes::kept_verdicts(&host.dirs) {
        // Of attempts that have ended, too: one that was ended for its probes is started again.
        Ok(kept) => observed.probes = kept,
        Err(error) => warn!(pod = name, %error, "what probes found is unreadable; they are asked again"),
    }
    // What may be there is assumed to be: removing what is not is Ok.
    observed.leftovers = Leftovers {
        cgroups: true,
        volumes: host.dirs.volumes().exists(),
        network: observed.network != Network::Absent,
    };
    let host: Arc<dyn PodHost> = host;
    Recovered { record, observed, memory, host, events }
}

async fn connect(host: &Arc<Host>, observed: &mut ObservedPod, recorded: bool, name: &str) -> Option<Snapshot> {
    match Supervisor::reconnect(&host.dirs).await {
        Ok(connected) => {
            let snapshot = connected.snapshot.clone();
            observed.sandbox = Sandbox::Running { pid: snapshot.pid };
            host.connected(connected, observed.generation);
            if let Network::Leased(addresses) = &observed.network {
                let addresses = addresses.clone();
                let (attaching, pod) = (host.clone(), host.pod());
                // Repeatable: what is attached already stays as it is, and what was half-made is completed.
                match tokio::task::spawn_blocking(move || attaching.attach_network(&pod)).await {
                    Ok(Ok(_)) => observed.network = Network::Attached(addresses),
                    Ok(Err(error)) => warn!(pod = name, "{}", error.message),
                    Err(error) => warn!(pod = name, %error, "attach the network"),
                }
            }
            info!(pod = name, pid = snapshot.pid, running = snapshot.running.len(), "pod adopted");
            Some(snapshot)
        }
        Err(ClientError::NotRunning { .. }) if !recorded => None,
        Err(error) => {
            info!(pod = name, %error, "the sandbox is gone; the pod is started again as its restart policy says");
            observed.sandbox = Sandbox::Lost;
            None
        }
    }
}

/// The attempts on disk, each as running (the supervisor says so), ended (its record says so), or ended in an
/// unknown way. One that a living supervisor does not speak of was prepared and perhaps asked for: it is not known
/// yet, and starting it again joins it. One prepared for a sandbox that was not `made` is taken back.
pub(super) fn attempts(
    dirs: &PodDirs,
    observed: &mut ObservedPod,
    snapshot: Option<&Snapshot>,
    made: bool,
    name: &str,
    falls_back_to_logs: &dyn Fn(&str) -> bool,
) {
    for (directory, read) in records::read_all(dirs) {
        let recorded = match read {
            Ok(Some(recorded)) => recorded,
            Ok(None) => {
                remove_half_made(&directory.dir, name);
                continue;
            }
            // The power failed before it was durable, and so before anything was started from it.
            Err(error) if error.is_incomplete() && snapshot.is_none() => {
                remove_half_made(&directory.dir, name);
                continue;
            }
            Err(error) => {
                warn!(pod = name, %error, "the record of an attempt is unreadable, ignoring");
                continue;
            }
        };
        let launch = &recorded.launch;
        let running = snapshot.and_then(|snapshot| {
            let same = |running: &&RunningContainer| {
                running.container == launch.container && running.attempt == launch.attempt
            };
            snapshot.running.iter().find(same)
        });
        let attempt = match (running, &recorded.exit) {
            (Some(running), _) => recorded.attempt(running_state(running), Some(running.user.clone())),
            (None, Some(_)) => recorded.ended(&directory, falls_back_to_logs(&launch.container), Timestamp::now()),
            (None, None) if snapshot.is_some() && launch.generation == observed.generation => continue,
            // Prepared for a sandbox that never came to be: nothing was begun in it.
            (None, None) if snapshot.is_none() && !made || launch.generation > observed.generation => {
                remove_half_made(&directory.dir, name);
                continue;
            }
            (None, None) => recorded.ended(&directory, false, Timestamp::now()),
        };
        for hook in [Hook::PostStart, Hook::PreStop] {
            match hooks::recorded(&directory, hook) {
                Ok(Some(end)) => observed.hook_ended(&launch.container, attempt.number, hook, end),
                Ok(None) => {}
                // It is run again, as one that has not ended.
                Err(error) => warn!(pod = name, %error, "the record of a hook is unreadable, ignoring"),
            }
        }
        note_launch(observed, launch, directory.restart_file().exists());
        observed.record(&launch.container.clone(), attempt);
    }
}

/// What the newest attempt of a container runs with, and whether it was being stopped to be started again.
fn note_launch(observed: &mut ObservedPod, launch: &LaunchSpec, restart: bool) {
    if observed.launched.get(&launch.container).is_some_and(|known| known.attempt > launch.attempt) {
        return;
    }
    // The resources are read from its cgroup where it runs.
    let launched = Launched { attempt: launch.attempt, image: launch.image.clone(), ..Launched::default() };
    observed.launched.insert(launch.container.clone(), launched);
    if restart {
        observed.restarts.insert(launch.container.clone(), launch.attempt);
    }
}

fn remove_half_made(directory: &Path, name: &str) {
    if let Err(error) = remove::remove_tree(directory) {
        warn!(pod = name, %error, "a half-made attempt stays, ignoring");
    }
}

/// Removes what no record claims: cgroups with what runs in them, links, host ports, mounts and directories.
pub fn sweep(shared: &Shared, ledger: &Ledger) {
    let records = ledger.records.iter().map(|record| record.uid().to_owned());
    let owners: HashSet<String> = records.chain(ledger.left_alone.iter().map(|pod| pod.uid.clone())).collect();
    for (uid, qos) in shared.cgroups.list_pods().into_iter().filter(|(uid, _)| !owners.contains(uid)) {
        let killed = shared.cgroups.kill_pod(qos, &uid, KILL);
        match killed.and_then(|()| shared.cgroups.remove_pod(qos, &uid)) {
            Ok(()) => info!(uid, "swept the cgroups of a pod nobody knows"),
            Err(error) => warn!(uid, %error, "sweep cgroups"),
        }
    }
    match shared.network.sweep(&owners) {
        Ok(removed) => removed.into_iter().for_each(|what| info!(what, "swept")),
        Err(error) => warn!(%error, "sweep the network"),
    }
    match crate::volume::sweep(&shared.config.layout, &owners) {
        Ok(removed) => removed.into_iter().for_each(|what| info!(what, "swept")),
        Err(error) => warn!(%error, "sweep volumes"),
    }
    for directory in &ledger.half_made {
        if let Err(error) = remove::remove_tree(directory) {
            warn!(%error, "remove a half-made pod");
        }
    }
    let run = shared.config.layout.run.join("pods");
    for entry in fs::read_dir(&run).into_iter().flatten().flatten() {
        if !owners.contains(entry.file_name().to_string_lossy().as_ref())
            && let Err(error) = remove::remove_tree(&entry.path())
        {
            warn!(%error, "remove a stale run directory");
        }
    }
}
