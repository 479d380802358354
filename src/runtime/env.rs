//! The environment of a container.

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::{
    ByteString,
    api::core::v1::{EnvVarSource, FileKeySelector, Pod},
};

use super::{
    config_error::ConfigError,
    container_ref::ContainerRef,
    downward::{self, Surroundings},
    env_file,
    expansion::expand,
    service_env::service_variables,
};
use crate::api::objects::{Objects, find};

/// What is searched for executables when neither image nor pod says so.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables the pod gives to a container: resolved, each name once (the last one wins, in the place of the first).
/// References in command, args and subPathExpr are looked up here, not in the image's environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodEnv {
    variables: Vec<(String, String)>,
    /// Where each name stands in `variables`: a namespace of services makes for a long list.
    places: BTreeMap<String, usize>,
}

impl PodEnv {
    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|place| self.variables[*place].1.as_str())
    }

    /// Sets a variable in place, or adds it.
    fn set(&mut self, name: &str, value: String) {
        match self.places.get(name) {
            Some(place) => self.variables[*place].1 = value,
            None => {
                self.places.insert(name.to_owned(), self.variables.len());
                self.variables.push((name.to_owned(), value));
            }
        }
    }
}

/// Reads a file of a volume of the pod, given the volume's name and the path beneath its root; `Ok(None)` if there is no
/// such file, else why it cannot be read.
pub type ReadVolumeFile<'a> = &'a dyn Fn(&str, &Path) -> Result<Option<Vec<u8>>, String>;

/// Where variables come from that are not in the pod.
#[derive(Clone, Copy)]
pub struct EnvSources<'a> {
    /// ConfigMaps, Secrets and Services.
    pub objects: &'a Objects,
    /// Files that containers of the pod wrote.
    pub read_file: ReadVolumeFile<'a>,
}

/// Resolves the variables of a container: those of services, over them `envFrom`, over them `env`. A variable may refer
/// to any that were set before it.
pub fn pod_env(
    pod: &Pod,
    container: ContainerRef<'_>,
    surroundings: &Surroundings<'_>,
    sources: &EnvSources<'_>,
) -> Result<PodEnv, ConfigError> {
    let path = container.path();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let lookup = Lookup { namespace, sources };
    let mut env = PodEnv::default();
    // Without a word about it they are there, as an API server would have written.
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
    for (name, value) in service_variables(&sources.objects.services, namespace, links) {
        env.set(&name, value);
    }
    for (index, source) in container.env_from().iter().enumerate() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        for (key, value) in lookup.all(source)? {
            let field = format!("{path}.envFrom[{index}]");
            let value = value.text().map_err(|problem| ConfigError::config(&field, format!("key {key}: {problem}")))?;
            let name = format!("{prefix}{key}");
            check(&name, &value, || field)?;
            env.set(&name, value);
        }
    }
    for (index, variable) in container.env().iter().enumerate() {
        let field = |rest: &str| format!("{path}.env[{index}]{rest}");
        let from = variable.value_from.as_ref();
        let value = match (variable.value.as_deref().unwrap_or_default(), from) {
            ("", Some(source)) => {
                if let Some(selector) = &source.field_ref {
                    downward::field(pod, surroundings, &selector.field_path)
                        .map_err(|message| ConfigError::config(field(".valueFrom.fieldRef.fieldPath"), message))?
                } else if let Some(selector) = &source.resource_field_ref {
                    downward::resource(pod, container, surroundings, selector)
                        .map_err(|message| ConfigError::config(field(".valueFrom.resourceFieldRef"), message))?
                } else {
                    match lookup.one(source)? {
                        Some(value) => {
                            value.text().map_err(|problem| ConfigError::config(field(".valueFrom"), problem))?
                        }
                        // Optional and not there: what was set before stays.
                        None => continue,
                    }
                }
            }
            (value, _) => expand(value, |name| env.get(name)),
        };
        check(&variable.name, &value, || field(""))?;
        env.set(&variable.name, value);
    }
    Ok(env)
}

/// What the kernel's form of an environment cannot hold is refused.
fn check(name: &str, value: &str, field: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
        return Err(ConfigError::config(field(), "cannot be part of an environment"));
    }
    Ok(())
}

/// The value of a key.
enum Found<'o> {
    Text(&'o str),
    Bytes(&'o [u8]),
    Owned(String),
}

impl Found<'_> {
    fn text(self) -> Result<String, &'static str> {
        match self {
            Found::Text(text) => Ok(text.to_owned()),
            Found::Bytes(bytes) => {
                String::from_utf8(bytes.to_owned()).map_err(|_| "the value is not valid UTF-8 and cannot be a variable")
            }
            Found::Owned(text) => Ok(text),
        }
    }
}

