//! After a restart: what is there, from the ledger, the records and the supervisors that answer.

use std::{fs, path::PathBuf, sync::Arc};

use berth_cni::Lease;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    execute::{Host, running_state},
    host::PodHost,
    inputs::KILL,
    manager::{EVENTS, Recovered},
    record::PodRecord,
    records,
    shared::Shared,
};
use crate::{
    pod::{
        Memory, ObservedPod,
        backoff::BackoffPolicy,
        observed::{AttemptState, Leftovers, Network, Sandbox},
    },
    runtime::client::{ClientError, Supervisor},
    store::durable::{self, StoreError},
    supervisor::{protocol::Snapshot, spec::SandboxSpec},
    volume::remove,
};

/// The ledger's entries: readable ones, and directories whose entry cannot be used, with the reason.
pub fn ledger(shared: &Shared) -> (Vec<PodRecord>, Vec<(PathBuf, Option<StoreError>)>) {
    let (mut records, mut unusable) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(shared.config.layout.pods()).into_iter().flatten().flatten() {
        let directory = entry.path();
        match durable::read_json::<PodRecord>(&directory.join("pod.json")) {
            Ok(Some(record)) => records.push(record),
            // Made and not yet recorded, or emptied and not yet removed: nothing was done for it, or all undone.
            Ok(None) => unusable.push((directory, None)),
            Err(error) => unusable.push((directory, Some(error))),
        }
    }
    (records, unusable)
}

/// Finds out what there is of one pod, and takes it up.
pub async fn recover(shared: Arc<Shared>, record: PodRecord, crash_loop: &BackoffPolicy) -> Recovered {
    let (sender, events) = mpsc::channel(EVENTS);
    let host = Arc::new(Host::new(shared.clone(), record.clone(), sender));
    let mut observed = ObservedPod { dirs: true, ..ObservedPod::default() };
    let mut memory = Memory { start_time: Some(record.start_time), ..Memory::default() };
    let name = record.pod.metadata.name.clone().unwrap_or_default();

    let sandbox: Option<SandboxSpec> = durable::read_json(&host.dirs.sandbox_file()).unwrap_or_else(|error| {
        warn!(pod = name, %error, "the record of the sandbox is unreadable; what it holds will be killed");
        None
    });
    observed.generation = sandbox.as_ref().map_or(0, |spec| spec.generation);
    host.set_generation(observed.generation);
    let lease: Option<Lease> = durable::read_json(&host.dirs.network_file()).unwrap_or_else(|error| {
        warn!(pod = name, %error, "the address record is unreadable; a new address will be leased");
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
    let snapshot = connect(&host, &mut observed, sandbox.is_some(), &name).await;
    attempts(&host, &mut observed, snapshot.as_ref(), &name);
    for (container, attempts) in &observed.containers {
        if let Some(latest) = attempts.last() {
            let started = match &latest.state {
                AttemptState::Running { started_at, .. } => Some(*started_at),
                AttemptState::Ended(ended) => ended.started_at,
            };
            memory.resume_crash_loop(container, latest.number, started.unwrap_or(record.start_time), crash_loop);
        }
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
                let attaching = host.clone();
                // Repeatable: what is attached already stays as it is, and what was half-made is completed.
                match tokio::task::spawn_blocking(move || attaching.attach_network()).await {
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
            if recorded {
                info!(pod = name, %error, "the sandbox is gone; the pod is started again as its restart policy says");
                observed.sandbox = Sandbox::Lost;
            }
            None
        }
    }
}

/// The attempts on disk, each as running (the supervisor says so), ended (its record says so), or ended in an
/// unknown way. One that was prepared but never begun, which a living supervisor knows nothing of, is taken back.
fn attempts(host: &Arc<Host>, observed: &mut ObservedPod, snapshot: Option<&Snapshot>, name: &str) {
    for found in records::read_all(&host.dirs) {
        let (directory, recorded) = match found {
            Ok((directory, Some(recorded))) => (directory, recorded),
            Ok((directory, None)) => {
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
            let same = |running: &&crate::supervisor::protocol::RunningContainer| {
                running.container == launch.container && running.attempt == launch.attempt
            };
            snapshot.running.iter().find(same)
        });
        let attempt = match (running, &recorded.exit) {
            (Some(running), _) => recorded.attempt(running_state(running)),
            (None, Some(_)) => recorded.ended(&directory, host.falls_back_to_logs(&launch.container), Timestamp::now()),
            (None, None) if snapshot.is_some() && launch.generation == observed.generation => {
                remove_half_made(&directory.dir, name);
                continue;
            }
            (None, None) => recorded.ended(&directory, false, Timestamp::now()),
        };
        observed.record(&launch.container.clone(), attempt);
    }
}

fn remove_half_made(directory: &std::path::Path, name: &str) {
    if let Err(error) = remove::remove_tree(directory) {
        warn!(pod = name, %error, "a half-made attempt stays, ignoring");
    }
}

/// Removes what no record claims: cgroups with what runs in them, links, host ports, mounts and directories.
pub fn sweep(shared: &Shared, records: &[PodRecord], unusable: Vec<(PathBuf, Option<StoreError>)>) {
    let owners: std::collections::HashSet<String> = records.iter().map(|record| record.uid().to_owned()).collect();
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
    for (directory, error) in unusable {
        if let Some(error) = error {
            // Not removed: it may be of a newer version, and its content is all there is.
            warn!(directory = %directory.display(), %error, "a ledger entry cannot be read; its pod is left alone");
            continue;
        }
        if let Err(error) = remove::remove_tree(&directory) {
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
