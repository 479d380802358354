//! CDI (Container Device Interface): names of devices, and what a container needs to use them, from specifications that
//! vendors put on the node (<https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>).

mod edits;
mod spec;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

pub use self::edits::{CdiDevice, CdiMount, Edits};
use self::spec::Spec;

/// Where specifications are, those of higher precedence last.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Why devices cannot be made available. The first line is containerd's.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// There are no such devices.
    #[error("CDI device injection failed: unresolvable CDI devices {}{}", .names.join(", "), hint(.broken))]
    Unresolvable {
        /// The names.
        names: Vec<String>,
        /// Specifications that cannot be used: the devices may be in them.
        broken: Vec<String>,
    },
    /// A device wants something that is not done here.
    #[error("CDI device injection failed: {file}: {name}: {what}")]
    Unsupported {
        /// The specification.
        file: PathBuf,
        /// The device, or the kind for what holds for all of its devices.
        name: String,
        /// What.
        what: String,
    },
    /// A directory of specifications cannot be read.
    #[error("CDI device injection failed: list {directory}")]
    List {
        /// Which.
        directory: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

fn hint(broken: &[String]) -> String {
    if broken.is_empty() { String::new() } else { format!(" (not usable: {})", broken.join("; ")) }
}

/// All that the containers of a node could be given, as of one moment.
#[derive(Debug, Default)]
struct Registry {
    specs: Vec<Spec>,
    /// By full name: which specification and which device of it. `None`: two of the same precedence have it.
    devices: BTreeMap<String, Option<(usize, usize)>>,
    broken: Vec<String>,
}

/// Works out what a container needs for the devices called `names`, from the specifications in `directories`. They are read
/// anew each time: containers with such devices are few, and what was removed must not be used.
///
/// # Errors
/// A device that does not exist, that is there twice, or that asks for what is not done here.
pub fn resolve(directories: &[PathBuf], names: &[String]) -> Result<Edits, CdiError> {
    let mut edits = Edits::default();
    if names.is_empty() {
        return Ok(edits);
    }
    let registry = Registry::read(directories)?;
    let missing: Vec<String> =
        names.iter().filter(|name| !matches!(registry.devices.get(*name), Some(Some(_)))).cloned().collect();
    if !missing.is_empty() {
        return Err(CdiError::Unresolvable { names: missing, broken: registry.broken });
    }
    let mut applied = BTreeSet::new();
    // In the order they were named, each once.
    for name in names {
        let Some(Some((spec, device))) = registry.devices.get(name).copied() else { continue };
        let spec_of_it = &registry.specs[spec];
        let unsupported = |name: &str| {
            let (file, name) = (spec_of_it.file.clone(), name.to_owned());
            move |what| CdiError::Unsupported { file, name, what }
        };
        if applied.insert((spec, None)) {
            edits.add(&spec_of_it.document.container_edits).map_err(unsupported(&spec_of_it.document.kind))?;
        }
        if applied.insert((spec, Some(device))) {
            edits.add(&spec_of_it.document.devices[device].container_edits).map_err(unsupported(name))?;
        }
    }
    Ok(edits)
}

impl Registry {
    fn read(directories: &[PathBuf]) -> Result<Registry, CdiError> {
        let mut registry = Registry::default();
        for directory in directories {
            let failed = |source| CdiError::List { directory: directory.clone(), source };
            let mut files = match list(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                listed => listed.map_err(failed)?,
            };
            files.sort();
            let mut here: BTreeMap<String, Option<(usize, usize)>> = BTreeMap::new();
            for file in files {
                match Spec::read(&file) {
                    Ok(spec) => {
                        let place = registry.specs.len();
                        for (index, name) in spec.names().enumerate() {
                            let twice = here.contains_key(&name);
                            here.insert(name, (!twice).then_some((place, index)));
                        }
                        registry.specs.push(spec);
                    }
                    Err(cause) => registry.broken.push(format!("{}: {cause}", file.display())),
                }
            }
            for (name, place) in here {
                if place.is_none() {
                    registry.broken.push(format!("{name} is in several specifications of {}", directory.display()));
                }
                registry.devices.insert(name, place);
            }
        }
        Ok(registry)
    }
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json" || extension == "yaml") {
            files.push(path);
        }
    }
    Ok(files)
}
