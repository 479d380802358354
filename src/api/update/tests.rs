//! Small changes to a healthy pod.

use serde_json::{Value, json};

use super::*;

fn pod() -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u", "generation": 4},
        "spec": {
            "activeDeadlineSeconds": 100,
            "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}],
            "initContainers": [
                {"name": "first", "image": "busybox:1", "resources": {"requests": {"cpu": "1"}}},
                {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"},
            ],
            "containers": [{
                "name": "app", "image": "nginx:1",
                "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}},
            }],
            "ephemeralContainers": [{"name": "debug-1", "image": "busybox:1"}],
        },
    })
}

fn read(value: Value) -> Pod {
    let mut pod: Pod = serde_json::from_value(value).unwrap();
    set_pod_defaults(&mut pod);
    pod
}

/// The healthy pod with the value at a JSON pointer's place replaced (null: taken away). A pointer that does not begin
/// with `/` is into the resources of the container.
fn with(changes: &[(&str, Value)]) -> Pod {
    let mut pod = pod();
    for (pointer, value) in changes {
        let pointer = match pointer.starts_with('/') {
            true => (*pointer).to_owned(),
            false => format!("/spec/containers/0/resources/{pointer}"),
        };
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match pod.pointer_mut(parent).unwrap() {
            Value::Array(list) if key == "-" => list.push(value.clone()),
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
            Value::Object(fields) if value.is_null() => drop(fields.remove(key)),
            place => place[key] = value.clone(),
        }
    }
    read(pod)
}

#[track_caller]
fn case(scope: Scope, sentence: &str, changes: &[(&str, Value)], expected: &[&str]) {
    let found = validate_update(&read(pod()), &with(changes), scope).err().unwrap_or_default();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), expected.len(), "{sentence}: {found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected) || found.contains(expected), "{sentence}: {found}");
    }
}

#[test]
fn a_pod_may_change_in_few_fields() {
    let case = |sentence: &str, changes: &[(&str, Value)], expected: &[&str]| {
        case(Scope::Pod, sentence, changes, expected);
    };
    case("nothing", &[], &[]);
    case("labels", &[("/metadata/labels", json!({"a": "b"}))], &[]);
    case("an image", &[("/spec/containers/0/image", json!("nginx:2"))], &[]);
    case("an init container's image", &[("/spec/initContainers/1/image", json!("proxy:2"))], &[]);
    case("a nearer deadline", &[("/spec/activeDeadlineSeconds", json!(50))], &[]);
    case(
        "a later deadline",
        &[("/spec/activeDeadlineSeconds", json!(101))],
        &["spec.activeDeadlineSeconds: Invalid value: 101: must be less than or equal to previous value"],
    );
    case(
        "no deadline any more",
        &[("/spec/activeDeadlineSeconds", Value::Null)],
        &["must not update from a positive integer to nil value"],
    );
    case("one more toleration", &[("/spec/tolerations/-", json!({"operator": "Exists"}))], &[]);
    case("a toleration that lasts longer", &[("/spec/tolerations/0/tolerationSeconds", json!(9))], &[]);
    case(
        "another toleration",
        &[("/spec/tolerations/0/key", json!("b"))],
        &["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"],
    );
    case("another UID", &[("/metadata/uid", json!("v"))], &["metadata.uid: Invalid value: \"v\": field is immutable"]);
    case(
        "no name of an image",
        &[("/spec/containers/0/image", json!(" nginx:2"))],
        &["spec.containers[0].image: Invalid value: \" nginx:2\": must not have leading or trailing whitespace"],
    );
    let forbidden = |path: &str| format!("(changed: {path})");
    for (sentence, pointer, value, path) in [
        ("a command", "/spec/containers/0/command", json!(["x"]), "spec.containers[0].command"),
        ("the host's network", "/spec/hostNetwork", json!(true), "spec.hostNetwork"),
        ("one more container", "/spec/containers/-", json!({"name": "b", "image": "b"}), "spec.containers"),
        (
            "less CPU",
            "/spec/containers/0/resources/requests/cpu",
            json!("1m"),
            "spec.containers[0].resources.requests.cpu",
        ),
        ("a grace period", "/spec/terminationGracePeriodSeconds", json!(1), "spec.terminationGracePeriodSeconds"),
        (
            "one more ephemeral container",
            "/spec/ephemeralContainers/-",
            json!({"name": "e", "image": "e"}),
            "spec.ephemeralContainers",
        ),
    ] {
        case(sentence, &[(pointer, value)], &[&forbidden(path)]);
    }
}

