//! The one thread that writes. Writes that come while one is made durable wait and become durable together: one sync
//! of the file for all of them.

use std::sync::Arc;

use redb::{ReadableTable, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::{
    Change, Expected, StorageError, Write, WriteError,
    embedded::Shared,
    tables::{COMPACTED, LOG, NUMBERS, REVISION, VALUES, failed, version_at},
};

/// Most writes that become durable together.
const BATCH: usize = 256;
/// Most revisions that are given up in one transaction, so that writes do not wait long.
const CHUNK: usize = 2000;

/// What the thread is asked for.
pub enum Request {
    /// One write.
    Write {
        /// Key.
        key: String,
        /// What must be there.
        expected: Expected,
        /// What to do.
        write: Write,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<u64, WriteError>>,
    },
    /// Give up the history before a revision.
    Compact {
        /// The revision.
        revision: u64,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<(), StorageError>>,
    },
}

type Answer = (oneshot::Sender<Result<u64, WriteError>>, Result<u64, WriteError>);

/// Works until nobody can ask any more.
pub fn run(shared: &Shared, mut requests: mpsc::Receiver<Request>) {
    let mut batch = Vec::new();
    while let Some(first) = requests.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH
            && let Ok(request) = requests.try_recv()
        {
            batch.push(request);
        }
        let mut writes = Vec::new();
        for request in batch.drain(..) {
            match request {
                Request::Write { key, expected, write, answer } => writes.push((key, expected, write, answer)),
                Request::Compact { revision, answer } => {
                    // Who asked may have gone; the history is shorter all the same.
                    let _ = answer.send(compact(shared, revision));
                }
            }
        }
        if !writes.is_empty() {
            write(shared, writes);
        }
    }
}

fn begin(shared: &Shared) -> Result<WriteTransaction, StorageError> {
    let mut transaction = shared.database.begin_write().map_err(failed("begin a write to"))?;
    // Opening after a crash is then a matter of milliseconds, however much is stored.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

type Writes = Vec<(String, Expected, Write, oneshot::Sender<Result<u64, WriteError>>)>;

fn write(shared: &Shared, writes: Writes) {
    let mut answers: Vec<Answer> = Vec::with_capacity(writes.len());
    let mut changes = Vec::with_capacity(writes.len());
    let result = begin(shared).and_then(|transaction| {
        let mut revision = shared.history.revision();
        for (key, expected, write, answer) in writes {
            let result = apply(&transaction, &key, expected, &write, revision + 1);
            let result = match result {
                Ok(change) => {
                    revision = change.revision;
                    changes.push(Arc::new(change));
                    Ok(revision)
                }
                Err(error) => Err(error),
            };
            let broken = matches!(result, Err(WriteError::Storage(_)));
            answers.push((answer, result));
            // A transaction of which a part failed is not committed.
            if broken && let Some((_, Err(WriteError::Storage(error)))) = answers.last() {
                return Err(error.clone());
            }
        }
        if changes.is_empty() {
            return transaction.abort().map_err(failed("abort a write to"));
        }
        {
            let mut numbers = transaction.open_table(NUMBERS).map_err(failed("write"))?;
            numbers.insert(REVISION, revision).map_err(failed("write"))?;
        }
        transaction.commit().map_err(failed("commit a write to"))
    });
    if result.is_ok() {
        shared.history.publish(changes);
    }
    for (answer, own) in answers {
        let answered = match &result {
            Ok(()) => own,
            Err(error) => Err(WriteError::Storage(error.clone())),
        };
        // Who asked may have gone.
        let _ = answer.send(answered);
    }
}

fn apply(
    transaction: &WriteTransaction,
    key: &str,
    expected: Expected,
    write: &Write,
    revision: u64,
) -> Result<Change, WriteError> {
    let mut values = transaction.open_table(VALUES).map_err(failed("write"))?;
    let current = version_at(&values, key, u64::MAX)?;
    let at = current.as_ref().map(|(revision, _)| *revision);
    let met = match expected {
        Expected::Absent => at.is_none(),
        Expected::Revision(revision) => at == Some(revision),
    };
    if !met {
        return Err(WriteError::Conflict(at));
    }
    let document = match write {
        Write::Put(document) => Some(document.clone()),
        Write::Delete => None,
    };
    let bytes = document.as_ref().map_or(&[][..], |document| document.bytes());
    values.insert((key, revision), bytes).map_err(failed("write"))?;
    let mut log = transaction.open_table(LOG).map_err(failed("write"))?;
    log.insert(revision, (key, at.unwrap_or(0))).map_err(failed("write"))?;
    Ok(Change { key: key.to_owned(), revision, document, previous: current.map(|(_, document)| document) })
}

/// Removes what only revisions before `revision` could see.
fn compact(shared: &Shared, revision: u64) -> Result<(), StorageError> {
    let revision = revision.min(shared.history.revision());
    loop {
        let transaction = begin(shared)?;
        let mut done = true;
        {
            let mut log = transaction.open_table(LOG).map_err(failed("compact"))?;
            let mut values = transaction.open_table(VALUES).map_err(failed("compact"))?;
            let mut old = Vec::new();
            for row in log.range(..=revision).map_err(failed("compact"))?.take(CHUNK) {
                let (at, what) = row.map_err(failed("compact"))?;
                let (key, before) = what.value();
                old.push((at.value(), key.to_owned(), before));
            }
            done &= old.len() < CHUNK;
            for (at, key, before) in &old {
                log.remove(at).map_err(failed("compact"))?;
                if *before != 0 {
                    values.remove((key.as_str(), *before)).map_err(failed("compact"))?;
                }
                let removed = values.get((key.as_str(), *at)).map_err(failed("compact"))?;
                if removed.is_some_and(|value| value.value().is_empty()) {
                    values.remove((key.as_str(), *at)).map_err(failed("compact"))?;
                }
            }
            let mut numbers = transaction.open_table(NUMBERS).map_err(failed("compact"))?;
            let before = numbers.get(COMPACTED).map_err(failed("compact"))?.map_or(0, |number| number.value());
            numbers.insert(COMPACTED, revision.max(before)).map_err(failed("compact"))?;
        }
        // From here on nobody may begin to read what is about to go.
        shared.history.compacted(revision);
        transaction.commit().map_err(failed("commit a compaction of"))?;
        if done {
            return Ok(());
        }
    }
}
