//! Tells followers that something changed in a directory. One inotify instance serves all of them, made when the
//! first one comes: instances are scarce on a machine (fs.inotify.max_user_instances).

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::StreamExt;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::watch;

/// Everything after which a reader may find something new: lines, a rotated file, an exit record, the end of it all.
const MASK: WatchMask = WatchMask::MODIFY
    .union(WatchMask::CREATE)
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::DELETE)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF);

/// Room for a burst of events; more are read in the next round.
const BUFFER: usize = 16 * 1024;

/// The directories that are watched.
#[derive(Debug, Clone, Default)]
pub struct LogWatch {
    shared: Arc<Mutex<Option<Shared>>>,
    next: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Shared {
    watches: Watches,
    /// Who wants to know; several followers of one directory share its watch.
    interested: HashMap<WatchDescriptor, HashMap<u64, watch::Sender<()>>>,
}

/// One follower's interest; ends when it is dropped.
#[derive(Debug)]
pub struct Watching {
    watch: LogWatch,
    id: u64,
    descriptors: Vec<WatchDescriptor>,
    changes: watch::Receiver<()>,
}

impl LogWatch {
    /// Watches `directories`; those that do not exist are left out.
    ///
    /// # Errors
    /// The limits of inotify are reached.
    pub fn watch(&self, directories: &[&Path]) -> io::Result<Watching> {
        let (sender, changes) = watch::channel(());
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut watching = Watching { watch: self.clone(), id, descriptors: Vec::new(), changes };
        let mut shared = self.lock();
        let shared = match &mut *shared {
            Some(shared) => shared,
            none => none.insert(self.open()?),
        };
        for directory in directories {
            match shared.watches.add(directory, MASK) {
                Ok(descriptor) => {
                    shared.interested.entry(descriptor.clone()).or_default().insert(id, sender.clone());
                    watching.descriptors.push(descriptor);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(watching)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Shared>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the instance and the task that reads from it.
    fn open(&self) -> io::Result<Shared> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let mut events = inotify.into_event_stream(vec![0; BUFFER])?;
        let watch = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                let shared = watch.lock();
                let Some(shared) = &*shared else { continue };
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    // What was lost is not known: everybody looks for himself.
                    shared.interested.values().flat_map(HashMap::values).for_each(notify);
                } else if let Some(interested) = shared.interested.get(&event.wd) {
                    interested.values().for_each(notify);
                }
            }
        });
        Ok(Shared { watches, interested: HashMap::new() })
    }
}

fn notify(sender: &watch::Sender<()>) {
    sender.send_replace(());
}

impl Watching {
    /// Returns when something has changed since the last call (or since the watch began). Cancel-safe.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // No directory was there to be watched: only the caller's own time-out can wake it.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut shared = self.watch.lock();
        let Some(shared) = &mut *shared else { return };
        for descriptor in self.descriptors.drain(..) {
            let Some(interested) = shared.interested.get_mut(&descriptor) else { continue };
            interested.remove(&self.id);
            if interested.is_empty() {
                shared.interested.remove(&descriptor);
                // Fails when the directory is gone, and the watch with it.
                let _ = shared.watches.remove(descriptor);
            }
        }
    }
}

#[cfg(test)]
impl LogWatch {
    /// No directory is watched.
    pub(super) fn shared_is_idle(&self) -> bool {
        self.lock().as_ref().is_none_or(|shared| shared.interested.is_empty())
    }
}