#[test]
fn a_grace_period_below_zero_may_become_one() {
    let old = with(&[("/spec/terminationGracePeriodSeconds", json!(-5))]);
    let new = |seconds: i64| with(&[("/spec/terminationGracePeriodSeconds", json!(seconds))]);
    assert_eq!(validate_update(&old, &new(1), Scope::Pod), Ok(()));
    assert!(validate_update(&old, &new(2), Scope::Pod).is_err());
}

#[test]
fn ephemeral_containers_are_only_added() {
    let case = |sentence: &str, changes: &[(&str, Value)], expected: &[&str]| {
        case(Scope::EphemeralContainers, sentence, changes, expected);
    };
    let further = json!({"name": "debug-2", "image": "busybox:1", "targetContainerName": "app"});
    case("one more", &[("/spec/ephemeralContainers/-", further.clone())], &[]);
    case("none any more", &[("/spec/ephemeralContainers", json!([]))], &["\"debug-1\" may not be removed"]);
    case(
        "another image",
        &[("/spec/ephemeralContainers/0/image", json!("x"))],
        &["existing ephemeral containers \"debug-1\" may not be changed"],
    );
    case(
        "an image of a container",
        &[("/spec/containers/0/image", json!("nginx:2"))],
        &["fields other than `spec.ephemeralContainers` (changed: spec.containers[0].image)"],
    );
    for (sentence, field, value, expected) in [
        ("a name that is taken", "name", json!("app"), "spec.ephemeralContainers[1].name: Duplicate value: \"app\""),
        ("a target that is not there", "targetContainerName", json!("x"), "targetContainerName: Not found: \"x\""),
        ("ports", "ports", json!([{"containerPort": 1}]), "ports: Forbidden: cannot be set for an Ephemeral Container"),
        (
            "a volume that is not there",
            "volumeMounts",
            json!([{"name": "x", "mountPath": "/x"}]),
            "volumeMounts[0].name: Not found",
        ),
    ] {
        let mut container = further.clone();
        container[field] = value;
        case(sentence, &[("/spec/ephemeralContainers/-", container)], &[expected]);
    }
}

#[test]
fn an_ephemeral_container_has_no_ports_resources_probes_hooks_or_policies() {
    let probe = json!({"tcpSocket": {"port": 1}});
    for (field, value) in [
        ("ports", json!([{"containerPort": 1}])),
        ("resources", json!({"limits": {"cpu": "1"}})),
        ("livenessProbe", probe.clone()),
        ("readinessProbe", probe.clone()),
        ("startupProbe", probe),
        ("lifecycle", json!({"preStop": {"exec": {"command": ["true"]}}})),
        ("resizePolicy", json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}])),
        ("restartPolicy", json!("Always")),
        ("restartPolicyRules", json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}])),
    ] {
        let container = json!({"name": "debug-2", "image": "busybox:1", field: value});
        let expected =
            format!("spec.ephemeralContainers[1].{field}: Forbidden: cannot be set for an Ephemeral Container");
        case(Scope::EphemeralContainers, field, &[("/spec/ephemeralContainers/-", container)], &[&expected]);
    }
    for field in ["subPath", "subPathExpr"] {
        let changes = [
            ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}])),
            (
                "/spec/ephemeralContainers/-",
                json!({"name": "debug-2", "image": "busybox:1", "volumeMounts": [{"name": "v", "mountPath": "/v", field: "x"}]}),
            ),
        ];
        let expected = format!("volumeMounts[0].{field}: Forbidden: cannot be set for an Ephemeral Container");
        let (volumes, added) = (&changes[0], &changes[1]);
        let old = with(std::slice::from_ref(volumes));
        let new = with(&[volumes.clone(), added.clone()]);
        let errors = validate_update(&old, &new, Scope::EphemeralContainers).unwrap_err();
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(matches!(&*errors, [error] if error.contains(&expected)), "{errors:?}");
    }
}