/// Looks up what is not in the pod. Errors are in upstream's words, which name the object and need no field.
struct Lookup<'a> {
    namespace: &'a str,
    sources: &'a EnvSources<'a>,
}

impl<'a> Lookup<'a> {
    /// All keys of what an envFrom refers to, with their values; nothing if it is optional and not there.
    fn all(
        &self,
        source: &k8s_openapi::api::core::v1::EnvFromSource,
    ) -> Result<Vec<(&'a str, Found<'a>)>, ConfigError> {
        let objects = self.sources.objects;
        if let Some(reference) = &source.config_map_ref {
            let Some(map) = find(&objects.config_maps, self.namespace, &reference.name) else {
                return missing(reference.optional, || format!("configmap {:?} not found", reference.name))
                    .map(|()| Vec::new());
            };
            let data = map.data.iter().flatten();
            return Ok(data.map(|(key, value)| (key.as_str(), Found::Text(value))).collect());
        }
        let Some(reference) = &source.secret_ref else { return Ok(Vec::new()) };
        let Some(secret) = find(&objects.secrets, self.namespace, &reference.name) else {
            return missing(reference.optional, || format!("secret {:?} not found", reference.name))
                .map(|()| Vec::new());
        };
        let data = secret.data.iter().flatten();
        Ok(data.map(|(key, ByteString(value))| (key.as_str(), Found::Bytes(value))).collect())
    }

    /// What a valueFrom refers to; `None` if it is optional and not there.
    fn one(&self, source: &EnvVarSource) -> Result<Option<Found<'a>>, ConfigError> {
        let objects = self.sources.objects;
        let namespace = self.namespace;
        if let Some(reference) = &source.config_map_key_ref {
            let (name, key) = (&reference.name, &reference.key);
            let Some(map) = find(&objects.config_maps, namespace, name) else {
                return missing(reference.optional, || format!("configmap {name:?} not found")).map(|()| None);
            };
            let value = map.data.as_ref().and_then(|data| data.get(key));
            if value.is_none() {
                missing(reference.optional, || format!("couldn't find key {key} in ConfigMap {namespace}/{name}"))?;
            }
            return Ok(value.map(|value| Found::Text(value)));
        }
        if let Some(reference) = &source.secret_key_ref {
            let (name, key) = (&reference.name, &reference.key);
            let Some(secret) = find(&objects.secrets, namespace, name) else {
                return missing(reference.optional, || format!("secret {name:?} not found")).map(|()| None);
            };
            let value = secret.data.as_ref().and_then(|data| data.get(key));
            if value.is_none() {
                missing(reference.optional, || format!("couldn't find key {key} in Secret {namespace}/{name}"))?;
            }
            return Ok(value.map(|ByteString(value)| Found::Bytes(value)));
        }
        match &source.file_key_ref {
            Some(reference) => self.in_file(reference).map(|value| value.map(Found::Owned)),
            None => Ok(None),
        }
    }

    fn in_file(&self, reference: &FileKeySelector) -> Result<Option<String>, ConfigError> {
        let FileKeySelector { key, optional, path, volume_name } = reference;
        let unusable = |problem: String| {
            let message = format!("couldn't parse env file {path:?} of volume {volume_name:?}: {problem}");
            ConfigError::missing(message)
        };
        let file = (self.sources.read_file)(volume_name, Path::new(path)).map_err(unusable)?;
        let value = match file {
            Some(file) => env_file::value(&file, key).map_err(|error| unusable(error.to_string()))?,
            None if *optional == Some(true) => None,
            None => return Err(unusable("there is no such file".to_owned())),
        };
        if value.is_none() {
            missing(*optional, || format!("environment variable key {key:?} not found in file {path:?}"))?;
        }
        Ok(value)
    }
}

/// Ok if what is missing is optional.
fn missing(optional: Option<bool>, message: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if optional == Some(true) { Ok(()) } else { Err(ConfigError::missing(message())) }
}

/// The whole environment. Each source overrides those before it: PATH, TERM (with a terminal) and HOSTNAME as every
/// runtime sets them, the image, the pod.
pub fn environment(image: &[String], pod: &PodEnv, hostname: &str, tty: bool) -> Vec<(String, String)> {
    let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
    if tty {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    env.push(("HOSTNAME".to_owned(), hostname.to_owned()));
    // Most variables come once: an index keeps a long list from being searched for each of them.
    let mut places: BTreeMap<String, usize> =
        env.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect();
    let image = image.iter().filter_map(|line| line.split_once('='));
    let pod = pod.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in image.chain(pod) {
        // An image's variable that cannot exist is left out rather than keeping the image from running.
        if name.is_empty() || name.contains('\0') || value.contains('\0') {
            continue;
        }
        match places.get(name) {
            Some(place) => env[*place].1 = value.to_owned(),
            None => {
                places.insert(name.to_owned(), env.len());
                env.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    env
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
