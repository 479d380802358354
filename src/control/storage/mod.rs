//! Where objects are kept: JSON documents by key, one revision for all, and the history that watches follow.
//!
//! [`Storage`] is as narrow as etcd's key-value and watch interfaces allow: every operation is one transaction on one
//! key, a range read at a revision, or a watch of a prefix. [`embedded`] is the implementation in this program.

pub mod compactor;
pub mod embedded;
mod history;
mod tables;
#[cfg(test)]
mod tests;
mod watcher;
mod writer;

use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use serde_json::Value;

/// A JSON document, parsed when somebody asks for what is in it. Cheap to clone.
#[derive(Clone)]
pub struct Document(Arc<Inner>);

struct Inner {
    bytes: Box<[u8]>,
    value: OnceLock<Value>,
}

impl Document {
    /// The document whose text is `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Document {
        Document(Arc::new(Inner { bytes: bytes.into(), value: OnceLock::new() }))
    }

    /// The document of a value.
    pub fn from_value(value: &Value) -> Document {
        Document(Arc::new(Inner { bytes: value.to_string().into_bytes().into(), value: OnceLock::new() }))
    }

    /// Its text.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// What is in it; kept for whoever asks next.
    pub fn value(&self) -> &Value {
        // Only what was a value is ever stored.
        self.0.value.get_or_init(|| serde_json::from_slice(&self.0.bytes).unwrap_or_default())
    }

    /// What is in it, for one who wants to change it.
    pub fn to_value(&self) -> Value {
        match self.0.value.get() {
            Some(value) => value.clone(),
            None => serde_json::from_slice(&self.0.bytes).unwrap_or_default(),
        }
    }
}

/// A document as it is at a revision.
#[derive(Clone)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// The revision that wrote it.
    pub revision: u64,
    /// Its content.
    pub document: Document,
}

/// A part of a range, as it was at one revision.
pub struct Page {
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// The revision of the whole page; what is asked for next must be asked for at the same.
    pub revision: u64,
    /// The key at which the next page starts; `None`: this was the last one.
    pub next: Option<String>,
    /// How many entries follow; only where it was asked for.
    pub remaining: Option<u64>,
}

/// Which part of a range.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// What all keys begin with.
    pub prefix: String,
    /// The first key; empty: the first of the prefix.
    pub start: String,
    /// As it was then; `None`: as it is.
    pub revision: Option<u64>,
    /// Most entries; 0: all.
    pub limit: usize,
    /// Whether to count what follows.
    pub count: bool,
}

/// What must be there for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// What that revision wrote.
    Revision(u64),
}

/// What a write does.
#[derive(Clone)]
pub enum Write {
    /// Puts this in the place of what is there.
    Put(Document),
    /// Removes what is there.
    Delete,
}

/// One key at one revision, and what was there before.
pub struct Change {
    /// The key.
    pub key: String,
    /// The revision.
    pub revision: u64,
    /// What is there now; `None`: it was removed.
    pub document: Option<Document>,
    /// What was there before; `None`: nothing.
    pub previous: Option<Document>,
}

/// A read or a watch that could not be served.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The history no longer reaches back that far.
    #[error("revision {asked} has been compacted (the oldest is {oldest})")]
    Compacted {
        /// What was asked for.
        asked: u64,
        /// From here on everything is there.
        oldest: u64,
    },
    /// There has been no such revision yet.
    #[error("revision {asked} is in the future (the latest is {latest})")]
    Future {
        /// What was asked for.
        asked: u64,
        /// The latest there is.
        latest: u64,
    },
    /// The database failed.
    #[error("{step} the store")]
    Backend {
        /// `read`, `write`, …
        step: &'static str,
        /// Cause.
        #[source]
        source: Arc<redb::Error>,
    },
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
}

/// A write that did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// Something else is there than was expected.
    #[error("the key is at revision {0:?}")]
    Conflict(Option<u64>),
    /// The store failed; whether the write happened is not known.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A watch of a prefix. Nothing is kept for it but its position: one who reads slowly falls behind, until the history
/// no longer reaches back to where it is.
pub trait Watch: Send {
    /// Waits for the next changes: at least one, in order, each once. May be dropped and called again.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] when the watch fell behind too far, or the database's own.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Arc<Change>>, StorageError>>;

    /// The revision up to which every change has been handed out, if that is certain: `None` while changes wait to be,
    /// and while the watch has still to read what is older than memory.
    fn position(&mut self) -> Option<u64>;
}

/// The store.
pub trait Storage: Send + Sync {
    /// What is at `key`.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StorageError>>;

    /// A page of a range.
    fn list(&self, range: Range) -> BoxFuture<'_, Result<Page, StorageError>>;

    /// Changes `key` if `expected` is there; durable, and seen by watches, when it returns the new revision.
    fn write(&self, key: String, expected: Expected, write: Write) -> BoxFuture<'_, Result<u64, WriteError>>;

    /// Follows every change below `prefix` after the revision.
    fn watch(&self, prefix: String, after: u64) -> Box<dyn Watch>;

    /// The latest revision.
    fn revision(&self) -> u64;

    /// Waits until the latest revision is at least this.
    fn reached(&self, revision: u64) -> BoxFuture<'_, ()>;

    /// Gives up the history before `revision`.
    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), StorageError>>;
}
