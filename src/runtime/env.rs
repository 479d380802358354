//! The environment of a container.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::{
    config_error::ConfigError,
    container_ref::ContainerRef,
    downward::{self, Surroundings},
    expansion::expand,
};

/// What is searched for executables when neither image nor pod says so.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables the pod's manifest gives to a container: resolved, each name once (the last one wins, in the place of
/// the first). References in command, args and subPathExpr are looked up here, not in the image's environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodEnv(Vec<(String, String)>);

impl PodEnv {
    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        set(&mut self.0, name, value);
    }
}

/// Sets a variable in place, or adds it.
fn set(env: &mut Vec<(String, String)>, name: &str, value: String) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => env.push((name.to_owned(), value)),
    }
}

/// Resolves `env` of a container. A variable may refer to those before it.
pub fn pod_env(pod: &Pod, container: ContainerRef<'_>, surroundings: &Surroundings<'_>) -> Result<PodEnv, ConfigError> {
    let path = container.path();
    if !container.env_from().is_empty() {
        return Err(ConfigError::config(format!("{path}.envFrom"), "config maps and secrets are not supported yet"));
    }
    let mut env = PodEnv::default();
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
                    let message = "only fieldRef and resourceFieldRef are supported yet";
                    return Err(ConfigError::config(field(".valueFrom"), message));
                }
            }
            (value, _) => expand(value, |name| env.get(name)),
        };
        if variable.name.is_empty() || variable.name.contains(['=', '\0']) || value.contains('\0') {
            return Err(ConfigError::config(field(""), "cannot be part of an environment"));
        }
        env.set(&variable.name, value);
    }
    Ok(env)
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
    let pod = pod.0.iter().map(|(name, value)| (name.as_str(), value.as_str()));
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
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::runtime::downward::Allocatable;

    fn resolve(env: Value) -> Result<PodEnv, ConfigError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "prod"},
            "spec": {"containers": [{"name": "app", "env": env, "resources": {"limits": {"memory": "1Mi"}}}]},
        }))
        .unwrap();
        let allocatable = Allocatable::default();
        let surroundings = Surroundings { node_name: "n", pod_ips: &[], host_ips: &[], allocatable: &allocatable };
        pod_env(&pod, ContainerRef::find(&pod, "app").unwrap(), &surroundings)
    }

    #[test]
    fn a_variable_sees_those_before_it() {
        let env = resolve(json!([
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)$(C)$$(A)"},
            {"name": "C", "value": "3"},
            {"name": "A", "value": "$(A)2"},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
            {"name": "EMPTY"},
        ]))
        .unwrap();
        let expected =
            [("A", "12"), ("B", "1$(C)$(A)"), ("C", "3"), ("NAME", "web"), ("MEMORY", "1048576"), ("EMPTY", "")];
        assert_eq!(env.0, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_cannot_be_resolved_names_its_field() {
        let secret = json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
        assert_eq!(resolve(secret).unwrap_err().field, "spec.containers[0].env[0].valueFrom");
        let path =
            json!([{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "spec"}}}]);
        assert_eq!(resolve(path).unwrap_err().field, "spec.containers[0].env[1].valueFrom.fieldRef.fieldPath");
        let nul = json!([{"name": "A", "value": "a\0b"}]);
        assert_eq!(resolve(nul).unwrap_err().field, "spec.containers[0].env[0]");
    }

    #[test]
    fn the_pod_overrides_the_image_and_the_image_the_defaults() {
        let pod = resolve(json!([{"name": "LANG", "value": "de"}, {"name": "NEW", "value": "1"}])).unwrap();
        let image = ["PATH=/bin", "LANG=C", "HOSTNAME=image", "broken", "=x", "A=b=c"].map(str::to_owned);
        let env = environment(&image, &pod, "web", true);
        let expected =
            [("PATH", "/bin"), ("TERM", "xterm"), ("HOSTNAME", "image"), ("LANG", "de"), ("A", "b=c"), ("NEW", "1")];
        assert_eq!(env, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let bare = environment(&[], &PodEnv::default(), "web", false);
        let expected = [("PATH", DEFAULT_PATH), ("HOSTNAME", "web")];
        assert_eq!(bare, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
