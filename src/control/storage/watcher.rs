//! A watch: a position in the history.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::{
    Change, StorageError, Watch,
    embedded::{Shared, read},
    history::Look,
    tables,
};

/// A watch of the embedded store.
pub struct Watcher {
    shared: Arc<Shared>,
    prefix: Arc<str>,
    after: u64,
    notify: Arc<Notify>,
}

impl Watcher {
    /// Follows what is below `prefix` from the revision after `after` on.
    pub fn new(shared: Arc<Shared>, prefix: String, after: u64) -> Watcher {
        let notify = shared.history.wait(&prefix);
        Watcher { shared, prefix: prefix.into(), after, notify }
    }

    async fn wait(&mut self) -> Result<Vec<Arc<Change>>, StorageError> {
        loop {
            match self.shared.history.look(&self.prefix, self.after) {
                Look::Found(changes, position) => {
                    self.after = position;
                    return Ok(changes);
                }
                Look::Nothing(position) => {
                    self.after = position;
                    // What came since the look has left a permit.
                    self.notify.notified().await;
                }
                Look::Gone(oldest) => return Err(StorageError::Compacted { asked: self.after, oldest }),
                Look::OnDisk => {
                    let (prefix, after) = (self.prefix.clone(), self.after);
                    let (changes, position) =
                        read(&self.shared, move |read| tables::changes(read, &prefix, after)).await?;
                    self.after = position;
                    if !changes.is_empty() {
                        return Ok(changes.into_iter().map(Arc::new).collect());
                    }
                }
            }
        }
    }
}

impl Watch for Watcher {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Arc<Change>>, StorageError>> {
        Box::pin(self.wait())
    }

    fn position(&mut self) -> Option<u64> {
        match self.shared.history.look(&self.prefix, self.after) {
            Look::Nothing(position) => {
                self.after = position;
                Some(position)
            }
            Look::Found(..) | Look::OnDisk | Look::Gone(_) => None,
        }
    }
}
