use std::{collections::BTreeMap, path::Path, time::Duration};

use proptest::prelude::*;
use serde_json::json;

use super::{embedded::Embedded, *};

fn open(directory: &Path) -> Embedded {
    Embedded::open(&directory.join("store.redb")).unwrap()
}

fn document(number: u64) -> Document {
    Document::from_value(&json!({ "number": number }))
}

fn number(document: &Document) -> u64 {
    document.value()["number"].as_u64().unwrap()
}

async fn put(store: &Embedded, key: &str, expected: Expected, content: u64) -> Result<u64, WriteError> {
    store.write(key.to_owned(), expected, Write::Put(document(content))).await
}

fn range(prefix: &str) -> Range {
    Range { prefix: prefix.to_owned(), ..Range::default() }
}

fn names(page: &Page) -> Vec<(&str, u64)> {
    page.entries.iter().map(|entry| (entry.key.as_str(), number(&entry.document))).collect()
}

/// Waits for a watch, ten seconds at most.
async fn next(watch: &mut Box<dyn Watch>) -> Vec<Arc<Change>> {
    tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("changes in time").unwrap()
}

#[tokio::test]
async fn a_write_happens_only_where_what_it_expects_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let first = put(&store, "a/x", Expected::Absent, 1).await.unwrap();
    assert!(
        matches!(put(&store, "a/x", Expected::Absent, 2).await, Err(WriteError::Conflict(Some(at))) if at == first)
    );
    let second = put(&store, "a/x", Expected::Revision(first), 2).await.unwrap();
    assert_eq!(second, first + 1, "a write that does not happen takes no revision");
    for stale in [first, second + 1] {
        let result = store.write("a/x".to_owned(), Expected::Revision(stale), Write::Delete).await;
        assert!(matches!(result, Err(WriteError::Conflict(Some(at))) if at == second));
    }
    assert!(matches!(put(&store, "a/y", Expected::Revision(1), 1).await, Err(WriteError::Conflict(None))));
    let entry = store.get("a/x").await.unwrap().unwrap();
    assert_eq!((number(&entry.document), entry.revision), (2, second));
    store.write("a/x".to_owned(), Expected::Revision(second), Write::Delete).await.unwrap();
    assert!(store.get("a/x").await.unwrap().is_none());
}

#[tokio::test]
async fn a_list_goes_on_as_it_began_whatever_happens_in_between() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let mut revisions = Vec::new();
    for (index, key) in ["p/a", "p/b", "p/c", "p/d", "q/a"].into_iter().enumerate() {
        revisions.push(put(&store, key, Expected::Absent, index as u64).await.unwrap());
    }
    let first = store.list(Range { limit: 2, count: true, ..range("p/") }).await.unwrap();
    assert_eq!((names(&first), first.remaining), (vec![("p/a", 0), ("p/b", 1)], Some(2)));
    put(&store, "p/d", Expected::Revision(revisions[3]), 9).await.unwrap();
    store.write("p/c".to_owned(), Expected::Revision(revisions[2]), Write::Delete).await.unwrap();
    put(&store, "p/bb", Expected::Absent, 7).await.unwrap();
    let rest = Range { start: first.next.clone().unwrap(), revision: Some(first.revision), ..range("p/") };
    let second = store.list(rest.clone()).await.unwrap();
    assert_eq!((names(&second), second.next.as_deref()), (vec![("p/c", 2), ("p/d", 3)], None));
    assert_eq!(names(&store.list(range("p/")).await.unwrap()), [("p/a", 0), ("p/b", 1), ("p/bb", 7), ("p/d", 9)]);

    store.compact(store.revision()).await.unwrap();
    assert!(matches!(store.list(rest).await, Err(StorageError::Compacted { .. })));
    assert_eq!(names(&store.list(range("p/")).await.unwrap()).len(), 4);
    let future = Range { revision: Some(store.revision() + 1), ..range("p/") };
    assert!(matches!(store.list(future).await, Err(StorageError::Future { .. })));
}

