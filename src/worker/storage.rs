//! Measures, now and then, what a pod with limits of local storage uses, and has it evicted when that is too much.
//!
//! Nothing else tells: without project quotas a file system does not say who wrote what. So only pods with such a limit
//! are measured, at upstream's pace or slower, and only while they have a sandbox.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    execute::{Host, blocking},
    host::{ActionError, PodEvent},
};
use crate::{
    pod::{
        Eviction,
        eviction::{self, StorageUsage},
        happening::Happening,
    },
    volume::{self, usage::disk_usage},
};

/// Upstream's `evictionMonitoringPeriod`.
const PERIOD: Duration = Duration::from_secs(10);

/// A measure that takes long is taken less often: at most one part in so many of the time is spent on it.
const SHARE: u32 = 10;

/// Measures until it is dropped.
pub struct Meter {
    task: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Drop for Meter {
    fn drop(&mut self) {
        // A walk that is under way ends at the next file.
        self.stop.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

/// Begins to measure a pod, if it has a limit.
pub fn meter(host: &Arc<Host>, events: mpsc::Sender<PodEvent>) -> Option<Meter> {
    if !eviction::is_limited(&host.pod()) {
        return None;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let task = tokio::spawn(run(Arc::downgrade(host), events, stop.clone()));
    Some(Meter { task, stop })
}

async fn run(host: Weak<Host>, events: mpsc::Sender<PodEvent>, stop: Arc<AtomicBool>) {
    let mut wait = PERIOD;
    loop {
        tokio::time::sleep(wait).await;
        let Some(host) = host.upgrade() else { return };
        let begun = Instant::now();
        let (pod, stop) = (host.pod(), stop.clone());
        let measured = pod.clone();
        match blocking(move || decide(&host, &measured, &stop)).await {
            Ok(Some(eviction)) => {
                // An actor that is gone has no use for it.
                let _ = events.send(PodEvent::Evicted(eviction)).await;
                return;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(pod = pod.metadata.name, "measure local storage: {}", error.message),
        }
        wait = PERIOD.max(begun.elapsed() * SHARE);
    }
}

/// Whether the pod has to go.
fn decide(host: &Host, pod: &Pod, stop: &AtomicBool) -> Result<Option<Eviction>, ActionError> {
    let failed = |error: io::Error| ActionError::new("", &error);
    let Some(usage) = measure(host, pod, stop).map_err(failed)? else { return Ok(None) };
    let eviction = eviction::storage_eviction(pod, &usage, Timestamp::now());
    if let Some(eviction) = &eviction {
        let happening = Happening::warning(None, eviction::REASON, eviction.message.clone());
        host.shared.events.happened(pod, happening, Timestamp::now());
    }
    Ok(eviction)
}

/// What the pod uses: its emptyDirs on disk, and of each container the writable layers and logs that are kept.
fn measure(host: &Host, pod: &Pod, stop: &AtomicBool) -> io::Result<Option<StorageUsage>> {
    let mut usage = StorageUsage::default();
    let Some(spec) = &pod.spec else { return Ok(Some(usage)) };
    for (volume, _) in eviction::disk_volumes(spec) {
        let path = volume::empty_dir::path(&host.dirs, &volume.name);
        let Some(bytes) = disk_usage(&path, stop)? else { return Ok(None) };
        usage.volumes.insert(volume.name.clone(), bytes);
    }
    let init = spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| &container.name);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
    for name in init.chain(ephemeral) {
        let mut bytes = 0_u64;
        for path in [host.dirs.container(name), host.dirs.log.join(name)] {
            let Some(more) = disk_usage(&path, stop)? else { return Ok(None) };
            bytes = bytes.saturating_add(more);
        }
        usage.containers.insert(name.clone(), bytes);
    }
    Ok(Some(usage))
}
