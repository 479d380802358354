//! The store in this program: a redb database, one thread that writes, and the recent history in memory.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use futures_util::future::BoxFuture;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};
use tokio::sync::{mpsc, oneshot};

use super::{
    Entry, Expected, Page, Range, Storage, StorageError, Watch, Write, WriteError,
    history::History,
    tables::{self, COMPACTED, FORMAT, LOG, NUMBERS, REVISION, VALUES, failed},
    watcher::Watcher,
    writer::{self, Request},
};

/// Pages of the database in memory; the kernel's own cache does the rest.
const CACHE: usize = 8 << 20;
/// Writes that may wait; who comes later waits to wait.
const QUEUE: usize = 256;
/// How the tables are laid out.
const VERSION: u64 = 1;

/// The store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is none of ours, in use, or unreadable.
    #[error("open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: redb::DatabaseError,
    },
    /// It was opened and could not be made ready.
    #[error("set up {path}")]
    SetUp {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: StorageError,
    },
    /// It was written by a later version of berth.
    #[error("{path} has format {found}, this program knows {VERSION}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// No thread.
    #[error("start the thread that writes")]
    Thread(#[source] std::io::Error),
}

/// What the store's parts share.
pub struct Shared {
    pub(super) database: Database,
    pub(super) history: History,
}

/// See the module. Dropping it ends the thread when all that was asked for is durable.
pub struct Embedded {
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Embedded {
    /// Opens the store in `path`, or makes it. One process at a time may have it open.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path) -> Result<Embedded, OpenError> {
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create(path)
            .map_err(|source| OpenError::Open { path: path.to_owned(), source })?;
        let set_up = |source| OpenError::SetUp { path: path.to_owned(), source };
        let (format, revision, compacted) = prepare(&database).map_err(set_up)?;
        if format != VERSION {
            return Err(OpenError::Format { path: path.to_owned(), found: format });
        }
        let shared = Arc::new(Shared { database, history: History::new(revision, compacted) });
        let (requests, receiver) = mpsc::channel(QUEUE);
        let writer = thread::Builder::new().name("berth-store".to_owned());
        let own = shared.clone();
        let writer = writer.spawn(move || writer::run(&own, receiver)).map_err(OpenError::Thread)?;
        Ok(Embedded { shared, requests: Some(requests), writer: Some(writer) })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, StorageError> {
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(StorageError::Closed)?;
        requests.send(request(answer)).await.map_err(|_| StorageError::Closed)?;
        answered.await.map_err(|_| StorageError::Closed)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            // It panicked: everything it was asked for since was answered with Closed.
            let _ = writer.join();
        }
    }
}

/// Makes the tables, and reads format, revision and start of the history.
fn prepare(database: &Database) -> Result<(u64, u64, u64), StorageError> {
    let transaction = database.begin_write().map_err(failed("begin a write to"))?;
    let numbers = {
        transaction.open_table(VALUES).map_err(failed("write"))?;
        transaction.open_table(LOG).map_err(failed("write"))?;
        let mut numbers = transaction.open_table(NUMBERS).map_err(failed("write"))?;
        let mut number = |name: &str, default: u64| -> Result<u64, StorageError> {
            let found = numbers.get(name).map_err(failed("read"))?.map(|number| number.value());
            if found.is_none() {
                numbers.insert(name, default).map_err(failed("write"))?;
            }
            Ok(found.unwrap_or(default))
        };
        // Revision 0 means "none" to clients, so that the first is 1.
        (number(FORMAT, VERSION)?, number(REVISION, 1)?, number(COMPACTED, 1)?)
    };
    transaction.commit().map_err(failed("commit a write to"))?;
    Ok(numbers)
}

/// Reads on a thread that may block.
pub(super) async fn read<T: Send + 'static>(
    shared: &Arc<Shared>,
    what: impl FnOnce(&ReadTransaction) -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    let shared = shared.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let read = shared.database.begin_read().map_err(failed("begin to read"))?;
        what(&read)
    });
    // Only a runtime that is being shut down cancels what blocks.
    reading.await.map_err(|_| StorageError::Closed)?
}

impl Storage for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StorageError>> {
        let key = key.to_owned();
        Box::pin(async move { read(&self.shared, move |read| tables::get(read, &key)).await })
    }

    fn list(&self, range: Range) -> BoxFuture<'_, Result<Page, StorageError>> {
        Box::pin(async move { read(&self.shared, move |read| tables::list(read, &range)).await })
    }

    fn write(&self, key: String, expected: Expected, write: Write) -> BoxFuture<'_, Result<u64, WriteError>> {
        Box::pin(async move { self.ask(|answer| Request::Write { key, expected, write, answer }).await? })
    }

    fn watch(&self, prefix: String, after: u64) -> Box<dyn Watch> {
        Box::new(Watcher::new(self.shared.clone(), prefix, after))
    }

    fn revision(&self) -> u64 {
        self.shared.history.revision()
    }

    fn reached(&self, revision: u64) -> BoxFuture<'_, ()> {
        let mut head = self.shared.history.subscribe();
        Box::pin(async move {
            // The sender lives as long as the store, which is borrowed.
            let _ = head.wait_for(|head| *head >= revision).await;
        })
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async move { self.ask(|answer| Request::Compact { revision, answer }).await? })
    }
}
