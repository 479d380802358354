//! Where variables come from, in which order, and what is said when they do not.

use serde_json::{Value, json};

use super::*;
use crate::{
    api::object::{Object, ObjectKind},
    runtime::downward::Allocatable,
};

fn objects() -> Objects {
    let object = |kind, value: Value| Object::decode(kind, &value, "").object.unwrap();
    let named = |name: &str| json!({"name": name, "namespace": "prod"});
    [
        object(
            ObjectKind::ConfigMap,
            json!({"metadata": named("settings"), "data": {"color": "blue", "log.level": "info"}, "binaryData": {"b": "AA=="}}),
        ),
        object(ObjectKind::Secret, json!({"metadata": named("login"), "data": {"user": "bWU=", "nul": "AA==", "raw": "/w=="}})),
        object(ObjectKind::Secret, json!({"metadata": named("text"), "data": {"color": "cmVk", "password": "eA=="}})),
        object(
            ObjectKind::Service,
            json!({"metadata": named("db"), "spec": {"clusterIP": "10.0.0.9", "ports": [{"port": 5432}]}}),
        ),
    ]
    .into_iter()
    .collect()
}

/// What the init container wrote.
fn file(volume: &str, path: &Path) -> Result<Option<Vec<u8>>, String> {
    match (volume, path.to_str()) {
        ("made", Some("good")) => Ok(Some(b"A='from file'\nEMPTY=''\n".to_vec())),
        ("made", Some("bad")) => Ok(Some(b"A=1\n".to_vec())),
        ("made", _) => Ok(None),
        _ => Err("the volume is not set up".to_owned()),
    }
}

fn resolve_container(container: Value, spec: Value) -> Result<PodEnv, ConfigError> {
    let mut container = container;
    container["name"] = json!("app");
    container["resources"] = json!({"limits": {"memory": "1Mi"}});
    let mut spec = spec;
    spec["containers"] = json!([container]);
    let metadata = json!({"name": "web", "namespace": "prod"});
    let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
    let allocatable = Allocatable::default();
    let surroundings = Surroundings { node_name: "n", pod_ips: &[], host_ips: &[], allocatable: &allocatable };
    let objects = objects();
    let sources = EnvSources { objects: &objects, read_file: &file };
    pod_env(&pod, ContainerRef::find(&pod, "app").unwrap(), &surroundings, &sources)
}

/// Without services.
fn resolve(env: Value) -> Result<PodEnv, ConfigError> {
    resolve_container(json!({"env": env}), json!({"enableServiceLinks": false}))
}

fn lines(env: &PodEnv) -> Vec<String> {
    env.variables.iter().map(|(name, value)| format!("{name}={value}")).collect()
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
    assert_eq!(lines(&env), ["A=12", "B=1$(C)$(A)", "C=3", "NAME=web", "MEMORY=1048576", "EMPTY="]);
}

#[test]
fn keys_of_objects_and_files_become_variables() {
    let env = resolve(json!([
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "USER", "valueFrom": {"secretKeyRef": {"name": "login", "key": "user"}}},
        {"name": "FILE", "valueFrom": {"fileKeyRef": {"volumeName": "made", "path": "good", "key": "A"}}},
        {"name": "NOTHING", "valueFrom": {"fileKeyRef": {"volumeName": "made", "path": "good", "key": "EMPTY"}}},
        {"name": "ALL", "value": "$(COLOR) $(USER) $(FILE)"},
    ]))
    .unwrap();
    assert_eq!(lines(&env), ["COLOR=blue", "USER=me", "FILE=from file", "NOTHING=", "ALL=blue me from file"]);
}