#[tokio::test]
async fn a_watch_sees_each_change_once_and_what_was_there_before() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let mut watch = store.watch("p/".to_owned(), store.revision());
    assert_eq!(watch.position(), Some(store.revision()));
    let created = put(&store, "p/a", Expected::Absent, 1).await.unwrap();
    assert_eq!(watch.position(), None, "a change waits");
    put(&store, "q/a", Expected::Absent, 5).await.unwrap();
    let changes = next(&mut watch).await;
    assert_eq!(changes.len(), 1);
    assert!(changes[0].previous.is_none() && changes[0].revision == created);
    assert_eq!(watch.position(), Some(store.revision()), "what concerns others is passed over");
    store.write("p/a".to_owned(), Expected::Revision(created), Write::Delete).await.unwrap();
    let changes = next(&mut watch).await;
    assert!(changes[0].document.is_none());
    assert_eq!(number(changes[0].previous.as_ref().unwrap()), 1);
}

#[tokio::test]
async fn a_watch_that_is_older_than_memory_reads_the_database_until_the_history_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let start = {
        let store = open(directory.path());
        let start = store.revision();
        let mut at = put(&store, "p/a", Expected::Absent, 0).await.unwrap();
        for content in 1..40 {
            at = put(&store, "p/a", Expected::Revision(at), content).await.unwrap();
        }
        start
    };
    // Opened again, nothing is in memory.
    let store = open(directory.path());
    let mut watch = store.watch("p/".to_owned(), start);
    let mut seen = Vec::new();
    while seen.len() < 40 {
        seen.extend(next(&mut watch).await.iter().map(|change| number(change.document.as_ref().unwrap())));
    }
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
    store.compact(store.revision()).await.unwrap();
    let mut late = store.watch("p/".to_owned(), start);
    assert!(matches!(late.next().await, Err(StorageError::Compacted { .. })));
    let latest = put(&store, "p/b", Expected::Absent, 1).await.unwrap();
    assert_eq!(next(&mut watch).await[0].revision, latest, "one that is up to date does not notice");
}

#[tokio::test]
async fn writes_at_once_are_all_answered_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(directory.path()));
    let tasks: Vec<_> = (0..200)
        .map(|index| {
            let store = store.clone();
            tokio::spawn(async move { put(&store, &format!("p/{index}"), Expected::Absent, index).await.unwrap() })
        })
        .collect();
    let mut revisions = Vec::new();
    for task in tasks {
        revisions.push(task.await.unwrap());
    }
    revisions.sort_unstable();
    assert_eq!(revisions, (2..202).collect::<Vec<_>>());
    assert_eq!(store.list(range("p/")).await.unwrap().entries.len(), 200);
}

#[test]
fn one_process_has_the_store_and_another_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let path = directory.path().join("store.redb");
    assert!(matches!(Embedded::open(&path), Err(embedded::OpenError::Open { .. })));
    drop(store);
    let database = redb::Database::create(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(tables::NUMBERS).unwrap().insert(tables::FORMAT, 2).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(matches!(Embedded::open(&path), Err(embedded::OpenError::Format { found: 2, .. })));
    std::fs::write(&path, "nonsense").unwrap();
    assert!(Embedded::open(&path).is_err());
}

/// What somebody does to the store.
#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Update(u8),
    Delete(u8),
    Stale(u8),
    Compact(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6u8).prop_map(Step::Create),
        6 => (0..6u8).prop_map(Step::Update),
        2 => (0..6u8).prop_map(Step::Delete),
        1 => (0..6u8).prop_map(Step::Stale),
        1 => (0..20u8).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

/// The state at a revision: content and revision of each key.
type State = BTreeMap<String, (u64, u64)>;

