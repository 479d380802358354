//! How documents and their history lie in the database. Every version of a document is kept until the history before a
//! later one is given up, as in etcd: a list can be continued at its revision, and a watch taken up again after a restart.

use redb::{AccessGuard, ReadTransaction, ReadableTable, TableDefinition};

use super::{Change, Document, Entry, Page, Range, StorageError};

/// Every version of every document: by key and the revision that wrote it. Empty: removed by that revision.
pub const VALUES: TableDefinition<(&str, u64), &[u8]> = TableDefinition::new("values");
/// What each revision did: the key, and the revision before (0: there was nothing).
pub const LOG: TableDefinition<u64, (&str, u64)> = TableDefinition::new("log");
/// Single numbers.
pub const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
/// The latest revision.
pub const REVISION: &str = "revision";
/// The history reaches back to this revision.
pub const COMPACTED: &str = "compacted";
/// How the tables are laid out.
pub const FORMAT: &str = "format";

/// Wraps an error of the database.
pub fn failed<E: Into<redb::Error>>(step: &'static str) -> impl FnOnce(E) -> StorageError {
    move |error| StorageError::Backend { step, source: std::sync::Arc::new(error.into()) }
}

/// The version of `key` that was current at `revision`, with its own.
pub fn version_at(
    values: &impl ReadableTable<(&'static str, u64), &'static [u8]>,
    key: &str,
    revision: u64,
) -> Result<Option<(u64, Document)>, StorageError> {
    let mut range = values.range((key, 0)..=(key, revision)).map_err(failed("read"))?;
    let Some(found) = range.next_back().transpose().map_err(failed("read"))? else { return Ok(None) };
    let (key, value) = found;
    Ok((!value.value().is_empty()).then(|| (key.value().1, Document::from_bytes(value.value()))))
}

/// Reads what `key` is now.
pub fn get(read: &ReadTransaction, key: &str) -> Result<Option<Entry>, StorageError> {
    let values = read.open_table(VALUES).map_err(failed("read"))?;
    let found = version_at(&values, key, u64::MAX)?;
    Ok(found.map(|(revision, document)| Entry { key: key.to_owned(), revision, document }))
}

/// Reads a number that has always been there.
pub fn number(read: &ReadTransaction, name: &str) -> Result<u64, StorageError> {
    let numbers = read.open_table(NUMBERS).map_err(failed("read"))?;
    Ok(numbers.get(name).map_err(failed("read"))?.map_or(0, |number| number.value()))
}

type Row<'r> = (AccessGuard<'r, (&'static str, u64)>, AccessGuard<'r, &'static [u8]>);

/// Reads a page.
pub fn list(read: &ReadTransaction, range: &Range) -> Result<Page, StorageError> {
    let latest = number(read, REVISION)?;
    let oldest = number(read, COMPACTED)?;
    let revision = match range.revision {
        Some(asked) if asked > latest => return Err(StorageError::Future { asked, latest }),
        Some(asked) if asked < oldest => return Err(StorageError::Compacted { asked, oldest }),
        Some(asked) => asked,
        None => latest,
    };
    let values = read.open_table(VALUES).map_err(failed("read"))?;
    let start = if range.start.as_str() < range.prefix.as_str() { &range.prefix } else { &range.start };
    let mut page = Page { entries: Vec::new(), revision, next: None, remaining: None };
    let mut beyond = 0;
    let full = |page: &Page| range.limit != 0 && page.entries.len() >= range.limit;
    // The latest version so far of the key that is being looked at.
    let mut candidate: Option<Row<'_>> = None;
    let mut rows = values.range((start.as_str(), 0)..).map_err(failed("read"))?;
    loop {
        let row = rows.next().transpose().map_err(failed("read"))?;
        let row = row.filter(|(key, _)| key.value().0.starts_with(&range.prefix));
        let same = match (&row, &candidate) {
            (Some((key, _)), Some((before, _))) => key.value().0 == before.value().0,
            _ => false,
        };
        if !same && let Some((key, value)) = candidate.take() {
            let (name, written) = key.value();
            if value.value().is_empty() {
                // Removed by then.
            } else if !full(&page) {
                let document = Document::from_bytes(value.value());
                page.entries.push(Entry { key: name.to_owned(), revision: written, document });
            } else {
                page.next.get_or_insert_with(|| name.to_owned());
                beyond += 1;
                if !range.count {
                    break;
                }
            }
        }
        let Some(row) = row else { break };
        if row.0.value().1 <= revision {
            candidate = Some(row);
        }
    }
    page.remaining = range.count.then_some(beyond).filter(|beyond| *beyond > 0);
    Ok(page)
}

/// Most revisions that are looked at in one go.
const CHUNK: usize = 512;

/// Changes below `prefix` after a revision, and the revision up to which they are all there are.
pub fn changes(read: &ReadTransaction, prefix: &str, after: u64) -> Result<(Vec<Change>, u64), StorageError> {
    let oldest = number(read, COMPACTED)?;
    if after < oldest {
        return Err(StorageError::Compacted { asked: after, oldest });
    }
    let log = read.open_table(LOG).map_err(failed("read"))?;
    let values = read.open_table(VALUES).map_err(failed("read"))?;
    let mut found = Vec::new();
    let mut position = after;
    for row in log.range(after + 1..).map_err(failed("read"))?.take(CHUNK) {
        let (revision, what) = row.map_err(failed("read"))?;
        let (revision, (key, before)) = (revision.value(), what.value());
        position = revision;
        if key.starts_with(prefix) {
            let previous = if before == 0 { None } else { version_at(&values, key, before)?.map(|(_, found)| found) };
            let document = version_at(&values, key, revision)?.map(|(_, found)| found);
            found.push(Change { key: key.to_owned(), revision, document, previous });
        }
    }
    Ok((found, position))
}
