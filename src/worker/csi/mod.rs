//! Volumes that CSI drivers provide: staged once for the node, published for each pod, and taken back in reverse.
//!
//! Whatever a driver may have done is on record before it is asked to: `pods/<uid>/csi/<volume>.json`, written before the
//! first call and removed after the last. A call whose end is not known counts as done, and is taken back with the pod.
//! Drivers have to bear that: every call may be repeated, and may undo what was never done (the specification says so).

mod mount;
mod records;
mod unmount;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::execute::Host;
use crate::csi::drivers::Drivers;

/// A volume of a driver: by the names of both.
type VolumeKey = (String, String);

/// What the pods of the node share about CSI.
#[derive(Default)]
pub struct Csi {
    /// The drivers that have registered.
    pub drivers: Arc<Drivers>,
    /// What is done with a volume is done by one pod at a time, as staging is for all of them.
    volumes: Mutex<BTreeMap<VolumeKey, Weak<AsyncMutex<()>>>>,
    /// Where volumes are known to be staged. Of those that an earlier agent has staged nothing is known, and they are
    /// staged again by the next pod that comes: that is what upstream does, too.
    staged: Mutex<BTreeSet<PathBuf>>,
    /// Directories that pods share are made and removed by one at a time.
    directories: Mutex<()>,
}

impl Csi {
    /// Waits for the turn of a pod to deal with a volume.
    async fn turn(&self, driver: &str, handle: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
            volumes.retain(|_, lock| lock.strong_count() > 0);
            let known = volumes.entry((driver.to_owned(), handle.to_owned())).or_default();
            known.upgrade().unwrap_or_else(|| {
                let lock = Arc::default();
                *known = Arc::downgrade(&lock);
                lock
            })
        };
        lock.lock_owned().await
    }

    fn is_staged(&self, path: &PathBuf) -> bool {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).contains(path)
    }

    fn note_staged(&self, path: PathBuf) {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
    }

    fn note_unstaged(&self, path: &PathBuf) {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }
}

impl Host {
    fn csi(&self) -> &Csi {
        &self.shared.csi
    }
}
