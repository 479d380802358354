//! The drivers of this node: those whose registration socket is there.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, time::Instant};

use super::{
    PLUGIN,
    client::{Client, TIMEOUT},
};
use crate::plugin::{Handler, Plugin, Registering};

/// The kind of plugin drivers say they are.
pub const KIND: &str = "CSIPlugin";

/// A driver that can be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// Its socket.
    pub endpoint: PathBuf,
    /// The newest version that both sides know.
    pub version: Version,
}

/// Major, minor and patch.
pub type Version = (u32, u32, u32);

/// No such driver has registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("driver name {0} not found in the list of registered CSI drivers")]
pub struct NotRegistered(String);

/// All drivers.
#[derive(Debug, Default)]
pub struct Drivers {
    known: Mutex<BTreeMap<String, Driver>>,
    /// How often one has been taken up.
    registered: watch::Sender<u64>,
}

impl Drivers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Driver>> {
        // Every critical section is a read or one assignment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver called `name`.
    pub fn get(&self, name: &str) -> Result<Driver, NotRegistered> {
        self.lock().get(name).cloned().ok_or_else(|| NotRegistered(name.to_owned()))
    }

    /// Changes whenever a driver has been taken up: what failed for want of one is worth another try.
    pub fn registered(&self) -> watch::Receiver<u64> {
        self.registered.subscribe()
    }

    /// Upstream's `validateVersions`.
    fn version(&self, caller: &str, plugin: &Plugin) -> Result<Version, String> {
        let Plugin { name, versions, .. } = plugin;
        let failed = |why: String| format!("{PLUGIN}: {caller} for CSI driver {name:?} failed. {why}");
        if versions.is_empty() {
            return Err(failed("Plugin returned an empty list for supported versions".to_owned()));
        }
        let version = highest(versions).map_err(|error| {
            failed(format!("None of the versions specified {versions:?} are supported. err={error}"))
        })?;
        match self.lock().get(name) {
            Some(other) if other.version >= version => {
                let (major, minor, patch) = other.version;
                Err(failed(format!(
                    "Another driver with the same name is already registered with a higher supported version: \
                     \"{major}.{minor}.{patch}\""
                )))
            }
            _ => Ok(version),
        }
    }
}

/// The newest of the versions that this program knows: all of 0.x and 1.x.
fn highest(versions: &[String]) -> Result<Version, String> {
    let mut error = String::new();
    let mut found: Option<Version> = None;
    for text in versions {
        match parse(text) {
            Some(version) if version.0 > 1 => {
                error = format!("unsupported version {text:?}: only 0.x and 1.x are known");
            }
            Some(version) => found = found.max(Some(version)),
            None => error = format!("could not parse {text:?} as version"),
        }
    }
    found.ok_or(error)
}

/// `1.5.0`, `v1.5`, `1.0.0-rc2`.
fn parse(text: &str) -> Option<Version> {
    let text = text.trim().trim_start_matches('v');
    let numbers = text.split(['-', '+']).next().unwrap_or_default();
    let mut parts = numbers.split('.').map(|part| part.parse::<u32>().ok());
    Some((parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?))
}

impl Handler for Arc<Drivers> {
    fn validate(&self, plugin: &Plugin) -> Result<(), String> {
        let Plugin { name, endpoint, .. } = plugin;
        self.version("ValidatePlugin", plugin).map(drop).map_err(|error| {
            format!("validation failed for CSI Driver {name} at endpoint {}: {error}", endpoint.display())
        })
    }

    fn register(&self, plugin: Plugin) -> Registering<'_> {
        Box::pin(async move {
            let version = self.version("RegisterPlugin", &plugin)?;
            // A driver that does not know this node cannot be used on it.
            let client = Client::at(&plugin.endpoint, Instant::now() + TIMEOUT).await;
            let client = client.map_err(|error| error.to_string())?;
            let node = client.info().await.map_err(|error| error.to_string())?;
            if node.node_id.is_empty() {
                return Err(format!("error updating CSI driver info: driver {:?} has no node ID", plugin.name));
            }
            tracing::info!(driver = plugin.name, node = node.node_id, "CSI driver registered");
            self.lock().insert(plugin.name, Driver { endpoint: plugin.endpoint, version });
            self.registered.send_modify(|count| *count += 1);
            Ok(())
        })
    }

    fn deregister(&self, plugin: &Plugin) {
        let mut known = self.lock();
        if known.get(&plugin.name).is_some_and(|driver| driver.endpoint == plugin.endpoint) {
            known.remove(&plugin.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_is_known_counts() {
        let of = |versions: &[&str]| highest(&versions.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["1.0.0"]), Ok((1, 0, 0)));
        assert_eq!(of(&["0.3.0", "v1.9", "2.0.0"]), Ok((1, 9, 0)));
        assert_eq!(of(&["1.0.0-rc2", "nonsense"]), Ok((1, 0, 0)));
        assert!(of(&["2.0.0"]).unwrap_err().contains("2.0.0"));
        assert!(of(&["one"]).unwrap_err().contains("could not parse"));
    }

    #[test]
    fn two_drivers_of_one_name_are_one_too_many() {
        let drivers = Arc::new(Drivers::default());
        let plugin = |version: &str| Plugin {
            name: "d.example".to_owned(),
            endpoint: "/run/d.sock".into(),
            versions: vec![version.to_owned()],
        };
        drivers.lock().insert("d.example".to_owned(), Driver { endpoint: "/run/d.sock".into(), version: (1, 0, 0) });
        let error = drivers.validate(&plugin("1.0.0")).unwrap_err();
        assert!(error.contains("already registered with a higher supported version: \"1.0.0\""), "{error}");
        assert_eq!(drivers.validate(&plugin("1.1.0")), Ok(()));
        let nothing = Plugin { versions: Vec::new(), ..plugin("") };
        assert!(drivers.validate(&nothing).unwrap_err().contains("empty list for supported versions"));
        drivers.deregister(&Plugin { endpoint: "/run/other.sock".into(), ..plugin("1.0.0") });
        assert!(drivers.get("d.example").is_ok(), "another one has gone");
        drivers.deregister(&plugin("1.0.0"));
        assert_eq!(
            drivers.get("d.example").unwrap_err().to_string(),
            "driver name d.example not found in the list of registered CSI drivers"
        );
    }
}
