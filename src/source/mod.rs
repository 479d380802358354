//! Where pods, and the objects they refer to, come from: manifests in a directory ([`mod@file`]) and behind a URL
//! ([`http`]).
//!
//! A source publishes its whole set whenever it changes; the latest set is all that counts. Nothing is published before
//! the source has been read once, which is how a restarted agent knows that "not wanted" is not merely "not read yet".
//!
//! Bad input loses nothing: a pod whose manifest has become unreadable or invalid is still wanted as it last was, and
//! the manifest is reported as a problem. Only a manifest, or a pod in it, that is really gone is wanted no more.
//! (Upstream drops the pods of such a manifest when its agent restarts.)

use std::sync::Arc;

use tokio::sync::watch;

pub use crate::pod::desired::{SourceId, SourceUpdate, SourcedPod};

mod content;
pub mod file;
pub mod http;
mod scan;
mod watcher;

/// The latest set of a source; `None` until it has been read once.
pub type Updates = watch::Receiver<Option<Arc<SourceUpdate>>>;

/// The sending side of [`Updates`], which keeps quiet when nothing has changed.
pub(crate) struct Publisher(watch::Sender<Option<Arc<SourceUpdate>>>);

impl Publisher {
    pub(crate) fn new() -> (Publisher, Updates) {
        let (sender, receiver) = watch::channel(None);
        (Publisher(sender), receiver)
    }

    /// Publishes a set unless it is the one that was published last.
    pub(crate) fn publish(&self, update: SourceUpdate) {
        self.0.send_if_modified(|latest| {
            if latest.as_deref().is_some_and(|latest| same(latest, &update)) {
                return false;
            }
            *latest = Some(Arc::new(update));
            true
        });
    }
}

/// What did not change is the same allocation, so this does not look into it.
fn same(one: &SourceUpdate, other: &SourceUpdate) -> bool {
    fn all_same<T>(one: &[Arc<T>], other: &[Arc<T>]) -> bool {
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
    }
    all_same(&one.pods, &other.pods)
        && all_same(&one.objects, &other.objects)
        && one.problems == other.problems
        && one.unusable == other.unusable
        && one.incomplete == other.incomplete
}