#[test]
fn a_resize_changes_cpu_and_memory_alone() {
    let case = |sentence: &str, changes: &[(&str, Value)], expected: &[&str]| {
        case(Scope::Resize, sentence, changes, expected);
    };
    case("more CPU", &[("limits/cpu", json!("2")), ("requests/cpu", json!("700m"))], &[]);
    case("less memory", &[("limits/memory", json!("64Mi"))], &[]);
    case("the same in other words", &[("limits/cpu", json!("1000m"))], &[]);
    case(
        "a policy",
        &[("/spec/containers/0/resizePolicy", json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]))],
        &[],
    );
    case("a sidecar's request", &[("/spec/initContainers/1/resources", json!({"requests": {"cpu": "5m"}}))], &[]);
    case(
        "a plain init container's request",
        &[("/spec/initContainers/0/resources/requests/cpu", json!("2"))],
        &["resources for non-sidecar init containers are immutable"],
    );
    case(
        "a request above its limit",
        &[("requests/cpu", json!("3"))],
        &["must be less than or equal to cpu limit of 1"],
    );
    case(
        "no request",
        &[("requests", json!({"memory": "64Mi"})), ("limits", json!({"memory": "128Mi"}))],
        &[
            "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
            "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed",
        ],
    );
    case(
        "local storage",
        &[("limits/ephemeral-storage", json!("1Gi"))],
        &["spec: Forbidden: only cpu and memory resources are mutable"],
    );
    case("an image", &[("/spec/containers/0/image", json!("x"))], &["only cpu and memory resources are mutable"]);
    case(
        "another name",
        &[("/spec/containers/0/name", json!("x"))],
        &["containers may not be renamed or reordered on resize"],
    );
}

#[test]
fn a_resize_keeps_the_class() {
    let both = |amount: &str| json!({"cpu": amount, "memory": "1Gi"});
    let pod = |requests: &str| {
        read(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"containers": [
            {"name": "app", "image": "a:1", "resources": {"requests": both(requests), "limits": both("2")}}]}}))
    };
    let errors = validate_update(&pod("1"), &pod("2"), Scope::Resize).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing"
    );
}

#[test]
fn a_source_may_use_all_doors_at_once() {
    let changes = [
        // Its default pull policy is another.
        ("/spec/containers/0/image", json!("nginx:latest")),
        ("limits/cpu", json!("2")),
        ("/spec/ephemeralContainers/-", json!({"name": "e", "image": "e"})),
    ];
    case(Scope::Any, "all", &changes, &[]);
    case(
        Scope::Any,
        "a command",
        &[("/spec/containers/0/command", json!(["x"]))],
        &["a pod with the same UID may differ"],
    );
}

#[test]
fn the_generation_counts_specs() {
    let old = read(pod());
    assert_eq!(next_generation(&old, &with(&[("/metadata/labels", json!({"a": "b"}))])), 4);
    assert_eq!(next_generation(&old, &with(&[("/spec/containers/0/image", json!("x"))])), 5);
    assert_eq!(next_generation(&Pod::default(), &old), 2);
}

#[test]
fn a_change_is_laid_over_what_is_there() {
    let old = read(pod());
    let amount = |name: &str, amount: &str| BTreeMap::from([(name.to_owned(), ApiQuantity(amount.to_owned()))]);
    let resize = Resize { container: Some("app".to_owned()), limits: amount("cpu", "2"), ..Resize::default() };
    let new = Change::Resize(resize).apply(&old).unwrap();
    let resources = serde_json::to_value(&new.spec.unwrap().containers[0].resources).unwrap();
    assert_eq!(
        resources,
        json!({"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": "2", "memory": "128Mi"}})
    );
    let missing = Resize { container: Some("x".to_owned()), ..Resize::default() };
    assert_eq!(Change::Resize(missing).apply(&old).unwrap_err().to_string(), "spec.containers: Not found: \"x\"");
    let debug = EphemeralContainer { name: "e".to_owned(), image: Some("e".to_owned()), ..Default::default() };
    let new = Change::Debug(Box::new(debug)).apply(&old).unwrap();
    let added = &new.spec.unwrap().ephemeral_containers.unwrap()[1];
    assert_eq!((added.name.as_str(), added.image_pull_policy.as_deref()), ("e", Some("Always")));
}
