//! Which persistent volume belongs to which claim, kept durably: the same answer before and after a restart.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::PersistentVolume;
use serde::{Deserialize, Serialize};

use crate::{
    api::objects::Objects,
    pod::{
        admission::NodeFacts,
        claims::{Binding, Bindings, Claim, Unbound, volume_of},
    },
    store::durable::{self, StoreError},
};

/// Version of the file.
const VERSION: u32 = 1;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Book {
    version: u32,
    bindings: Bindings,
}

/// Why a claim has no volume.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// None fits, or is free.
    #[error(transparent)]
    Unbound(#[from] Unbound),
    /// What was decided before cannot be read, or cannot be written.
    #[error("the record of bound volumes")]
    Store(#[from] StoreError),
    /// A newer agent wrote it.
    #[error("{path} has version {found}; this program knows {VERSION}")]
    Newer {
        /// The record.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// The bindings of this node.
pub struct Claims {
    path: PathBuf,
    /// Read when it is first needed; held over the disk write.
    book: Mutex<Option<Book>>,
}

impl Claims {
    /// Those recorded in the file `path`.
    pub fn new(path: PathBuf) -> Claims {
        Claims { path, book: Mutex::default() }
    }

    /// The volume of `claim`; from now on it is that. Blocking.
    pub fn bind(
        &self,
        claim: &Claim<'_>,
        objects: &Objects,
        node: &NodeFacts,
    ) -> Result<Arc<PersistentVolume>, ClaimError> {
        self.update(|bindings| {
            let volume = volume_of(claim, objects, bindings, node)?;
            let name = volume.metadata.name.clone().unwrap_or_default();
            let binding = Binding {
                namespace: claim.namespace.to_owned(),
                claim: claim.name.to_owned(),
                owner: claim.owner.map(str::to_owned),
                released: false,
            };
            let changed = bindings.get(&name) != Some(&binding);
            bindings.insert(name, binding);
            Ok((volume, changed))
        })
    }

    /// Names of the volumes that a pod's own claims have, or had. Blocking.
    pub fn owned_by(&self, uid: &str) -> Result<Vec<String>, ClaimError> {
        self.update(|bindings| {
            let owned = bindings.iter().filter(|(_, binding)| binding.owner.as_deref() == Some(uid));
            Ok((owned.map(|(name, _)| name.clone()).collect(), false))
        })
    }

    /// The claim of a volume is gone. Nobody else gets the volume, unless it is `clean` again. Blocking.
    pub fn release(&self, volume: &str, clean: bool) -> Result<(), ClaimError> {
        self.update(|bindings| {
            let changed = match bindings.get_mut(volume) {
                Some(_) if clean => bindings.remove(volume).is_some(),
                Some(binding) => !std::mem::replace(&mut binding.released, true),
                None => false,
            };
            Ok(((), changed))
        })
    }

    /// Reads, decides, and writes when something `changed`: on disk first.
    fn update<T>(&self, decide: impl FnOnce(&mut Bindings) -> Result<(T, bool), ClaimError>) -> Result<T, ClaimError> {
        let mut known = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let mut book = match &*known {
            Some(book) => book.clone(),
            None => self.read()?,
        };
        let (result, changed) = decide(&mut book.bindings)?;
        if changed {
            book.version = VERSION;
            durable::write_json(&self.path, &book)?;
        }
        *known = Some(book);
        Ok(result)
    }

    fn read(&self) -> Result<Book, ClaimError> {
        let book: Book = durable::read_json(&self.path)?.unwrap_or_default();
        match book.version > VERSION {
            true => Err(ClaimError::Newer { path: self.path.clone(), found: book.version }),
            false => Ok(book),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn objects() -> Objects {
        let volume = |name: &str| {
            let spec =
                json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "local": {"path": "/x"}});
            let volume = json!({"metadata": {"name": name}, "spec": spec});
            ((String::new(), name.to_owned()), Arc::new(serde_json::from_value(volume).unwrap()))
        };
        Objects { persistent_volumes: ["a", "b"].map(volume).into(), ..Objects::default() }
    }

    fn bind(claims: &Claims, name: &str, owner: Option<&str>) -> Result<String, String> {
        let spec = serde_json::from_value(json!({"accessModes": ["ReadWriteOnce"]})).unwrap();
        let claim = Claim { namespace: "n", name, owner, spec: &spec, annotated_class: None };
        let bound = claims.bind(&claim, &objects(), &NodeFacts::default());
        bound.map(|volume| volume.metadata.name.clone().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_claim_keeps_its_volume_over_a_restart_and_a_released_one_is_nobodys() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("claims.json");
        let claims = Claims::new(path.clone());
        assert_eq!(bind(&claims, "first", None), Ok("a".to_owned()));
        assert_eq!(bind(&claims, "own", Some("u1")), Ok("b".to_owned()));
        assert!(bind(&claims, "third", None).is_err());
        let again = Claims::new(path.clone());
        assert_eq!(bind(&again, "own", Some("u1")), Ok("b".to_owned()));
        assert_eq!(bind(&again, "first", None), Ok("a".to_owned()));
        assert_eq!(again.owned_by("u1").unwrap(), ["b"]);
        again.release("b", false).unwrap();
        assert!(bind(&again, "own", Some("u2")).is_err(), "what the first one wrote is still on it");
        again.release("b", true).unwrap();
        assert_eq!(bind(&Claims::new(path), "own", Some("u2")), Ok("b".to_owned()));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("claims.json");
        for text in ["{\"version\": 1, \"bind", "{\"version\": 2, \"bindings\": {}}"] {
            fs::write(&path, text).unwrap();
            assert!(bind(&Claims::new(path.clone()), "first", None).is_err(), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
