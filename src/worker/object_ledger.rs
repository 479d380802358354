//! What pods refer to, kept over a restart of the agent: a pod that runs on, or is made again, sees the objects it saw,
//! also while a manifest is broken or the server of a URL does not answer, and an immutable object stays what it is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tracing::warn;

use crate::{
    api::object::{Object, ObjectKind},
    obs::chain::Chain,
    pod::{
        desired::SourceId,
        desired_objects::{DesiredObject, DesiredObjects, SourcedObject},
    },
    store::durable::{self, StoreError},
};

/// Version of `objects.json`.
const VERSION: u32 = 1;

/// `objects.json`. Mode 0600, as it holds secrets.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    objects: Vec<Entry>,
}

/// One object and where it comes from.
#[derive(Serialize, Deserialize)]
struct Entry {
    source: SourceId,
    origin: String,
    document: usize,
    kind: ObjectKind,
    object: Value,
}

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be read, or is no record.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A later agent wrote it.
    #[error("{path} has version {version}, and this agent knows {VERSION}")]
    Version {
        /// The record.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// An object in it is none.
    #[error("{path}: {kind} of {origin} cannot be read: {problem}")]
    Object {
        /// The record.
        path: PathBuf,
        /// Which kind.
        kind: ObjectKind,
        /// From where.
        origin: String,
        /// Why.
        problem: String,
    },
}

/// What was in use when the last agent wrote it down; nothing if none ever did.
pub fn read(path: &Path) -> Result<DesiredObjects, LedgerError> {
    let Some(Record { version, objects }) = durable::read_json(path)? else { return Ok(DesiredObjects::default()) };
    if version != VERSION {
        return Err(LedgerError::Version { path: path.to_owned(), version });
    }
    let mut known = BTreeMap::new();
    for Entry { source, origin, document, kind, object } in objects {
        let object = Object::decode(kind, &object, "").object.map_err(|error| LedgerError::Object {
            path: path.to_owned(),
            kind,
            origin: origin.clone(),
            problem: error.to_string(),
        })?;
        let key = object.key();
        let object = Arc::new(SourcedObject { object, origin, document });
        known.insert(key, DesiredObject { object, source });
    }
    Ok(DesiredObjects { objects: known, problems: Vec::new() })
}

/// Writes down what is in use.
pub fn write(path: &Path, desired: &DesiredObjects) -> Result<(), StoreError> {
    let entry = |DesiredObject { object, source }: &DesiredObject| Entry {
        source: *source,
        origin: object.origin.clone(),
        document: object.document,
        kind: object.object.kind(),
        object: object.object.to_value(),
    };
    durable::write_json(path, &Record { version: VERSION, objects: desired.objects.values().map(entry).collect() })
}

/// Writes down every change, the newest when there are several, until there is nobody to change anything.
pub async fn keep(path: PathBuf, mut latest: watch::Receiver<Arc<DesiredObjects>>) {
    while latest.changed().await.is_ok() {
        let (desired, path) = (latest.borrow_and_update().clone(), path.clone());
        let written = tokio::task::spawn_blocking(move || write(&path, &desired)).await;
        match written {
            Ok(Ok(())) => {}
            // What is in memory counts; the next change is another chance.
            Ok(Err(error)) => warn!("a restarted agent may miss what pods refer to: {}", Chain(&error)),
            Err(error) => warn!(%error, "writing down what pods refer to ended abnormally"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use serde_json::json;

    use super::*;

    fn desired() -> DesiredObjects {
        let metadata = json!({"name": "a", "namespace": "n", "uid": "u"});
        let all = [
            (ObjectKind::ConfigMap, json!({"metadata": metadata, "data": {"k": "v"}, "binaryData": {"b": "AP8="}})),
            (ObjectKind::Secret, json!({"metadata": metadata, "data": {"k": "/w=="}, "type": "Opaque"})),
            (ObjectKind::CsiDriver, json!({"metadata": {"name": "d"}, "spec": {}})),
        ];
        let objects = all.into_iter().map(|(kind, value)| {
            let object = Object::decode(kind, &value, "").object.unwrap();
            let sourced = SourcedObject { object, origin: "file:/m/a".to_owned(), document: 2 };
            (sourced.object.key(), DesiredObject { object: Arc::new(sourced), source: SourceId::File })
        });
        DesiredObjects { objects: objects.collect(), problems: Vec::new() }
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("objects.json");
        assert_eq!(read(&path).unwrap(), DesiredObjects::default(), "nothing was ever written");
        write(&path, &desired()).unwrap();
        assert_eq!(read(&path).unwrap(), desired());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_record_of_version_1_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("objects.json");
        let sample = r#"{"version":1,"objects":[
            {"source":"file","origin":"file:/m/a","document":2,"kind":"ConfigMap","object":{"apiVersion":"v1",
             "kind":"ConfigMap","metadata":{"name":"a","namespace":"n","uid":"u"},"data":{"k":"v"},"binaryData":{"b":"AP8="}}},
            {"source":"file","origin":"file:/m/a","document":2,"kind":"Secret","object":{"apiVersion":"v1",
             "kind":"Secret","metadata":{"name":"a","namespace":"n","uid":"u"},"data":{"k":"/w=="},"type":"Opaque"}},
            {"source":"file","origin":"file:/m/a","document":2,"kind":"CSIDriver","object":{"apiVersion":"storage.k8s.io/v1",
             "kind":"CSIDriver","metadata":{"name":"d"},"spec":{}}}]}"#;
        fs::write(&path, sample).unwrap();
        assert_eq!(read(&path).unwrap(), desired());
    }

    #[test]
    fn what_cannot_be_used_is_an_error_without_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("objects.json");
        let error = |text: &str| {
            fs::write(&path, text).unwrap();
            Chain(&read(&path).unwrap_err()).to_string()
        };
        assert!(error(r#"{"version": 2, "objects": []}"#).ends_with("has version 2, and this agent knows 1"));
        assert!(error("nonsense").contains("objects.json"));
        let secret = r#"{"version": 1, "objects": [{"source": "file", "origin": "o", "document": 0, "kind": "Secret",
            "object": {"data": {"pin": 4711}}}]}"#;
        assert!(error(secret).contains("Secret of o") && !error(secret).contains("4711"));
    }

    #[tokio::test]
    async fn the_newest_state_is_on_disk_when_the_sender_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("objects.json");
        let (sender, receiver) = watch::channel(Arc::default());
        let keeping = tokio::spawn(keep(path.clone(), receiver));
        sender.send_replace(Arc::new(DesiredObjects::default()));
        sender.send_replace(Arc::new(desired()));
        drop(sender);
        keeping.await.unwrap();
        assert_eq!(read(&path).unwrap(), desired());
    }
}