/// What the store ought to be: every state there has been.
#[derive(Default)]
struct Model {
    states: BTreeMap<u64, State>,
    current: State,
    compacted: u64,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_what_the_model_says(steps in prop::collection::vec(step(), 1..40), limit in 0..4usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let mut store = open(directory.path());
            let mut model = Model { compacted: 1, ..Model::default() };
            model.states.insert(1, State::new());
            for (index, step) in steps.into_iter().enumerate() {
                let content = index as u64;
                let key = |number: u8| format!("{}/{}", if number.is_multiple_of(2) { "p" } else { "q" }, number);
                match step {
                    Step::Create(number) => {
                        let result = put(&store, &key(number), Expected::Absent, content).await;
                        prop_assert_eq!(result.is_ok(), !model.current.contains_key(&key(number)));
                        if let Ok(revision) = result {
                            model.current.insert(key(number), (content, revision));
                        }
                    }
                    Step::Update(number) | Step::Delete(number) => {
                        let Some((_, at)) = model.current.get(&key(number)).copied() else { continue };
                        let deleted = matches!(step, Step::Delete(_));
                        let write = if deleted { Write::Delete } else { Write::Put(document(content)) };
                        let revision = store.write(key(number), Expected::Revision(at), write).await.unwrap();
                        if deleted {
                            model.current.remove(&key(number));
                        } else {
                            model.current.insert(key(number), (content, revision));
                        }
                    }
                    Step::Stale(number) => {
                        let at = model.current.get(&key(number)).map(|(_, at)| at - 1).unwrap_or(1);
                        prop_assert!(put(&store, &key(number), Expected::Revision(at), content).await.is_err());
                    }
                    Step::Compact(back) => {
                        let to = store.revision().saturating_sub(u64::from(back)).max(1);
                        store.compact(to).await.unwrap();
                        model.compacted = model.compacted.max(to);
                    }
                    Step::Reopen => {
                        drop(store);
                        store = open(directory.path());
                    }
                }
                model.states.insert(store.revision(), model.current.clone());
            }
            check(&store, &model, limit).await
        })?;
    }
}

/// Every state that is still there is as it was, page by page, and every watch leads to what is now.
async fn check(store: &Embedded, model: &Model, limit: usize) -> Result<(), TestCaseError> {
    for (revision, state) in &model.states {
        for prefix in ["p/", "q/"] {
            let expected: Vec<_> = state.iter().filter(|(key, _)| key.starts_with(prefix)).collect();
            let mut found = Vec::new();
            let mut asked = Range { revision: Some(*revision), limit, count: true, ..range(prefix) };
            if *revision < model.compacted {
                let gone = matches!(store.list(asked).await, Err(StorageError::Compacted { .. }));
                prop_assert!(gone, "revision {} is given up", revision);
                continue;
            }
            loop {
                let page = store.list(asked.clone()).await.unwrap();
                prop_assert!(limit == 0 || page.entries.len() <= limit);
                found.extend(page.entries);
                let left = expected.len() - found.len();
                prop_assert_eq!(page.remaining, (left > 0).then_some(left as u64));
                let Some(next) = page.next else { break };
                asked.start = next;
            }
            let found: Vec<_> =
                found.iter().map(|entry| (&entry.key, (number(&entry.document), entry.revision))).collect();
            let expected: Vec<_> = expected.into_iter().map(|(key, what)| (key, *what)).collect();
            prop_assert_eq!(found, expected);

            let mut watched: State = state.clone().into_iter().filter(|(key, _)| key.starts_with(prefix)).collect();
            let wanted: State = model.current.clone().into_iter().filter(|(key, _)| key.starts_with(prefix)).collect();
            let mut watch = store.watch(prefix.to_owned(), *revision);
            let mut last = *revision;
            while watched != wanted {
                for change in next(&mut watch).await {
                    prop_assert!(change.revision > last);
                    last = change.revision;
                    let before = watched.get(&change.key).map(|(content, _)| *content);
                    prop_assert_eq!(before, change.previous.as_ref().map(number));
                    match &change.document {
                        Some(document) => watched.insert(change.key.clone(), (number(document), change.revision)),
                        None => watched.remove(&change.key),
                    };
                }
            }
        }
    }
    Ok(())
}