#[test]
fn what_is_optional_and_missing_leaves_what_was_there() {
    let missing = [
        json!({"configMapKeyRef": {"name": "none", "key": "k", "optional": true}}),
        json!({"configMapKeyRef": {"name": "settings", "key": "none", "optional": true}}),
        // The binary part of a config map is for volumes only.
        json!({"configMapKeyRef": {"name": "settings", "key": "b", "optional": true}}),
        json!({"secretKeyRef": {"name": "none", "key": "k", "optional": true}}),
        json!({"secretKeyRef": {"name": "login", "key": "none", "optional": true}}),
        json!({"fileKeyRef": {"volumeName": "made", "path": "none", "key": "A", "optional": true}}),
        json!({"fileKeyRef": {"volumeName": "made", "path": "good", "key": "Z", "optional": true}}),
    ];
    for source in missing {
        let env = resolve(
            json!([{"name": "A", "value": "before"}, {"name": "A", "valueFrom": source}, {"name": "B", "valueFrom": source}]),
        );
        assert_eq!(lines(&env.unwrap()), ["A=before"], "{source}");
    }
}

#[test]
fn what_is_missing_is_said_in_upstreams_words() {
    for (source, message) in [
        (json!({"configMapKeyRef": {"name": "none", "key": "k"}}), "configmap \"none\" not found"),
        (
            json!({"configMapKeyRef": {"name": "settings", "key": "k"}}),
            "couldn't find key k in ConfigMap prod/settings",
        ),
        (json!({"secretKeyRef": {"name": "none", "key": "k", "optional": false}}), "secret \"none\" not found"),
        (json!({"secretKeyRef": {"name": "login", "key": "k"}}), "couldn't find key k in Secret prod/login"),
        (
            json!({"fileKeyRef": {"volumeName": "made", "path": "good", "key": "Z"}}),
            "environment variable key \"Z\" not found in file \"good\"",
        ),
        (
            json!({"fileKeyRef": {"volumeName": "made", "path": "none", "key": "Z"}}),
            "couldn't parse env file \"none\" of volume \"made\": there is no such file",
        ),
        (
            json!({"fileKeyRef": {"volumeName": "made", "path": "bad", "key": "Z", "optional": true}}),
            "couldn't parse env file \"bad\" of volume \"made\": invalid environment variable format at line 1: value must be enclosed in single quotes",
        ),
        (
            json!({"fileKeyRef": {"volumeName": "other", "path": "x", "key": "Z", "optional": true}}),
            "couldn't parse env file \"x\" of volume \"other\": the volume is not set up",
        ),
        (
            json!({"secretKeyRef": {"name": "login", "key": "raw"}}),
            "spec.containers[0].env[0].valueFrom: the value is not valid UTF-8 and cannot be a variable",
        ),
        (
            json!({"secretKeyRef": {"name": "login", "key": "nul"}}),
            "spec.containers[0].env[0]: cannot be part of an environment",
        ),
    ] {
        let error = resolve(json!([{"name": "A", "valueFrom": source}])).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.reason.to_string(), "CreateContainerConfigError");
    }
    for (source, message) in [
        (json!({"configMapRef": {"name": "none"}}), "configmap \"none\" not found"),
        (json!({"secretRef": {"name": "none"}}), "secret \"none\" not found"),
        (json!({"secretRef": {"name": "login"}}), "spec.containers[0].envFrom[0]: cannot be part of an environment"),
    ] {
        let error = resolve_container(json!({"envFrom": [source]}), json!({})).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn services_are_overridden_by_env_from_and_that_by_env() {
    let container = json!({
        "envFrom": [
            {"configMapRef": {"name": "settings"}},
            {"secretRef": {"name": "text"}},
            {"configMapRef": {"name": "settings"}, "prefix": "DB_SERVICE_HOST."},
            {"secretRef": {"name": "none", "optional": true}},
        ],
        "env": [
            {"name": "DB_SERVICE_PORT", "value": "1$(DB_SERVICE_PORT)"},
            {"name": "password", "value": "$(color)"},
        ],
    });
    let env = resolve_container(container, json!({})).unwrap();
    for (name, value) in [
        ("DB_SERVICE_HOST", "10.0.0.9"),
        ("DB_SERVICE_PORT", "15432"),
        ("color", "red"),
        ("log.level", "info"),
        ("DB_SERVICE_HOST.color", "blue"),
        ("password", "red"),
    ] {
        assert_eq!(env.get(name), Some(value), "{name}");
    }
}

#[test]
fn what_cannot_be_resolved_names_its_field() {
    let path = json!([{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "spec"}}}]);
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
