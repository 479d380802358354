//! The latest changes, in memory, and who waits for more. Most watches are served from here; one that asks for what is
//! older reads the database.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{Notify, watch};

use super::Change;

/// Most changes that are kept: a second of heavy use.
const MOST: usize = 1024;
/// Most bytes of their documents.
const MOST_BYTES: usize = 4 << 20;

/// See the module.
pub struct History {
    recent: RwLock<Recent>,
    waiters: Mutex<Vec<Waiter>>,
    /// The latest revision.
    head: watch::Sender<u64>,
    compacted: AtomicU64,
}

#[derive(Default)]
struct Recent {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
}

struct Waiter {
    prefix: String,
    notify: Weak<Notify>,
}

/// What a watch finds when it looks.
pub enum Look {
    /// These, and its new position.
    Found(Vec<Arc<Change>>, u64),
    /// Nothing up to this revision.
    Nothing(u64),
    /// What it asks for is older.
    OnDisk,
    /// What it asks for is gone; the history begins with this revision.
    Gone(u64),
}

impl History {
    /// A history whose latest revision is `revision` and which reaches back to `compacted`.
    pub fn new(revision: u64, compacted: u64) -> History {
        History {
            recent: RwLock::default(),
            waiters: Mutex::default(),
            head: watch::Sender::new(revision),
            compacted: AtomicU64::new(compacted),
        }
    }

    /// The latest revision.
    pub fn revision(&self) -> u64 {
        *self.head.borrow()
    }

    /// To wait for a revision with.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Adds changes whose revisions follow the latest one, and wakes those whom they concern.
    pub fn publish(&self, changes: Vec<Arc<Change>>) {
        let Some(last) = changes.last().map(|change| change.revision) else { return };
        {
            let mut recent = self.recent.write().unwrap_or_else(PoisonError::into_inner);
            for change in &changes {
                recent.bytes += size(change);
                recent.changes.push_back(change.clone());
            }
            while recent.changes.len() > MOST || recent.bytes > MOST_BYTES {
                let Some(oldest) = recent.changes.pop_front() else { break };
                recent.bytes -= size(&oldest);
            }
            // Within the lock: nobody sees a revision whose change is not here.
            self.head.send_replace(last);
        }
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.retain(|waiter| {
            let Some(notify) = waiter.notify.upgrade() else { return false };
            if changes.iter().any(|change| change.key.starts_with(&waiter.prefix)) {
                notify.notify_one();
            }
            true
        });
    }

    /// The history begins with this revision now.
    pub fn compacted(&self, revision: u64) {
        self.compacted.fetch_max(revision, Ordering::Relaxed);
    }

    /// A waker for changes below `prefix`; it is given up by dropping it.
    pub fn wait(&self, prefix: &str) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        let waiter = Waiter { prefix: prefix.to_owned(), notify: Arc::downgrade(&notify) };
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner).push(waiter);
        notify
    }

    /// Changes below `prefix` after a revision.
    pub fn look(&self, prefix: &str, after: u64) -> Look {
        let compacted = self.compacted.load(Ordering::Relaxed);
        if after < compacted {
            return Look::Gone(compacted);
        }
        let recent = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        let head = *self.head.borrow();
        if after >= head {
            return Look::Nothing(after);
        }
        let first = recent.changes.front().map_or(head + 1, |change| change.revision);
        if after + 1 < first {
            return Look::OnDisk;
        }
        // Revisions follow one another without gaps.
        let skip = (after + 1 - first) as usize;
        let found = recent.changes.iter().skip(skip).filter(|change| change.key.starts_with(prefix));
        let found: Vec<_> = found.cloned().collect();
        if found.is_empty() { Look::Nothing(head) } else { Look::Found(found, head) }
    }
}

fn size(change: &Change) -> usize {
    let documents = change.document.iter().chain(&change.previous);
    change.key.len() + documents.map(|document| document.bytes().len()).sum::<usize>()
}
